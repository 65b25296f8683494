"""What a selector picks: operations that are not undone yet, and never undos unless named."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path as FilePath

import pytest

from nexus_engine import errors
from nexus_engine.history import snapshots
from nexus_engine.history.select import Selector, select, select_redo
from nexus_engine.history.undo import apply_undo
from nexus_engine.oplog.reader import get_entry
from nexus_engine.types import Actor, Path, Seq
from tests.unit.worlds import ALICE, BOB, World

ROOT = Actor(0, 0, 1, 1, "nexus-ctl", 1, "")


@pytest.fixture
async def world(tmp_path: FilePath) -> AsyncIterator[World]:
    """Operation 1 makes the root; 2 to 6 are alice's, 7 and 8 bob's: he makes and writes a file."""
    world = World(tmp_path / "store")
    await world.mkdir("docs")
    await world.write("docs/a", b"a")
    await world.rename("docs/a", "a")
    await world.chmod("a", 0o600)
    world.actor = BOB
    await world.write("docs-too", b"b")
    assert world.head == 8
    yield world
    await world.close()


def picked(world: World, **fields: object) -> list[int]:
    return list(select(world.database, Selector(**fields)))  # type: ignore[arg-type]


def undo(world: World, *seqs: int) -> Seq:
    return apply_undo(world.store, [Seq(seq) for seq in seqs], actor=ROOT).seq


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"last": 1}, [8]),
        ({"last": 3}, [6, 7, 8]),
        ({"last": 100}, [2, 3, 4, 5, 6, 7, 8]),
        ({"since_seq": 6}, [7, 8]),
        ({"since_seq": 2, "until_seq": 4}, [3, 4]),
        ({"until_seq": 3}, [2, 3]),
        ({"agent": "bob"}, [7, 8]),
        ({"agent": "bob", "last": 1}, [8]),
        ({"agent": "nobody"}, []),
        ({"pid": 41}, [2, 3, 4, 5, 6]),
        ({"session": 50}, [7, 8]),
        ({"uid": 1001}, [7, 8]),
        ({"path": Path(b"docs")}, [2, 3, 4, 5]),
        ({"path": Path(b"a")}, [5, 6]),
        ({"path": Path(b"docs"), "agent": "bob"}, []),
        ({"ops": (5, 3, 5)}, [3, 5]),
        ({"path": Path(b""), "last": 2}, [7, 8]),
    ],
)
async def test_everything_given_has_to_hold(
    world: World, fields: dict[str, object], expected: list[int]
) -> None:
    kinds = [get_entry(world.database, Seq(seq)).record.kind for seq in range(1, world.head + 1)]
    assert (
        kinds
        == ["mkdir", "mkdir", "create", "write", "rename", "setattr", "create", "write"][
            : len(kinds)
        ]
    )
    assert picked(world, **fields) == expected


async def test_the_last_ones_are_those_that_are_not_undone(world: World) -> None:
    undo(world, 8)
    assert picked(world, last=2) == [6, 7]
    undo(world, 6, 7)
    assert picked(world, last=1) == [5]


async def test_what_is_redone_can_be_undone_again(world: World) -> None:
    first = undo(world, 8)
    assert list(select_redo(world.database, Selector(last=1))) == [first]
    undo(world, first)
    assert picked(world, last=1) == [8]
    assert select_redo(world.database, Selector(last=1)) == []


async def test_redo_takes_the_latest_undo_first(world: World) -> None:
    first, second = undo(world, 8), undo(world, 6)
    assert list(select_redo(world.database, Selector(last=1))) == [second]
    assert list(select_redo(world.database, Selector(last=9))) == [first, second]
    assert list(select_redo(world.database, Selector(ops=(first,)))) == [first]
    with pytest.raises(errors.InvalidSelector):
        select_redo(world.database, Selector(ops=(Seq(3),)))


async def test_snapshots_are_no_changes(world: World) -> None:
    snapshots.create(world.store, "monday", ALICE)
    assert picked(world, last=1) == [8]
    with pytest.raises(errors.InvalidSelector):
        picked(world, ops=(world.head,))


@pytest.mark.parametrize(
    "fields",
    [{}, {"last": 0}, {"ops": (3,), "last": 1}, {"ops": (99,)}, {"ops": (1,)}],
    ids=str,
)
async def test_senseless_selectors_are_refused(world: World, fields: dict[str, object]) -> None:
    with pytest.raises(errors.InvalidSelector):
        picked(world, **fields)


async def test_naming_what_is_undone_already_says_so(world: World) -> None:
    undo(world, 8)
    with pytest.raises(errors.NothingToUndo):
        picked(world, ops=(8,))
