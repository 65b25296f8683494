"""How long single operations take at worst, through the kernel, beside their limits."""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import count
from pathlib import Path

from benchlib.report import align, number
from benchlib.systems import Nexus, default_nexus_ctl
from benchlib.work.base import SMALL_FILE_BYTES, read_file, write_file
from benchlib.worker import DROP_CACHES, can_drop_caches

FILES = 1000
LISTINGS = 100
UNDOS = 100
POLICY = "retention: {keep_all: 1s, interval: 1h}\n"
"""So little that pruning lets go of what was removed a moment ago."""
GARBAGE_FILES = 2000
GARBAGE_BYTES = 256 * 1024

Measure = Callable[[Path], Iterator[Callable[[], object]]]


def _write(directory: Path) -> Iterator[Callable[[], object]]:
    for path, payload in _files(directory):
        yield partial(write_file, path, payload, os.O_CREAT)


def _read(directory: Path) -> Iterator[Callable[[], object]]:
    for path, _ in _files(directory):
        read_file(path)
    for path, _ in _files(directory):
        yield partial(read_file, path)


def _read_cold(directory: Path) -> Iterator[Callable[[], object]]:
    DROP_CACHES.write_text("3")
    for path, _ in _files(directory):
        yield partial(read_file, path)


def _list(directory: Path) -> Iterator[Callable[[], object]]:
    for _ in range(LISTINGS):
        os.utime(directory / "0")  # What the kernel knew of the directory is too old.
        yield lambda: [entry.stat() for entry in os.scandir(directory)]


def _undo(directory: Path) -> Iterator[Callable[[], object]]:
    for path, payload in list(_files(directory))[:UNDOS]:
        write_file(path, payload[::-1], os.O_TRUNC)
        yield partial(write_file, f"{directory}/.nexus/control", b"undo --last 1\n", 0)


def _write_beside_gc(directory: Path) -> Iterator[Callable[[], object]]:
    """Half a gigabyte of removed files goes meanwhile, and every other one lies beside one that
    stays: gc has as much to copy."""
    garbage = directory / "garbage"
    garbage.mkdir()
    for index in range(GARBAGE_FILES):
        write_file(f"{garbage}/{index}", os.urandom(GARBAGE_BYTES), os.O_CREAT)
        if index % 2:
            os.rename(garbage / f"{index}", directory / f"kept{index}")
    shutil.rmtree(garbage)
    time.sleep(2)
    with ThreadPoolExecutor(1) as pool:
        pruning = pool.submit(_prune, directory)
        for index in count():
            if pruning.done():
                break
            yield partial(write_file, f"{directory}/beside{index}", b"x" * 4096, os.O_CREAT)
        pruning.result()


def _prune(directory: Path) -> None:
    for command in (b"prune\n", b"gc\n"):
        write_file(f"{directory}/.nexus/control", command, 0)


ROWS: dict[str, tuple[Measure, float]] = {
    "open, write 4 KiB, close": (_write, 100),
    "open, read 4 KiB, close: cached": (_read, 5),
    "open, read 4 KiB, close: caches dropped": (_read_cold, 50),
    "list 1,000 files with attributes": (_list, 50),
    "undo of one operation": (_undo, 200),
    "open, write 4 KiB, close: beside prune and gc": (_write_beside_gc, 100),
}
"""What is measured, and the limit in milliseconds that 99 of 100 keep."""


def main(argv: Sequence[str]) -> int:
    """Measure and print; the exit code is 1 where a limit was not kept."""
    parser = argparse.ArgumentParser(
        prog="scripts/bench latency",
        description="Percentiles of single operations on Nexus, through the kernel.",
    )
    parser.add_argument("--directory", type=Path, default=Path("/var/tmp"), metavar="DIR")
    parser.add_argument("--nexus-ctl", type=Path, default=default_nexus_ctl(), metavar="PATH")
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="nexus-bench-", dir=arguments.directory) as base:
        store = Path(base) / "store"
        store.mkdir()
        (store / "store.yaml").write_text(POLICY)
        system = Nexus(Path(base), arguments.nexus_ctl, store=store)
        try:
            system.start(None)
            found = {name: _times_ms(measure, system.root) for name, (measure, _) in ROWS.items()}
        finally:
            system.stop()
    print(align([("", 2), ("milliseconds", 4)], _table(found)))
    return int(any(_percentile(times, 99) > ROWS[name][1] for name, times in found.items()))


def _times_ms(measure: Measure, directory: Path) -> list[float]:
    """Return how long each took, ascending; nothing where it cannot be measured."""
    if measure is _read_cold and not can_drop_caches():
        return []
    times = []
    for action in measure(directory):
        started = time.perf_counter()
        action()
        times.append((time.perf_counter() - started) * 1e3)
    return sorted(times)


def _table(found: dict[str, list[float]]) -> list[list[str]]:
    rows = [["", "times", "median", "p99", "worst", "limit of p99"]]
    for name, times in found.items():
        figures = [_percentile(times, 50), _percentile(times, 99), _percentile(times, 100)]
        shown = [number(figure) if times else "-" for figure in figures]
        rows.append([name, f"{len(times):,}", *shown, number(ROWS[name][1])])
    return rows


def _percentile(times: list[float], percent: int) -> float:
    return times[max(0, -(-len(times) * percent // 100) - 1)] if times else 0.0


def _files(directory: Path) -> Iterator[tuple[str, bytes]]:
    for index in range(FILES):
        yield f"{directory}/{index}", (b"%d\n" % index).ljust(SMALL_FILE_BYTES, b".")
