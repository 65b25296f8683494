"""The work: what is prepared, what is timed, what must be true afterwards.

``prepare`` and ``verify`` are never timed. ``run`` does ``operations`` operations through
plain system calls (or tar and rm), and nothing else: names and bytes are made beforehand.
"""

from __future__ import annotations

import abc
import hashlib
import os
import shutil
import stat
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from benchlib import content

SMALL_FILE_BYTES = 4096


class VerificationFailed(Exception):
    """The filesystem did not do what it said."""


@dataclass(frozen=True, slots=True)
class Scale:
    """How much of each kind of work."""

    files: int
    warm_passes: int
    list_entries: int
    listings: int
    stream_mib: int
    tree_files: int


FULL = Scale(
    files=2000, warm_passes=10, list_entries=1000, listings=20, stream_mib=256, tree_files=1500
)
QUICK = Scale(
    files=200, warm_passes=10, list_entries=1000, listings=5, stream_mib=32, tree_files=300
)


class Workload(abc.ABC):
    """One row of the report. An instance is used once."""

    name: ClassVar[str]
    does: ClassVar[str]
    unit: ClassVar[str] = "ops/s"
    drops_caches: ClassVar[int] = 0
    """What is written to /proc/sys/vm/drop_caches between prepare and run; 0: nothing."""

    def __init__(self, directory: Path, scratch: Path, scale: Scale) -> None:
        """Bind to a directory.

        Args:
            directory: An empty directory on the system under test.
            scratch: A directory on the plain disk, shared by all runs.
            scale: How much to do.
        """
        self.directory, self.scratch, self.scale = directory, scratch, scale

    @property
    @abc.abstractmethod
    def operations(self) -> int: ...

    @abc.abstractmethod
    def prepare(self) -> None: ...

    @abc.abstractmethod
    def run(self) -> None: ...

    @abc.abstractmethod
    def verify(self) -> None: ...


class _SmallFiles(Workload):
    """Work on ``scale.files`` files of 4 KiB, each different from every other."""

    @property
    def operations(self) -> int:
        return self.scale.files

    def prepare(self) -> None:
        self._name_files()
        for path, payload in zip(self.paths, self.payloads, strict=True):
            _write_file(path, payload, os.O_CREAT | os.O_EXCL)

    def verify(self) -> None:
        self._verify_files(self.paths, self.payloads)

    def _name_files(self) -> None:
        base = str(self.directory)
        self.paths = [f"{base}/file-{number:06d}" for number in range(self.scale.files)]
        self.payloads = self._payloads("first")

    def _payloads(self, version: str) -> list[bytes]:
        body = content.text("small", SMALL_FILE_BYTES)
        heads = (f"{path} {version}\n".encode() for path in self.paths)
        return [(head + body)[:SMALL_FILE_BYTES] for head in heads]

    def _verify_files(self, paths: list[str], payloads: list[bytes]) -> None:
        _expect_names(self.directory, {os.path.basename(path) for path in paths})
        for path, payload in zip(paths, payloads, strict=True):
            if Path(path).read_bytes() != payload:
                raise VerificationFailed(f"{path}: not the bytes that were written")


class Create(_SmallFiles):
    name = "create"
    does = "create a file, write 4 KiB, close"

    def prepare(self) -> None:
        self._name_files()

    def run(self) -> None:
        for path, payload in zip(self.paths, self.payloads, strict=True):
            _write_file(path, payload, os.O_CREAT | os.O_EXCL)


class Stat(_SmallFiles):
    name = "stat"
    does = "stat of files seen before"

    @property
    def operations(self) -> int:
        return self.scale.files * self.scale.warm_passes

    def prepare(self) -> None:
        super().prepare()
        self._stat_all()

    def run(self) -> None:
        for _ in range(self.scale.warm_passes):
            self._stat_all()

    def verify(self) -> None:
        if {found.st_size for found in self.seen} != {SMALL_FILE_BYTES}:
            raise VerificationFailed(f"{self.directory}: stat gave a wrong size")

    def _stat_all(self) -> None:
        self.seen = [os.stat(path) for path in self.paths]


class StatCold(Stat):
    name = "stat-cold"
    does = "stat after the kernel dropped entries and inodes"
    drops_caches = 2

    @property
    def operations(self) -> int:
        return self.scale.files

    def run(self) -> None:
        self._stat_all()


