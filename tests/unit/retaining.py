"""What tests of retention share: another process at work beside the engine, and what is stored."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import TypeVar

import anyio
import anyio.to_thread

from nexus_engine import errors
from nexus_engine.services import Services
from nexus_engine.store import Store
from tests.unit.worlds import SECOND, World

R = TypeVar("R")

MINUTE, HOUR, DAY = 60 * SECOND, 3600 * SECOND, 86400 * SECOND


async def beside(world: World, action: Callable[[Store], R]) -> R:
    """Run something on the store as another process would, while the engine's upkeep goes on."""
    results: list[R] = []

    def run() -> None:
        peer = Store.open(world.path, clock=world.clock)
        try:
            results.append(action(peer))
        finally:
            peer.close()

    async with anyio.create_task_group() as tasks:

        async def keep_up() -> None:
            while True:
                with contextlib.suppress(errors.StoreBusy):
                    await Services(world.engine).upkeep()
                await anyio.sleep(0.01)

        tasks.start_soon(keep_up)
        await anyio.to_thread.run_sync(run)
        tasks.cancel_scope.cancel()
    world.engine.catch_up()
    return results[0]


async def seal(world: World) -> None:
    """Have the engine begin a new pack: gc leaves alone what is being written."""
    world.store.chunks.finish({pack.pack for pack in world.store.chunks.packs_written()})
    await Services(world.engine).upkeep()


def stored(world: World) -> int:
    """Return the bytes of all packs."""
    return sum(path.stat().st_size for path in (world.path / "packs").iterdir())
