"""Fetching blocks of objects: each once, however many want it, and ahead of who reads on."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress

from nexus_engine import errors
from nexus_engine.backends.base import View
from nexus_engine.backends.cache_files import BLOCK_BYTES

AHEAD_MAX = 64
_FLIGHT_MAX = 16
"""Blocks of one request: several of them are under way at one time."""
_AHEAD_THREADS = 3
_READERS = 64
"""Objects of which it is known how they are read."""
_LONG_RUN = 3
"""Who read so many blocks in a row, and comes to the end of an object, goes on in the next one."""


class _Flight:
    """Blocks of an object that are being fetched in one request, or were."""

    def __init__(self, key: str, first: int, count: int) -> None:
        self.key = key
        self.first = first
        self.count = count
        self.done = threading.Event()
        self.content = memoryview(b"")
        self.error: errors.EngineError | None = errors.ObjectStoreFailed("it was not fetched")

    @property
    def last(self) -> int:
        return self.first + self.count - 1

    def blocks(self, index: int, last: int) -> memoryview:
        start = (index - self.first) * BLOCK_BYTES
        return self.content[start : start + (last - index + 1) * BLOCK_BYTES]


class _Reader:
    """How an object is read: in which block last, and how far blocks were fetched ahead."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.run = 0
        """Blocks read one after the other."""
        self.ahead = index + 1
        self.end: int | None = None
        """The block that the object does not have, once that is known."""
        self.goes_on = False
        """The next object was begun."""


