"""Counts that hold still on a noisy machine: requests and SQL statements of an operation.

A real daemon serves a fresh store; requests are those that it counts itself. What was needed when
somebody last wrote it down is in ``counts.json``; an operation may not come to need more.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from benchlib.counting import StatusCounter
from benchlib.systems import SCRIPTS, START_LIMIT_S, STOP_LIMIT_S, is_mounted
from benchlib.work import QUICK, WORKLOADS, Place

COMMITTED = Path(__file__).with_name("counts.json")
OPERATIONS = (
    "create", "stat", "open-read", "overwrite", "append-fsync", "rename", "unlink", "mkdir",
    "rmdir", "list",
)  # fmt: skip
SHARED = ("BEGIN", "COMMIT", "PRAGMA")
TOLERANCE = 0.05
"""Of one request or statement; what comes once in a while falls here or there."""


@dataclass(frozen=True, slots=True)
class Counts:
    """Of one operation, on average."""

    requests: float | None
    """None: of another kernel."""
    statements: float
    by_opcode: dict[str, float] = field(default_factory=dict)
    by_statement: dict[str, float] = field(default_factory=dict)


class Grown(Exception):
    """An operation needs more than it did; the text says which."""


def measure(directory: Path) -> dict[str, Counts]:
    """Count each of ``OPERATIONS`` on a store and a mount made below ``directory``."""
    with _traced_mount(directory) as (root, asked):
        status = StatusCounter("its own", (root / ".nexus" / "status").read_text)
        own_cost = _own_cost(status, asked)
        found = {}
        for name in OPERATIONS:
            place = Place(root / name, root / "shared", directory)
            place.directory.mkdir()
            work = WORKLOADS[name](place, QUICK)
            work.prepare()
            _commit_all(place.directory)
            status.start()
            before = _statements(asked)
            work.run()
            requests = status.stop()
            # Reading the status came after what the operations left for later.
            statements = _statements(asked) - before - own_cost
            work.verify()
            # The kernel forgets in batches of any size, and how many operations share a COMMIT
            # depends on how fast they come: neither holds still.
            requests.pop("forget", None)
            for sql in list(statements):
                if sql.startswith(SHARED):
                    del statements[sql]
            found[name] = Counts(
                requests=_share(requests.total(), work.operations),
                statements=_share(statements.total(), work.operations),
                by_opcode=_shares(requests, work.operations),
                by_statement=_shares(statements, work.operations),
            )
    return found


def committed() -> dict[str, Counts]:
    """Return what was needed when somebody last wrote it down.

    Which requests a kernel sends is its own affair: of another one they are not known.
    """
    document = json.loads(COMMITTED.read_text())
    known = {name: Counts(**counts) for name, counts in document["operations"].items()}
    if document["kernel"] != _kernel():
        known = {name: replace(counts, requests=None) for name, counts in known.items()}
    return known


def commit(found: Mapping[str, Counts]) -> None:
    """Write down what is needed now."""
    operations = {
        name: {"requests": counts.requests, "statements": counts.statements}
        for name, counts in found.items()
    }
    document = {"kernel": _kernel(), "operations": operations}
    COMMITTED.write_text(json.dumps(document, indent=2) + "\n")


def table(found: Mapping[str, Counts], known: Mapping[str, Counts]) -> str:
    """Return the counts, and what has changed, as text."""
    lines = [f"{'':<12}{'requests/op':>20}{'SQL statements/op':>24}"]
    for name, counts in found.items():
        was = known.get(name)
        lines.append(
            f"{name:<12}"
            f"{_change(counts.requests, was.requests if was else None):>20}"
            f"{_change(counts.statements, was.statements if was else None):>24}"
        )
    return "\n".join(lines)


def details(found: Mapping[str, Counts]) -> str:
    """Return which requests and statements an operation consists of, as text."""
    lines = []
    for name, counts in found.items():
        parts = [*counts.by_opcode.items(), *counts.by_statement.items()]
        lines += [name, *(f"{share:8g}  {' '.join(what.split())}" for what, share in parts)]
    return "\n".join(lines)


def require_not_grown(found: Mapping[str, Counts], known: Mapping[str, Counts]) -> None:
    """Refuse what needs more than it did.

    Raises:
        Grown: Something does.
    """
    grown = []
    for name, counts in found.items():
        for what in ("requests", "statements"):
            now, was = getattr(counts, what), getattr(known[name], what)
            if was is not None and now > was + TOLERANCE:
                grown.append(f"{name}: {what} per operation were {was:g} and are {now:g}")
    if grown:
        raise Grown("; ".join(grown))


def _kernel() -> str:
    return ".".join(platform.release().split(".")[:2])


def _change(now: float | None, was: float | None) -> str:
    if now is None:
        return "-"
    if was is None or abs(now - was) <= TOLERANCE:
        return f"{now:g}"
    return f"{now:g} ({now - was:+.2f})"


def main(argv: Sequence[str]) -> int:
    """Count, print, compare; the exit code is 1 where something has grown."""
    parser = argparse.ArgumentParser(
        prog="scripts/bench counts",
        description="Count the requests and SQL statements of each operation, which hold still on "
        "a noisy machine, and compare them with those written down.",
    )
    parser.add_argument("--details", action="store_true", help="which requests, which statements")
    parser.add_argument("--write", action="store_true", help="write them down")
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="nexus-bench-") as directory:
        found = measure(Path(directory))
    known = committed()
    print(table(found, known))
    if arguments.details:
        print(details(found))
    if arguments.write:
        commit(found)
        return 0
    try:
        require_not_grown(found, known)
    except Grown as error:
        print(f"FAILED  {error}")
        return 1
    return 0


def _share(count: int, operations: int) -> float:
    return round(count / operations, 2)


def _shares(counts: Counter[str], operations: int) -> dict[str, float]:
    shares = {what: _share(count, operations) for what, count in counts.most_common()}
    return {what: share for what, share in shares.items() if share}


def _statements(asked: socket.socket) -> Counter[str]:
    asked.sendall(b"?")
    received = b""
    while not received.endswith(b"\n"):
        received += asked.recv(65536)
    return Counter(json.loads(received))


def _commit_all(directory: Path) -> None:
    """What an operation needs does not depend on what was just done before it."""
    fd = os.open(directory, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)


def _own_cost(status: StatusCounter, asked: socket.socket) -> Counter[str]:
    """Return how many statements it takes to read the status."""
    before = _statements(asked)
    status.stop()
    return _statements(asked) - before


@contextmanager
def _traced_mount(directory: Path) -> Iterator[tuple[Path, socket.socket]]:
    root = directory / "mount"
    root.mkdir()
    ours, theirs = socket.socketpair()
    command = [sys.executable, "-m", "benchlib.traced", str(theirs.fileno())]
    command += ["mount", "--foreground", "--no-restart", "--store", str(directory / "store")]
    path = os.pathsep.join([str(SCRIPTS), os.environ.get("PYTHONPATH", "")])
    with (directory / "daemon.log").open("wb") as log:
        daemon = subprocess.Popen(
            [*command, str(root)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**os.environ, "PYTHONPATH": path},
            pass_fds=[theirs.fileno()],
        )
    theirs.close()
    try:
        _wait_until_served(root, daemon)
        yield root, ours
    finally:
        ours.close()
        daemon.terminate()
        daemon.wait(timeout=STOP_LIMIT_S)


def _wait_until_served(root: Path, daemon: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_LIMIT_S
    while not is_mounted(root):
        if daemon.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"no mount: {(root.parent / 'daemon.log').read_text()}")
        time.sleep(0.02)
