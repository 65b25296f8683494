"""Snapshots: names for moments."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path as FilePath

import pytest

from nexus_engine import errors
from nexus_engine.history import snapshots
from nexus_engine.oplog.reader import get_entry
from nexus_engine.types import Seq
from tests.unit.worlds import BOB, World


@pytest.fixture
async def world(tmp_path: FilePath) -> AsyncIterator[World]:
    world = World(tmp_path / "store")
    yield world
    assert world.problems() == []
    await world.close()


async def test_a_snapshot_names_the_state_at_its_making(world: World) -> None:
    await world.write("file", b"one")
    seq = snapshots.create(world.store, "first", BOB)
    await world.write("file", b"two")
    assert world.read("file", seq) == b"one"
    (snapshot,) = snapshots.list_all(world.database)
    assert (snapshot.name, snapshot.seq) == ("first", seq)
    made = get_entry(world.database, Seq(seq + 1)).record
    assert (made.kind, made.actor, made.time_ns) == ("snapshot", BOB, snapshot.time_ns)


async def test_a_dropped_snapshot_is_gone_and_its_moment_is_not(world: World) -> None:
    await world.write("file", b"one")
    seq = snapshots.create(world.store, "first", BOB)
    snapshots.drop(world.store, "first", BOB)
    assert snapshots.list_all(world.database) == []
    assert world.read("file", seq) == b"one"
    assert get_entry(world.database, world.head).record.kind == "drop-snapshot"
    with pytest.raises(errors.NotFound):
        snapshots.drop(world.store, "first", BOB)


async def test_a_name_is_given_once(world: World) -> None:
    snapshots.create(world.store, "first", BOB)
    head = world.head
    with pytest.raises(errors.AlreadyExists):
        snapshots.create(world.store, "first", BOB)
    assert world.head == head


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "a/b", "a\0b", "a\nb", "\x7f", "now", "2h", "op-3", "2026-11", "\udcff"],
)
async def test_names_that_are_no_file_names_or_moments_are_refused(world: World, name: str) -> None:
    with pytest.raises(errors.InvalidName):
        snapshots.create(world.store, name, BOB)


async def test_a_name_has_at_most_255_bytes(world: World) -> None:
    with pytest.raises(errors.NameTooLong):
        snapshots.create(world.store, "ä" * 128, BOB)
    snapshots.create(world.store, "ä" * 127 + "a", BOB)