class OpenRead(_SmallFiles):
    name = "open-read"
    does = "open, read 4 KiB, close; content read before"

    def prepare(self) -> None:
        super().prepare()
        self.run()

    def run(self) -> None:
        self.read = [_read_file(path) for path in self.paths]

    def verify(self) -> None:
        if self.read != self.payloads:
            raise VerificationFailed(f"{self.directory}: read other bytes than were written")


class Overwrite(_SmallFiles):
    name = "overwrite"
    does = "open with O_TRUNC, write 4 KiB, close (ext4 then starts writing to the disk)"

    def prepare(self) -> None:
        super().prepare()
        self.payloads = self._payloads("second")

    def run(self) -> None:
        for path, payload in zip(self.paths, self.payloads, strict=True):
            _write_file(path, payload, os.O_TRUNC)


class Rename(_SmallFiles):
    name = "rename"
    does = "rename to a new name in the same directory"

    def prepare(self) -> None:
        super().prepare()
        self.renamed = [path.replace("/file-", "/renamed-") for path in self.paths]

    def run(self) -> None:
        for old, new in zip(self.paths, self.renamed, strict=True):
            os.rename(old, new)

    def verify(self) -> None:
        self._verify_files(self.renamed, self.payloads)


class Unlink(_SmallFiles):
    name = "unlink"
    does = "unlink a 4 KiB file"

    def run(self) -> None:
        for path in self.paths:
            os.unlink(path)

    def verify(self) -> None:
        _expect_names(self.directory, set())


class Mkdir(Workload):
    name = "mkdir"
    does = "make a directory"

    @property
    def operations(self) -> int:
        return self.scale.files

    def prepare(self) -> None:
        base = str(self.directory)
        self.paths = [f"{base}/dir-{number:06d}" for number in range(self.scale.files)]

    def run(self) -> None:
        for path in self.paths:
            os.mkdir(path)

    def verify(self) -> None:
        _expect_names(self.directory, {os.path.basename(path) for path in self.paths})
        if not all(stat.S_ISDIR(os.lstat(path).st_mode) for path in self.paths):
            raise VerificationFailed(f"{self.directory}: mkdir made something else")


class Rmdir(Mkdir):
    name = "rmdir"
    does = "remove an empty directory"

    def prepare(self) -> None:
        super().prepare()
        for path in self.paths:
            os.mkdir(path)

    def run(self) -> None:
        for path in self.paths:
            os.rmdir(path)

    def verify(self) -> None:
        _expect_names(self.directory, set())


class ListDirectory(_SmallFiles):
    name = "list"
    does = "scandir and lstat of 1,000 entries; one listing is one operation"
    unit = "lists/s"

    @property
    def operations(self) -> int:
        return self.scale.listings

    def prepare(self) -> None:
        base = str(self.directory)
        self.paths = [f"{base}/file-{number:06d}" for number in range(self.scale.list_entries)]
        for path in self.paths:
            _write_file(path, b"", os.O_CREAT | os.O_EXCL)
        self._list()

    def run(self) -> None:
        for _ in range(self.scale.listings):
            self._list()

    def verify(self) -> None:
        if self.listed != {os.path.basename(path): 0 for path in self.paths}:
            raise VerificationFailed(f"{self.directory}: a listing lacks entries, or has others")

    def _list(self) -> None:
        with os.scandir(self.directory) as entries:
            self.listed = {
                entry.name: entry.stat(follow_symlinks=False).st_size for entry in entries
            }


class ListDirectoryCold(ListDirectory):
    name = "list-cold"
    does = "the same, once, after the kernel dropped entries and inodes"
    drops_caches = 2

    @property
    def operations(self) -> int:
        return 1

    def run(self) -> None:
        self._list()


class SequentialWrite(Workload):
    name = "seq-write"
    does = "write fresh, incompressible bytes in 1 MiB calls, fsync, close"
    unit = "MiB/s"

    @property
    def operations(self) -> int:
        return self.scale.stream_mib

    def prepare(self) -> None:
        self.path = self.directory / "stream"
        self.blocks = content.fresh_blocks(str(self.path), self.scale.stream_mib << 20)

    def run(self) -> None:
        self._write()

    def verify(self) -> None:
        self._verify_file()

    def _write(self) -> None:
        fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        try:
            for block in self.blocks:
                _write_all(fd, block)
            os.fsync(fd)
        finally:
            os.close(fd)

    def _verify_file(self) -> None:
        with self.path.open("rb", buffering=0) as file:
            found = hashlib.file_digest(file, "sha256").digest()
        expected = hashlib.sha256()
        for block in self.blocks:
            expected.update(block)
        if found != expected.digest():
            raise VerificationFailed(f"{self.path}: not the bytes that were written")


