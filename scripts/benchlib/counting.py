"""What a FUSE daemon was asked, and what it cost, seen from outside.

Requests are counted by the kernel's own tracepoint ``fuse:fuse_request_send``, filtered to one
mount, so that the daemon is not touched. It sees every request except FORGET, to which nobody
replies. Where tracefs is not to be had (no root, no tracing in the kernel), the filesystem's
own counters are read instead.

CPU time is that of the daemon's POSIX CPU clock: nanoseconds, all threads, also ended ones.
"""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Protocol

_EVENT = "events/fuse/fuse_request_send"
_INSTANCE_PREFIX = "nexus-bench-"
_OPCODE = re.compile(r" opcode (\d+) \((?:FUSE_)?(\w+)\)")
_OVERRUN = re.compile(r"^overrun: ([1-9]\d*)", re.MULTILINE)
_BUFFER_KIB = 32 * 1024
"""Of all CPUs, for each mount: a commit of 4,000 files is 100,000 requests of some 40 bytes."""


class TracingUnavailable(Exception):
    """The kernel's tracepoints cannot be used here."""


class RequestCounter(Protocol):
    how: str
    """For the report: where the counts come from."""

    def start(self) -> None: ...

    def stop(self) -> dict[str, int] | None:
        """Return requests since ``start`` by lower-case opcode; None when some were missed."""

    def close(self) -> None: ...


class Tracing:
    """The kernel's tracefs, where it is mounted, or mounted for this process only."""

    def __init__(self, private_mountpoint: Path) -> None:
        """Find or mount tracefs.

        Raises:
            TracingUnavailable: with the reason, in a few words.
        """
        if os.geteuid() != 0:
            raise TracingUnavailable("tracefs needs root")
        self._descriptor: int | None = None
        self.root = _find_tracefs() or self._mount_unseen(private_mountpoint)
        if not (self.root / _EVENT).exists():
            self.close()
            raise TracingUnavailable("this kernel has no fuse:fuse_request_send tracepoint")
        self._remove_instances_of_dead_runs()

    def counter(self, device: int) -> RequestCounter:
        """Return a counter of the mount with this ``st_dev``."""
        return _TraceCounter(self.root / "instances" / f"{_INSTANCE_PREFIX}{os.getpid()}", device)

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _mount_unseen(self, mountpoint: Path) -> Path:
        # Detached at once and reached through a descriptor: a benchmark that is killed must
        # not leave the kernel's controls below a directory that somebody then deletes.
        mountpoint.mkdir()
        command = ["mount", "-t", "tracefs", "tracefs", str(mountpoint)]
        if subprocess.run(command, capture_output=True, check=False).returncode != 0:
            raise TracingUnavailable("tracefs cannot be mounted here")
        try:
            self._descriptor = os.open(mountpoint, os.O_RDONLY | os.O_DIRECTORY)
        finally:
            subprocess.run(["umount", "--lazy", str(mountpoint)], check=True)
        mountpoint.rmdir()
        return Path("/proc/self/fd", str(self._descriptor))

    def _remove_instances_of_dead_runs(self) -> None:
        for instance in (self.root / "instances").glob(f"{_INSTANCE_PREFIX}*"):
            owner = instance.name.removeprefix(_INSTANCE_PREFIX).partition("-")[0]
            if not Path("/proc", owner).exists():
                instance.rmdir()


