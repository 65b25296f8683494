"""Copies of objects that lie far away, on the disk, the most recently used, bounded by bytes.

::

    CACHE/NAME.pack          a whole object
    CACHE/NAME.sums          the xxh3_64 of each of its blocks, 8 bytes each, little-endian
    CACHE/NAME.INDEX.SUM     one block of an object, and its xxh3_64 in hexadecimal

Nothing here is needed: what is wrong, or gone, is asked for again where it came from. So nothing is
synced, and a block is compared with its checksum when it is first read after a restart.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path

from xxhash import xxh3_64_intdigest

from nexus_engine.backends.base import View
from nexus_engine.backends.cache_files import ALL, BLOCK_BYTES, CacheFiles, Entry, Key
from nexus_engine.backends.local import LocalObjectStore
from nexus_engine.errors import EngineError

log = logging.getLogger(__name__)

_FREE_SHARE = 20
"""The cache leaves this part of its disk free, and at most `_FREE_BYTES`: what is written counts
for more than what can be had again."""
_FREE_BYTES = 2 << 30
_LOOK_SHARE = 8
"""After so much of the limit was put in, the directory is looked at again: others put, too."""


class BlockCache:
    """Thread-safe. Several processes may use one directory; each sees to the limit.

    Args:
        directory: Made if it is not there.
        limit_bytes: What the copies may take; 0 keeps none.
    """

    def __init__(self, directory: Path, limit_bytes: int) -> None:
        self._limit = limit_bytes
        self._files = CacheFiles(directory)
        self._opened = LocalObjectStore(directory)
        self._lock = threading.Lock()
        self._entries: OrderedDict[Key, Entry] = OrderedDict()
        self._used = 0
        self._put_bytes = 0
        """Since the directory was looked at."""
        self._complained = False
        self._looked = False
        self._looking = threading.Lock()

    @property
    def used_bytes(self) -> int:
        self._look_once()
        return self._used

    def has(self, name: str, index: int) -> bool:
        self._look_once()
        with self._lock:
            return (name, ALL) in self._entries or (name, index) in self._entries

    def read(self, name: str, index: int, start: int, length: int) -> View | None:
        """Return a range of a block, fewer bytes only where the object ends; ``None`` if not here.

        Args:
            start: Within the block, bytes; as ``length``, not beyond it.
        """
        found = self._find(name, index)
        if found is None:
            return None
        key, entry = found
        place, base = (index, index * BLOCK_BYTES) if key[1] == ALL else (0, 0)
        if place >= len(entry.sums):
            return b""
        try:
            if entry.verified >> place & 1:
                content = self._opened.read(entry.file, base + start, length)
                right = len(content) >= min(length, entry.size - base - start)
            else:
                block = self._opened.read(entry.file, base, BLOCK_BYTES)
                right = xxh3_64_intdigest(block) == entry.sums[place]
                content = memoryview(block)[start : start + length]
                self._note_right(entry, place)
        except EngineError:  # another process dropped it, or this disk fails: it is only a copy
            right = False
        if not right:
            self._drop(key, entry)
            return None
        return content

    def read_resident(self, name: str, index: int, start: int, length: int) -> View | None:
        """Like `read`, from the kernel's pages; ``None`` if it takes a `read` to know."""
        found = self._find(name, index) if self._looked else None
        if found is None:
            return None
        key, entry = found
        place, base = (index, index * BLOCK_BYTES) if key[1] == ALL else (0, 0)
        if place >= len(entry.sums) or not entry.verified >> place & 1:
            return None
        try:
            return self._opened.read_resident(entry.file, base + start, length)
        except EngineError:
            return None

    def put(self, name: str, index: int, content: View) -> None:
        """Keep a block, if there is room."""
        self._look_once()
        if not self._make_room(len(content)):
            return
        key = (name, index)
        try:
            self._add(key, self._files.put_block(key, content))
        except OSError as error:
            self._complain(error)

    def adopt(self, name: str, path: Path) -> None:
        """Take over the file of a whole object, which is whole elsewhere; it is gone from there."""
        self._look_once()
        try:
            if self._make_room(path.stat().st_size):
                self._add((name, ALL), self._files.take(name, path))
                return
        except FileNotFoundError:
            return
        except OSError as error:
            self._complain(error)
        path.unlink(missing_ok=True)

    def forget(self, name: str) -> bool:
        """Drop all copies of an object; return whether there were any."""
        self._look_once()
        with self._lock:
            keys = [key for key in self._entries if key[0] == name]
        for key in keys:
            self._drop(key)
        # Also what another process put here: a purge wants it gone.
        return self._files.remove_all(name) or bool(keys)

    def trim(self) -> None:
        """Give way where the disk fills up; from a background thread, now and then."""
        self._look_once()
        self._opened.forget_deleted()
        self._make_room(0)

    def close(self) -> None:
        self._opened.close()

    def _find(self, name: str, index: int) -> tuple[Key, Entry] | None:
        self._look_once()
        with self._lock:
            for key in ((name, ALL), (name, index)):
                entry = self._entries.get(key)
                if entry is not None:
                    self._entries.move_to_end(key)
                    return key, entry
        return None

    def _note_right(self, entry: Entry, place: int) -> None:
        with self._lock:
            entry.verified |= 1 << place
        self._files.touch(entry)

    def _add(self, key: Key, entry: Entry) -> None:
        with self._lock:
            old = self._entries.pop(key, None)
            self._entries[key] = entry
            self._used += entry.size - (old.size if old is not None else 0)
            self._put_bytes += entry.size
            look = self._put_bytes > self._limit // _LOOK_SHARE
        if look:
            self._look()

    def _drop(self, key: Key, entry: Entry | None = None) -> None:
        """Remove an entry; only this very one, where it is given."""
        with self._lock:
            if entry is not None and self._entries.get(key) is not entry:
                return
            entry = self._entries.pop(key, None)
            if entry is None:
                return
            self._used -= entry.size
        self._opened.let_go(entry.file)
        with suppress(OSError):
            self._files.remove(key, entry)

    def _make_room(self, size: int) -> bool:
        """Drop what was not used for longest until there is room; return whether there is."""
        if size > self._limit:
            return False
        while True:
            with self._lock:
                excess = self._used + size - self._limit
                oldest = next(iter(self._entries.items()), None)
            if excess <= 0:
                excess = size - self._free_bytes()
            if excess <= 0:
                return True
            if oldest is None:
                return False
            self._drop(*oldest)

    def _free_bytes(self) -> int:
        """Return how much the cache may take of what is free."""
        try:
            free, total = self._files.free_bytes()
        except OSError:
            return 0
        return free - min(total // _FREE_SHARE, _FREE_BYTES)

    def _complain(self, error: OSError) -> None:
        if not self._complained:
            self._complained = True
            log.warning("nothing is kept in %s: %s", self._files.directory, error)

    def _look_once(self) -> None:
        if not self._looked:
            with self._looking:
                if not self._looked:
                    self._look()
                    self._looked = True

    def _look(self) -> None:
        """Take note of what is in the directory, also from others and from before."""
        found = sorted(self._files.scan(), key=lambda item: item[0])
        with self._lock:
            known = {entry.file for entry in self._entries.values()}
            there = {entry.file for _, _, entry in found}
            for key, entry in list(self._entries.items()):
                if entry.file not in there and not self._files.exists(entry):
                    del self._entries[key]
            for _, key, entry in found:
                if entry.file not in known:
                    self._entries.setdefault(key, entry)
            self._used = sum(entry.size for entry in self._entries.values())
            self._put_bytes = 0
        self._make_room(0)
