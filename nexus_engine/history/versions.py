"""Versions of a file: every content that a name ever led to."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import NamedTuple

from nexus_engine import errors
from nexus_engine.meta import history_queries
from nexus_engine.meta.database import Database
from nexus_engine.meta.reader import View
from nexus_engine.store import Store
from nexus_engine.types import Actor, Digest, Ino, Inode, Name, Seq

_EMPTY = Digest(hashlib.sha256(b"").digest())


class Version(NamedTuple):
    """One content of a file. Its bytes are those of ``ino`` in ``database.as_of(moment)``."""

    seq: Seq
    """The operation that made it."""
    ino: Ino
    time_ns: int
    size: int
    actor: Actor
    kind: str
    """Of the operation: write, create, setattr, undo, restore; "" if the log has it no more."""
    digest: Digest | None
    """SHA-256 of the whole content, where it is known without reading it."""
    moment: Seq
    """When the file had it, and it can be read: the operation's own, or a later one."""


def versions(database: Database, parent: Ino, name: Name) -> list[Version]:
    """Return every content that a name in a directory ever led to, newest first.

    A file is followed under its other names: what it held before it was moved here, and since it
    was moved away, counts as well.
    """
    found = [
        Version(
            seq=row.seq,
            ino=ino,
            time_ns=row.time_ns,
            size=row.size,
            actor=Actor(*row.actor),
            kind=row.kind,
            digest=row.sha256 or _find_digest(database, ino, row.moment, row.size),
            moment=row.moment,
        )
        for ino in history_queries.inodes_of_name(database.connection, parent, name)
        for row in history_queries.list_contents(database.connection, ino)
    ]
    return sorted(found, key=lambda version: (version.seq, version.ino), reverse=True)


def names_with_versions(database: Database, parent: Ino) -> Iterator[Name]:
    """Yield every name that a regular file ever had in a directory, once, in directory order."""
    return history_queries.iter_file_names(database.connection, parent)


def read_content(store: Store, view: View, inode: Inode, offset: int, length: int) -> bytes:
    """Return the bytes of a range of a file in a view, short at its end.

    Blocks on the disk, and on a source where it is in an attachment and was not read yet.

    Raises:
        CorruptChunk, MissingChunk, StoreInaccessible, ObjectStoreFailed.
        ObjectNotFound, ObjectChanged, StoreHung: It is not to be had from its source.
        HistoryExpired: Retention has let go of it meanwhile.
    """
    length = min(length, inode.size - offset)
    if length <= 0:
        return b""
    end = offset + length
    content = bytearray(length)
    extents = view.extents(inode.ino, offset, length)
    require_still_there(view, inode)
    for extent in extents:
        start, stop = max(offset, extent.start), min(end, extent.end)
        at = extent.chunk_offset + start - extent.start
        data = store.read_chunk(extent.digest, at, stop - start)
        content[start - offset : stop - offset] = data
    return bytes(content)


def _find_digest(database: Database, ino: Ino, seq: Seq, size: int) -> Digest | None:
    """Return the digest of a content that is one whole chunk, or nothing."""
    if size == 0:
        return _EMPTY
    extents = database.as_of(seq).extents(ino, 0, 1)
    if len(extents) != 1 or extents[0].chunk_offset or extents[0].length != size:
        return None
    return history_queries.whole_chunk_digest(database.connection, extents[0].digest, size)


def require_still_there(view: View, inode: Inode) -> None:
    """Refuse extents that were read of a version while retention was letting go of it.

    An inode's row goes with its extents, so what is there afterwards was there all the time.

    Raises:
        HistoryExpired: They may be half of what it held.
    """
    if view.find_inode(inode.ino) is None:
        raise errors.HistoryExpired("this version is not kept any more")
