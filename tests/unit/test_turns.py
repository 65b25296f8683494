"""Writers of one process that wait for another one."""

from __future__ import annotations

import anyio

from nexus_engine.meta.connection import DATABASE_NAME, Connection
from nexus_engine.oplog.reader import follow
from tests.unit.worlds import World


async def test_those_who_wait_for_another_process_keep_their_order(world: World) -> None:
    """Else `undo --last 1` takes back what a program did before its last change."""
    head = world.head
    other = Connection(str(world.path / DATABASE_NAME))
    other.run("BEGIN IMMEDIATE")
    async with anyio.create_task_group() as tasks:
        for number in range(10):
            tasks.start_soon(world.mkdir, f"later-{number}")
            await anyio.sleep(0.01)
        other.run("ROLLBACK")
    other.close()
    made = [entry.record.path for entry in follow(world.database, head)]
    assert made == [b"later-%d" % number for number in range(10)]
