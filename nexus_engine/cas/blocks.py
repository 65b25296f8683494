"""Checksums of parts of chunks, so that a small read need not read and verify all of a large one.

The record of a chunk has one checksum, over all of it. Where a part of an uncompressed chunk is
asked for, the whole is read and verified once, and each block of it gets a checksum of its own,
kept in memory: later reads take the blocks they need from the pack and verify these.
"""

from __future__ import annotations

import threading
from array import array
from collections import OrderedDict
from typing import NamedTuple

import xxhash

from nexus_engine.backends.base import View
from nexus_engine.types import Digest

BLOCK_BYTES = 16 * 1024
KNOWN_MAX = 16384
"""Chunks remembered: 16 GiB of them, in some 12 MiB."""
WORTH_IT = 4
"""A read of less than such a part of a chunk is small."""


class Blocks(NamedTuple):
    """A chunk as it lies in a pack, uncompressed."""

    pack: str
    offset: int
    """Of the content in the pack, bytes."""
    length: int
    sums: array[int]
    """xxh3_64 of each block."""

    def span(self, offset: int, length: int) -> tuple[int, int]:
        """Return the blocks that hold a part, as (begin, end) in the chunk, bytes."""
        begin = offset - offset % BLOCK_BYTES
        end = -(-(offset + length) // BLOCK_BYTES) * BLOCK_BYTES
        return begin, min(end, self.length)

    def holds(self, begin: int, content: View) -> bool:
        """Tell whether whole blocks, from ``begin`` on, are what they were."""
        first = begin // BLOCK_BYTES
        found = _sums(content)
        return found == self.sums[first : first + len(found)]


class KnownBlocks:
    """Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: OrderedDict[Digest, Blocks] = OrderedDict()

    def find(self, digest: Digest) -> Blocks | None:
        return self._known.get(digest)

    def note(self, digest: Digest, pack: str, offset: int, content: View) -> None:
        """Remember a chunk that was just verified.

        Args:
            offset: Of the content in the pack.
        """
        blocks = Blocks(pack, offset, len(content), _sums(content))
        with self._lock:
            self._known[digest] = blocks
            if len(self._known) > KNOWN_MAX:
                self._known.popitem(last=False)

    def forget(self, digest: Digest) -> None:
        with self._lock:
            self._known.pop(digest, None)


def _sums(content: View) -> array[int]:
    view = memoryview(content)
    return array(
        "Q",
        (
            xxhash.xxh3_64_intdigest(view[at : at + BLOCK_BYTES])
            for at in range(0, len(view), BLOCK_BYTES)
        ),
    )
