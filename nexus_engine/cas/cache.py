"""Decoded chunks in memory, the most recently used, bounded by bytes."""

from __future__ import annotations

import threading
from collections import OrderedDict

from nexus_engine.backends.base import View
from nexus_engine.types import Digest

ENTRY_OVERHEAD = 256
"""What an entry costs beyond its content, bytes: without it, a million one-byte chunks would
count as one megabyte and take three hundred."""


class ChunkCache:
    """Thread-safe.

    Args:
        limit_bytes: Content and overhead together; 0 keeps nothing.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._limit = limit_bytes
        self._lock = threading.Lock()
        self._entries: OrderedDict[Digest, View] = OrderedDict()
        self._used = 0

    @property
    def used_bytes(self) -> int:
        return self._used

    def find(self, digest: Digest) -> View | None:
        with self._lock:
            content = self._entries.get(digest)
            if content is not None:
                self._entries.move_to_end(digest)
            return content

    def put(self, digest: Digest, content: View) -> None:
        """Keep ``content``; one that would fill the cache by itself is not kept."""
        cost = len(content) + ENTRY_OVERHEAD
        if cost > self._limit:
            return
        with self._lock:
            if digest in self._entries:
                return
            self._entries[digest] = content
            self._used += cost
            while self._used > self._limit:
                _, dropped = self._entries.popitem(last=False)
                self._used -= len(dropped) + ENTRY_OVERHEAD
