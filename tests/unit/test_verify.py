"""The chain: every way to change the log behind its back shows."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path as FilePath

import pytest

from nexus_engine.oplog.verify import verify_log
from tests.unit.worlds import BOB, World


@pytest.fixture
async def world(tmp_path: FilePath) -> AsyncIterator[World]:
    world = World(tmp_path / "store")
    for number in range(4):
        await world.mkdir(f"d{number}")
    world.actor = BOB
    await world.write("file", b"content")
    yield world
    await world.close()


async def test_an_untouched_log_holds(world: World) -> None:
    seen: list[int] = []
    report = verify_log(world.database, progress=seen.append)
    assert report.holds
    assert (report.records, report.first_broken_seq, report.reason) == (7, None, None)
    assert seen == [7]
    row = world.database.connection.one("SELECT hash FROM oplog WHERE seq = 7")
    assert row == (report.head_hash,)


@pytest.mark.parametrize(
    ("sql", "seq", "reason"),
    [
        ("UPDATE oplog SET path = 'x' || path WHERE seq = 3", 3, "does not match"),
        ("UPDATE oplog SET details = '{}' WHERE seq = 6", 6, "does not match"),
        ("UPDATE oplog SET time_ns = time_ns + 1 WHERE seq = 4", 4, "does not match"),
        ("UPDATE oplog SET hash = zeroblob(32) WHERE seq = 5", 5, "does not match"),
        ("UPDATE oplog SET actor = 1 WHERE seq = 6", 6, "does not match"),
        ("UPDATE actor SET agent = 'alice' WHERE agent = 'bob'", 6, "does not match"),
        ("DELETE FROM actor WHERE agent = 'bob'", 6, "actor"),
        ("DELETE FROM oplog WHERE seq = 4", 4, "missing"),
        ("DELETE FROM oplog WHERE seq = 1", 1, "missing"),
        ("UPDATE oplog SET seq = seq + 10 WHERE seq > 4", 5, "missing"),
        ("UPDATE oplog SET time_ns = 1 WHERE seq = 4", 4, "older"),
    ],
)
async def test_a_change_shows_where_it_was_made(
    world: World, sql: str, seq: int, reason: str
) -> None:
    if "path" in sql:
        sql = sql.replace("'x' || path", "CAST('x' || path AS BLOB)")
    world.edit(sql)
    report = verify_log(world.database)
    assert not report.holds
    assert (report.records, report.first_broken_seq) == (seq - 1, seq)
    assert report.reason is not None
    assert reason in report.reason


async def test_two_operations_in_exchanged_places_show(world: World) -> None:
    world.edit("UPDATE oplog SET seq = 100 WHERE seq = 3")
    world.edit("UPDATE oplog SET seq = 3, time_ns = 1 WHERE seq = 4")
    world.edit("UPDATE oplog SET seq = 4 WHERE seq = 100")
    assert verify_log(world.database).first_broken_seq == 3


async def test_a_cut_end_shows_against_a_hash_noted_before(world: World) -> None:
    noted = verify_log(world.database).head_hash
    await world.mkdir("more")
    assert verify_log(world.database, expected_head=noted).holds
    world.edit("DELETE FROM oplog WHERE seq >= 7")
    assert verify_log(world.database).holds
    report = verify_log(world.database, expected_head=noted)
    assert report.first_broken_seq == 7
    assert report.reason is not None
    assert "cut off" in report.reason
