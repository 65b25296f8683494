"""Arguments, set-up, tear-down, exit code.

Exit codes: 0 measured; 1 something failed, or nothing could be measured; 2 wrong arguments;
130 interrupted.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import platform
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path
from types import FrameType
from typing import Any

from benchlib import chart, report
from benchlib.counting import Tracing, TracingUnavailable
from benchlib.peers import PEERS
from benchlib.runner import Worker, run_rounds
from benchlib.systems import (
    Memfs,
    MemfsFlush,
    Nexus,
    PlainDirectory,
    System,
    Unavailable,
    default_nexus_ctl,
    filesystem_type,
    remove_base,
    warn,
)
from benchlib.work import FULL, QUICK, WORKLOADS, Scale
from benchlib.worker import can_drop_caches

DEFAULT_SYSTEMS = [Nexus.key, Memfs.key, PlainDirectory.key]
WITH_PEERS = [Nexus.key, *(peer.key for peer in PEERS), Memfs.key, PlainDirectory.key]
OTHER_KINDS = ("batches", "buckets", "counts", "handlers", "latency", "scale")
OTHERS: dict[str, type[System]] = {
    system.key: system for system in (*PEERS, Memfs, MemfsFlush, PlainDirectory)
}
KNOWN_SYSTEMS = [Nexus.key, *OTHERS]
_EPILOG = (
    "scripts/bench counts: requests and SQL statements only, compared with those that were written"
    " down. scripts/bench handlers: CPU of our part of each request, in process."
    " scripts/bench batches: files written one by one, and in a batch."
    " scripts/bench latency: percentiles. scripts/bench scale: what a large store costs,"
    " beside a small one. scripts/bench buckets: packs at an S3 server, beside rclone, s3fs and"
    " JuiceFS. workloads: {}"
)


def main(argv: Sequence[str]) -> int:
    if argv and argv[0] in OTHER_KINDS:
        # Only the one that is asked for: they need more than measuring beside others does.
        code: int = import_module(f"benchlib.{argv[0]}").main(argv[1:])
        return code
    arguments = _parse(argv)
    signal.signal(signal.SIGTERM, _interrupt)
    signal.signal(signal.SIGHUP, _interrupt)
    if arguments.cpus:
        os.sched_setaffinity(0, arguments.cpus)
    session = Session(arguments)
    try:
        interrupted = session.run()
    except NothingToMeasure as error:
        warn(str(error))
        return 1
    session.publish()
    if interrupted:
        warn("interrupted; everything was taken down")
        return 130
    return 1 if session.results.failures() else 0


class NothingToMeasure(Exception):
    """No system, or no workload, is left."""


class Session:
    """One run of the benchmark."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self._arguments = arguments
        self._scale: Scale = QUICK if arguments.quick else FULL
        self._rounds: int = arguments.rounds or (1 if arguments.quick else 3)
        self._notes: list[str] = []
        self.results = report.Results((), ())

    def run(self) -> bool:
        """Measure; return whether it was interrupted. Everything is taken down either way.

        Raises:
            NothingToMeasure: no system could be started, or no workload can run here.
        """
        workloads = self._usable_workloads()
        try:
            with ExitStack() as stack:
                try:
                    self._set_up_and_measure(workloads, stack)
                finally:
                    # A second Ctrl-C, during tear-down, must not leave mounts behind.
                    _ignore_interrupts()
        except KeyboardInterrupt:
            return True
        return False

    def publish(self) -> None:
        """Print the tables; write the JSON and the chart."""
        if not self.results.systems:
            return
        print(report.speed_table(self.results), end="\n\n")
        print(report.cost_table(self.results), end="\n\n")
        print(report.opcode_table(self.results), end="")
        print(report.legend(self.results, self._environment, self._notes))
        for line in self.results.failures():
            print(f"FAILED  {line}")
        sys.stdout.flush()
        if self._arguments.json:
            document = report.as_json(self.results, self._environment, self._notes)
            self._arguments.json.write_text(json.dumps(document, indent=2) + "\n")
        if self._arguments.chart:
            self._arguments.chart.write_text(chart.svg(self.results))

    def _usable_workloads(self) -> list[str]:
        usable: list[str] = self._arguments.only
        if not can_drop_caches():
            cold = [name for name in usable if WORKLOADS[name].drops_caches]
            usable = [name for name in usable if name not in cold]
            if cold:
                self._note(f"left out {', '.join(cold)}: dropping the kernel's caches needs root")
        if not usable:
            raise NothingToMeasure("no workload is left to run")
        return usable

    def _set_up_and_measure(self, workloads: list[str], stack: ExitStack) -> None:
        base = Path(tempfile.mkdtemp(prefix="nexus-bench-", dir=self._arguments.directory))
        stack.callback(remove_base, base)
        self._environment = self._describe(base)
        systems = self._start_systems(base, stack)
        worker = Worker()
        stack.callback(worker.stop)
        self._measure(systems, workloads, base, worker)

    def _start_systems(self, base: Path, stack: ExitStack) -> list[System]:
        tracing = None
        try:
            tracing = Tracing(base / "tracefs")
            stack.callback(tracing.close)
        except TracingUnavailable as error:
            self._note(f"requests as the filesystems count them themselves: {error}")
        started: list[System] = []
        for key in self._arguments.systems:
            if key == Nexus.key:
                system: System = Nexus(base, self._arguments.nexus_ctl)
            else:
                system = OTHERS[key](base)
            stack.callback(system.stop)
            try:
                system.start(tracing)
            except Unavailable as error:
                self._note(f"left out {key}: {error}")
            else:
                started.append(system)
        if not started:
            raise NothingToMeasure("no system is left to measure")
        return started

    def _measure(
        self, systems: list[System], workloads: list[str], base: Path, worker: Worker
    ) -> None:
        self.results = report.Results(
            [
                report.SystemInfo(s.label, s.about, s.counter.how if s.counter else None)
                for s in systems
            ],
            [
                report.WorkloadInfo(name, WORKLOADS[name].unit, WORKLOADS[name].does)
                for name in workloads
            ],
        )
        scratch = base / "scratch"
        scratch.mkdir()
        run_rounds(systems, workloads, self._rounds, self._scale, scratch, worker, self._record)

    def _record(self, workload: str, system: str, number: int, outcome: report.Outcome) -> None:
        self.results.add(workload, system, number, outcome)
        if isinstance(outcome, report.Sample):
            said = f"{report.number(outcome.rate)} {WORKLOADS[workload].unit}"
        else:
            said = f"FAILED {outcome.reason}"
        line = f"round {number + 1}/{self._rounds}  {workload:<14} {system:<12} {said}"
        print(line, file=sys.stderr, flush=True)

    def _describe(self, base: Path) -> dict[str, Any]:
        return {
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "kernel": platform.release(),
            "machine": platform.machine(),
            "python": platform.python_version(),
            "cpus": sorted(os.sched_getaffinity(0)),
            "directory": str(base.parent),
            "filesystem": filesystem_type(base),
            "quick": self._arguments.quick,
            "rounds": self._rounds,
        }

    def _note(self, line: str) -> None:
        self._notes.append(line)
        warn(line)


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/bench",
        description="Measure Nexus beside an in-memory FUSE filesystem and the plain disk, in "
        "turns, in one run. Figures, not gates: compare within one run only.",
        epilog=_EPILOG.format("; ".join(f"{name}: {w.does}" for name, w in WORKLOADS.items())),
    )
    parser.add_argument("--quick", action="store_true", help="small counts, one round")
    parser.add_argument(
        "--only",
        type=_workload_names,
        default=list(WORKLOADS),
        metavar="NAMES",
        help="workloads, separated by commas; patterns such as 'seq-*' work",
    )
    parser.add_argument("--rounds", type=_positive, metavar="N", help="3, or 1 with --quick")
    parser.add_argument(
        "--systems",
        type=_system_names,
        default=DEFAULT_SYSTEMS,
        metavar="NAMES",
        help=f"of {', '.join(KNOWN_SYSTEMS)} (ext4: the plain directory, whatever it is on)",
    )
    parser.add_argument(
        "--with-peers",
        dest="systems",
        action="store_const",
        const=WITH_PEERS,
        help="beside the peers as well, installed where they are missing",
    )
    parser.add_argument("--json", type=_writable_file, metavar="FILE", help="write all figures")
    parser.add_argument(
        "--chart", type=_writable_file, metavar="FILE", help="draw the ratios, as SVG"
    )
    parser.add_argument(
        "--directory",
        type=_directory,
        default=Path(os.environ.get("TMPDIR", "/var/tmp")),
        metavar="DIR",
        help="on the disk to measure; default $TMPDIR or /var/tmp",
    )
    parser.add_argument(
        "--cpus", type=_cpus, metavar="LIST", help="pin client and daemons alike, as in 0,1"
    )
    parser.add_argument("--nexus-ctl", type=Path, default=default_nexus_ctl(), metavar="PATH")
    return parser.parse_args(argv)


