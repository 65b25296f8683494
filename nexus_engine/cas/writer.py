"""One pack that this process appends to."""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections.abc import Sequence
from pathlib import Path

from nexus_engine.backends.base import View
from nexus_engine.backends.files import OpenFile, begin_write_back, sync_directory, translate
from nexus_engine.cas.pack import (
    PACK_HEADER_SIZE,
    PACK_SIZE,
    RecordScan,
    ScanStop,
    encode_pack_header,
    encode_record,
)
from nexus_engine.errors import EngineError, ObjectNotFound, ObjectStoreFailed

_IOV_MAX = 1024
"""Buffers that Linux takes in one pwritev(2)."""
_STREAM_BYTES = 256 * 1024
"""Of one append: more like it come, and write-back begins while they do."""


class PackWriter:
    """Appends records; either all of a call's records get in, or none.

    One thread may append while others read and sync; two must not append at once (`OwnPacks`
    sees to that).

    Args:
        directory: Where ``<pack>.pack`` is created.
        pack: 32 hex digits.

    Raises:
        NoSpace, StoreInaccessible, ObjectStoreFailed: from every method that touches the
            disk.
    """

    def __init__(self, directory: Path, pack: str) -> None:
        self.pack = pack
        self.path = directory / f"{pack}.pack"
        self.length = 0
        """Bytes that hold whole records."""
        self.synced_length = 0
        """Bytes known to be durable."""
        self.finished = False
        """It gets no further records, though it has room."""
        self.registered = False
        """The metadata knows of it."""
        self._sync_lock = threading.Lock()
        self._torn = False
        self._unsure = False
        self._closed = False
        try:
            fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        except OSError as error:
            raise translate(error, f"create {self.path}") from error
        self._file = OpenFile(fd)
        try:
            self.append([encode_pack_header(pack)])
        except EngineError:
            self.remove()
            raise

    @property
    def full(self) -> bool:
        return self.finished or self.length >= PACK_SIZE

    @property
    def empty(self) -> bool:
        return self.length <= PACK_HEADER_SIZE

    def append(self, records: Sequence[bytes]) -> list[int]:
        """Append the records in one write.

        Returns:
            The offset of each.

        Raises:
            NoSpace, StoreInaccessible, ObjectStoreFailed: nothing was appended; a later call
                may succeed.
        """
        offsets = []
        end = self.length
        for record in records:
            offsets.append(end)
            end += len(record)
        try:
            if self._torn:
                self._cut()
            # Set during the write, so that no way out of it leaves torn bytes unnoticed.
            self._torn = True
            _write_all(self._file.fd, records, self.length)
        except OSError as error:
            # Left to the next append, which starts with another attempt.
            with contextlib.suppress(OSError):
                self._cut()
            raise translate(error, f"append to {self.path}") from error
        self._torn = False
        if end - self.length >= _STREAM_BYTES:
            begin_write_back(self._file.fd, self.length, end - self.length)
        self.length = end
        return offsets

    def read(self, offset: int, length: int) -> View:
        """Return ``length`` bytes from ``offset``; fewer only at the end.

        Raises:
            ObjectNotFound: It is sealed, and gone from here.
        """
        try:
            return self._open().read(offset, length)
        except FileNotFoundError as error:
            raise ObjectNotFound(f"{self.path} is gone") from error
        except OSError as error:
            raise translate(error, f"read {self.path}") from error

    def read_resident(self, offset: int, length: int) -> View | None:
        try:
            return self._open().read_resident(offset, length)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise translate(error, f"read {self.path}") from error

    def sync(self) -> None:
        """Make durable what was appended before the call; from any thread."""
        with self._sync_lock:
            target = self.length
            if self.synced_length >= target:
                return
            try:
                if self._unsure:
                    self._write_again(target)
                self._unsure = True
                os.fdatasync(self._file.fd)
                if self.synced_length == 0:
                    sync_directory(self.path.parent)
            except OSError as error:
                raise translate(error, f"sync {self.path}") from error
            self._unsure = False
            self.synced_length = target

    def seal(self) -> None:
        """Finish the file: nothing torn at its end, everything durable. No appends after."""
        if self._torn:
            try:
                self._cut()
            except OSError as error:
                raise translate(error, f"truncate {self.path}") from error
        self.sync()

    def close(self) -> None:
        """Let go of the file, which is sealed and registered.

        Whoever still refers to the writer (the traceback of an error, say) would keep the blocks
        of a pack that gc removes.
        """
        self._closed = True
        self._file = OpenFile(os.open(os.devnull, os.O_RDONLY))

    def _open(self) -> OpenFile:
        if not self._closed:
            return self._file
        return OpenFile(os.open(self.path, os.O_RDONLY))  # a reader that came just before

    def remove(self) -> None:
        """Remove the file; for a pack that nothing was appended to."""
        try:
            self.path.unlink(missing_ok=True)
        except OSError as error:
            raise translate(error, f"remove {self.path}") from error

    def _cut(self) -> None:
        os.ftruncate(self._file.fd, self.length)
        self._torn = False

    def _write_again(self, end: int) -> None:
        """Write what is not known to be durable once more, after a sync that failed.

        The kernel reports a failed write-back once and then takes the pages for clean: an
        fsync that just succeeds the second time has written nothing. It may even have
        dropped the pages, so what is read back counts only if its checksums are right.

        Raises:
            ObjectStoreFailed: some of it is lost. It stays so: every later sync fails too.
        """
        start = self.synced_length
        scan = RecordScan(
            lambda offset, length: self.read(offset, min(length, end - offset)), start
        )
        for record in scan:
            again = encode_record(
                record.kind, record.codec, record.length, record.digest, record.payload
            )
            _write_all(self._file.fd, [again], record.offset)
        if scan.stop is not ScanStop.END or scan.end != end:
            raise ObjectStoreFailed(
                f"{self.path}: the disk lost what was appended from byte {scan.end} on"
                f" ({scan.reason}); run `nexus-ctl fsck`"
            )
        if start == 0:
            _write_all(self._file.fd, [encode_pack_header(self.pack)], 0)


def mend_header(directory: Path, pack: str) -> None:
    """Write a pack's header again where a power loss took it; no error if there is no such pack."""
    path, header = directory / f"{pack}.pack", encode_pack_header(pack)
    try:
        file = OpenFile(os.open(path, os.O_RDWR))
        if file.read(0, PACK_HEADER_SIZE) != header:
            _write_all(file.fd, [header], 0)
    except FileNotFoundError:
        return
    except OSError as error:
        raise translate(error, f"mend {path}") from error


def _write_all(fd: int, buffers: Sequence[bytes], offset: int) -> None:
    """Write the buffers one after the other from ``offset`` on; usually one system call."""
    done = os.pwritev(fd, buffers[:_IOV_MAX], offset)
    total = sum(map(len, buffers))
    if done == total:
        return
    rest = memoryview(b"".join(buffers))
    while done < total:
        count = os.pwrite(fd, rest[done:], offset + done)
        if count == 0:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        done += count
