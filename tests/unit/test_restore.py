"""Restore brings back what was, as one operation, and leaves the rest alone."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path as FilePath

import pytest

from nexus_engine import errors
from nexus_engine.fs.attributes import NewAttributes, set_attributes
from nexus_engine.history.restore import restore
from nexus_engine.oplog.reader import get_entry
from nexus_engine.types import Path, Seq
from tests.unit.worlds import BOB, World, to_path


@pytest.fixture
async def world(tmp_path: FilePath) -> AsyncIterator[World]:
    world = World(tmp_path / "store")
    await world.mkdir("notes")
    await world.mkdir("notes/old", 0o700)
    await world.write("notes/todo", b"milk\n")
    await world.write("notes/old/diary", b"dear diary\n" * 100)
    await world.link("notes/todo", "notes/old/list")
    await world.symlink("notes/latest", b"old/diary")
    await world.setxattr("notes/old/diary", b"user.mood", b"good")
    await world.setattr("notes/old/diary", mode=0o600, mtime_ns=123_456_789)
    yield world
    assert world.problems(deep=True) == []
    await world.close()


def bring_back(world: World, path: str, seq: Seq, **options: object) -> list[tuple[str, bytes]]:
    done = restore(world.store, to_path(path), seq, BOB, **options)  # type: ignore[arg-type]
    return [(entry.action, entry.path) for entry in done]


async def test_a_file_gets_its_content_back_and_stays_the_same_inode(world: World) -> None:
    then, before = world.head, world.inode("notes/todo")
    await world.write("notes/todo", b"nothing to do")
    await world.chmod("notes/todo", 0o777)
    assert bring_back(world, "notes/todo", then) == [("changed", b"notes/todo")]
    after = world.inode("notes/todo")
    assert world.read("notes/todo") == b"milk\n"
    assert (after.ino, after.mode, after.mtime_ns) == (before.ino, before.mode, before.mtime_ns)
    record = get_entry(world.database, world.head).record
    assert (record.kind, record.path, record.path2) == ("restore", b"notes/todo", None)
    assert record.actor == BOB


async def test_a_removed_tree_comes_back_with_everything_it_had(world: World) -> None:
    then, tree = world.head, world.tree("notes")
    inodes = {path: world.inode(path).ino for path in ("notes", "notes/todo", "notes/old/list")}
    await world.remove("notes")
    bring_back(world, "notes", then)
    assert world.tree("notes") == tree
    # Deleted things come back as themselves, hard links among them.
    assert {path: world.inode(path).ino for path in inodes} == inodes
    assert world.inode("notes/todo").ino == world.inode("notes/old/list").ino


async def test_what_was_before_the_restore_is_still_in_the_past(world: World) -> None:
    then = world.head
    await world.write("notes/todo", b"a new plan\n")
    await world.rename("notes/old/diary", "notes/secret")
    before = world.head
    tree = world.tree("", before)
    bring_back(world, "notes", then, exact=True)
    assert world.tree("", before) == tree
    bring_back(world, "", before, exact=True)
    assert world.tree("") == tree


async def test_nothing_to_restore_writes_no_record(world: World) -> None:
    head = world.head
    assert bring_back(world, "notes", head) == []
    assert world.head == head


async def test_entries_that_came_later_are_left_alone(world: World) -> None:
    then = world.head
    await world.write("notes/new", b"by bob")
    await world.unlink("notes/todo")
    assert bring_back(world, "notes", then) == [("created", b"notes/todo")]
    assert world.read("notes/new") == b"by bob"
    assert world.read("notes/todo") == b"milk\n"


async def test_exact_removes_what_was_not_there(world: World) -> None:
    then, tree = world.head, world.tree("notes")
    await world.mkdir("notes/new")
    await world.write("notes/new/file", b"by bob")
    done = bring_back(world, "notes", then, exact=True)
    assert ("removed", b"notes/new/file") in done
    assert world.tree("notes") == tree


async def test_another_file_in_the_place_gives_way(world: World) -> None:
    then, ino = world.head, world.inode("notes/old/diary").ino
    await world.write("notes/draft", b"rewritten")
    await world.rename("notes/draft", "notes/old/diary")
    assert bring_back(world, "notes/old/diary", then) == [
        ("removed", b"notes/old/diary"),
        ("created", b"notes/old/diary"),
    ]
    assert world.inode("notes/old/diary").ino == ino
    assert world.read("notes/old/diary") == b"dear diary\n" * 100


async def test_a_directory_in_the_place_of_a_file_gives_way(world: World) -> None:
    then = world.head
    await world.unlink("notes/todo")
    await world.mkdir("notes/todo")
    await world.write("notes/todo/one", b"1")
    bring_back(world, "notes/todo", then)
    assert world.read("notes/todo") == b"milk\n"


async def test_a_file_that_lives_elsewhere_stays_there(world: World) -> None:
    """A copy takes the old place: the two must not change each other."""
    then = world.head
    await world.rename("notes/old/diary", "notes/secret")
    await world.write("notes/secret", b"changed")
    bring_back(world, "notes/old/diary", then)
    assert world.read("notes/secret") == b"changed"
    assert world.read("notes/old/diary") == b"dear diary\n" * 100
    assert world.inode("notes/secret").ino != world.inode("notes/old/diary").ino
    assert world.store.reader.find_xattr(world.inode("notes/old/diary").ino, b"user.mood") == (
        b"good"
    )


async def test_files_that_changed_places_go_back(world: World) -> None:
    then, tree = world.head, world.tree("notes")
    await world.rename("notes/todo", "notes/old/diary", flags=2)
    bring_back(world, "notes", then)
    assert world.tree("notes") == tree


async def test_a_hard_link_whose_other_name_lives_on_is_linked_again(world: World) -> None:
    then = world.head
    await world.unlink("notes/old/list")
    bring_back(world, "notes/old/list", then)
    assert world.inode("notes/old/list") == world.inode("notes/todo")
    assert world.inode("notes/todo").nlink == 2


async def test_a_hard_link_outside_that_changed_since_is_not_touched(world: World) -> None:
    then = world.head
    await world.unlink("notes/old/list")
    await world.write("notes/todo", b"changed")
    bring_back(world, "notes/old", then)
    assert world.read("notes/todo") == b"changed"
    assert world.read("notes/old/list") == b"milk\n"


async def test_missing_parents_come_back_without_their_other_entries(world: World) -> None:
    then = world.head
    await world.remove("notes")
    bring_back(world, "notes/old/diary", then)
    assert sorted(world.tree("notes")) == [b"", b"/old", b"/old/diary"]
    assert world.inode("notes/old").mode & 0o777 == 0o700


async def test_a_copy_elsewhere_leaves_the_original_alone(world: World) -> None:
    then, tree = world.head, world.tree("notes")
    await world.write("notes/todo", b"changed")
    now = world.tree("notes")
    bring_back(world, "notes", then, to=Path(b"copy"))
    assert world.tree("copy") == tree
    assert world.tree("notes") == now
    assert world.inode("copy/todo").ino == world.inode("copy/old/list").ino


async def test_a_copy_does_not_replace_unless_told_to(world: World) -> None:
    then = world.head
    await world.mkdir("copy")
    await world.write("copy/file", b"mine")
    with pytest.raises(errors.AlreadyExists):
        bring_back(world, "notes/todo", then, to=Path(b"copy"))
    assert world.read("copy/file") == b"mine"
    bring_back(world, "notes/todo", then, to=Path(b"copy"), replace=True)
    assert world.read("copy") == b"milk\n"


async def test_a_renamed_directory_comes_back_under_its_old_name(world: World) -> None:
    then, tree = world.head, world.tree("notes")
    await world.rename("notes", "papers")
    bring_back(world, "notes", then)
    assert sorted(world.tree("notes")) == sorted(tree)
    assert world.read("notes/old/diary") == world.read("papers/old/diary")


async def test_a_directory_made_anew_is_filled_not_replaced(world: World) -> None:
    then = world.head
    await world.remove("notes")
    await world.mkdir("notes")
    await world.write("notes/since", b"keep me")
    bring_back(world, "notes", then)
    assert world.read("notes/since") == b"keep me"
    assert world.read("notes/old/list") == b"milk\n"


async def test_large_and_sparse_content_comes_back_by_reference(world: World) -> None:
    block = bytes(range(256)) * 4096
    await world.write("notes/big", block * 3)
    await world.patch("notes/big", 8 * 1024 * 1024, b"end")
    then, content = world.head, world.read("notes/big")
    await world.patch("notes/big", 2_000_000, b"x" * 10)
    await world.setattr("notes/big", size=2_500_000)
    chunks = world.database.connection.one("SELECT count(*) FROM chunk")
    bring_back(world, "notes/big", then)
    assert world.read("notes/big") == content
    assert world.database.connection.one("SELECT count(*) FROM chunk") == chunks


async def test_a_file_cut_while_open_without_a_name_comes_back_whole(world: World) -> None:
    then, inode = world.head, world.inode("notes/old/diary")
    handle = await world.engine.open(inode.ino, 0, world.actor)
    await world.unlink("notes/old/diary")
    # As ftruncate(2) of a peer that has it open does.
    world.store.transact(set_attributes, BOB, inode.ino, NewAttributes(size=3))
    bring_back(world, "notes/old/diary", then)
    assert world.read("notes/old/diary") == b"dear diary\n" * 100
    await world.engine.release(handle)
    assert world.read("notes/old/diary") == b"dear diary\n" * 100


async def test_the_whole_tree_comes_back(world: World) -> None:
    then, tree = world.head, world.tree()
    await world.remove("notes/old")
    await world.write("elsewhere", b"new")
    bring_back(world, "", then, exact=True)
    assert world.tree() == tree


async def test_every_changed_name_and_inode_is_noted_for_other_caches(world: World) -> None:
    then = world.head
    old, todo = world.inode("notes/old").ino, world.inode("notes/todo").ino
    await world.remove("notes/old")
    await world.write("notes/todo", b"changed")
    bring_back(world, "notes", then)
    touched = set(
        world.database.connection.all(
            "SELECT ino, parent, name FROM touched WHERE seq = ?", (world.head,)
        )
    )
    notes = world.inode("notes").ino
    assert {(old, 0, b""), (old, notes, b"old"), (todo, 0, b""), (todo, old, b"list")} <= touched


async def test_what_cannot_be_restored_says_why(world: World) -> None:
    with pytest.raises(errors.NotFound, match="nowhere did not exist after op-3"):
        bring_back(world, "nowhere", Seq(3))
    with pytest.raises(errors.InvalidMoment, match="there is no op-999"):
        bring_back(world, "notes", Seq(999))
    then = world.head
    await world.remove("notes")
    await world.write("notes", b"a file now")
    with pytest.raises(errors.NotADirectory):
        bring_back(world, "notes/todo", then)
    with pytest.raises(errors.NotFound, match="make it first"):
        bring_back(world, "notes", then, to=Path(b"no/where"))
    assert world.read("notes") == b"a file now"