def _workload_names(text: str) -> list[str]:
    chosen: set[str] = set()
    for pattern in text.split(","):
        matched = fnmatch.filter(WORKLOADS, pattern.strip())
        if not matched:
            raise argparse.ArgumentTypeError(
                f"no workload is called {pattern!r}; there are {', '.join(WORKLOADS)}"
            )
        chosen.update(matched)
    return [name for name in WORKLOADS if name in chosen]


def _system_names(text: str) -> list[str]:
    names = list(dict.fromkeys(name.strip() for name in text.split(",")))
    for name in names:
        if name not in KNOWN_SYSTEMS:
            raise argparse.ArgumentTypeError(
                f"no system is called {name!r}; there are {', '.join(KNOWN_SYSTEMS)}"
            )
    return names


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return int(text)


def _directory(text: str) -> Path:
    path = Path(text).resolve()
    if not path.is_dir() or not os.access(path, os.W_OK):
        raise argparse.ArgumentTypeError(f"{text} is not a directory that you can write to")
    return path


def _writable_file(text: str) -> Path:
    # Found out now, not after minutes of measuring.
    path = Path(text).resolve()
    if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        raise argparse.ArgumentTypeError(f"{text} cannot be written")
    return path


def _cpus(text: str) -> set[int]:
    allowed = os.sched_getaffinity(0)
    wanted = {int(part) if part.isdigit() else -1 for part in text.split(",")}
    if not wanted <= allowed:
        raise argparse.ArgumentTypeError(f"{text!r}: the CPUs here are {sorted(allowed)}")
    return wanted


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _ignore_interrupts() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
