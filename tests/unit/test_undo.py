"""What an undo does and says, and that it can itself be taken back."""

from __future__ import annotations

import os

import pytest

from nexus_engine import errors
from nexus_engine.fs.attributes import NewAttributes, set_attributes
from nexus_engine.history.select import Selector, select
from nexus_engine.history.undo import apply_undo
from nexus_engine.meta.transaction import Transaction
from nexus_engine.types import Ino, Seq
from tests.unit.undoing import (
    ROOT,
    as_bob,
    plan,
    redo,
    told,
    undo,
    undo_since,
)
from tests.unit.worlds import ALICE, BOB, World


async def test_undo_is_one_record_that_says_what_it_did(world: World) -> None:
    start = world.head
    await world.remove("docs/old")
    world.actor = BOB
    result = undo_since(world, start)
    assert result.seq == world.head
    assert result.plan.counts() == {"restored": 3, "removed": 0, "changed": 0, "conflicts": 0}
    row = world.database.connection.one(
        "SELECT kind, path, details FROM oplog WHERE seq = ?", (result.seq,)
    )
    assert row is not None
    assert row[:2] == ("undo", b"docs/old")
    assert '"restored":3' in row[2]


async def test_a_dry_run_lists_every_path_and_changes_nothing(world: World) -> None:
    start, before = world.head, world.tree()
    await world.remove("docs")
    head = world.head
    dry = plan(world, Selector(since_seq=start))
    assert {path for action, path in told(dry) if action == "restore"} == {
        path.lstrip(b"/") for path in before if path
    }
    assert world.head == head
    assert not world.exists("docs")


async def test_items_say_what_happens(world: World) -> None:
    start = world.head
    await world.rename("docs/old", "older")
    await world.write("docs/a", b"2")
    await world.chmod("docs/b", 0o600)
    await world.setxattr("docs/b", b"user.x", b"y")
    await world.write("docs/new", b"new")
    await world.unlink("docs/s")
    dry = plan(world, Selector(since_seq=start))
    assert [(i.action, i.path, i.path2, i.detail) for i in dry.items] == [
        ("content", b"docs/a", None, "1 → 7 bytes"),
        ("attributes", b"docs/b", None, "mode 0600 → 0644"),
        ("xattr", b"docs/b", None, "user.x removed"),
        ("remove", b"docs/new", None, "file"),
        ("restore", b"docs/s", None, "symlink"),
        ("rename", b"older", b"docs/old", "directory"),
    ]


async def test_what_became_of_nothing_is_undone_so_that_the_next_one_gets_its_turn(
    world: World,
) -> None:
    await world.write("docs/a", b"second")
    await world.chmod("docs/a", world.inode("docs/a").mode & 0o777)
    assert undo(world, Selector(last=1)).plan.items == []
    undo(world, Selector(last=1))
    assert world.read("docs/a") == b"first a"


async def test_nothing_selected_is_an_error(world: World) -> None:
    with pytest.raises(errors.NothingToUndo):
        apply_undo(world.store, [], actor=ROOT)
    with pytest.raises(errors.InvalidSelector):
        apply_undo(world.store, [Seq(10_000)], actor=ROOT)


async def test_progress_reaches_the_end(world: World) -> None:
    start = world.head
    await world.remove("docs")
    seen: list[tuple[int, int]] = []
    seqs = select(world.database, Selector(since_seq=start))
    apply_undo(
        world.store, seqs, actor=ROOT, progress=lambda done, total: seen.append((done, total))
    )
    assert seen[-1][0] == seen[-1][1] > 0


async def test_caches_learn_of_every_name_and_inode(world: World) -> None:
    start = world.head
    await world.unlink("docs/b")
    await world.write("docs/a", b"second")
    docs, a = world.inode("docs").ino, world.inode("docs/a").ino
    result = undo_since(world, start)
    rows = world.database.connection.all(
        "SELECT ino, parent, name FROM touched WHERE seq = ?", (result.seq,)
    )
    b = world.inode("docs/b").ino
    assert {(b, docs, b"b"), (b, 0, b""), (a, 0, b""), (docs, 0, b"")} <= set(rows)


