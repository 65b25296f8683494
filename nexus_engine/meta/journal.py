"""The redo journal: operations that programs were told are done, before SQLite commits them.

A COMMIT costs several times the statements in it, so operations that come close together share
one. Until then each is here: the statements that it ran, written to the kernel before its caller
hears of it. Whoever next has the store's write lock runs them again should this process die.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import xxhash

from nexus_engine.backends.files import translate
from nexus_engine.meta.statements import JOURNALED

JOURNAL_BYTES = 256 * 1024
"""More than this does not wait for its COMMIT."""
_ZEROS = memoryview(bytes(JOURNAL_BYTES))
_MAGIC = b"NXJ1"
HEADER = struct.Struct("<4sIQ")  # magic, bytes of the entry, their xxh3_64


class Entry(msgspec.Struct, frozen=True, array_like=True):
    """One operation or a few of one rule (msgpack array; docs/FORMAT.md)."""

    before: int
    """The log's end when it ran."""
    before_hash: bytes
    statements: list[tuple[str, tuple[Any, ...]]]
    """Names of statements, and their arguments."""


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Entry).decode


class Journal:
    """The journal of this process; what waits, in memory and in a file."""

    def __init__(self, path: Path) -> None:
        """Make the file, with all the room that it will ever take.

        Raises:
            NoSpace, StoreInaccessible, ObjectStoreFailed.
        """
        self.waiting: list[Entry] = []
        self._end = 0
        self._used = 0
        """Bytes of the file that may be other than zero."""
        try:
            self._fd = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
            try:
                os.posix_fallocate(self._fd, 0, JOURNAL_BYTES)
            except OSError:
                os.close(self._fd)
                path.unlink()
                raise
        except OSError as error:
            raise translate(error, f"make {path}") from error

    def append(self, entry: Entry) -> bool:
        """Have an operation outlive this process; tell whether that could be done."""
        payload = _encode(entry)
        record = HEADER.pack(_MAGIC, len(payload), xxhash.xxh3_64_intdigest(payload)) + payload
        if self._end + len(record) > JOURNAL_BYTES:
            return False
        self._used = max(self._used, self._end + len(record))
        try:
            written = os.pwrite(self._fd, record, self._end)
        except OSError:
            return False  # then it is committed at once, or it fails
        if written != len(record):
            return False
        self._end += written
        self.waiting.append(entry)
        return True

    def clear(self) -> None:
        """All of it is committed; the file forgets it, for what is purged must be nowhere."""
        self.waiting.clear()
        self._end = 0
        if not self._used:
            return
        # What cannot be overwritten is older than the log's end: nobody would apply it.
        with suppress(OSError):
            if os.pwrite(self._fd, _ZEROS[: self._used], 0) == self._used:
                self._used = 0

    def close(self) -> None:
        os.close(self._fd)


def read_journal(path: Path) -> Iterator[Entry]:
    """Yield what a process left: from the beginning up to the first entry that is not whole.

    Among them may be operations that were committed.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return  # its process has taken leave
    except OSError as error:
        raise translate(error, f"read {path}") from error
    at = 0
    while at + HEADER.size <= len(content):
        magic, length, checksum = HEADER.unpack_from(content, at)
        payload = content[at + HEADER.size : at + HEADER.size + length]
        if magic != _MAGIC or len(payload) != length:
            return
        if xxhash.xxh3_64_intdigest(payload) != checksum:
            return
        try:
            entry = _decode(payload)
        except msgspec.DecodeError:
            return
        if any(name not in JOURNALED for name, _ in entry.statements):
            return
        yield entry
        at += HEADER.size + length
