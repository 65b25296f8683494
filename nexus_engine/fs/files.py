"""Write sessions: what programs wrote to a file, from the first write to one operation in the log.

A session gathers bytes in memory (``dirty``), moves them into chunks (``staged``) and ends as one
``write`` record. ``close`` and ``fsync`` in between append an *intent* to the pack: enough to
finish the session should the process die, without making a version of the file each time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import msgspec

from nexus_engine import errors
from nexus_engine.fs.extents import DirtyMap, ExtentMap
from nexus_engine.fs.gate import Gate
from nexus_engine.meta.reader import EXTENT_MAX_BYTES
from nexus_engine.meta.transaction import Transaction
from nexus_engine.records import Change
from nexus_engine.reserve import frees_space
from nexus_engine.types import SIZE_MAX, Actor, Digest, Extent, Ino, Inode, Path, Seq

INTENT_EXTENTS_MAX = 256
"""A session with more staged extents is committed rather than described in an intent."""


Locate = Callable[[Digest], tuple[Any, ...] | None]
"""Tells where a chunk is that the index does not know yet."""

_encode = msgspec.msgpack.Encoder().encode
_NUMBER_MAX = 1 << 63
_DIGEST_BYTES = 32


class Intent(msgspec.Struct, frozen=True, array_like=True):
    """A session as a pack remembers it (msgpack array; docs/FORMAT.md)."""

    version: int
    session: bytes
    flushes: int
    head: int
    """The log's end when this was written: a commit of the session lies after it."""
    ino: int
    base: int
    """The file's content when the session began: its ``content_seq``."""
    floor: int | None
    end: int
    mtime_ns: int
    actor: Actor
    extents: list[Extent]

    def with_extents(self, extents: list[Extent]) -> bytes:
        """Return it as a pack holds it, with more extents, laid down after its own."""
        return _encode(msgspec.structs.replace(self, extents=self.extents + extents))


class FoundIntent(Intent, frozen=True, array_like=True):
    """What a pack has as an intent, which may be anything."""

    def __post_init__(self) -> None:
        """Refuse what no session says."""
        if self.version != 1:
            raise ValueError(f"version {self.version} of an intent is unknown")
        if not 0 < self.ino < _NUMBER_MAX:
            raise ValueError(f"no inode has the number {self.ino}")
        counts = (self.flushes, self.head, self.base, *self.actor[:4], self.actor.session)
        if not all(0 <= count < _NUMBER_MAX for count in counts):
            raise ValueError("a number is out of bounds")
        if not (-_NUMBER_MAX <= self.mtime_ns < _NUMBER_MAX):
            raise ValueError("its time is out of bounds")
        if not (0 <= self.end <= SIZE_MAX and 0 <= (self.floor or 0) <= SIZE_MAX):
            raise ValueError("its size is out of bounds")
        for extent in self.extents:
            if len(extent.digest) != _DIGEST_BYTES or not (
                0 <= extent.start < extent.end <= SIZE_MAX
                and extent.length <= EXTENT_MAX_BYTES
                and 0 <= extent.chunk_offset < EXTENT_MAX_BYTES
            ):
                raise ValueError("an extent is out of bounds")


decode_intent = msgspec.msgpack.Decoder(FoundIntent).decode
"""Of the payload of a record; raises msgspec.DecodeError for what is no intent of ours."""


class CutOff(NamedTuple):
    """What a truncation took from a session."""

    dirty: list[tuple[int, bytes]]
    staged: list[Extent]
    floor: int | None
    end: int
    mtime_ns: int


class WriteSession:
    """Changes to the content of one inode that are not yet an operation."""

    def __init__(self, session_id: bytes, inode: Inode, actor: Actor, started_ns: int) -> None:
        self.id = session_id
        self.ino = inode.ino
        self.actor = actor
        self.started_ns = started_ns
        self.base = inode.content_seq
        self.floor: int | None = None
        """Once truncated: committed bytes below this still show where nothing covers them."""
        self.end = 0
        """Once truncated the size of the file; before, the end of what was written."""
        self.mtime_ns = started_ns
        self.staged = ExtentMap()
        self.dirty = DirtyMap()
        self.flushes = 0
        """Intents written."""
        self.unflushed = True
        """Something changed since the last intent."""
        self.pieces_max = 0
        """Of a file without a name: with so many pieces it is tidied up again."""

    def write(self, offset: int, data: bytes, now_ns: int) -> None:
        end = offset + len(data)
        if end > SIZE_MAX:
            raise errors.FileTooBig(f"{end} bytes; at most {SIZE_MAX}")
        if data:
            self.dirty.write(offset, data)
            self.end = max(self.end, end)
        self.mtime_ns = now_ns
        self.unflushed = True

    def beyond(self, size: int) -> CutOff:
        """Return what a truncation takes away, for `take_back` should that not last."""
        return CutOff(
            [
                (max(dirty.start, size), bytes(dirty.data[max(0, size - dirty.start) :]))
                for dirty in self.dirty.overlapping(size, SIZE_MAX)
            ],
            [extent.after(size) for extent in self.staged.overlapping(size, SIZE_MAX)],
            self.floor,
            self.end,
            self.mtime_ns,
        )

    def truncate(self, size: int, now_ns: int) -> None:
        self.dirty.truncate(size)
        self.staged.truncate(size)
        self.floor = size if self.floor is None else min(self.floor, size)
        self.end = size
        self.mtime_ns = now_ns
        self.unflushed = True

    def take_back(self, cut_off: CutOff) -> None:
        """Undo a truncation; nothing was written since."""
        for extent in cut_off.staged:
            self.staged.put(extent)
        for start, data in cut_off.dirty:
            self.dirty.write(start, data)
        self.floor, self.end, self.mtime_ns = cut_off.floor, cut_off.end, cut_off.mtime_ns

    def size_over(self, committed: int) -> int:
        """Return the file's size over committed content, which others may have made longer."""
        return max(committed, self.end) if self.floor is None else self.end

    def over(self, inode: Inode) -> Inode:
        """Return the inode as programs see it, the session included."""
        size = self.size_over(inode.size)
        return inode._replace(size=size, mtime_ns=self.mtime_ns, ctime_ns=self.mtime_ns)

    def intent(self, head: Seq) -> Intent:
        """Return the session so far, but for what is dirty, to be replayed after a crash.

        Args:
            head: An operation that surely precedes the session's own.
        """
        self.flushes += 1
        return Intent(
            version=1,
            session=self.id,
            flushes=self.flushes,
            head=head,
            ino=self.ino,
            base=self.base,
            floor=self.floor,
            end=self.end,
            mtime_ns=self.mtime_ns,
            actor=self.actor,
            extents=self.staged.all(),
        )

    @classmethod
    def from_intent(cls, intent: Intent, inode: Inode) -> WriteSession:
        """Return a session as an intent remembers it."""
        session = cls(intent.session, inode, intent.actor, intent.mtime_ns)
        session.base = Seq(intent.base)
        session.floor = intent.floor
        session.end = intent.end
        session.flushes = intent.flushes
        for extent in intent.extents:
            session.staged.put(extent)
        return session


