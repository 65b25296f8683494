"""The files in which a cache keeps copies; see `block_cache`."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import struct
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from xxhash import xxh3_64_intdigest

from nexus_engine.backends.base import View
from nexus_engine.backends.files import sync_directory

BLOCK_BYTES = 1 << 20

Key = tuple[str, int]
"""(name, index of the block); the index of a whole object is `ALL`."""
ALL = -1

_WHOLE, _SUMS, _NEW = ".pack", ".sums", ".new"
_SUM = struct.Struct("<Q")
_STALE_S = 3600.0
"""What is half written for so long, nobody finishes."""


class Entry:
    """A file of the cache."""

    __slots__ = ("file", "size", "sums", "verified")

    def __init__(self, file: str, size: int, sums: tuple[int, ...], *, verified: bool) -> None:
        self.file = file
        self.size = size
        self.sums = sums
        self.verified = (1 << len(sums)) - 1 if verified else 0
        """A bit for each block that was compared with its checksum."""


class CacheFiles:
    """Copies in a directory.

    Args:
        directory: Made if it is not there.

    Raises:
        OSError: from every method, unless it says otherwise.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        with suppress(OSError):
            directory.mkdir(mode=0o700, exist_ok=True)

    def put_block(self, key: Key, content: View) -> Entry:
        """Write a block."""
        digest = xxh3_64_intdigest(content)
        entry = Entry(f"{key[0]}.{key[1]}.{digest:016x}", len(content), (digest,), verified=True)
        self._write(entry.file, content)
        return entry

    def take(self, name: str, path: Path) -> Entry:
        """Move the file of a whole object here."""
        sums = tuple(_sums(path))
        entry = Entry(name + _WHOLE, path.stat().st_size, sums, verified=True)
        self._write(name + _SUMS, b"".join(map(_SUM.pack, sums)))
        self._move(path, entry.file)
        return entry

    def remove(self, key: Key, entry: Entry) -> None:
        (self.directory / entry.file).unlink(missing_ok=True)
        if key[1] == ALL:
            (self.directory / (key[0] + _SUMS)).unlink(missing_ok=True)

    def remove_all(self, name: str) -> bool:
        """Remove every copy of an object, durably; return whether there was any. Never raises."""
        found = list(self.directory.glob(f"{name}.*"))
        with suppress(OSError):
            for path in found:
                path.unlink(missing_ok=True)
            if found:
                sync_directory(self.directory)
        return bool(found)

    def touch(self, entry: Entry) -> None:
        """Take note that it was used: after a restart, what was not is dropped first."""
        with suppress(OSError):
            os.utime(self.directory / entry.file)

    def exists(self, entry: Entry) -> bool:
        return (self.directory / entry.file).exists()

    def free_bytes(self) -> tuple[int, int]:
        """Return (how much of the disk is free, how large it is)."""
        disk = os.statvfs(self.directory)
        return disk.f_bavail * disk.f_frsize, disk.f_blocks * disk.f_frsize

    def scan(self) -> Iterator[tuple[float, Key, Entry]]:
        """Yield (last used, key, entry) of what is in the directory; tidy up."""
        try:
            found = list(os.scandir(self.directory))
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

    def _write(self, file: str, content: View) -> None:
        new = self.directory / f"{secrets.token_hex(8)}{_NEW}"
        try:
            with open(new, "xb", opener=_private) as target:
                target.write(content)
            new.replace(self.directory / file)
        except OSError:
            new.unlink(missing_ok=True)
            raise

    def _move(self, path: Path, file: str) -> None:
        target = self.directory / file
        try:
            path.replace(target)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            # The cache is on a disk of its own.
            new = self.directory / f"{secrets.token_hex(8)}{_NEW}"
            try:
                shutil.copy(path, new)
                new.replace(target)
            finally:
                new.unlink(missing_ok=True)
            path.unlink()

    def _parse(self, file: str, size: int) -> tuple[Key, Entry] | None:
        """Return what a file is, ``None`` for one that is none of ours.

        Raises:
            OSError, ValueError: Likewise.
        """
        if file.endswith(_WHOLE):
            name = file.removesuffix(_WHOLE)
            packed = (self.directory / (name + _SUMS)).read_bytes()
            sums = tuple(digest for (digest,) in _SUM.iter_unpack(packed[: len(packed) // 8 * 8]))
            if len(sums) != -(-size // BLOCK_BYTES):
                return None
            return (name, ALL), Entry(file, size, sums, verified=False)
        if file.endswith(_SUMS):
            return None
        name, index, digest = file.rsplit(".", 2)
        return (name, int(index)), Entry(file, size, (int(digest, 16),), verified=False)


def _sums(path: Path) -> Iterator[int]:
    with path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            yield xxh3_64_intdigest(block)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC, 0o600)
