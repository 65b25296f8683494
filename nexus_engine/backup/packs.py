"""Copy packs and verify the copies: the same work for a backup and for a restore.

What is copied of a pack is its beginning, up to the end of the last chunk that the database names;
a pack only grows, so that a later copy goes on where this one ends. Each chunk that the index has
there is verified by its checksum, in the copy. What else lies between is copied as it is: intents,
chunks that nothing names, and bytes that a power loss took.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path as FilePath

from nexus_engine import errors
from nexus_engine.backends.base import ObjectStore, View
from nexus_engine.backends.files import OpenFile
from nexus_engine.backup.layout import NEW, explained
from nexus_engine.cas.pack import (
    KIND_CHUNK,
    PACK_HEADER_SIZE,
    PackRecord,
    RecordScan,
    pack_key,
    parse_record,
)
from nexus_engine.meta import backup_queries
from nexus_engine.meta.backup_queries import PackUse, Place
from nexus_engine.meta.connection import Connection
from nexus_engine.types import Digest

_BLOCK = 1 << 20


class PackCopy:
    """Copies packs into a directory.

    Args:
        source: Where they are.
        index: The copy of the database; tells what has to be in them.
        on_copied: Told the bytes of each block.
    """

    def __init__(
        self,
        source: ObjectStore,
        directory: FilePath,
        index: Connection,
        on_copied: Callable[[int], None],
    ) -> None:
        self._source = source
        self._directory = directory
        self._index = index
        self._on_copied = on_copied
        self.damaged: dict[str, list[Place]] = {}
        """Pack → its chunks that are not what they should be, of packs copied so far."""

    def damaged_chunks(self) -> Iterator[Digest]:
        """Yield the chunks that are damaged."""
        for places in self.damaged.values():
            for place in places:
                yield place.digest

    def present(self, use: PackUse, trusted: int) -> int:
        """Return how many bytes of a pack are in the directory already, and right.

        Args:
            trusted: So many were verified before, if the file is at least as long.
        """
        path = self._directory / f"{use.name}.pack"
        with explained(f"read {path}"):
            if not path.exists():
                return 0
            size = path.stat().st_size
        if size < trusted:
            trusted = 0
        if min(size, use.end) <= trusted:
            return trusted
        with explained(f"read {path}"):
            scan = RecordScan(_open(path, os.O_RDONLY).read, trusted)
            for _ in scan:
                pass
        return scan.end

    def copy(self, use: PackUse, present: int) -> None:
        """Copy what is missing of a pack, durably, and verify it.

        Args:
            present: What ``present`` said.

        Raises:
            ObjectNotFound: The source has no such pack.
        """
        path = self._directory / f"{use.name}.pack"
        key = pack_key(use.name)
        self._source.size(key)  # before an empty file is made of it
        with explained(f"copy packs to {self._directory}"):
            size = path.stat().st_size if path.exists() else 0
            # Never cut what an earlier generation may rely on, were it only for a moment.
            target = path.with_name(path.name + NEW) if size > present else path
            kept = None if target == path else _open(path, os.O_RDONLY)
            file = _open(target, os.O_RDWR | os.O_CREAT)
            done = False
            try:
                if kept is not None:
                    os.ftruncate(file.fd, 0)
                    self._append(file, kept.read, 0, present)
                self._append(file, partial(self._source.read, key), present, use.end)
                if kept is not None:
                    self._append(file, kept.read, use.end, size)
                os.fsync(file.fd)
                target.replace(path)
                done = True
            finally:
                if not done:  # no space, say: give back what was taken
                    os.ftruncate(file.fd, 0 if kept is not None else size)
        damaged = self._verify(use, file, present)
        if damaged:
            self.damaged[use.name] = damaged

    def lose(self, use: PackUse, present: int) -> None:
        """Take note of a pack that is not to be had: its chunks are lost."""
        self.damaged[use.name] = backup_queries.places_in(self._index, use.id, present)

    def _append(
        self, file: OpenFile, read: Callable[[int, int], View], start: int, end: int
    ) -> None:
        """Copy a range of bytes, or what there is of it.

        Read and written, never cloned: a backup that shares blocks with the original is none.
        """
        at = start
        while at < end and (block := read(at, min(_BLOCK, end - at))):
            _write(file.fd, block, at)
            at += len(block)
            self._on_copied(len(block))

    def _verify(self, use: PackUse, file: OpenFile, start: int) -> list[Place]:
        """Return the chunks, from an offset on, that are damaged."""
        good: set[int] = set()
        scan = RecordScan(file.read, start)
        for record in scan:
            if self._is_indexed(use, record):
                good.add(record.offset)
        if start <= PACK_HEADER_SIZE and len(good) == use.chunks:
            return []
        # Slow, and rare: a pack that went on growing, bytes in between that are no record, damage.
        places = backup_queries.places_in(self._index, use.id, start)
        return [p for p in places if p.offset not in good and not _is_there(file, p)]

    def _is_indexed(self, use: PackUse, record: PackRecord) -> bool:
        return record.kind == KIND_CHUNK and backup_queries.is_placed(
            self._index, use.id, _place(record)
        )


def _place(record: PackRecord) -> Place:
    return Place(record.digest, record.offset, record.stored_length, record.length, record.codec)


def _is_there(file: OpenFile, place: Place) -> bool:
    try:
        record = parse_record(file.read(place.offset, place.stored_length), place.offset)
    except errors.CorruptChunk:
        return False
    return record.kind == KIND_CHUNK and _place(record) == place


def _write(fd: int, block: bytes | memoryview, offset: int) -> None:
    done = 0
    view = memoryview(block)
    while done < len(view):
        done += os.pwrite(fd, view[done:], offset + done)


def _open(path: FilePath, flags: int) -> OpenFile:
    return OpenFile(os.open(path, flags | os.O_CLOEXEC, 0o600))
