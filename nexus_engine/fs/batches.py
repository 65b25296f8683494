"""Many whole files in one call: what a program would do by open, write and close of each.

A batch is stored part by part. The chunks of a part go into the pack in one append, then one
transaction makes all of its files, each by a record of its own. No session is begun and no intent
written: nobody is told anything before the files are in the log.
"""

from __future__ import annotations

import stat
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import anyio.lowlevel

from nexus_engine import errors
from nexus_engine.cas.codec import BytesLike
from nexus_engine.fs.attributes import NewAttributes, set_attributes
from nexus_engine.fs.content import Content
from nexus_engine.fs.extents import CHUNK_BYTES
from nexus_engine.fs.files import Locate, commit_whole, content_details, enter_chunks
from nexus_engine.fs.namespace import add_inode, check_name, get_directory
from nexus_engine.fs.quotas import Held
from nexus_engine.fs.staging import INLINE_BYTES, INLINE_RANGES
from nexus_engine.meta.transaction import Transaction
from nexus_engine.oplog.tail import Tail
from nexus_engine.permissions import acl
from nexus_engine.permissions.modes import set_ids_lost
from nexus_engine.records import Change
from nexus_engine.store import Store
from nexus_engine.types import Actor, Digest, Extent, Ino, Inode, Name

PART_FILES = 256
PART_BYTES = 4 * 1024 * 1024
"""A part has no more, but for a file that is larger by itself: its transaction keeps others
waiting, and its chunks are in memory twice."""


class NewFile(NamedTuple):
    """A whole file, to be made or to take the place of another one's content."""

    parent: Ino
    name: Name
    content: bytes
    mode: int = 0o644
    """Permission bits, if it is made; the umask, if any, is already applied."""


class _Stored(NamedTuple):
    """A file whose content is in chunks."""

    file: NewFile
    extents: list[Extent]


class Batches:
    """Writes batches of files for one engine."""

    def __init__(self, store: Store, content: Content, tail: Tail) -> None:
        self._store = store
        self._content = content
        self._tail = tail

    async def write(
        self,
        files: Sequence[NewFile],
        actor: Actor,
        groups: Callable[[], Collection[int]],
        kept: Callable[[list[Inode]], None],
    ) -> None:
        """See `Engine.write_batch`.

        Args:
            kept: Called with the inodes of each part, in the order of the files.
        """
        for file in files:
            check_name(file.name)
        for part in _parts(files):
            await self._content.staging.require_room(sum(len(file.content) for file in part))
            # gc asks which chunks we rely on: it gets its answer when rows say so.
            await self._content.staging.naming.take()
            try:
                inodes = await self._write_part(part, actor, groups)
            finally:
                self._content.staging.naming.give()
            kept(inodes)
            await anyio.lowlevel.checkpoint()

    async def _write_part(
        self, part: list[NewFile], actor: Actor, groups: Callable[[], Collection[int]]
    ) -> list[Inode]:
        store = self._store
        digests = await self._put(part)
        await self._end_sessions(part)
        inodes = await store.write(
            _write_files, actor, list(_laid_out(part, digests)), store.locate,
            self._content.held, groups,
        )  # fmt: skip
        store.database.when_committed(partial(store.chunks.forget_pending, digests))
        self._tail.expose(inode.from_seq for inode in inodes)
        for inode in inodes:
            self._content.refresh_inode(inode.ino)
        return inodes

    async def _put(self, part: list[NewFile]) -> list[Digest]:
        """Store the chunks of all files; return their digests, in order."""
        digests: list[Digest] = []
        for chunks in _appends(part):
            put = partial(self._store.chunks.put_many, chunks)
            total = sum(map(len, chunks))
            if total <= INLINE_BYTES and len(chunks) <= INLINE_RANGES and self._store.disk.calm:
                digests += put()
            else:
                digests += await self._store.disk.write(put)
        return digests

    async def _end_sessions(self, part: list[NewFile]) -> None:
        """What was written to the same files before comes before this in the log."""
        if not self._content.is_writing:
            return
        for file in part:
            dentry = self._store.reader.find_dentry(file.parent, file.name)
            if dentry is not None:
                await self._content.seal_inode(dentry.ino)


def _parts(files: Sequence[NewFile]) -> Iterator[list[NewFile]]:
    """Cut a batch into what is stored at a time; in a part no name comes twice."""
    part: list[NewFile] = []
    names: set[tuple[Ino, Name]] = set()
    size = 0
    for file in files:
        key = (file.parent, file.name)
        size += len(file.content)
        if part and (len(part) >= PART_FILES or size > PART_BYTES or key in names):
            yield part
            part, names, size = [], set(), len(file.content)
        part.append(file)
        names.add(key)
    if part:
        yield part


def _chunks(content: bytes) -> Iterator[BytesLike]:
    """Cut a file's content as write sessions do."""
    if len(content) <= CHUNK_BYTES:
        if content:
            yield content
        return
    view = memoryview(content)
    for start in range(0, len(content), CHUNK_BYTES):
        yield view[start : start + CHUNK_BYTES]


