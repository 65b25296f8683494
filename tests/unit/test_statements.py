"""SQL on the way of a request."""

from __future__ import annotations

import apsw

from nexus_engine.meta.connection import Connection
from tests.unit.worlds import World


async def use(world: World, name: str) -> None:
    """Do what programs do all day."""
    assert not world.exists(name)
    await world.write(name, name.encode())
    await world.write(name, b"again")
    await world.rename(name, f"{name}-renamed")
    assert world.read(f"{name}-renamed") == b"again"
    await world.unlink(f"{name}-renamed")
    await world.mkdir(name)
    await world.rmdir(name)


async def test_a_statement_is_planned_once_whatever_it_is_asked(world: World) -> None:
    """Planning costs several times what a request looks up. SQLite asks an authorizer meanwhile."""
    planned: list[object] = []

    def authorize(*what: object) -> int:
        planned.append(what)
        return apsw.SQLITE_OK

    connection = world.database.connection._db
    connection.authorizer = authorize
    try:
        await use(world, "first")
        assert planned
        planned.clear()
        await use(world, "second")
        await use(world, "third")
    finally:
        connection.authorizer = None
    assert planned == []


async def test_what_was_asked_holds_no_lock_afterwards(world: World) -> None:
    """sqlite.org/wal.html: a query not read to its end keeps the log from beginning anew."""
    connection = world.database.connection
    other = Connection(connection.path)
    for ask in (connection.one, connection.all):
        await world.write("file", b"something for the log")
        world.store.settle()
        assert ask("SELECT seq FROM oplog")
        other.checkpoint(restart=True)
        assert connection.wal_bytes() == 0
    other.close()
