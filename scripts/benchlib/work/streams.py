"""Work on the bytes of one file: from its beginning to its end, at random, at its end."""

from __future__ import annotations

import hashlib
import os
import random
from pathlib import Path

from benchlib import content
from benchlib.work.base import Scale, VerificationFailed, Workload, write_all

CALL_BYTES = 4096
_MIB = 1 << 20


class Stream(Workload):
    """Work on a file of ``scale.stream_mib`` incompressible MiB."""

    unit = "MiB/s"

    @property
    def operations(self) -> int:
        return self.scale.stream_mib

    def _make_blocks(self, path: Path) -> None:
        self.path = path
        self.blocks = content.fresh_blocks(str(path), self.scale.stream_mib * _MIB)

    def _write(self, path: Path) -> None:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        try:
            for block in self.blocks:
                write_all(fd, block)
            os.fsync(fd)
        finally:
            os.close(fd)

    def _share(self) -> None:
        """Make the file that several rows read, unless it is there."""
        self._make_blocks(self.shared / "stream")
        if not self.path.exists():
            self.shared.mkdir(exist_ok=True)
            self._write(self.path)

    def _verify_file(self) -> None:
        with self.path.open("rb", buffering=0) as file:
            found = hashlib.file_digest(file, "sha256").digest()
        expected = hashlib.sha256()
        for block in self.blocks:
            expected.update(block)
        if found != expected.digest():
            raise VerificationFailed(f"{self.path}: not the bytes that were written")


class SequentialWrite(Stream):
    name = "seq-write"
    does = "write fresh, incompressible bytes in 1 MiB calls, fsync, close"

    @property
    def payload_bytes(self) -> int:
        return self.scale.stream_mib * _MIB

    def prepare(self) -> None:
        self._make_blocks(self.directory / "stream")

    def run(self) -> None:
        self._write(self.path)

    def verify(self) -> None:
        self._verify_file()


class SequentialWriteDuplicate(SequentialWrite):
    name = "seq-write-dup"
    does = "the same with bytes that are in another file already"

    def prepare(self) -> None:
        self._share()
        self.path = self.directory / "copy"


class SequentialRead(Stream):
    name = "seq-read"
    does = "read in 1 MiB calls; content read before"

    def prepare(self) -> None:
        self._share()
        self._buffer = bytearray(_MIB)
        self._read()

    def run(self) -> None:
        self._read()

    def verify(self) -> None:
        if self._read_bytes != self.scale.stream_mib * _MIB:
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


class RandomRead(Stream):
    name = "rand-read"
    does = "read 4 KiB at random offsets of that file, the kernel's caches dropped"
    unit = "ops/s"
    drops_caches = 3

    @property
    def operations(self) -> int:
        return self.scale.random_calls

    def prepare(self) -> None:
        self._share()
        self.offsets = _random_offsets(self.scale)

    def run(self) -> None:
        fd = os.open(self.path, os.O_RDONLY)
        try:
            self.found = [os.pread(fd, CALL_BYTES, offset) for offset in self.offsets]
        finally:
            os.close(fd)

    def verify(self) -> None:
        for offset, found in zip(self.offsets, self.found, strict=True):
            start = offset % _MIB
            if found != self.blocks[offset // _MIB][start : start + CALL_BYTES]:
                raise VerificationFailed(f"{self.path}: other bytes at {offset}")


class RandomWrite(Stream):
    name = "rand-write"
    does = "overwrite 4 KiB at random offsets of a file as large, fsync at the end"
    unit = "ops/s"

    @property
    def operations(self) -> int:
        return self.scale.random_calls

    @property
    def payload_bytes(self) -> int:
        return self.scale.random_calls * CALL_BYTES

    def prepare(self) -> None:
        self._make_blocks(self.directory / "stream")
        self._write(self.path)
        rng = random.Random(f"{self.path} again")
        self.calls = [(offset, rng.randbytes(CALL_BYTES)) for offset in _random_offsets(self.scale)]

    def run(self) -> None:
        fd = os.open(self.path, os.O_WRONLY)
        try:
            for offset, payload in self.calls:
                os.pwrite(fd, payload, offset)
            os.fsync(fd)
        finally:
            os.close(fd)

    def verify(self) -> None:
        blocks = [bytearray(block) for block in self.blocks]
        for offset, payload in self.calls:
            start = offset % _MIB
            blocks[offset // _MIB][start : start + CALL_BYTES] = payload
        self.blocks = [bytes(block) for block in blocks]
        self._verify_file()


class AppendSync(Workload):
    name = "append-fsync"
    does = "append 4 KiB to an open file, fsync"

    @property
    def operations(self) -> int:
        return self.scale.syncs

    @property
    def payload_bytes(self) -> int:
        return self.scale.syncs * CALL_BYTES

    def prepare(self) -> None:
        self.path = self.directory / "journal"
        rng = random.Random(str(self.path))
        self.payloads = [rng.randbytes(CALL_BYTES) for _ in range(self.scale.syncs)]
        self.path.touch()

    def run(self) -> None:
        fd = os.open(self.path, os.O_WRONLY | os.O_APPEND)
        try:
            for payload in self.payloads:
                write_all(fd, payload)
                os.fsync(fd)
        finally:
            os.close(fd)

    def verify(self) -> None:
        if self.path.read_bytes() != b"".join(self.payloads):
            raise VerificationFailed(f"{self.path}: not the bytes that were written")


def _random_offsets(scale: Scale) -> list[int]:
    """Return offsets of different pages."""
    pages = range(scale.stream_mib * _MIB // CALL_BYTES)
    chosen = random.Random("offsets").sample(pages, scale.random_calls)
    return [page * CALL_BYTES for page in chosen]
