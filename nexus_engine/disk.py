"""The store's disk, which may stop answering: waiting for it in threads, and not for ever.

A disk that hangs (a network, a cable, a controller) keeps whoever asks it, and no signal ends that.
So requests wait for threads, and give up after a deadline; the thread stays behind. From then on
others fail at once, until something answers: a thread that was left behind comes back, or one of
those who are let try now and then.

What is in memory does not come here.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import anyio
import anyio.to_thread

from nexus_engine import errors
from nexus_engine.backends.files import is_far

R = TypeVar("R")

log = logging.getLogger(__name__)

READS_MAX = 32
WRITES_MAX = 4
"""More do not make a disk faster; and each may hold some megabytes."""
SYNCS_MAX = 8
TRY_S = 30.0
"""Between two attempts, where there is no limit."""
THREADS_MAX = 64
"""Waiting or left behind. Apart from the threads that everything else uses."""


@dataclass(slots=True)
class _Lane:
    """Those who wait for the same kind of work."""

    own_limit_s: float | None
    """Of the disk alone."""
    limit_s: float | None
    room: anyio.Semaphore
    proves: bool
    """Who comes back has asked the disk; others may have found that there was nothing to do."""


@dataclass(slots=True)
class _Wait:
    """One thread's."""

    writes: bool
    tries: bool
    left: bool = False
    """Nobody waits for it any more."""


class Disk:
    """Waits for the disk that the packs are on; use from an event loop.

    Args:
        packs: Their directory.
        read_limit_s: How long a read may take; 0 for as long as it likes.
        sync_limit_s: The same for writing and syncing.
    """

    def __init__(self, packs: Path, *, read_limit_s: float, sync_limit_s: float) -> None:
        self._packs = packs
        self._read = _lane(READS_MAX, read_limit_s, proves=True)
        self._write = _lane(WRITES_MAX, sync_limit_s, proves=True)
        self._sync = _lane(SYNCS_MAX, sync_limit_s, proves=False)
        self._no_limit = anyio.CapacityLimiter(float("inf"))
        self._lock = threading.Lock()
        self._threads = 0
        self._writing = 0
        self._far = True
        self._pressed = False
        self.calm = False
        """An append goes into the kernel's memory without waiting: the packs are on this machine,
        nothing is being written or synced by a thread, which would keep the disk's journal or
        a lock of ours, and nobody has to wait for room. Not before `look`."""
        self._hung_s: float | None = None
        """Since when it has not answered."""
        self._next_try_s = 0.0

    def allow(self, more_s: float) -> None:
        """Have everything take so much longer than a disk may; from any thread."""
        for lane in (self._read, self._write, self._sync):
            lane.limit_s = lane.own_limit_s and lane.own_limit_s + more_s

    def look(self) -> None:
        """See where the packs are; waits for the disk."""
        self._far = is_far(self._packs)
        self.calm = self._is_calm()

    def press(self, pressed: bool) -> None:  # noqa: FBT001 - a callback
        """Take note of whether an append may have to wait for room; from any thread."""
        with self._lock:
            self._pressed = pressed
            self.calm = self._is_calm()

    def _is_calm(self) -> bool:
        return not (self._far or self._pressed or self._writing)

    @property
    def silent_s(self) -> int:
        """For how long it has not answered; 0 while it does."""
        hung_s = self._hung_s
        return 0 if hung_s is None else int(time.monotonic() - hung_s) + 1

    async def read(self, action: Callable[..., R], *arguments: object) -> R:
        """Run what reads, in a thread.

        Raises:
            StoreHung: It took too long, and goes on without us; or others found the disk hung.
        """
        return await self._wait(self._read, action, arguments)

    async def write(self, action: Callable[..., R], *arguments: object) -> R:
        """Run what appends; raises as `read`. What it was given it may still look at then."""
        return await self._wait(self._write, action, arguments)

    async def sync(self, action: Callable[..., R], *arguments: object) -> R:
        """Run what makes durable, or tidies up; raises as `read`."""
        return await self._wait(self._sync, action, arguments)

    async def _wait(
        self, lane: _Lane, action: Callable[..., R], arguments: tuple[object, ...]
    ) -> R:
        begun_s = time.monotonic()
        wait = _Wait(writes=lane is not self._read, tries=self._may_try(lane))
        # Shielded: only the time that is up leaves a thread behind.
        with anyio.move_on_after(lane.limit_s, shield=True):
            async with lane.room:
                return await anyio.to_thread.run_sync(
                    self._run, wait, action, arguments,
                    abandon_on_cancel=True, limiter=self._no_limit,
                )  # fmt: skip
        wait.left = True
        raise self._missed(lane, begun_s)

    def _may_try(self, lane: _Lane) -> bool:
        """Tell whether somebody is to find out if the disk answers again.

        Raises:
            StoreHung: It does not, as far as is known.
        """
        if self._hung_s is None and self._threads < THREADS_MAX:
            return False
        now_s = time.monotonic()
        if now_s < self._next_try_s or not lane.proves or self._threads >= THREADS_MAX:
            raise self._error(lane)
        self._next_try_s = now_s + (lane.limit_s or TRY_S)
        return True

    def _run(self, wait: _Wait, action: Callable[..., R], arguments: tuple[object, ...]) -> R:
        with self._lock:
            self._threads += 1
            self._writing += wait.writes
            self.calm = self._is_calm()
        try:
            return action(*arguments)
        finally:
            self._came_back(wait)

    def _came_back(self, wait: _Wait) -> None:
        """In a thread whose work is done, or failed: that is an answer as well."""
        hung_s = None
        with self._lock:
            self._threads -= 1
            self._writing -= wait.writes
            self.calm = self._is_calm()
            if wait.left or wait.tries:
                hung_s, self._hung_s = self._hung_s, None
        if hung_s is not None:
            silent_s = time.monotonic() - hung_s
            log.warning("the store's disk answers again, after %d s: %s", silent_s, self._packs)

    def _missed(self, lane: _Lane, begun_s: float) -> errors.StoreHung:
        """Note that somebody's time was up; return what to tell them."""
        error = self._error(lane)
        with self._lock:
            is_news = self._hung_s is None
            if is_news:
                self._hung_s = begun_s
            self._next_try_s = time.monotonic() + (lane.limit_s or TRY_S)
        if is_news:
            log.error("%s; what is in memory is served, the rest fails until it answers", error)
        return error

    def _error(self, lane: _Lane) -> errors.StoreHung:
        return errors.StoreHung(
            f"the store's disk did not answer for {lane.limit_s or 0:g} s: {self._packs}"
        )


def _lane(count: int, limit_s: float, *, proves: bool) -> _Lane:
    return _Lane(
        limit_s or None, limit_s or None, anyio.Semaphore(count, fast_acquire=True), proves
    )