@frees_space
def commit_session(tx: Transaction, session: WriteSession, locate: Locate) -> Inode | None:
    """Make the session's bytes the file's content: one operation.

    Returns:
        The inode as it is now; ``None`` if the file has no name any more, and nobody could ever
        see the content.
    """
    before = tx.find_inode(session.ino)
    if before is None or before.nlink == 0:
        return None
    extents = session.staged.all()
    enter_chunks(tx, extents, locate)
    if session.floor == 0:
        tx.replace_extents(session.ino, extents)
    else:
        if session.floor is not None and session.floor < before.size:
            tx.truncate_extents(session.ino, session.floor)
        tx.put_extents(session.ino, extents)
    after = _written(tx, before, session.size_over(before.size), session.mtime_ns)
    details = {"session": session.id.hex(), "flushes": session.flushes}
    details |= content_details(after.size, extents)
    path = tx.any_path_of(session.ino)
    tx.commit(Change("write", session.ino, path, None, details, _was(before)))
    return after


def commit_whole(
    tx: Transaction, before: Inode, path: Path, size: int, extents: list[Extent], locate: Locate
) -> Inode:
    """Give a file other content, all of it, without a session: one operation.

    Args:
        path: One of its names.
    """
    enter_chunks(tx, extents, locate)
    tx.replace_extents(before.ino, extents)
    after = _written(tx, before, size, tx.now_ns)
    tx.commit(Change("write", before.ino, path, None, content_details(size, extents), _was(before)))
    return after


def enter_chunks(tx: Transaction, extents: list[Extent], locate: Locate) -> None:
    """Have the index know every chunk that extents name."""
    for digest in {extent.digest for extent in extents}:
        location = locate(digest)
        if location is not None:
            tx.add_chunk(digest, location)


def _written(tx: Transaction, before: Inode, size: int, mtime_ns: int) -> Inode:
    """Make the version of a file that has new content."""
    after = before._replace(
        from_seq=tx.seq, size=size, mtime_ns=mtime_ns, ctime_ns=mtime_ns, content_seq=tx.seq
    )
    tx.put_inode(after)
    return after


def _was(before: Inode) -> dict[str, Any]:
    return {"size": before.size, "content_seq": before.content_seq}


def content_details(size: int, extents: list[Extent]) -> dict[str, Any]:
    """Return what a record says of the bytes that its operation laid down."""
    details = {"size": size, "extents": len(extents), "sha256": fingerprint(extents)}
    if len(extents) == 1:
        # The digest of the chunk alone does not say where in the file it lies.
        details["range"] = [extents[0].start, extents[0].length]
    return details


def fingerprint(extents: list[Extent]) -> str:
    """Bind the record to its bytes: the chunk's digest, or the hash of what was laid down."""
    if len(extents) == 1 and extents[0].chunk_offset == 0:
        return extents[0].digest.hex()
    digest = hashlib.sha256()
    for extent in extents:
        digest.update(b"%d %d %d " % (extent.start, extent.length, extent.chunk_offset))
        digest.update(extent.digest)
    return digest.hexdigest()


class OpenFile:
    """An inode that is open in this process, shared by its handles."""

    def __init__(self, ino: Ino, inode: Inode) -> None:
        self.ino = ino
        self.inode: Inode | None = inode
        """The committed inode; ``None`` when another process may have changed it."""
        self.handles = 0
        self.session: WriteSession | None = None
        self.gate = Gate()


class Handle:
    """An open file description."""

    __slots__ = ("actor", "file", "groups", "silent")

    def __init__(self, file: OpenFile, actor: Actor, *, silent: bool) -> None:
        self.file = file
        self.actor = actor
        """Who opened it: writes carry no identity of their own."""
        self.silent = silent
        """Reading through it leaves the atime alone."""
        self.groups: Collection[int] = ()
        """Further groups of theirs, where that makes a difference to what a write costs."""
