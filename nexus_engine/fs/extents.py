"""Byte ranges of a file in memory: dirty bytes, and extents laid over one another."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from concurrent.futures import Future, ThreadPoolExecutor
from hashlib import sha256
from itertools import groupby

from nexus_engine.types import Digest, Extent

CHUNK_BYTES = 1024 * 1024
"""Files are cut at multiples of this, so that equal content gives equal chunks."""


RANGE_BYTES = 512
"""What a range takes beside its bytes."""
RANGES_MAX = 256
"""Separate dirty ranges within one chunk's length, before they are moved into chunks."""


class ExtentMap:
    """Extents in file order, disjoint; a later one covers what it overlaps."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._extents: list[Extent] = []

    def __len__(self) -> int:
        return len(self._extents)

    def put(self, extent: Extent) -> None:
        """Lay an extent over the map."""
        if not self._starts or extent.start >= self._extents[-1].end:
            self._starts.append(extent.start)
            self._extents.append(extent)
            return
        left, right = self._cut(extent.start, extent.end)
        self._starts[left:right] = [extent.start]
        self._extents[left:right] = [extent]

    def truncate(self, size: int) -> None:
        """End every extent at ``size``."""
        if self._extents and self._extents[-1].end > size:
            left, right = self._cut(size, self._extents[-1].end)
            del self._starts[left:right]
            del self._extents[left:right]

    def overlapping(self, start: int, end: int) -> list[Extent]:
        """Return the extents that overlap a range, whole, ascending."""
        left = bisect_right(self._starts, start)
        if left and self._extents[left - 1].end > start:
            left -= 1
        return self._extents[left : bisect_left(self._starts, end)]

    def all(self) -> list[Extent]:
        return list(self._extents)

    def crowded(self) -> list[tuple[int, int]]:
        """Return the ranges (start, end) within one chunk's length that hold several extents."""
        found: list[tuple[int, int]] = []
        for _, group in groupby(self._extents, lambda extent: extent.start // CHUNK_BYTES):
            first, *rest = group
            if rest:
                found.append((first.start, rest[-1].end))
        return found

    def _cut(self, start: int, end: int) -> tuple[int, int]:
        """Split extents at both ends of a range; return the slice of those inside."""
        for position in (start, end):
            index = bisect_left(self._starts, position) - 1
            if index >= 0 and self._extents[index].end > position:
                old = self._extents[index]
                kept = position - old.start
                self._extents[index] = old._replace(length=kept)
                rest = Extent(position, old.length - kept, old.digest, old.chunk_offset + kept)
                self._starts.insert(index + 1, position)
                self._extents.insert(index + 1, rest)
        return bisect_left(self._starts, start), bisect_left(self._starts, end)


_hashers = ThreadPoolExecutor(2, "hash")


class DirtyRange:
    """Bytes that were written and are not yet in a chunk."""

    __slots__ = ("ahead", "data", "start")

    def __init__(self, start: int, data: bytes | bytearray) -> None:
        self.start = start
        self.data = data
        """Once they are a whole chunk nothing changes them: another range takes their place."""
        self.ahead: Future[Digest] | None = None
        """Their SHA-256, where it is being computed already."""

    @property
    def end(self) -> int:
        return self.start + len(self.data)

    def hash_ahead(self) -> None:
        """Have the digest of a whole chunk computed while the next one arrives."""
        if self.ahead is None:
            self.ahead = _hashers.submit(_digest, self.data)

    def truncate(self, surplus: int) -> None:
        """Forget bytes at the end."""
        self.data = bytearray(memoryview(self.data)[: len(self.data) - surplus])
        self.ahead = None


def _digest(data: bytes | bytearray) -> Digest:
    return Digest(sha256(data).digest())


class DirtyMap:
    """Dirty ranges of a file: disjoint, never across a chunk boundary, joined where they touch."""

    def __init__(self) -> None:
        self._windows: dict[int, list[DirtyRange]] = {}
        self._crowded: set[int] = set()
        self._full: set[int] = set()
        """Windows that are one whole chunk."""
        self.bytes = 0
        self.count = 0
        """Ranges."""

    def __bool__(self) -> bool:
        return bool(self._windows)

    @property
    def footprint(self) -> int:
        """Bytes of memory, about: a range of one byte takes some hundred."""
        return self.bytes + self.count * RANGE_BYTES

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """Take ``data`` at ``offset``, over what was there."""
        first, last = offset // CHUNK_BYTES, (offset + len(data) - 1) // CHUNK_BYTES
        if first == last:
            self._write_window(first, offset, data)
            return
        view = memoryview(data)
        position = offset
        while view:
            index = position // CHUNK_BYTES
            room = (index + 1) * CHUNK_BYTES - position
            self._write_window(index, position, view[:room])
            position += len(view[:room])
            view = view[room:]

    def _write_window(self, index: int, start: int, data: bytes | memoryview) -> None:
        ranges = self._windows.get(index)
        if ranges is None:
            kept = bytes(data) if len(data) == CHUNK_BYTES else bytearray(data)
            self._windows[index] = [DirtyRange(start, kept)]
            self.count += 1
            self.bytes += len(data)
            if len(data) == CHUNK_BYTES:
                self._full.add(index)
            return
        last = ranges[-1]
        if start == last.end:  # the next piece of a stream
            last.data += data
            self.bytes += len(data)
            if len(last.data) == CHUNK_BYTES:
                self._full.add(index)
            return
        end = start + len(data)
        if len(ranges) >= RANGES_MAX:
            self._crowded.add(index)
        joined = [r for r in ranges if r.start <= end and r.end >= start]
        if not joined:
            ranges.append(DirtyRange(start, bytearray(data)))
            self.count += 1
            ranges.sort(key=lambda r: r.start)
            self.bytes += len(data)
            return
        before = sum(len(r.data) for r in joined)
        begin = min(start, joined[0].start)
        content = bytearray(max(end, joined[-1].end) - begin)
        for old in joined:
            content[old.start - begin : old.end - begin] = old.data
        content[start - begin : end - begin] = data
        merged = DirtyRange(begin, content)
        self.bytes += len(content) - before
        self.count += 1 - len(joined)
        ranges[:] = sorted([r for r in ranges if r not in joined] + [merged], key=lambda r: r.start)
        if len(content) == CHUNK_BYTES:
            self._full.add(index)

    def truncate(self, size: int) -> None:
        """Forget bytes at and past ``size``."""
        for index in [i for i in self._windows if (i + 1) * CHUNK_BYTES > size]:
            kept = []
            self._full.discard(index)
            for dirty in self._windows[index]:
                surplus = min(len(dirty.data), max(0, dirty.end - size))
                if surplus:
                    dirty.truncate(surplus)
                    self.bytes -= surplus
                if dirty.data:
                    kept.append(dirty)
                else:
                    self.count -= 1
            if kept:
                self._windows[index] = kept
            else:
                del self._windows[index]

    def overlapping(self, start: int, end: int) -> list[DirtyRange]:
        """Return the ranges that overlap a range, ascending."""
        if not self._windows:
            return []
        indices = range(start // CHUNK_BYTES, (end - 1) // CHUNK_BYTES + 1)
        if len(indices) > len(self._windows):
            chosen = sorted(i for i in self._windows if i in indices)
        else:
            chosen = [i for i in indices if i in self._windows]
        return [
            dirty
            for index in chosen
            for dirty in self._windows[index]
            if dirty.start < end and dirty.end > start
        ]

    def crowded_ranges(self) -> list[DirtyRange]:
        """Return the ranges of windows that hold too many to go on sorting."""
        return [dirty for index in self._crowded for dirty in self._windows.get(index, ())]

    def full_ranges(self) -> list[DirtyRange]:
        """Return the ranges that fill a whole chunk."""
        return [self._windows[index][0] for index in sorted(self._full)]

    def ranges(self) -> list[DirtyRange]:
        """Return every range, ascending."""
        return [dirty for index in sorted(self._windows) for dirty in self._windows[index]]

    def remove(self, done: list[DirtyRange]) -> None:
        """Forget ranges that are in chunks now."""
        for dirty in done:
            index = dirty.start // CHUNK_BYTES
            ranges = self._windows[index]
            ranges.remove(dirty)
            self.count -= 1
            if not ranges:
                del self._windows[index]
                self._crowded.discard(index)
                self._full.discard(index)
            self.bytes -= len(dirty.data)