class SequentialRead(SequentialWrite):
    name = "seq-read"
    does = "read in 1 MiB calls; content read before"

    def prepare(self) -> None:
        super().prepare()
        self._write()
        self._buffer = bytearray(content.BLOCK_BYTES)
        self._read()

    def run(self) -> None:
        self._read()

    def verify(self) -> None:
        if self._read_bytes != self.scale.stream_mib << 20:
            raise VerificationFailed(f"{self.path}: read {self._read_bytes} bytes")
        self._verify_file()

    def _read(self) -> None:
        self._read_bytes = 0
        with self.path.open("rb", buffering=0) as file:
            while count := file.readinto(self._buffer):
                self._read_bytes += count


class SequentialReadCold(SequentialRead):
    name = "seq-read-cold"
    does = "the same after the kernel dropped everything it caches"
    drops_caches = 3


class Untar(Workload):
    name = "untar"
    does = "tar -xf of a tree like that of a source distribution; one file is one operation"
    unit = "files/s"

    @property
    def operations(self) -> int:
        return self.scale.tree_files

    def prepare(self) -> None:
        self.files = list(content.source_tree(self.scale.tree_files))
        self.archive = self.scratch / f"tree-{self.scale.tree_files}.tar"
        if not self.archive.exists():
            content.write_tar(self.archive, self.files)
        self.archive.read_bytes()  # So that no turn pays for reading it from the disk.

    def run(self) -> None:
        self._extract()

    def verify(self) -> None:
        found = {
            os.path.relpath(os.path.join(parent, name), self.directory)
            for parent, _, names in os.walk(self.directory)
            for name in names
        }
        if found != {file.path for file in self.files}:
            raise VerificationFailed(f"{self.directory}: the tree lacks files, or has others")
        for file in self.files:
            path = self.directory / file.path
            status = path.stat()
            if path.read_bytes() != file.content or stat.S_IMODE(status.st_mode) != file.mode:
                raise VerificationFailed(f"{path}: wrong content or mode")
            if int(status.st_mtime) != content.FIXED_MTIME_S:
                raise VerificationFailed(f"{path}: wrong mtime")

    def _extract(self) -> None:
        subprocess.run(["tar", "-xpf", self.archive, "-C", self.directory], check=True)


class RemoveTree(Untar):
    name = "rm-rf"
    does = "rm -rf of that tree; one file is one operation"

    def prepare(self) -> None:
        super().prepare()
        self._extract()

    def run(self) -> None:
        subprocess.run(["rm", "-rf", self.directory / "source"], check=True)

    def verify(self) -> None:
        _expect_names(self.directory, set())


WORKLOADS: dict[str, type[Workload]] = {
    workload.name: workload
    for workload in (
        Create,
        Stat,
        StatCold,
        OpenRead,
        Overwrite,
        Rename,
        Unlink,
        Mkdir,
        Rmdir,
        ListDirectory,
        ListDirectoryCold,
        SequentialWrite,
        SequentialRead,
        SequentialReadCold,
        Untar,
        RemoveTree,
    )
}


def remove_everything(directory: Path) -> None:
    """Delete a workload's directory, whatever state the workload left it in."""
    shutil.rmtree(directory)


def _write_file(path: str, payload: bytes, flags: int) -> None:
    fd = os.open(path, os.O_WRONLY | flags, 0o644)
    try:
        if payload:
            _write_all(fd, payload)
    finally:
        os.close(fd)


def _write_all(fd: int, payload: bytes) -> None:
    written = os.write(fd, payload)
    while written < len(payload):
        written += os.write(fd, payload[written:])


def _read_file(path: str) -> bytes:
    fd = os.open(path, os.O_RDONLY)
    try:
        return os.read(fd, SMALL_FILE_BYTES)
    finally:
        os.close(fd)


def _expect_names(directory: Path, names: set[str]) -> None:
    found = set(os.listdir(directory))
    if found != names:
        raise VerificationFailed(
            f"{directory}: {len(names - found)} names missing, {len(found - names)} unexpected"
        )
