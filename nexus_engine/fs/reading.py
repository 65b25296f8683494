"""Reading files: bytes from chunks, under what is being written over them."""

from __future__ import annotations

from nexus_engine import errors
from nexus_engine.backends.base import View
from nexus_engine.fs.files import WriteSession
from nexus_engine.store import Store
from nexus_engine.types import Extent


async def read_over(store: Store, session: WriteSession, offset: int, length: int) -> bytes:
    """Return the bytes of a range of a file that is being written to."""
    end = offset + length
    # All layers are taken down before the first await: a range may move from one to the next
    # while a chunk is being fetched.
    dirty = [
        (max(r.start, offset), bytes(r.data[max(0, offset - r.start) : end - r.start]))
        for r in session.dirty.overlapping(offset, end)
    ]
    if len(dirty) == 1 and dirty[0][0] == offset and len(dirty[0][1]) == length:
        return dirty[0][1]
    extents = store.reader.extents(session.ino, offset, length)
    floor = session.floor
    if floor is not None:
        extents = [
            extent._replace(length=min(extent.end, floor) - extent.start)
            for extent in extents
            if extent.start < floor
        ]
    extents += session.staged.overlapping(offset, end)
    content = bytearray(await read_extents(store, extents, offset, length))
    for start, data in dirty:
        content[start - offset : start - offset + len(data)] = data
    return bytes(content)


async def read_extents(store: Store, extents: list[Extent], offset: int, length: int) -> bytes:
    """Return the bytes of a range from extents; what none covers is zero.

    Args:
        extents: Later ones cover earlier ones where they overlap.
    """
    end = offset + length
    if len(extents) == 1 and extents[0].start <= offset and extents[0].end >= end:
        extent = extents[0]
        data = await _read_extent(store, extent, offset, length)
        return bytes(data) if isinstance(data, memoryview) else data
    content = bytearray(length)
    for extent in extents:
        start, stop = max(offset, extent.start), min(end, extent.end)
        if start < stop:
            data = await _read_extent(store, extent, start, stop - start)
            content[start - offset : stop - offset] = data
    return bytes(content)


async def _read_extent(store: Store, extent: Extent, offset: int, length: int) -> View:
    """Return bytes of a file that are in an extent."""
    chunks, digest = store.chunks, extent.digest
    at = extent.chunk_offset + offset - extent.start
    data = chunks.read_resident(digest, at, length)
    if data is not None:
        return data
    try:
        return await store.disk.read(chunks.read, digest, at, length)
    except errors.MissingChunk:
        # Not with the disk's deadline, and not in its threads: a server is no disk that hangs.
        if not await store.sources.bring(digest):
            raise
    return await store.disk.read(chunks.read, digest, at, length)
