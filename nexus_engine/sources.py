"""Sources: buckets of others that directories of a store are attached to, and what is read there.

A file in an attachment is made of *lazy* chunks until somebody reads it: extents name them by
digests that no content has, and the table ``lazy_chunk`` says which bytes of which version of which
object they are. Reading one gets these bytes, verified to be that version's, and keeps them as a
chunk like any other. So nothing is fetched twice, and what was read stays in the past for good.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from hashlib import sha256
from typing import Protocol, TypeVar

import anyio
import anyio.to_thread
import msgspec

from nexus_engine import errors
from nexus_engine.backends.base import View
from nexus_engine.backends.bucket import Bucket
from nexus_engine.backends.urls import open_bucket
from nexus_engine.cas.store import ChunkStore, Location
from nexus_engine.meta import attachment_queries, lazy_queries
from nexus_engine.meta.connection import Connection
from nexus_engine.meta.lazy_queries import LazyChunk
from nexus_engine.meta.reader import Reader
from nexus_engine.types import Digest, Extent

R = TypeVar("R")


class Asks(Protocol):
    """Runs something on a connection to the database, and returns what it returns."""

    def __call__(self, question: Callable[[Connection], R], /) -> R: ...


_MIB = 1 << 20
_SMALL_OBJECT = 64 * _MIB
CHUNK_BYTES, _LARGE_CHUNK_BYTES = _MIB, 4 * _MIB
"""What is fetched for one byte. A request costs as much as some hundred KiB; and a row for each
MiB of objects of many GiB would be many rows."""
_WINDOW_MAX = 8 * _MIB
"""Whoever reads on gets twice as much each time, up to this, in one request."""
_READERS = 1024
_WAITING_MAX = 16
"""Requests of programs that wait for sources, each in a thread."""
_ATTEMPTS = 3
_SILENCE_S = 3.0
"""Who waited so long in vain found that a source does not answer; for so long others do not ask."""


def lazy_extents(attachment: int, key: bytes, etag: str, size: int) -> list[Extent]:
    """Return what a file is made of that has an object's content and was not read yet."""
    length = CHUNK_BYTES if size <= _SMALL_OBJECT else _LARGE_CHUNK_BYTES
    return [
        Extent(start, min(length, size - start), _name(attachment, key, etag, start, length), 0)
        for start in range(0, size, length)
    ]


def _name(attachment: int, key: bytes, etag: str, offset: int, length: int) -> Digest:
    text = msgspec.msgpack.encode((attachment, key, etag, offset, length))
    return Digest(sha256(b"nexus lazy chunk\0" + text).digest())


