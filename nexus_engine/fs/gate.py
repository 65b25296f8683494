"""A lock for tasks that costs nothing while nobody contends."""

from __future__ import annotations

import anyio


class Gate:
    """Held by one task at a time. Taking a free gate is not a checkpoint."""

    __slots__ = ("_event", "held")

    def __init__(self) -> None:
        self.held = False
        self._event: anyio.Event | None = None

    async def take(self) -> None:
        while self.held:
            if self._event is None:
                self._event = anyio.Event()
            await self._event.wait()
        self.held = True

    def give(self) -> None:
        self.held = False
        if self._event is not None:
            self._event.set()
            self._event = None