class _TraceCounter:
    how = "kernel tracepoint fuse:fuse_request_send"

    def __init__(self, prefix: Path, device: int) -> None:
        # An instance has buffers of its own: whoever else traces on this machine is not
        # disturbed, and does not disturb us.
        self._instance = prefix.with_name(f"{prefix.name}-{device}")
        self._instance.mkdir()
        event = self._instance / _EVENT
        (self._instance / "buffer_size_kb").write_text(str(_BUFFER_KIB // (os.cpu_count() or 1)))
        (event / "filter").write_text(f"connection == {device}")
        self._enable = event / "enable"

    def start(self) -> None:
        (self._instance / "trace").write_text("")
        self._enable.write_text("1")

    def stop(self) -> dict[str, int] | None:
        self._enable.write_text("0")
        if any(
            _OVERRUN.search(stats.read_text())
            for stats in self._instance.glob("per_cpu/cpu*/stats")
        ):
            return None
        return parse_trace((self._instance / "trace").read_text(errors="replace"))

    def close(self) -> None:
        if self._instance.exists():
            self._enable.write_text("0")
            self._instance.rmdir()


class StatusCounter:
    """Counts from text with a line ``requests_<opcode> <count>`` for each opcode.

    Reading the text costs requests itself; what two readings in a row differ by is taken off.
    """

    def __init__(self, how: str, read: Callable[[], str]) -> None:
        self.how = how
        self._read = read
        self._before: Counter[str] = Counter()
        read()  # The first reading looks up names that later ones find in the kernel's cache.
        first = parse_status(read())
        self._own_cost = parse_status(read()) - first

    def start(self) -> None:
        self._before = parse_status(self._read())

    def stop(self) -> Counter[str]:
        return parse_status(self._read()) - self._before - self._own_cost

    def close(self) -> None:
        pass


def parse_trace(trace: str) -> dict[str, int]:
    """Return requests by opcode from the text of a trace buffer."""
    return dict(Counter(match[2].lower() for match in _OPCODE.finditer(trace)))


def parse_status(status: str) -> Counter[str]:
    """Return requests by opcode from ``requests_<opcode> <count>`` lines; others are skipped."""
    counts: Counter[str] = Counter()
    for line in status.splitlines():
        key, _, value = line.partition(" ")
        if key.startswith("requests_") and value.strip().isdigit():
            counts[key.removeprefix("requests_").lower()] = int(value)
    return counts


def processes_marked(mark: str) -> list[int]:
    """Return the processes that have this string in the environment they started with."""
    wanted = mark.encode()
    found = []
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            if wanted in Path("/proc", entry, "environ").read_bytes().split(b"\0"):
                found.append(int(entry))
        except OSError:
            continue  # Ended meanwhile, or another user's.
    return found


def cpu_ns(pids: Iterable[int]) -> dict[int, int]:
    """Return the CPU time of each process that still lives; user and system together."""
    times: dict[int, int] = {}
    for pid in pids:
        try:
            # clock_getcpuclockid(3): how Linux encodes CPUCLOCK_SCHED of a process.
            times[pid] = time.clock_gettime_ns((~pid << 3) | 2)
        except OSError:
            continue
    return times


def written_bytes(pids: Iterable[int]) -> dict[int, int]:
    """Return what each process that still lives has had written to a disk, as proc(5) counts it.

    Pages are counted when they become dirty, by whoever makes them so.
    """
    return _from_proc(pids, "io", "write_bytes: ")


def peak_memory_bytes(pids: Iterable[int]) -> int:
    """Return the sum of the most that each process had in memory since it was last reset."""
    return 1024 * sum(_from_proc(pids, "status", "VmHWM:").values())


def own_memory_bytes(pids: Iterable[int]) -> int:
    """Return what the processes have in memory that is no file's: what only they pay for."""
    return 1024 * sum(_from_proc(pids, "status", "RssAnon:").values())


def reset_peak_memory(pids: Iterable[int]) -> None:
    """Let ``peak_memory_bytes`` begin anew. Source: clear_refs in proc(5)."""
    for pid in pids:
        with suppress(OSError):
            Path("/proc", str(pid), "clear_refs").write_text("5")


def growth(before: dict[int, int], after: dict[int, int]) -> int:
    """Return how much the processes' figures grew in all, new processes included."""
    return sum(figure - before.get(pid, 0) for pid, figure in after.items())


def _from_proc(pids: Iterable[int], file: str, key: str) -> dict[int, int]:
    figures: dict[int, int] = {}
    for pid in pids:
        try:
            text = Path("/proc", str(pid), file).read_text()
        except OSError:
            continue
        for line in text.splitlines():
            if line.startswith(key):
                figures[pid] = int(line.removeprefix(key).split()[0])
    return figures


def wait_until_idle(pids: Iterable[int], limit_s: float) -> None:
    """Return once the processes use less than 2 % of one CPU, or after ``limit_s``."""
    watched = list(pids)
    if not watched:
        return
    deadline = time.monotonic() + limit_s
    step_s = 0.02
    before = cpu_ns(watched)
    while time.monotonic() < deadline:
        time.sleep(step_s)
        after = cpu_ns(watched)
        if growth(before, after) < step_s * 1e9 * 0.02:
            return
        before = after


def _find_tracefs() -> Path | None:
    for line in Path("/proc/mounts").read_text().splitlines():
        _, mountpoint, kind, *_ = line.split(" ")
        if kind == "tracefs" and " " not in mountpoint:
            return Path(mountpoint)
    return None