def _appends(part: list[NewFile]) -> Iterator[list[BytesLike]]:
    """Yield the chunks of a part in lists of bounded size."""
    chunks: list[BytesLike] = []
    size = 0
    for file in part:
        for chunk in _chunks(file.content):
            if size + len(chunk) > PART_BYTES:
                yield chunks
                chunks, size = [], 0
            chunks.append(chunk)
            size += len(chunk)
    if chunks:
        yield chunks


def _laid_out(part: list[NewFile], digests: list[Digest]) -> Iterator[_Stored]:
    """Say which range of which file each chunk is."""
    following = iter(digests)
    for file in part:
        size = len(file.content)
        extents = [
            Extent(start, min(CHUNK_BYTES, size - start), next(following), 0)
            for start in range(0, size, CHUNK_BYTES)
        ]
        yield _Stored(file, extents)


def _write_files(
    tx: Transaction,
    part: list[_Stored],
    locate: Locate,
    held: Held,
    groups: Callable[[], Collection[int]],
) -> list[Inode]:
    """Rule: make files, or give them other content: one operation each.

    Args:
        part: No name comes twice.
        locate: Tells where a chunk is that the index does not know yet.

    Raises:
        IsADirectory, InvalidArgument (the name is that of something else that is no file),
        NotFound (the directory was removed), NotADirectory, QuotaExceeded.
    """
    inodes: list[Inode] = []
    for new, old in _runs(tx, part):
        if new:
            inodes += _make_files(tx, new, locate)
        if old:
            inodes += _overwrite_files(tx, old, locate, held, groups)
    return inodes


def _runs(
    tx: Transaction, part: list[_Stored]
) -> Iterator[tuple[list[_Stored], list[tuple[_Stored, Inode]]]]:
    """Yield new files that follow each other, or files that are there, each but once."""
    names: dict[Ino, list[Name]] = {}
    for stored in part:
        names.setdefault(stored.file.parent, []).append(stored.file.name)
    found = {parent: tx.find_children(parent, children) for parent, children in names.items()}
    new: list[_Stored] = []
    old: list[tuple[_Stored, Inode]] = []
    for stored in part:
        inode = found[stored.file.parent].get(stored.file.name)
        if old if inode is None else new or inode.nlink > 1:
            yield new, old
            new, old = [], []
        if inode is None:
            new.append(stored)
        else:
            old.append((stored, inode))
    yield new, old


def _make_files(tx: Transaction, new: list[_Stored], locate: Locate) -> list[Inode]:
    """Make files with their content. Names are free."""
    directories = {}
    for parent in {stored.file.parent for stored in new}:
        directories[parent] = (get_directory(tx, parent), tx.find_xattr(parent, acl.DEFAULT))
        tx.directory_path(parent)
        tx.touch_directory(parent)
    inodes = []
    with tx.gathered():
        for (parent, name, content, mode), extents in new:
            mode = stat.S_IFREG | stat.S_IMODE(mode)
            inode = add_inode(tx, *directories[parent], name, mode, size=len(content))
            enter_chunks(tx, extents, locate)
            tx.add_extents(inode.ino, extents)
            details = {"mode": inode.mode} | content_details(inode.size, extents)
            tx.commit(Change("create", inode.ino, tx.path_of(parent, name), details=details))
            inodes.append(inode)
    return inodes


def _overwrite_files(
    tx: Transaction,
    old: list[tuple[_Stored, Inode]],
    locate: Locate,
    held: Held,
    groups: Callable[[], Collection[int]],
) -> list[Inode]:
    """Give files other content, as open(2) with O_TRUNC and writing do."""
    fresh = [(stored, _prepare(tx, stored.file, inode, groups)) for stored, inode in old]
    inodes = []
    with tx.gathered():
        for ((parent, name, content, _), extents), inode in fresh:
            if held.active:
                _require_quota(held, inode.ino, len(content) - inode.size)
            path = tx.path_of(parent, name) if inode.nlink == 1 else tx.any_path_of(inode.ino)
            inodes.append(commit_whole(tx, inode, path, len(content), extents, locate))
    return inodes


def _prepare(
    tx: Transaction, file: NewFile, inode: Inode, groups: Callable[[], Collection[int]]
) -> Inode:
    """Return a file that may be written to, without the mode bits that this costs."""
    if not inode.is_file:
        error = errors.IsADirectory if inode.is_dir else errors.InvalidArgument
        raise error(f"no regular file: {file.name.decode(errors='backslashreplace')}")
    if inode.nlink > 1:
        inode = tx.get_inode(inode.ino)  # by another name it may just have been written to
    lost = set_ids_lost(inode, tx.actor, groups)
    if lost:
        return set_attributes(tx, inode.ino, NewAttributes(mode=inode.mode & ~lost))
    return inode


def _require_quota(held: Held, ino: Ino, growth: int) -> None:
    """Refuse a ``write``, which is a promise otherwise, for which there is no room."""
    room = held.room_bytes(ino)
    if room is not None and growth > max(0, room):
        raise held.exceeded(ino)
