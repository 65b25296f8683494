"""Space kept back, so that a full disk can be emptied.

Every operation takes space, deleting included: a record, past rows, pages of the write-ahead
log. So a file of allocated blocks, ``STORE/reserve``, holds some back. When an operation that frees
space finds the disk full, the file's blocks are given up and the operation is tried again; from
then on only such operations are admitted, until there is room to allocate the file anew.

While nothing is full that costs the hot path one look at a flag.
"""

from __future__ import annotations

import logging
import os
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from nexus_engine import errors

log = logging.getLogger(__name__)

F = TypeVar("F", bound=Callable[..., object])

RESERVE_NAME = "reserve"
_DISK_SHARE = 16
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
        self._path = store / RESERVE_NAME
        self._size_bytes = size_bytes
        self.spent = False
        """Given up, by this process or another: nothing but freeing space is admitted."""
        self.look()

    def look(self) -> None:
        """Take note of what other processes did with it. A store that never had one has all."""
        try:
            self.spent = bool(self._size_bytes) and self._path.stat().st_size == 0
        except FileNotFoundError:
            self.spent = False

    def spend(self) -> bool:
        """Give the blocks up; return whether there were any."""
        held = self._held()
        if not held:
            return False
        os.truncate(self._path, 0)
        self.spent = True
        log.warning(
            "the disk is full: %d bytes of reserve are given up, and nothing but what frees space"
            " is admitted until there is room again", held,
        )  # fmt: skip
        return True

    def spend_if_full(self) -> None:
        """Give it up where not even a lock file would find room."""
        if self.free_bytes() < _LEAST_BYTES:
            self.spend()

    def renew(self) -> None:
        """See what became of it, and fill it if that is possible; now and then."""
        self.look()
        self.fill()

    def fill(self) -> None:
        """Allocate what is missing, if there is room for that and for some work besides."""
        held = self._held()
        wanted = self.wanted_bytes()
        if held == wanted:
            return
        if held > wanted:
            os.truncate(self._path, wanted)
            return
        if self.free_bytes() < (wanted - held) * 5 // 4:
            return
        fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(fd, 0, wanted)
        except OSError:
            os.ftruncate(fd, held)
            return  # somebody was faster, or files cannot be that large: try again later
        finally:
            os.close(fd)
        if self.spent:
            self.spent = False
            log.warning("there is room again: %d bytes are held back in reserve", wanted)

    def free_bytes(self) -> int:
        """Return what this process could still write to the disk."""
        disk = os.statvfs(self._store)
        return (disk.f_bfree if os.geteuid() == 0 else disk.f_bavail) * disk.f_frsize

    def is_low(self) -> bool:
        """Tell whether the disk is nearly full."""
        return self.spent or self.free_bytes() < 2 * self.wanted_bytes()

    def wanted_bytes(self) -> int:
        disk = os.statvfs(self._store)
        return min(self._size_bytes, disk.f_blocks * disk.f_frsize // _DISK_SHARE)

    def missing_bytes(self) -> int:
        """Return how much of the disk's free space is not for programs."""
        return self.wanted_bytes() if self.spent else 0

    def _held(self) -> int:
        try:
            return self._path.stat().st_size
        except FileNotFoundError:
            return 0


def full() -> errors.NoSpace:
    """Return the refusal while the reserve is spent."""
    return errors.NoSpace("no space left on the store's disk; deleting and undoing still work")
