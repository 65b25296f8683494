"""Several people on the same files: what one did goes, what others did stays."""

from __future__ import annotations

import pytest

from nexus_engine import errors
from nexus_engine.history.restore import restore
from nexus_engine.history.select import Selector, select
from nexus_engine.history.undo import apply_undo, plan_undo
from nexus_engine.types import Seq
from tests.unit.undoing import (
    ROOT,
    as_alice,
    as_bob,
    conflicts,
    plan,
    redo,
    undo,
    undo_of,
)
from tests.unit.worlds import ALICE, BOB, World, to_path


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
    await world.write("docs/.b.tmp", b"second b")
    await world.rename("docs/.b.tmp", "docs/b")
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
    start = world.head
    await world.remove("docs/old")
    await world.write("docs/b", b"second")
    gone = world.tree()
    restore(world.store, to_path("docs"), start, ROOT)
    undo(world, Selector(last=1))
    assert world.tree() == gone


async def test_a_link_that_somebody_moved_on_is_a_conflict(world: World) -> None:
    start = world.head
    await world.link("docs/b", "docs/b2")
    as_bob(world)
    await world.rename("docs/b2", "docs/b3")
    dry = plan(world, Selector(agent="alice", since_seq=start))
    assert conflicts(dry) == [(b"docs/b2", "name", "bob")]
    undo_of(world, ALICE, start, force=True)
    assert world.exists("docs/b")
    assert not world.exists("docs/b3")