class Fetcher:
    """Thread-safe.

    Args:
        get: (key, offset, length) → bytes, fewer only where the object ends. Waits, for no longer
            than a deadline of its own.
        has: Whether a block (key, index) need not be fetched.
        keep: Told each block that was.
        find_next: Returns the object that is probably read after another.
        ahead_max: How many blocks to fetch before anybody asks for them, at most. They stay in
            memory until they are read, and with each what came in the same request.
    """

    def __init__(
        self,
        get: Callable[[str, int, int], View],
        *,
        has: Callable[[str, int], bool],
        keep: Callable[[str, int, View], None],
        find_next: Callable[[str], str | None] = lambda _: None,
        ahead_max: int = AHEAD_MAX,
    ) -> None:
        self._find_next = find_next
        self._ahead_max = ahead_max
        self._get = get
        self._has = has
        self._keep = keep
        self._lock = threading.Lock()
        self._flights: dict[tuple[str, int], _Flight] = {}
        self._landed: dict[_Flight, None] = {}
        """Those fetched ahead, which stay in memory for now; in the order of their arrival."""
        self._readers: OrderedDict[str, _Reader] = OrderedDict()
        self._threads = 0

    def note_read(self, key: str, index: int) -> None:
        """Take note that a block is read; fetch those after it if that is where reading goes."""
        with self._lock:
            reader = self._readers.get(key)
            if reader is None:
                self._add_reader(key, _Reader(index))
                return
            if index == reader.index:
                return
            self._readers.move_to_end(key)
            self._drop_read(key, index)
            reader.run = reader.run + 1 if index == reader.index + 1 else 0
            reader.index = index
            window = min(2**reader.run, self._ahead_max) if reader.run else 0
            first = max(reader.ahead, index + 1) if reader.run else index + 1
            last = index + window
            if reader.end is not None:
                if last >= reader.end and reader.run >= _LONG_RUN:
                    self._go_on(key, reader, min(window // 2, _FLIGHT_MAX))
                last = min(last, reader.end - 1)
            # In pieces worth a request.
            if last - first + 1 < max(1, window // 4) or self._threads >= _AHEAD_THREADS:
                return
            flight = self._claim(key, first, min(last, first + _FLIGHT_MAX - 1))
            if flight is None:
                return
            reader.ahead = flight.first + flight.count
            self._start(self._fly_ahead, flight)

    def find(self, key: str, index: int, offset: int, length: int) -> memoryview | None:
        """Return part of a block if that is in memory; fewer bytes where the object ends."""
        flight = self._flights.get((key, index))
        if flight is None or flight.error is not None:
            return None
        return flight.blocks(index, index)[offset : offset + length]

    def _add_reader(self, key: str, reader: _Reader) -> None:
        self._readers[key] = reader
        if len(self._readers) > _READERS:
            self._readers.popitem(last=False)

    def _go_on(self, key: str, reader: _Reader, count: int) -> None:
        """Fetch the beginning of the object that comes after one; the lock is held.

        A large file goes from pack to pack: at the end of each, its reader would wait.
        """
        # One more than else: there will be no other occasion.
        if not reader.goes_on and count and self._threads <= _AHEAD_THREADS:
            reader.goes_on = True
            self._start(self._fly_on, key, reader.run, count)

    def _start(self, work: Callable[..., None], *arguments: object) -> None:
        self._threads += 1
        threading.Thread(target=work, args=arguments, name="read-ahead", daemon=True).start()

    def _fly_on(self, key: str, run: int, count: int) -> None:
        try:
            with suppress(errors.EngineError):
                following = self._find_next(key)
                flight = None if following is None else self._begin(following, run, count)
                if flight is not None:
                    self._fly(flight, stays=True)
        finally:
            with self._lock:
                self._threads -= 1

    def _begin(self, key: str, run: int, count: int) -> _Flight | None:
        """Take an object for one that is about to be read from its beginning."""
        with self._lock:
            flight = None if key in self._readers else self._claim(key, 0, count - 1)
            if flight is not None:
                reader = _Reader(-1)
                reader.run, reader.ahead = run, flight.count
                self._add_reader(key, reader)
            return flight

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
                self._fly(own)
                return own.blocks(index, last)
            if flight is None:
                # Somebody has just brought it, and it may be gone again.
                return memoryview(self._get(key, index * BLOCK_BYTES, BLOCK_BYTES))
            flight.done.wait()
            if flight.error is None:
                return flight.blocks(index, last)
            # Somebody else's attempt, perhaps begun long ago, failed: an own one says why.

    def forget(self, key: str) -> bool:
        """The object is gone, or changed; return whether any of it was in memory."""
        with self._lock:
            self._readers.pop(key, None)
            landed = [flight for flight in self._landed if flight.key == key]
            for flight in landed:
                self._drop(flight)
            return bool(landed)

    def _drop_read(self, key: str, index: int) -> None:
        """Drop what ends so far before a block that whoever reads on is done with it."""
        flight = self._flights.get((key, index - 2))
        if flight is not None and flight.last == index - 2 and flight in self._landed:
            self._drop(flight)

    def _land(self, flight: _Flight) -> None:
        """Let blocks stay in memory, in place of those that were there for longest."""
        with self._lock:
            self._landed[flight] = None
            while sum(each.count for each in self._landed) > self._ahead_max + _FLIGHT_MAX:
                self._drop(next(iter(self._landed)))

    def _drop(self, flight: _Flight) -> None:
        """Forget a flight; the lock is held."""
        self._landed.pop(flight, None)
        for block in ((flight.key, index) for index in range(flight.first, flight.last + 1)):
            if self._flights.get(block) is flight:
                del self._flights[block]

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
        flight = _Flight(key, first, count)
        for index in range(first, first + count):
            self._flights[key, index] = flight
        return flight

    def _fly(self, flight: _Flight, *, stays: bool = False) -> None:
        key = flight.key
        try:
            content = self._get(key, flight.first * BLOCK_BYTES, flight.count * BLOCK_BYTES)
            flight.content = memoryview(content)
            end = flight.first + -(-len(content) // BLOCK_BYTES)
            if end < flight.first + flight.count:
                self._note_end(key, end)
            # Who waits need not wait for the disk that copies are kept on.
            flight.error = None
            if stays:
                self._land(flight)
            flight.done.set()
            for index in range(flight.first, end):
                self._keep(key, index, flight.blocks(index, index))
        finally:
            with self._lock:
                if flight not in self._landed:
                    self._drop(flight)
            flight.done.set()

    def _fly_ahead(self, flight: _Flight) -> None:
        try:
            # Whoever comes to need it asks again, and is told.
            with suppress(errors.EngineError):
                self._fly(flight, stays=True)
        finally:
            with self._lock:
                self._threads -= 1

    def _note_end(self, key: str, end: int) -> None:
        with self._lock:
            reader = self._readers.get(key)
            if reader is not None:
                reader.end = end