async def test_a_plan_is_made_again_if_the_log_has_grown(world: World) -> None:
    start = world.head
    await world.unlink("docs/b")
    stale = plan(world, Selector(since_seq=start))
    as_bob(world)
    await world.write("docs/b", b"bob's")
    with pytest.raises(errors.NothingToUndo):
        apply_undo(world.store, stale, actor=ROOT)
    assert world.read("docs/b") == b"bob's"


async def test_equal_extents_are_not_written_again(world: World) -> None:
    await world.write("docs/big", os.urandom(3_000_000))
    rows = "SELECT start, from_seq FROM extent WHERE ino = ? ORDER BY start"
    ino = world.inode("docs/big").ino
    before = world.database.connection.all(rows, (ino,))
    content = world.read("docs/big")
    await world.patch("docs/big", 10, b"small change")
    undo(world, Selector(last=1))
    after = world.database.connection.all(rows, (ino,))
    assert world.read("docs/big") == content
    assert len(after) == len(before) > 1
    assert after[1:] == before[1:]


# -- what was changed through a handle after its name was gone --


async def test_a_file_truncated_after_its_removal_comes_back_whole(world: World) -> None:
    handle = await world.engine.open(world.inode("docs/b").ino, os.O_RDWR, ALICE)
    start, before = world.head, world.tree()
    await world.unlink("docs/b")
    ino = handle.file.ino
    await world.engine.setattr(ino, NewAttributes(mode=0o600), ALICE)
    await world.engine.setxattr(ino, b"user.late", b"x", ALICE)
    world.store.transact(_truncate_rows, ALICE, ino)
    undo_since(world, start)
    assert world.tree() == before
    await world.engine.release(handle)
    assert world.tree() == before


def _truncate_rows(tx: Transaction, ino: Ino) -> None:
    set_attributes(tx, ino, NewAttributes(size=0))


# -- histories that random tests came up with --


async def test_regression_a_time_hidden_by_an_operation_that_is_undone_later(
    world: World,
) -> None:
    """The first undo leaves the later time alone; the second then goes back all the way."""
    start, before = world.head, world.tree()
    await world.write("docs/b", b"second")
    written = world.head
    await world.setattr("docs/b", mtime_ns=10)
    await world.write("docs/new", b"")
    made = Seq(written + 2)
    await world.unlink("docs/a")
    apply_undo(world.store, [written], actor=ROOT)
    assert world.inode("docs/b").mtime_ns == 10
    apply_undo(world.store, [made], actor=ROOT)
    undo_since(world, start)
    assert world.tree() == before


async def test_regression_what_others_took_back_comes_back_with_them(world: World) -> None:
    """An operation of which nothing was left does not count as undone."""
    start, before = world.head, world.tree()
    await world.write("docs/.tmp", b"new")
    await world.rename("docs/.tmp", "docs/b")
    await world.unlink("docs/b")
    with pytest.raises(errors.NothingToUndo):
        apply_undo(world.store, [Seq(start + 1)], actor=ROOT)
    undo_since(world, start)
    assert world.tree() == before


async def test_regression_an_undo_of_something_older_is_in_the_way(world: World) -> None:
    await world.rename("docs/s", "docs/t")
    renamed, moved = world.head, world.tree()
    await world.write("docs/s", b"")
    await world.unlink("docs/s")
    apply_undo(world.store, [renamed], actor=ROOT)
    await world.rename("docs/s", "docs/u")
    result = undo_since(world, renamed)
    assert result.plan.conflicts == []
    assert world.tree()[b"/docs/s"] == moved[b"/docs/t"]


async def test_regression_a_redo_that_had_to_leave_something_can_be_undone(world: World) -> None:
    start, before = world.head, world.tree()
    await world.unlink("docs/a")
    await world.mkdir("docs/new")
    undo(world, Selector(last=2))
    as_bob(world)
    await world.rename("docs/a", "docs/taken")
    partial = redo(world)
    assert partial.plan.conflicts != []
    assert world.exists("docs/new")
    assert undo(world, Selector(last=1)).plan.operations == [partial.seq]
    assert not world.exists("docs/new")
    undo_since(world, start)
    assert world.tree() == before
