"""Undo takes back what one did, leaves what others did, and can itself be taken back."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path as FilePath

import pytest

from nexus_engine import errors
from nexus_engine.fs.attributes import NewAttributes
from nexus_engine.fs.namespace import RENAME_EXCHANGE
from nexus_engine.history.select import Selector, select, select_redo
from nexus_engine.history.undo import UndoPlan, UndoResult, apply_undo, plan_undo
from nexus_engine.types import Actor, Path, Seq
from tests.unit.worlds import ALICE, BOB, World, to_path

ROOT = Actor(0, 0, 1, 1, "nexus-ctl", 1, "")


@pytest.fixture
async def world(tmp_path: FilePath) -> AsyncIterator[World]:
    world = World(tmp_path / "store")
    await world.mkdir("docs")
    await world.mkdir("docs/old")
    await world.write("docs/a", b"first a")
    await world.write("docs/b", b"first b")
    await world.write("docs/old/c", b"first c")
    await world.link("docs/a", "docs/old/a2")
    await world.symlink("docs/s", b"a")
    await world.setxattr("docs/a", b"user.color", b"red")
    yield world
    assert world.problems(deep=True) == []
    await world.close()


def as_bob(world: World) -> None:
    world.actor = BOB


def as_alice(world: World) -> None:
    world.actor = ALICE


def plan(world: World, selector: Selector, *, force: bool = False) -> UndoPlan:
    return plan_undo(world.store, select(world.database, selector), actor=ROOT, force=force)


def undo(world: World, selector: Selector, *, force: bool = False) -> UndoResult:
    seqs = select(world.database, selector)
    return apply_undo(world.store, seqs, actor=ROOT, force=force)


def undo_since(world: World, seq: Seq, *, force: bool = False) -> UndoResult:
    return undo(world, Selector(since_seq=seq), force=force)


def undo_of(world: World, who: Actor, since: Seq, *, force: bool = False) -> UndoResult:
    return undo(world, Selector(agent=who.agent, since_seq=since), force=force)


def redo(world: World, last: int = 1) -> UndoResult:
    seqs = select_redo(world.database, Selector(last=last))
    return apply_undo(world.store, seqs, actor=ROOT)


def told(plan: UndoPlan) -> list[tuple[str, bytes]]:
    return [(item.action, item.path) for item in plan.items]


def conflicts(plan: UndoPlan) -> list[tuple[bytes, str, str]]:
    return [(c.path, c.what, c.by.agent if c.by is not None else "") for c in plan.conflicts]


# -- each kind of operation, and back again --


async def _create(world: World) -> None:
    await world.write("docs/new", b"x" * 100)


async def _mkdir(world: World) -> None:
    await world.mkdir("docs/new")


async def _symlink(world: World) -> None:
    await world.symlink("docs/new", b"target")


async def _mknod(world: World) -> None:
    await world.engine.make(*world.place("docs/fifo"), 0o010644, ALICE)


async def _link(world: World) -> None:
    await world.link("docs/b", "docs/old/b2")


async def _unlink(world: World) -> None:
    await world.unlink("docs/b")


async def _unlink_one_of_two_names(world: World) -> None:
    await world.unlink("docs/a")


async def _unlink_both_names(world: World) -> None:
    await world.unlink("docs/old/a2")
    await world.unlink("docs/a")


async def _unlink_symlink(world: World) -> None:
    await world.unlink("docs/s")


async def _rmdir(world: World) -> None:
    await world.mkdir("docs/new")
    await world.rmdir("docs/new")


async def _rename(world: World) -> None:
    await world.rename("docs/b", "docs/old/b")


async def _rename_directory(world: World) -> None:
    await world.rename("docs/old", "older")


async def _rename_twice(world: World) -> None:
    await world.rename("docs/old", "docs/older")
    await world.rename("docs/older", "oldest")


async def _replace(world: World) -> None:
    await world.rename("docs/b", "docs/a")


async def _replace_directory(world: World) -> None:
    await world.mkdir("docs/new")
    await world.mkdir("docs/empty")
    await world.rename("docs/new", "docs/empty")


async def _save_like_an_editor(world: World) -> None:
    await world.write("docs/.b.tmp", b"second b")
    await world.chmod("docs/.b.tmp", 0o600)
    await world.rename("docs/.b.tmp", "docs/b")


async def _exchange(world: World) -> None:
    await world.rename("docs/old", "docs/b", RENAME_EXCHANGE)


async def _swap_by_renames(world: World) -> None:
    await world.rename("docs/a", "docs/t")
    await world.rename("docs/b", "docs/a")
    await world.rename("docs/t", "docs/b")


async def _write(world: World) -> None:
    await world.write("docs/a", b"second a, longer")


async def _patch(world: World) -> None:
    await world.patch("docs/a", 2, b"XX")


async def _append_far(world: World) -> None:
    await world.patch("docs/a", 1_000_000, b"far")


async def _truncate(world: World) -> None:
    await world.setattr("docs/a", size=3)


async def _grow(world: World) -> None:
    await world.setattr("docs/a", size=3_000_000)


async def _empty(world: World) -> None:
    await world.write("docs/a", b"")


async def _chmod(world: World) -> None:
    await world.chmod("docs/a", 0o600)


async def _chown(world: World) -> None:
    await world.setattr("docs", uid=7, gid=8)


async def _utimes(world: World) -> None:
    await world.setattr("docs/a", mtime_ns=5, atime_ns=6)


async def _utimes_of_directory(world: World) -> None:
    await world.setattr("docs/old", mtime_ns=5)


async def _setxattr(world: World) -> None:
    await world.setxattr("docs/a", b"user.color", b"blue")
    await world.setxattr("docs/a", b"user.shape", b"round")


async def _removexattr(world: World) -> None:
    await world.engine.removexattr(world.inode("docs/a").ino, b"user.color", ALICE)


async def _remove_tree(world: World) -> None:
    await world.remove("docs")


async def _edit_then_remove(world: World) -> None:
    await world.write("docs/b", b"second b")
    await world.chmod("docs/b", 0o400)
    await world.remove("docs")


async def _make_and_remove(world: World) -> None:
    await world.write("docs/new", b"gone soon")
    await world.unlink("docs/new")


async def _remove_and_make_again(world: World) -> None:
    await world.remove("docs/old")
    await world.mkdir("docs/old")
    await world.write("docs/old/c", b"another c")


async def _everything(world: World) -> None:
    await _save_like_an_editor(world)
    await _rename_directory(world)
    await world.write("older/d", b"d")
    await world.link("older/d", "docs/d")
    await world.remove("docs")
    await world.mkdir("docs")


KINDS = [
    _create, _mkdir, _symlink, _mknod, _link, _unlink, _unlink_one_of_two_names,
    _unlink_both_names, _unlink_symlink, _rmdir, _rename, _rename_directory, _rename_twice,
    _replace, _replace_directory, _save_like_an_editor, _exchange, _swap_by_renames, _write,
    _patch, _append_far, _truncate, _grow, _empty, _chmod, _chown, _utimes,
    _utimes_of_directory, _setxattr, _removexattr, _remove_tree, _edit_then_remove,
    _make_and_remove, _remove_and_make_again, _everything,
]  # fmt: skip


@pytest.mark.parametrize("change", KINDS, ids=lambda change: change.__name__.strip("_"))
async def test_undo_brings_back_the_tree_and_redo_takes_it_away(
    world: World, change: object
) -> None:
    """Names, types, modes, owners, sizes, mtimes, bytes, links and xattrs, however often."""
    start, before = world.head, world.tree()
    await change(world)  # type: ignore[operator]
    changed, after = world.head, world.tree()

    result = undo_since(world, start)
    assert world.tree() == before
    assert result.plan.conflicts == []
    for _ in range(2):
        redo(world)
        assert world.tree() == after
        assert world.problems(deep=True) == []
        undo_since(world, start)
        assert world.tree() == before
        assert world.problems(deep=True) == []

    assert world.tree(at=start) == before
    assert world.tree(at=changed) == after
    assert world.tree(at=result.seq) == before


@pytest.mark.parametrize("change", KINDS, ids=lambda change: change.__name__.strip("_"))
async def test_undoing_one_by_one_walks_back(world: World, change: object) -> None:
    start = world.head
    await change(world)  # type: ignore[operator]
    moments = list(range(start, world.head))
    trees = {seq: world.tree(at=Seq(seq)) for seq in moments}
    for seq in reversed(moments):
        undo(world, Selector(last=1))
        assert world.tree() == trees[seq]
    for _ in moments:
        redo(world)
    assert world.tree() == world.tree(at=Seq(moments[-1] + 1))


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


def _truncate_rows(tx: object, ino: int) -> None:
    from nexus_engine.fs.attributes import set_attributes

    set_attributes(tx, ino, NewAttributes(size=0))  # type: ignore[arg-type]


# -- others --


async def test_edits_of_another_file_stay(world: World) -> None:
    start = world.head
    await world.write("docs/a", b"alice's")
    as_bob(world)
    await world.write("docs/b", b"bob's")
    assert undo_of(world, ALICE, start).plan.conflicts == []
    assert (world.read("docs/a"), world.read("docs/b")) == (b"first a", b"bob's")


async def test_an_edit_on_top_is_a_conflict_and_stays(world: World) -> None:
    start = world.head
    await world.patch("docs/a", 0, b"alice")
    as_bob(world)
    await world.patch("docs/a", 5, b"bob")
    as_alice(world)
    await world.chmod("docs/b", 0o600)
    result = undo_of(world, ALICE, start)
    assert conflicts(result.plan) == [(b"docs/a", "content", "bob")]
    assert world.read("docs/a") == b"alicebob"
    assert world.inode("docs/b").mode & 0o777 == 0o644
    assert result.plan.reverted == [world.head - 1]


async def test_force_undoes_the_edit_on_top_as_well(world: World) -> None:
    start = world.head
    await world.patch("docs/a", 0, b"alice")
    as_bob(world)
    await world.patch("docs/a", 5, b"bob")
    undo_of(world, ALICE, start, force=True)
    assert world.read("docs/a") == b"first a"
    redo(world)
    assert world.read("docs/a") == b"alicebob"


async def test_an_edit_on_top_that_was_undone_is_no_conflict(world: World) -> None:
    start = world.head
    await world.patch("docs/a", 0, b"alice")
    before_bob = world.head
    as_bob(world)
    await world.patch("docs/a", 5, b"bob")
    undo_of(world, BOB, before_bob)
    result = undo_of(world, ALICE, start)
    assert result.plan.conflicts == []
    assert world.read("docs/a") == b"first a"


async def test_only_the_edits_since_the_last_of_somebody_else_go(world: World) -> None:
    start = world.head
    await world.patch("docs/a", 0, b"1")
    as_bob(world)
    await world.patch("docs/a", 1, b"2")
    as_alice(world)
    await world.patch("docs/a", 2, b"3")
    result = undo_of(world, ALICE, start)
    assert world.read("docs/a") == b"12rst a"
    assert conflicts(result.plan) == [(b"docs/a", "content", "bob")]


async def test_a_mode_and_an_edit_are_different_things(world: World) -> None:
    start = world.head
    await world.chmod("docs/a", 0o600)
    as_bob(world)
    await world.patch("docs/a", 0, b"bob")
    assert undo_of(world, ALICE, start).plan.conflicts == []
    assert world.read("docs/a") == b"bobst a"
    assert world.inode("docs/a").mode & 0o777 == 0o644

    start = world.head
    as_alice(world)
    await world.patch("docs/a", 0, b"ALI")
    as_bob(world)
    await world.chmod("docs/a", 0o640)
    assert undo_of(world, ALICE, start).plan.conflicts == []
    assert world.read("docs/a") == b"bobst a"
    assert world.inode("docs/a").mode & 0o777 == 0o640


async def test_a_later_chmod_is_a_conflict_with_a_chmod(world: World) -> None:
    start = world.head
    await world.chmod("docs/a", 0o600)
    as_bob(world)
    await world.chmod("docs/a", 0o640)
    as_alice(world)
    await world.setxattr("docs/a", b"user.color", b"blue")
    as_bob(world)
    await world.setxattr("docs/a", b"user.color", b"green")
    seqs = select(world.database, Selector(agent="alice", since_seq=start))
    dry = plan_undo(world.store, seqs, actor=ROOT)
    assert conflicts(dry) == [
        (b"docs/a", "mode", "bob"),
        (b"docs/a", "xattr user.color", "bob"),
    ]
    with pytest.raises(errors.NothingToUndo):
        apply_undo(world.store, seqs, actor=ROOT)
    apply_undo(world.store, seqs, actor=ROOT, force=True)
    assert world.inode("docs/a").mode & 0o777 == 0o644
    assert world.store.reader.find_xattr(world.inode("docs/a").ino, b"user.color") == b"red"


async def test_a_removed_directory_that_somebody_made_again_is_a_conflict(world: World) -> None:
    start, before = world.head, world.tree("docs/old")
    await world.remove("docs/old")
    as_bob(world)
    await world.mkdir("docs/old")
    await world.write("docs/old/c", b"bob's")
    dry = plan(world, Selector(agent="alice", since_seq=start))
    assert (b"docs/old", "name", "bob") in conflicts(dry)
    assert dry.items == []
    undo_of(world, ALICE, start, force=True)
    assert world.tree("docs/old") == before


async def test_what_somebody_put_into_a_new_directory_keeps_it(world: World) -> None:
    start = world.head
    await world.mkdir("new")
    await world.write("new/alice", b"a")
    as_bob(world)
    await world.write("new/bob", b"b")
    result = undo_of(world, ALICE, start)
    assert conflicts(result.plan) == [(b"new", "name", "bob")]
    assert world.exists("new/bob")
    assert not world.exists("new/alice")


async def test_force_empties_the_directory_that_goes(world: World) -> None:
    start, before = world.head, world.tree()
    await world.mkdir("new")
    as_bob(world)
    await world.mkdir("new/bob")
    await world.write("new/bob/file", b"b")
    await world.rename("docs/b", "new/b")
    undo_of(world, ALICE, start, force=True)
    assert not world.exists("new")
    assert world.read("docs/b") == b"first b"
    assert world.tree().keys() == before.keys()
    redo(world)
    assert world.read("new/bob/file") == b"b"


async def test_a_directory_that_somebody_renamed_again_stays_there(world: World) -> None:
    start = world.head
    await world.rename("docs/old", "docs/older")
    as_bob(world)
    await world.rename("docs/older", "docs/oldest")
    seqs = select(world.database, Selector(agent="alice", since_seq=start))
    dry = plan_undo(world.store, seqs, actor=ROOT)
    assert conflicts(dry) == [(b"docs/older", "name", "bob")]
    with pytest.raises(errors.NothingToUndo):
        apply_undo(world.store, seqs, actor=ROOT)
    undo_of(world, ALICE, start, force=True)
    assert world.exists("docs/old/c")
    assert not world.exists("docs/oldest")


async def test_a_name_that_is_taken_keeps_the_whole_rename(world: World) -> None:
    start = world.head
    await world.rename("docs/b", "docs/moved")
    as_bob(world)
    await world.write("docs/b", b"bob's")
    dry = plan(world, Selector(agent="alice", since_seq=start))
    assert dry.items == []
    undo_of(world, ALICE, start, force=True)
    assert world.read("docs/b") == b"first b"
    assert not world.exists("docs/moved")


async def test_a_new_file_that_somebody_worked_on_stays_whole(world: World) -> None:
    start = world.head
    await world.write("docs/new", b"alice")
    as_bob(world)
    await world.patch("docs/new", 5, b" and bob")
    dry = plan(world, Selector(agent="alice", since_seq=start))
    assert dry.items == []
    assert {c.by.agent for c in dry.conflicts if c.by is not None} == {"bob"}
    undo_of(world, ALICE, start, force=True)
    assert not world.exists("docs/new")


@pytest.mark.parametrize("verb", ["rename", "link"])
async def test_a_new_file_that_somebody_gave_a_name_stays_whole(world: World, verb: str) -> None:
    start = world.head
    await world.write("docs/new", b"alice")
    as_bob(world)
    await getattr(world, verb)("docs/new", "docs/kept")
    seqs = select(world.database, Selector(agent="alice", since_seq=start))
    dry = plan_undo(world.store, seqs, actor=ROOT)
    assert dry.items == []
    assert (b"docs/new", "name", "bob") in conflicts(dry)
    with pytest.raises(errors.NothingToUndo):
        apply_undo(world.store, seqs, actor=ROOT)
    assert world.read("docs/kept") == b"alice"
    undo_of(world, ALICE, start, force=True)
    assert not world.exists("docs/kept")
    assert not world.exists("docs/new")


async def test_an_edit_of_what_somebody_removed_is_a_conflict(world: World) -> None:
    start = world.head
    await world.patch("docs/b", 0, b"alice")
    as_bob(world)
    await world.unlink("docs/b")
    dry = plan(world, Selector(agent="alice", since_seq=start))
    assert conflicts(dry) == [(b"docs/b", "content", "bob")]
    undo_of(world, ALICE, start, force=True)
    assert world.read("docs/b") == b"first b"


async def test_what_somebody_else_removed_already_needs_no_undo(world: World) -> None:
    start = world.head
    await world.write("docs/new", b"alice")
    as_bob(world)
    await world.unlink("docs/new")
    dry = plan(world, Selector(agent="alice", since_seq=start))
    assert (dry.items, dry.conflicts) == ([], [])
    with pytest.raises(errors.NothingToUndo):
        undo_of(world, ALICE, start)
    undo_of(world, BOB, start)
    undo_of(world, ALICE, start)
    assert not world.exists("docs/new")


async def test_a_file_removed_from_a_directory_that_went_later_waits_for_it(
    world: World,
) -> None:
    start, before = world.head, world.tree("docs/old")
    await world.unlink("docs/old/c")
    await world.unlink("docs/old/a2")
    as_bob(world)
    await world.rmdir("docs/old")
    dry = plan(world, Selector(agent="alice", since_seq=start))
    assert conflicts(dry) == [
        (b"docs/old/c", "name", "bob"),
        (b"docs/old/a2", "name", "bob"),
    ]
    undo_of(world, ALICE, start, force=True)
    assert world.tree("docs/old") == before


async def test_directories_never_end_up_within_themselves(world: World) -> None:
    await world.mkdir("p")
    await world.mkdir("p/a")
    start = world.head
    await world.rename("p/a", "a")
    as_bob(world)
    await world.rename("p", "a/p")
    dry = plan(world, Selector(agent="alice", since_seq=start))
    assert conflicts(dry) == [(b"a", "name", "bob")]
    undo_of(world, ALICE, start, force=True)
    assert world.exists("p/a")


async def test_a_link_is_not_undone_if_it_is_the_last_name(world: World) -> None:
    start = world.head
    await world.link("docs/b", "docs/b2")
    as_bob(world)
    await world.unlink("docs/b")
    dry = plan(world, Selector(agent="alice", since_seq=start))
    assert conflicts(dry) == [(b"docs/b2", "name", "bob")]
    undo_of(world, ALICE, start, force=True)
    assert world.exists("docs/b")
    assert not world.exists("docs/b2")


async def test_replacing_and_editing_apart(world: World) -> None:
    """Alice saves by replacing; bob then edits what she saved."""
    start = world.head
    await _save_like_an_editor(world)
    as_bob(world)
    await world.patch("docs/b", 0, b"BOB")
    dry = plan(world, Selector(agent="alice", since_seq=start))
    assert dry.items == []
    undo_of(world, ALICE, start, force=True)
    assert world.read("docs/b") == b"first b"
    assert not world.exists("docs/.b.tmp")


async def test_times_of_a_directory_follow_who_is_left(world: World) -> None:
    start = world.head
    await world.write("docs/one", b"1")
    as_bob(world)
    await world.write("docs/two", b"2")
    bob_made = world.inode("docs/two").btime_ns
    as_alice(world)
    await world.write("docs/three", b"3")
    undo_of(world, ALICE, start)
    assert world.inode("docs").mtime_ns == bob_made
    assert world.inode("docs", at=world.head).mtime_ns == bob_made


async def test_partly_undone_operations_can_be_undone_again(world: World) -> None:
    """What a first undo had to leave goes once it is free; what it took back stays so."""
    start, before = world.head, world.tree()
    await world.remove("docs/old")
    as_bob(world)
    await world.write("docs/old", b"in the way")
    as_alice(world)
    await world.chmod("docs/b", 0o600)
    first = undo_of(world, ALICE, start)
    assert first.plan.conflicts != []
    as_bob(world)
    await world.unlink("docs/old")
    second = undo_of(world, ALICE, start)
    assert second.plan.conflicts == []
    after = world.tree()
    changed = {path for path in before if before[path] != after.get(path)}
    # Bob was the last to change docs.
    assert changed == {b"/docs"}


async def test_redo_respects_what_came_in_between(world: World) -> None:
    await world.write("docs/new", b"alice")
    seqs = [world.head - 1, world.head]
    apply_undo(world.store, [Seq(s) for s in seqs], actor=ROOT)
    as_bob(world)
    await world.write("docs/new", b"bob")
    with pytest.raises(errors.NothingToUndo):
        redo(world)
    assert world.read("docs/new") == b"bob"


async def test_a_restore_can_be_undone(world: World) -> None:
    from nexus_engine.history.restore import restore

    start = world.head
    await world.remove("docs/old")
    await world.write("docs/b", b"second")
    gone = world.tree()
    restore(world.store, to_path("docs"), start, ROOT)
    undo(world, Selector(last=1))
    assert world.tree() == gone


# -- who may --


async def test_others_than_root_may_only_undo_what_they_could_change(world: World) -> None:
    await world.chmod("docs", 0o755)
    start = world.head
    await world.unlink("docs/b")
    await world.patch("docs/a", 0, b"X")
    await world.setattr("docs/s", mtime_ns=1)
    seqs = select(world.database, Selector(since_seq=start))
    dry = plan_undo(world.store, seqs, actor=BOB)
    assert dry.items == []
    assert {(c.path, c.what, c.reason) for c in dry.conflicts} == {
        (b"docs/b", "name", "no permission"),
        (b"docs/a", "content", "no permission"),
    }
    assert plan_undo(world.store, seqs, actor=ALICE).conflicts == []


async def test_write_permission_is_enough_for_content_but_not_for_modes(world: World) -> None:
    await world.chmod("docs/a", 0o666)
    start = world.head
    await world.patch("docs/a", 0, b"X")
    await world.chmod("docs/a", 0o606)
    seqs = select(world.database, Selector(since_seq=start))
    dry = plan_undo(world.store, seqs, actor=BOB)
    assert told(dry) == [("content", b"docs/a")]
    assert conflicts(dry) == [(b"docs/a", "mode", "")]
