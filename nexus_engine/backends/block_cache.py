"""Copies of objects that lie far away, on the disk, the most recently used, bounded by bytes.

::

    CACHE/NAME.pack          a whole object
    CACHE/NAME.sums          the xxh3_64 of each of its blocks, 8 bytes each, little-endian
    CACHE/NAME.INDEX.SUM     one block of an object, and its xxh3_64 in hexadecimal

Nothing here is needed: what is wrong, or gone, is asked for again where it came from. So nothing is
synced, and a block is compared with its checksum when it is first read after a restart.
"""

from __future__ import annotations

import errno
import logging
import os
import secrets
import shutil
import struct
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from xxhash import xxh3_64_intdigest

from nexus_engine.backends.base import View
from nexus_engine.backends.files import sync_directory
from nexus_engine.backends.local import LocalObjectStore
from nexus_engine.errors import EngineError

log = logging.getLogger(__name__)

BLOCK_BYTES = 1 << 20

_WHOLE, _SUMS, _NEW = ".pack", ".sums", ".new"
_SUM = struct.Struct("<Q")
_STALE_S = 3600.0
"""What is half written for so long, nobody finishes."""
_FREE_SHARE = 20
"""The cache leaves this part of its disk free, and at most `_FREE_BYTES`: what is written counts
for more than what can be had again."""
_FREE_BYTES = 2 << 30
_LOOK_SHARE = 8
"""After so much of the limit was put in, the directory is looked at again: others put, too."""

_Key = tuple[str, int]
"""(name, index of the block); the index of a whole object is -1."""
_ALL = -1


class _Entry:
    """A file of the cache."""

    __slots__ = ("file", "size", "sums", "verified")

    def __init__(self, file: str, size: int, sums: tuple[int, ...], *, verified: bool) -> None:
        self.file = file
        self.size = size
        self.sums = sums
        self.verified = (1 << len(sums)) - 1 if verified else 0
        """A bit for each block that was compared with its checksum."""


