"""Space kept back, so that a full disk can be emptied.

Every operation takes space, deleting included: a record, past rows, pages of the write-ahead
log. So a file of allocated blocks, ``STORE/reserve``, holds some back. When an operation that frees
space finds the disk full, some of these are given up and the operation is tried again; from then on
only such operations are admitted, until there is room to allocate the file anew.

While nothing is full that costs the hot path one look at a flag.
"""

from __future__ import annotations

import contextlib
import logging
import os
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from nexus_engine import errors
from nexus_engine.backends.files import translate

log = logging.getLogger(__name__)

F = TypeVar("F", bound=Callable[..., object])

RESERVE_NAME = "reserve"
IN_USE_NAME = "reserve.in-use"
"""What it is called while some of it is given up."""
_SLICES = 16
_SLICE_BYTES = 256 * 1024
_DISK_SHARE = 8
"""The reserve takes at most this part of a small disk."""
_LEAST_BYTES = 256 * 1024
"""With less than this on the disk, opening a store may fail half way."""

_freeing: weakref.WeakSet[Callable[..., object]] = weakref.WeakSet()


def frees_space(rule: F) -> F:
    """Mark a rule that gives space back, or keeps a promise made before: it may use the reserve."""
    _freeing.add(rule)
    return rule


def may_use_reserve(rule: Callable[..., object]) -> bool:
    """Tell whether a rule is marked so."""
    return rule in _freeing


class Reserve:
    """The reserve of a store, as one process sees it.

    Args:
        size_bytes: How much to hold back; 0 for nothing.
    """

    def __init__(self, store: Path, size_bytes: int) -> None:
        self._store = store
        self._whole = store / RESERVE_NAME
        self._rest = store / IN_USE_NAME
        self._size_bytes = size_bytes
        self.spent = False
        """Some of it is given up: nothing but freeing space is admitted."""
        self.look()

    def look(self) -> None:
        """Take note of what other processes did with it."""
        self.spent = self._rest.exists()

    def spend(self) -> bool:
        """Give a slice up; return whether there was one.

        Not all at once: programs that write to the disk themselves would have it soon.

        Raises:
            NoSpace, StoreInaccessible, ObjectStoreFailed: The disk does not even let go of it.
        """
        try:
            return self._spend()
        except OSError as error:
            raise translate(error, "use the reserve") from error

    def _spend(self) -> bool:
        with contextlib.suppress(FileNotFoundError):
            self._whole.rename(self._rest)
        self.look()
        held = _size(self._rest)
        if not held:
            return False
        left = max(0, held - max(_SLICE_BYTES, self._wanted_bytes() // _SLICES))
        _cut(self._rest, left)
        log.warning(
            "the disk is full: nothing but what frees space is admitted until there is room;"
            " %d bytes are left in reserve for that", left,
        )  # fmt: skip
        return True

    def spend_if_full(self) -> None:
        """Give some up where not even a lock file would find room."""
        while self.free_bytes() < _LEAST_BYTES and self.spend():
            pass

    def renew(self) -> None:
        """See what became of it, and fill it if that is possible; now and then."""
        self.look()
        self.fill()

    def fill(self) -> None:
        """Allocate what is missing, if there is room for that and for some work besides.

        Raises:
            NoSpace, StoreInaccessible, ObjectStoreFailed.
        """
        try:
            self._fill()
        except OSError as error:
            raise translate(error, "fill the reserve") from error

    def _fill(self) -> None:
        path = self._rest if self.spent else self._whole
        held, wanted = _size(path), self._wanted_bytes()
        if held < wanted and self.free_bytes() < (wanted - held) * 5 // 4:
            return
        if held != wanted and not _allocate(path, wanted):
            return
        if self.spent:
            path.rename(self._whole)
            self.spent = False
            log.warning("there is room again: %d bytes are held back in reserve", wanted)

    def missing_bytes(self) -> int:
        """Return how much of the disk's free space is not for programs."""
        return self._wanted_bytes() - _size(self._rest) if self.spent else 0

    def free_bytes(self) -> int:
        """Return what is free on the disk for everybody.

        Not what is free for root: on ext4 that counts blocks that nobody gets.
        """
        disk = os.statvfs(self._store)
        return disk.f_bavail * disk.f_frsize

    def usable_bytes(self) -> int:
        """Return what there would be room for with all of the reserve."""
        return self.free_bytes() + _size(self._whole) + _size(self._rest)

    def is_low(self) -> bool:
        """Tell whether the disk is nearly full."""
        return self.spent or self.free_bytes() < 2 * self._wanted_bytes()

    def _wanted_bytes(self) -> int:
        disk = os.statvfs(self._store)
        return min(self._size_bytes, disk.f_blocks * disk.f_frsize // _DISK_SHARE)


def full() -> errors.NoSpace:
    """Return the refusal while the reserve is in use."""
    return errors.NoSpace("no space left on the store's disk; deleting and undoing still work")


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _cut(path: Path, size: int) -> None:
    """Give blocks back; on ext4 nobody has them before the journal is written."""
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        os.ftruncate(fd, size)
        os.fsync(fd)
    finally:
        os.close(fd)


def _allocate(path: Path, size: int) -> bool:
    """Make a file that long, with all its blocks; tell whether that was possible."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        before = os.fstat(fd).st_size
        try:
            os.ftruncate(fd, min(before, size))
            os.posix_fallocate(fd, 0, max(1, size))
        except OSError:  # somebody was faster
            os.ftruncate(fd, before)
            return False
    finally:
        os.close(fd)
    return True
