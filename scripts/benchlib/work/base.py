"""What a row of the report is, and what several rows share."""

from __future__ import annotations

import abc
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

SMALL_FILE_BYTES = 4096


class VerificationFailed(Exception):
    """The filesystem did not do what it said."""


@dataclass(frozen=True, slots=True)
class Scale:
    """How much of each kind of work."""

    files: int
    """Of 4 KiB."""
    warm_passes: int
    list_entries: int
    listings: int
    stream_mib: int
    random_calls: int
    """Reads or overwrites of 4 KiB at random offsets."""
    syncs: int
    """Appends with fsync; transactions of SQLite."""
    tree_files: int
    undos: int
    deletes: int
    """That one undo takes back."""


FULL = Scale(
    files=2000,
    warm_passes=10,
    list_entries=1000,
    listings=20,
    stream_mib=512,
    random_calls=2000,
    syncs=200,
    tree_files=4000,
    undos=20,
    deletes=10_000,
)
QUICK = Scale(
    files=200,
    warm_passes=10,
    list_entries=1000,
    listings=5,
    stream_mib=32,
    random_calls=200,
    syncs=20,
    tree_files=300,
    undos=5,
    deletes=500,
)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a workload works."""

    directory: Path
    """Empty, on the system under test, of this workload alone."""
    shared: Path
    """On the system under test: what several rows read and none changes."""
    scratch: Path
    """On the plain disk, shared by all runs."""


class Workload(abc.ABC):
    """One row of the report. An instance is used once.

    ``prepare`` and ``verify`` are never timed. ``run`` does ``operations`` operations through
    plain system calls or programs that everybody has, and nothing else: names and bytes are made
    beforehand.
    """

    name: ClassVar[str]
    does: ClassVar[str]
    unit: ClassVar[str] = "ops/s"
    drops_caches: ClassVar[int] = 0
    """What is written to /proc/sys/vm/drop_caches between prepare and run; 0: nothing."""
    nexus_only: ClassVar[bool] = False

    def __init__(self, place: Place, scale: Scale) -> None:
        self.directory, self.shared, self.scratch = place.directory, place.shared, place.scratch
        self.scale = scale

    @property
    @abc.abstractmethod
    def operations(self) -> int: ...

    @property
    def payload_bytes(self) -> int:
        """How many bytes of content ``run`` writes, each call's counted."""
        return 0

    @abc.abstractmethod
    def prepare(self) -> None: ...

    @abc.abstractmethod
    def run(self) -> None: ...

    @abc.abstractmethod
    def verify(self) -> None: ...


def remove_everything(directory: Path) -> None:
    """Delete a workload's directory, whatever state the workload left it in."""
    shutil.rmtree(directory)


def run_program(*command: str | Path) -> bytes:
    """Run a program; return what it printed.

    Raises:
        VerificationFailed: It failed.
    """
    done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode != 0:
        said = done.stderr.decode(errors="replace").splitlines() or ["nothing"]
        raise VerificationFailed(f"{command[0]} ended with {done.returncode}, saying {said[0]}")
    return done.stdout


def write_file(path: str, payload: bytes, flags: int) -> None:
    fd = os.open(path, os.O_WRONLY | flags, 0o644)
    try:
        if payload:
            write_all(fd, payload)
    finally:
        os.close(fd)


def write_all(fd: int, payload: bytes) -> None:
    written = os.write(fd, payload)
    while written < len(payload):
        written += os.write(fd, payload[written:])


def read_file(path: str) -> bytes:
    fd = os.open(path, os.O_RDONLY)
    try:
        return os.read(fd, SMALL_FILE_BYTES)
    finally:
        os.close(fd)


def expect_names(directory: Path, names: set[str]) -> None:
    found = set(os.listdir(directory))
    if found != names:
        raise VerificationFailed(
            f"{directory}: {len(names - found)} names missing, {len(found - names)} unexpected"
        )