class BlockCache:
    """Thread-safe. Several processes may use one directory; each sees to the limit.

    Args:
        directory: Made if it is not there.
        limit_bytes: What the copies may take; 0 keeps none.
    """

    def __init__(self, directory: Path, limit_bytes: int) -> None:
        self._directory = directory
        self._limit = limit_bytes
        self._files = LocalObjectStore(directory)
        self._lock = threading.Lock()
        self._entries: OrderedDict[_Key, _Entry] = OrderedDict()
        self._used = 0
        self._put_bytes = 0
        """Since the directory was looked at."""
        self._complained = False
        self._looked = False
        self._looking = threading.Lock()
        with suppress(OSError):
            directory.mkdir(mode=0o700, exist_ok=True)

    @property
    def used_bytes(self) -> int:
        self._look_once()
        return self._used

    def has(self, name: str, index: int) -> bool:
        self._look_once()
        with self._lock:
            return (name, _ALL) in self._entries or (name, index) in self._entries

    def read(self, name: str, index: int, start: int, length: int) -> View | None:
        """Return a range of a block, fewer bytes only where the object ends; ``None`` if not here.

        Args:
            start: Within the block, bytes; as ``length``, not beyond it.
        """
        found = self._find(name, index)
        if found is None:
            return None
        key, entry = found
        place, base = (index, index * BLOCK_BYTES) if key[1] == _ALL else (0, 0)
        if place >= len(entry.sums):
            return b""
        try:
            if entry.verified >> place & 1:
                content = self._files.read(entry.file, base + start, length)
                right = len(content) >= min(length, entry.size - base - start)
            else:
                block = self._files.read(entry.file, base, BLOCK_BYTES)
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
        place, base = (index, index * BLOCK_BYTES) if key[1] == _ALL else (0, 0)
        if place >= len(entry.sums) or not entry.verified >> place & 1:
            return None
        try:
            return self._files.read_resident(entry.file, base + start, length)
        except EngineError:
            return None

    def put(self, name: str, index: int, content: bytes) -> None:
        """Keep a block, if there is room."""
        self._look_once()
        if not self._make_room(len(content)):
            return
        digest = xxh3_64_intdigest(content)
        entry = _Entry(f"{name}.{index}.{digest:016x}", len(content), (digest,), verified=True)
        try:
            self._write(entry.file, content)
        except OSError as error:
            self._complain(error)
            return
        self._add((name, index), entry)

    def adopt(self, name: str, path: Path) -> None:
        """Take over the file of a whole object, which is whole elsewhere; it is gone from there."""
        self._look_once()
        try:
            if self._make_room(path.stat().st_size):
                sums = tuple(_sums(path))
                self._write(name + _SUMS, b"".join(map(_SUM.pack, sums)))
                entry = _Entry(name + _WHOLE, path.stat().st_size, sums, verified=True)
                self._take(path, entry.file)
                self._add((name, _ALL), entry)
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
        for path in self._directory.glob(f"{name}.*"):
            keys.append((name, _ALL))
            with suppress(OSError):
                path.unlink()
        if keys:
            with suppress(OSError):
                sync_directory(self._directory)
        return bool(keys)

    def trim(self) -> None:
        """Give way where the disk fills up; from a background thread, now and then."""
        self._look_once()
        self._files.forget_deleted()
        self._make_room(0)

    def close(self) -> None:
        self._files.close()

    def _find(self, name: str, index: int) -> tuple[_Key, _Entry] | None:
        self._look_once()
        with self._lock:
            for key in ((name, _ALL), (name, index)):
                entry = self._entries.get(key)
                if entry is not None:
                    self._entries.move_to_end(key)
                    return key, entry
        return None

    def _note_right(self, entry: _Entry, place: int) -> None:
        with self._lock:
            entry.verified |= 1 << place
        # In which order they are dropped after the next restart.
        with suppress(OSError):
            os.utime(self._directory / entry.file)

    def _add(self, key: _Key, entry: _Entry) -> None:
        with self._lock:
            old = self._entries.pop(key, None)
            self._entries[key] = entry
            self._used += entry.size - (old.size if old is not None else 0)
            self._put_bytes += entry.size
            look = self._put_bytes > self._limit // _LOOK_SHARE
        if look:
            self._look()

    def _drop(self, key: _Key, entry: _Entry | None = None) -> None:
        """Remove an entry; only this very one, where it is given."""
        with self._lock:
            if entry is not None and self._entries.get(key) is not entry:
                return
            entry = self._entries.pop(key, None)
            if entry is None:
                return
            self._used -= entry.size
        self._files.let_go(entry.file)
        with suppress(OSError):
            (self._directory / entry.file).unlink()
            if key[1] == _ALL:
                (self._directory / (key[0] + _SUMS)).unlink()

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
            disk = os.statvfs(self._directory)
        except OSError:
            return 0
        kept = min(disk.f_blocks * disk.f_frsize // _FREE_SHARE, _FREE_BYTES)
        return disk.f_bavail * disk.f_frsize - kept

    def _write(self, file: str, content: bytes) -> None:
        new = self._directory / f"{secrets.token_hex(8)}{_NEW}"
        try:
            with open(new, "xb", opener=_private) as target:
                target.write(content)
            new.replace(self._directory / file)
        finally:
            new.unlink(missing_ok=True)

    def _take(self, path: Path, file: str) -> None:
        target = self._directory / file
        try:
            path.replace(target)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            # The cache is on a disk of its own.
            new = self._directory / f"{secrets.token_hex(8)}{_NEW}"
            try:
                shutil.copy(path, new)
                new.replace(target)
            finally:
                new.unlink(missing_ok=True)
            path.unlink()

    def _complain(self, error: OSError) -> None:
        if not self._complained:
            self._complained = True
            log.warning("nothing is kept in %s: %s", self._directory, error)

    def _look_once(self) -> None:
        if not self._looked:
            with self._looking:
                if not self._looked:
                    self._look()
                    self._looked = True

    def _look(self) -> None:
        """Take note of what is in the directory, also from others and from before."""
        found = sorted(self._scan(), key=lambda item: item[0])
        with self._lock:
            known = {entry.file for entry in self._entries.values()}
            there = {entry.file for _, _, entry in found}
            for key, entry in list(self._entries.items()):
                if entry.file not in there and not (self._directory / entry.file).exists():
                    del self._entries[key]
            for _, key, entry in found:
                if entry.file not in known:
                    self._entries.setdefault(key, entry)
            self._used = sum(entry.size for entry in self._entries.values())
            self._put_bytes = 0
        self._make_room(0)

    def _scan(self) -> Iterator[tuple[float, _Key, _Entry]]:
        """Yield (last used, key, entry) of what is in the directory; tidy up."""
        try:
            found = list(os.scandir(self._directory))
        except OSError:
            return
        for item in found:
            try:
                status = item.stat(follow_symlinks=False)
                if item.name.endswith(_NEW):
                    if time.time() - status.st_mtime > _STALE_S:
                        Path(item.path).unlink()
                    continue
                parsed = self._parse(item.name, status.st_size)
            except (OSError, ValueError):
                continue
            if parsed is not None:
                yield status.st_mtime, *parsed

    def _parse(self, file: str, size: int) -> tuple[_Key, _Entry] | None:
        """Return what a file is, ``None`` for one that is none of ours.

        Raises:
            OSError, ValueError: Likewise.
        """
        if file.endswith(_WHOLE):
            name = file.removesuffix(_WHOLE)
            packed = (self._directory / (name + _SUMS)).read_bytes()
            sums = tuple(digest for (digest,) in _SUM.iter_unpack(packed[: len(packed) // 8 * 8]))
            if len(sums) != -(-size // BLOCK_BYTES):
                return None
            return (name, _ALL), _Entry(file, size, sums, verified=False)
        if file.endswith(_SUMS):
            return None
        name, index, digest = file.rsplit(".", 2)
        return (name, int(index)), _Entry(file, size, (int(digest, 16),), verified=False)


def _sums(path: Path) -> Iterator[int]:
    with path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            yield xxh3_64_intdigest(block)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC, 0o600)
