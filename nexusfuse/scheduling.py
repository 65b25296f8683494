"""How pyfuse3's workers take turns at reading requests.

pyfuse3 has a pool of tasks that queue for one lock, wait until the kernel has a request, release
the lock and answer. With trio's own lock each request costs two task switches and a trip through
the event loop, more than an answer from memory costs. pyfuse3 takes its event loop from the name
``pyfuse3.trio`` (its asyncio support replaces it), so a namespace with two changes suffices:

- the lock is not handed over: its releaser may take it again, and another worker gets it only when
  the releaser really waits, for a disk or a thread; then others are answered meanwhile;
- the kernel is asked for the next request directly, without the event loop; and while no request is
  being answered, a moment longer: a program's next one follows in some ten microseconds.
"""

from __future__ import annotations

import select
from collections import OrderedDict
from collections.abc import Callable
from types import TracebackType
from typing import Any

import pyfuse3
import trio

from nexusfuse.handshake import Handshake

FAST_MAX = 32
"""Requests in a row before other tasks get their turn."""
QUIET_MS = 1
"""How long the kernel is asked directly. Tasks beside the requests wait meanwhile."""


class UnfairLock:
    """A lock whose releaser may take it again before those who wait."""

    def __init__(self) -> None:
        self._held = False
        self._waiting: OrderedDict[trio.lowlevel.Task, None] = OrderedDict()

    async def __aenter__(self) -> None:
        while self._held:
            task = trio.lowlevel.current_task()
            self._waiting[task] = None

            def abort(_: Any, task: trio.lowlevel.Task = task) -> trio.lowlevel.Abort:
                self._waiting.pop(task, None)
                return trio.lowlevel.Abort.SUCCEEDED

            await trio.lowlevel.wait_task_rescheduled(abort)
        self._held = True

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._held = False
        if self._waiting:
            # It runs when the running task waits, and finds the lock free or taken again.
            task, _ = self._waiting.popitem(last=False)
            trio.lowlevel.reschedule(task)


class _Lowlevel:
    """``trio.lowlevel``, but for waiting."""

    def __init__(self, under_way: Callable[[], int], handshake: Handshake | None = None) -> None:
        self._under_way = under_way
        self._handshake = handshake
        self._poll: select.poll | None = None
        self._fast = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(trio.lowlevel, name)

    async def wait_readable(self, fd: int) -> None:
        """Return when the kernel has a request.

        Raises:
            trio.ClosedResourceError: The mount is going away.
        """
        if self._handshake is not None:
            self._handshake.before_read(fd)
            if self._handshake.done:
                self._handshake = None
        if self._poll is None:
            self._poll = select.poll()
            self._poll.register(fd, select.POLLIN)
        # What a request waits for, a thread or a timer, comes through the event loop.
        if self._fast < FAST_MAX and self._poll.poll(0 if self._under_way() else QUIET_MS):
            self._fast += 1
            return
        self._fast = 0
        await trio.lowlevel.wait_readable(fd)


class _Trio:
    """``trio``, but for the lock and the waiting."""

    def __init__(self, under_way: Callable[[], int]) -> None:
        self.lowlevel = _Lowlevel(under_way, Handshake())
        self.Lock = UnfairLock

    def __getattr__(self, name: str) -> Any:
        return getattr(trio, name)


def install(under_way: Callable[[], int]) -> None:
    """Have pyfuse3 schedule its workers like this. Before ``pyfuse3.main``.

    Args:
        under_way: Tells how many requests are being answered.
    """
    pyfuse3.trio = _Trio(under_way)  # type: ignore[attr-defined]
