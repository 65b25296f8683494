"""Fetching blocks of objects: each once, however many want it, and ahead of who reads on."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress

from nexus_engine import errors
from nexus_engine.backends.cache_files import BLOCK_BYTES

AHEAD_MAX = 32
_AHEAD_THREADS = 2
_READERS = 64
"""Objects of which it is known how they are read."""
_NEAR_END = 4
"""Blocks before the end of an object: who was read so far is about to read another."""


class _Flight:
    """Blocks of an object that are being fetched in one request."""

    def __init__(self, first: int, count: int) -> None:
        self.first = first
        self.count = count
        self.done = threading.Event()
        self.content = memoryview(b"")
        self.error: errors.EngineError | None = errors.ObjectStoreFailed("it was not fetched")

    def blocks(self, index: int, last: int) -> memoryview:
        start = (index - self.first) * BLOCK_BYTES
        return self.content[start : start + (last - index + 1) * BLOCK_BYTES]


class _Reader:
    """How an object is read: in which block last, and how far blocks were fetched ahead."""

    def __init__(self, index: int, run: int) -> None:
        self.index = index
        self.run = run
        """Blocks read one after the other."""
        self.ahead = index + 1
        self.end: int | None = None
        """The block that the object does not have, once that is known."""


class Fetcher:
    """Thread-safe.

    Args:
        get: (key, offset, length) → bytes, fewer only where the object ends. Waits, for no longer
            than a deadline of its own.
        has: Whether a block (key, index) need not be fetched.
        keep: Told each block that was.
        ahead_max: How many blocks to fetch before anybody asks for them, at most.
    """

    def __init__(
        self,
        get: Callable[[str, int, int], bytes],
        *,
        has: Callable[[str, int], bool],
        keep: Callable[[str, int, bytes], None],
        ahead_max: int = AHEAD_MAX,
    ) -> None:
        self._ahead_max = ahead_max
        self._get = get
        self._has = has
        self._keep = keep
        self._lock = threading.Lock()
        self._flights: dict[tuple[str, int], _Flight] = {}
        self._readers: OrderedDict[str, _Reader] = OrderedDict()
        self._threads = 0

    def note_read(self, key: str, index: int) -> None:
        """Take note that a block is read; fetch those after it if that is where reading goes."""
        with self._lock:
            reader = self._readers.get(key)
            if reader is None:
                reader = self._readers[key] = _Reader(index, 0 if index else self._pace())
                if len(self._readers) > _READERS:
                    self._readers.popitem(last=False)
            elif index == reader.index:
                return
            else:
                self._readers.move_to_end(key)
                reader.run = reader.run + 1 if index == reader.index + 1 else 0
                reader.index = index
            window = min(2**reader.run, self._ahead_max) if reader.run else 0
            first = max(reader.ahead, index + 1) if reader.run else index + 1
            last = index + window
            if reader.end is not None:
                last = min(last, reader.end - 1)
            # In pieces worth a request.
            if last - first + 1 < max(1, window // 2) or self._threads >= _AHEAD_THREADS:
                return
            flight = self._claim(key, first, last)
            if flight is None:
                return
            reader.ahead = flight.first + flight.count
            self._threads += 1
        threading.Thread(
            target=self._fly_ahead, args=(key, flight), name="read-ahead", daemon=True
        ).start()

    def _pace(self) -> int:
        """Return how long somebody read on until where an object ends: into the next one, it seems.

        A large file goes from pack to pack. The lock is held.
        """
        return max(
            (
                reader.run
                for reader in self._readers.values()
                if reader.end is not None and reader.end - reader.index <= _NEAR_END
            ),
            default=0,
        )

    def blocks(self, key: str, index: int, last: int) -> memoryview:
        """Return a block, and of those after it what comes with it; empty if the object ends there.

        Args:
            last: The last block that is wanted.

        Raises:
            ObjectNotFound, BackendError: As ``get``.
        """
        while True:
            with self._lock:
                flight = self._flights.get((key, index))
                own = self._claim(key, index, last) if flight is None else None
            if own is not None:
                self._fly(key, own)
                return own.blocks(index, last)
            if flight is None:
                # Somebody has just brought it, and it may be gone again.
                return memoryview(self._get(key, index * BLOCK_BYTES, BLOCK_BYTES))
            flight.done.wait()
            if flight.error is None:
                return flight.blocks(index, last)
            # Somebody else's attempt, perhaps begun long ago, failed: an own one says why.

    def forget(self, key: str) -> None:
        """The object is gone, or changed."""
        with self._lock:
            self._readers.pop(key, None)

    def _claim(self, key: str, first: int, last: int) -> _Flight | None:
        """Begin to fetch a run of blocks that nobody has; the lock is held."""
        count = 0
        while first + count <= last:
            block = (key, first + count)
            if block in self._flights or self._has(*block):
                break
            count += 1
        if not count:
            return None
        flight = _Flight(first, count)
        for index in range(first, first + count):
            self._flights[key, index] = flight
        return flight

    def _fly(self, key: str, flight: _Flight) -> None:
        try:
            content = self._get(key, flight.first * BLOCK_BYTES, flight.count * BLOCK_BYTES)
            flight.content = memoryview(content)
            end = flight.first + -(-len(content) // BLOCK_BYTES)
            if end < flight.first + flight.count:
                self._note_end(key, end)
            # Who waits need not wait for the disk that copies are kept on.
            flight.error = None
            flight.done.set()
            for index in range(flight.first, end):
                self._keep(key, index, bytes(flight.blocks(index, index)))
        finally:
            with self._lock:
                for index in range(flight.first, flight.first + flight.count):
                    self._flights.pop((key, index), None)
            flight.done.set()

    def _fly_ahead(self, key: str, flight: _Flight) -> None:
        try:
            # Whoever comes to need it asks again, and is told.
            with suppress(errors.EngineError):
                self._fly(key, flight)
        finally:
            with self._lock:
                self._threads -= 1

    def _note_end(self, key: str, end: int) -> None:
        with self._lock:
            reader = self._readers.get(key)
            if reader is not None:
                reader.end = end
