"""Extended attributes that nobody sets: asked for by name, in no listing.

So ``cp -a`` and ``rsync -X`` do not copy what would be wrong elsewhere.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Awaitable, Callable
from functools import partial

import anyio.to_thread

from nexus_engine import errors
from nexus_engine.fs.content import Content
from nexus_engine.fs.reading import read_extents
from nexus_engine.meta.reader import View
from nexus_engine.store import Store
from nexus_engine.types import Actor, Ino, Inode

SHA256 = b"user.nexus.sha256"
"""Of the whole content, in hex. Files only."""
VERSION = b"user.nexus.version"
"""The operation that made the content, in decimal."""
NAMES = (SHA256, VERSION)

_BLOCK_BYTES = 1024 * 1024
_NOBODY = Actor(0, 0)

Read = Callable[[int, int], Awaitable[bytes]]


async def live(store: Store, content: Content, ino: Ino, name: bytes) -> bytes:
    """Return a computed attribute of a file as it is now, what is being written included."""
    reader = store.reader
    inode = reader.find_inode(ino) or reader.find_departed(ino)
    if inode is None or not inode.is_file:
        raise errors.NoXattr(name.decode())
    if name == VERSION:
        return b"%d" % inode.content_seq
    handle = content.open(inode, _NOBODY, silent=True)
    try:
        being_written = handle.file.session is not None
        known = None if being_written else reader.find_content_hash(ino, inode.content_seq)
        if known is not None:
            return known.hex().encode()
        sha256 = await _sha256(partial(content.read, handle), content.over(inode).size)
        if not being_written and handle.file.session is None and reader.find_inode(ino) == inode:
            _remember(store, inode, sha256)
        return sha256
    finally:
        await content.release(handle)


async def past(store: Store, view: View, inode: Inode, name: bytes) -> bytes:
    """Return a computed attribute of a file in a view of the past."""
    if not inode.is_file:
        raise errors.NoXattr(name.decode())
    if name == VERSION:
        return b"%d" % inode.content_seq

    async def read(offset: int, length: int) -> bytes:
        length = min(length, inode.size - offset)
        extents = view.extents(inode.ino, offset, length)
        if view.find_inode(inode.ino) is None:
            raise errors.HistoryExpired("this version is not kept any more")
        return await read_extents(store, extents, offset, length)

    known = store.reader.find_content_hash(inode.ino, inode.content_seq)
    if known is not None:
        return known.hex().encode()
    sha256 = await _sha256(read, inode.size)
    _remember(store, inode, sha256)
    return sha256


def _remember(store: Store, inode: Inode, sha256: bytes) -> None:
    with contextlib.suppress(errors.StoreBusy):  # then it is computed again when asked for
        store.database.add_content_hash(
            inode.ino, inode.content_seq, bytes.fromhex(sha256.decode())
        )


async def _sha256(read: Read, size: int) -> bytes:
    digest = hashlib.sha256()
    for offset in range(0, size, _BLOCK_BYTES):
        block = await read(offset, _BLOCK_BYTES)
        await anyio.to_thread.run_sync(digest.update, block)
    return digest.hexdigest().encode()
