"""What was written and waits in memory: moved into chunks, within bounds of memory and disk."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from nexus_engine import errors
from nexus_engine.fs.extents import CHUNK_BYTES, DirtyRange
from nexus_engine.fs.files import OpenFile, WriteSession
from nexus_engine.fs.gate import Gate
from nexus_engine.fs.reading import read_over
from nexus_engine.reserve import full
from nexus_engine.store import Store
from nexus_engine.types import Digest, Extent, Ino

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

INLINE_BYTES = 65536
"""Up to this size hashing and compressing costs less than a thread's wake-up."""
INLINE_RANGES = 32
BATCH_RANGES = 1024
JOINED_PIECES = 65536
"""A file without a name has its pieces, each some hundred bytes of memory, joined at so many."""
UNNAMED_PIECES_MAX = 1 << 18
_COMMIT_BYTES = 512 * 1024
"""What a full disk should still have for the record of what was written."""
_LOOK_BYTES = 16 * 1024 * 1024
"""After so many bytes written the disk's free space is looked at again."""
_MIB = 1024 * 1024


class Staging:
    """The way of dirty ranges into chunks, of all open files.

    Whoever moves something of a session holds its file's gate.
    """

    def __init__(self, store: Store, files: Mapping[Ino, OpenFile]) -> None:
        self._store = store
        self._chunks = store.chunks
        self._disk = store.disk
        self._files = files
        self.dirty_bytes = 0
        """In memory, with what their ranges take: whoever changes a session's counts them."""
        self._dirty_limit = store.config.dirty_limit_mib * _MIB
        self._room_bytes = 0
        """May be written before the disk is looked at again."""
        self.naming = Gate()
        """Held from when chunks are stored that no session knows of until rows name them."""

    async def move(self, session: WriteSession, ranges: list[DirtyRange]) -> None:
        """Move dirty ranges into chunks. The file's gate is held."""
        self._require_admission(ranges)
        total = sum(len(dirty.data) for dirty in ranges)
        inline = total <= INLINE_BYTES and len(ranges) <= INLINE_RANGES
        self._moved(session, ranges, await self._put(ranges, inline=inline))

    async def move_with_intent(self, session: WriteSession, ranges: list[DirtyRange]) -> None:
        """Move a few dirty ranges into chunks, and the intent after them, in one write."""
        self._require_admission(ranges)
        # Complete but for the digests: a thread may come to it when the session has gone on.
        intent = session.intent(self._store.database.known_head)
        spans = [(dirty.start, len(dirty.data)) for dirty in ranges]
        digests = await self._put(
            ranges, lambda digests: intent.with_extents(_extents(spans, digests)), inline=True
        )
        self._moved(session, ranges, digests)
        session.unflushed = False

    async def move_all(self, session: WriteSession) -> None:
        """Move all dirty ranges into chunks, a bounded number of bytes at a time."""
        batch: list[DirtyRange] = []
        total = 0
        for dirty in session.dirty.ranges():
            batch.append(dirty)
            total += len(dirty.data)
            if total >= CHUNK_BYTES or len(batch) >= BATCH_RANGES:
                await self.move(session, batch)
                batch, total = [], 0
        if batch:
            await self.move(session, batch)

    async def join_pieces(self, session: WriteSession, pieces: int) -> None:
        """Store pieces that lie close together as one. The file's gate is held.

        There is no operation to put those of a file without a name into.

        Raises:
            NoSpace: They are too many, and too far from each other.
        """
        if pieces < max(session.pieces_max, JOINED_PIECES):
            return
        await self.move_all(session)
        for start, end in session.staged.crowded():
            if self._store.reserve.spent:
                raise full()
            data = await read_over(self._store, session, start, end - start)
            (digest,) = await self._disk.write(self._chunks.put_many, (data,))
            session.staged.put(Extent(start, len(data), digest, 0))
        left = len(session.staged)
        if left >= UNNAMED_PIECES_MAX:
            raise errors.NoSpace(
                f"inode {session.ino}, removed and still open, is in {left} pieces: what it takes"
                " of memory is bounded"
            )
        session.pieces_max = 2 * left

    async def _put(
        self,
        ranges: list[DirtyRange],
        intent: Callable[[list[Digest]], bytes] | None = None,
        *,
        inline: bool,
    ) -> list[Digest]:
        """Store dirty ranges as chunks; ``inline`` where a thread's wake-up would cost more."""
        put = partial(
            self._chunks.put_many,
            [dirty.data for dirty in ranges],
            intent,
            [dirty.ahead for dirty in ranges],
        )
        if not ranges:
            # An intent alone only says what is kept anyway, or that a file was truncated.
            put = partial(self._store.with_reserve, put)
        if inline and self._disk.calm:
            return put()
        try:
            return await self._disk.write(put)
        except errors.StoreHung:
            # What is written from now on is not for the thread that was left behind.
            for dirty in ranges:
                dirty.data = bytearray(dirty.data)
            raise

    def _require_admission(self, ranges: list[DirtyRange]) -> None:
        """Refuse new content while what is left of the disk is for deleting."""
        if ranges and self._store.reserve.spent:
            raise full()

    def _moved(
        self, session: WriteSession, ranges: list[DirtyRange], digests: list[Digest]
    ) -> None:
        spans = [(dirty.start, len(dirty.data)) for dirty in ranges]
        for extent in _extents(spans, digests):
            session.staged.put(extent)
        before = session.dirty.footprint
        session.dirty.remove(ranges)
        self.dirty_bytes += session.dirty.footprint - before

    async def require_room(self, length: int) -> None:
        """Make room in memory for so many bytes more; refuse them if the disk has none.

        Raises:
            NoSpace: Or it would not have enough for what was taken before.
        """
        if self.dirty_bytes > self._dirty_limit:
            await self._relieve(self._dirty_limit // 2)
        self._room_bytes -= length
        if self._room_bytes < 0 or self._store.reserve.spent:
            await self._find_room(length)

    async def _find_room(self, length: int) -> None:
        """Refuse now what there would be no room for when the file is closed.

        How far the next look is away halves as the disk fills up.
        """
        reserve = self._store.reserve
        for _ in range(2):
            room = reserve.free_bytes() - _COMMIT_BYTES - self.dirty_bytes - length
            if not reserve.spent and room >= 0:
                self._room_bytes = min(room // 2, _LOOK_BYTES)
                return
            # Compressed, or there already, they may need less.
            await self._relieve(0)
        raise full()

    async def _relieve(self, target_bytes: int) -> None:
        """Bring the bytes that wait in memory down to a number, longest waiting first."""
        for file in list(self._files.values()):
            if self.dirty_bytes <= target_bytes:
                return
            await file.gate.take()
            try:
                if file.session is not None:
                    await self.move_all(file.session)
            finally:
                file.gate.give()

    async def leave_packs(self, packs: Collection[str]) -> bool:
        """Rely no longer on chunks in packs that gc is about to drop.

        Chunks that a row names are gc's to move. Those of open sessions are in no row yet.

        Returns:
            Whether any had to be stored again; they are not durable yet.
        """
        stored = False
        await self.naming.take()  # what was stored for a batch is in rows then
        self.naming.give()
        for file in list(self._files.values()):
            await file.gate.take()  # whoever was storing chunks by what it had seen is done then
            try:
                session = file.session
                if session is None:
                    continue
                for digest in {extent.digest for extent in session.staged.all()}:
                    row = self._store.reader.find_chunk(digest)
                    if row is not None and row[0] in packs and not self._chunks.pending(digest):
                        again = partial(self._chunks.put_again, digest)
                        await self._disk.write(self._store.with_reserve, again)
                        stored = True
            finally:
                file.gate.give()
        return stored


def _extents(spans: list[tuple[int, int]], digests: list[Digest]) -> list[Extent]:
    return [
        Extent(start, length, digest, 0)
        for (start, length), digest in zip(spans, digests, strict=True)
    ]