class Sources:
    """Thread-safe; blocking, but for `bring`.

    Args:
        look: Asks the database something, in the caller's thread.
        note: Changes rows that no view shows, likewise.
        beside: Those of the same store opened by this process before: they share buckets.
    """

    def __init__(
        self,
        chunks: ChunkStore,
        look: Asks,
        note: Asks,
        beside: Sources | None = None,
    ) -> None:
        self._chunks = chunks
        self._look = look
        self._note = note
        self._lender = beside
        self._opening = threading.Lock()
        self._buckets: dict[int, Bucket] = {}
        self._settled = threading.Condition()
        self._claimed: set[Digest] = set()
        """Lazy chunks that some thread is fetching."""
        self.outdated: set[int] = set()
        """Attachments of which somebody found that the source has something else by now."""
        self._silent: dict[int, float] = {}
        """Attachments whose source did not answer, and until when nobody asks it again."""
        self._readers: dict[int, tuple[int, int]] = {}
        """Of versions that are being read: where the last request began, and how much it got."""
        self._limiter: anyio.CapacityLimiter | None = None

    def bucket(self, attachment: int) -> Bucket:
        """Return the bucket of an attachment; it is opened once.

        Raises:
            StoreInaccessible, InvalidArgument, NotSupported: as `open_bucket`.
        """
        if self._lender is not None:
            return self._lender.bucket(attachment)
        with self._opening:
            bucket = self._buckets.get(attachment)
            if bucket is None:
                found = self._look(partial(attachment_queries.find, number=attachment))
                if found is None:
                    raise errors.StoreInaccessible(f"there is no attachment {attachment}")
                bucket = self._buckets[attachment] = open_bucket(found.url, found.options)
            return bucket

    async def bring(self, digest: Digest) -> bool:
        """As `fetch`, in a thread."""
        if self._limiter is None:
            self._limiter = anyio.CapacityLimiter(_WAITING_MAX)
        return await anyio.to_thread.run_sync(self.fetch, digest, limiter=self._limiter)

    def fetch(self, digest: Digest) -> bool:
        """Have the content of a lazy chunk here, so that reading it finds it.

        Returns:
            Whether it is a lazy chunk at all.

        Raises:
            ObjectNotFound, ObjectChanged: The source does not have it any more.
            StoreHung, StoreInaccessible, ObjectStoreFailed, NoSpace.
        """
        while True:
            chunk = self._look(partial(lazy_queries.find, digest=digest))
            if chunk is None:
                return False
            if chunk.content is not None and self._is_here(chunk.content):
                self._chunks.note_alias(digest, chunk.content)
                return True
            with self._claim(chunk) as chunks:
                if chunks:
                    self._fetch(chunks)

    def fetch_version(self, attachment: int, key: bytes, etag: str) -> None:
        """Have all of a version of an object here that some file is or was made of.

        Raises:
            as `fetch`.
        """
        missing = partial(lazy_queries.unfetched_of, attachment=attachment, key=key, etag=etag)
        for chunk in self._look(missing):
            self.fetch(chunk.digest)

    def let_go(self, attachment: int) -> None:
        """Close the bucket of an attachment: what fails in it now is not tried again."""
        with self._opening:
            bucket = self._buckets.pop(attachment, None)
        if bucket is not None:
            bucket.close()

    def close(self) -> None:
        for bucket in self._buckets.values():
            bucket.close()
        self._buckets.clear()

    def _is_here(self, content: Digest) -> bool:
        pending = self._chunks.pending(content)
        return pending is not None or self._look(partial(_location, digest=content)) is not None

    @contextmanager
    def _claim(self, first: LazyChunk) -> Iterator[list[LazyChunk]]:
        """Give the chunks that this thread is to fetch; none if another one did it meanwhile."""
        with self._settled:
            if first.digest in self._claimed:
                self._settled.wait_for(lambda: first.digest not in self._claimed)
                yield []
                return
        following = self._look(partial(_following, first=first, window=self._window(first)))
        with self._settled:
            run = []
            for chunk in following:
                if chunk.digest in self._claimed:
                    break
                run.append(chunk)
            self._claimed.update(chunk.digest for chunk in run)
        try:
            yield run
        finally:
            with self._settled:
                self._claimed.difference_update(chunk.digest for chunk in run)
                self._settled.notify_all()

    def _window(self, chunk: LazyChunk) -> int:
        """Return how many bytes to get, more than a chunk for those who read on."""
        begin, window = self._readers.pop(chunk.version, (chunk.offset, 0))
        # Requests of one reader come in about their order, not exactly.
        reads_on = 0 <= chunk.offset - begin <= 2 * window
        window = min(2 * window, _WINDOW_MAX) if reads_on and window else chunk.length
        if len(self._readers) >= _READERS:
            self._readers.clear()
        self._readers[chunk.version] = (chunk.offset, window)
        return window

    def _fetch(self, chunks: list[LazyChunk]) -> None:
        first, length = chunks[0], chunks[-1].end - chunks[0].offset
        key = first.key.decode(errors="surrogateescape")
        data = self._read(first, key, length)
        if len(data) != length:
            raise errors.ObjectChanged(
                f"{key} ends after {first.offset + len(data)} bytes; it was longer when it was"
                " listed"
            )
        view = memoryview(data)
        for _ in range(_ATTEMPTS):
            pieces = [view[c.offset - first.offset : c.end - first.offset] for c in chunks]
            contents = self._chunks.put_many(pieces)
            if self._note(partial(self._keep, chunks=chunks, contents=contents)):
                self._chunks.forget_pending(contents)
                return
            # gc is about to drop a pack that some are in.
            for content in contents:
                self._chunks.put_again(content)
        raise errors.StoreBusy("gc is at work where this is to be kept; try again")

    def _read(self, first: LazyChunk, key: str, length: int) -> View:
        """Ask a source; at once an error where somebody else just waited in vain."""
        if time.monotonic() < self._silent.get(first.attachment, 0.0):
            raise errors.StoreHung(f"{key}: its source does not answer")
        begun_s = time.monotonic()
        try:
            return self.bucket(first.attachment).read(key, first.offset, length, etag=first.etag)
        except (errors.ObjectChanged, errors.ObjectNotFound):
            self.outdated.add(first.attachment)
            raise
        except errors.BackendError:
            now_s = time.monotonic()
            if now_s - begun_s > _SILENCE_S:
                self._silent[first.attachment] = now_s + _SILENCE_S
            raise

    def _keep(
        self, connection: Connection, chunks: list[LazyChunk], contents: list[Digest]
    ) -> bool:
        """Enter what was fetched; tell whether all of it lies where it may be relied on."""
        places = [self._chunks.pending(c) or _location(connection, c) for c in contents]
        if not all(p and lazy_queries.is_safe(connection, p.pack) for p in places):
            return False
        for chunk, content in zip(chunks, contents, strict=True):
            lazy_queries.enter_chunk(connection, content, self._chunks.pending(content))
            lazy_queries.put_content(connection, chunk.digest, content)
        return True


def _location(connection: Connection, digest: Digest) -> Location | None:
    row = Reader(connection).find_chunk(digest)
    return None if row is None else Location._make(row)


def _following(connection: Connection, first: LazyChunk, window: int) -> list[LazyChunk]:
    """Return a chunk and those after it that lie side by side, about as much as a window."""
    count = max(1, window // first.length)
    run: list[LazyChunk] = []
    for chunk in lazy_queries.unfetched_from(connection, first.version, first.offset, count):
        if chunk.offset != (run[-1].end if run else first.offset):
            break
        run.append(chunk)
    return run or [first]
