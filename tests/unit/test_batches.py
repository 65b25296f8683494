"""Batches of whole files: what comes of them is what writing them one by one makes."""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import AsyncIterator
from pathlib import Path as FilePath
from typing import Any

import anyio
import pytest

from nexus_engine import errors
from nexus_engine.config import Retention
from nexus_engine.fs.batches import PART_BYTES, PART_FILES, NewFile
from nexus_engine.fs.quotas import set_quota
from nexus_engine.history.versions import versions
from nexus_engine.meta import gc_queries
from nexus_engine.oplog.reader import follow
from nexus_engine.oplog.verify import verify_log
from nexus_engine.permissions.acl import ACCESS, DEFAULT
from nexus_engine.retention import gc
from nexus_engine.retention.prune import prune
from nexus_engine.services import Services
from nexus_engine.types import ROOT_INO, Inode, Name, Seq
from tests.unit.retaining import DAY, beside
from tests.unit.undoing import redo, undo_since
from tests.unit.worlds import ALICE, BOB, World

MIB = 1024 * 1024
PRIVATE = struct.pack("<I", 2) + b"".join(
    struct.pack("<HHI", tag, bits, 0xFFFFFFFF) for tag, bits in ((1, 7), (4, 4), (32, 0))
)
"""A default ACL: all for the owner, reading for the group, nothing for others."""


@pytest.fixture
async def world(tmp_path: FilePath) -> AsyncIterator[World]:
    world = World(tmp_path / "store")
    yield world
    assert world.problems(deep=True) == []
    assert verify_log(world.database).holds
    await world.close()


async def batch(world: World, *files: tuple[str, bytes], mode: int = 0o644) -> list[Inode]:
    wanted = [NewFile(*world.place(path), content, mode) for path, content in files]
    return await world.engine.write_batch(wanted, world.actor)


def seen(world: World) -> dict[bytes, tuple[Any, ...]]:
    """Return what a program sees, but times."""
    return {path: (*row[:5], *row[6:]) for path, row in world.tree().items()}


def log(world: World, after: Seq) -> list[tuple[str, bytes]]:
    return [(e.record.kind, e.record.path) for e in follow(world.database, after)]


async def test_a_batch_makes_the_tree_that_single_writes_make(world: World) -> None:
    """Of every size that is cut differently; over files that are there, and not."""
    singly = World(world.path.with_name("singly"))
    contents = [
        ("empty", b""),
        ("byte", b"1"),
        ("there", b"new"),
        ("dir/same", b"1"),
        ("chunk", os.urandom(MIB)),
        ("large", os.urandom(3 * MIB + 5)),
        ("emptied", b""),
        ("larger", os.urandom(2 * PART_BYTES + 7)),
        ("dir/large there", os.urandom(2 * MIB)),
        ("last", b"last"),
    ]
    for each in (world, singly):
        await each.mkdir("dir")
        for path in ("there", "emptied", "dir/large there"):
            await each.write(path, b"old " * 1000)
    inodes = await batch(world, *contents)
    for path, content in contents:
        await singly.write(path, content)
    assert seen(world) == seen(singly)
    assert [world.inode(path) for path, _ in contents] == inodes
    assert singly.problems() == []
    await singly.close()


async def test_a_new_file_is_one_operation_and_an_old_one_gets_a_write(world: World) -> None:
    await world.write("old", b"before")
    begin = world.head
    world.actor = BOB
    await batch(world, ("a", b"first"), ("old", b"after"), ("b", b"second"))
    assert log(world, begin) == [("create", b"a"), ("write", b"old"), ("create", b"b")]
    assert all(entry.record.actor == BOB for entry in follow(world.database, begin))
    (version,) = versions(world.database, ROOT_INO, Name(b"a"))
    assert (version.kind, version.size, version.actor) == ("create", 5, BOB)
    assert world.read("old", begin) == b"before"


async def test_moments_within_a_batch_show_the_files_so_far(world: World) -> None:
    begin = world.head
    await batch(world, ("a", b"1"), ("b", b"2"), ("c", b"3"))
    assert set(world.tree(at=Seq(begin + 2))) == {b"", b"/a", b"/b"}
    assert world.read("b", Seq(begin + 2)) == b"2"


async def test_each_file_of_a_batch_can_be_undone_and_redone(world: World) -> None:
    await world.write("old", b"before")
    before = seen(world)
    begin = world.head
    await batch(world, ("a", b"first"), ("old", b"after"), ("b", b"second" * MIB))
    after, end = seen(world), world.head
    while world.head < 2 * end - begin:  # the newest that is not undone, each time
        undo_since(world, Seq(2 * end - world.head - 1))
    assert seen(world) == before
    redo(world, last=3)
    assert seen(world) == after


async def test_a_name_may_come_twice_and_a_file_by_two_names(world: World) -> None:
    """The later one counts, as one after the other."""
    await world.write("one", b"long before")
    await world.link("one", "two")
    await batch(world, ("new", b"1"), ("one", b"11"), ("two", b"222"), ("new", b"4444"))
    assert world.read("one") == world.read("two") == b"222"
    assert world.read("new") == b"4444"
    assert len(versions(world.database, ROOT_INO, Name(b"new"))) == 2


async def test_an_empty_file_may_come_before_one_that_has_content(world: World) -> None:
    """What the second one held goes before what it gets comes, whatever the first one needs."""
    await batch(world, ("empty", b""), ("full", b"old"))
    await batch(world, ("empty", b"new"), ("full", b"newer"))
    assert world.read("empty") == b"new"
    assert world.read("full") == b"newer"


async def test_a_directory_gives_its_group_and_default_acl(world: World) -> None:
    """inode(7), acl(5)"""
    await world.mkdir("shared")
    await world.setattr("shared", mode=0o2775, gid=77)
    await world.mkdir("private")
    await world.setxattr("private", DEFAULT, PRIVATE)
    await batch(world, ("shared/file", b"1"), ("private/file", b"2"), mode=0o666)
    assert world.inode("shared/file").gid == 77
    assert stat.S_IMODE(world.inode("private/file").mode) == 0o640
    assert world.store.reader.find_xattr(world.inode("private/file").ino, ACCESS) is None


async def test_other_content_takes_the_set_ids_away(world: World) -> None:
    """As for O_TRUNC; not from root."""
    await batch(world, ("one", b"1"), ("two", b"2"), mode=0o6755)
    await batch(world, ("one", b"11"))
    assert stat.S_IMODE(world.inode("one").mode) == 0o755
    world.actor = ALICE._replace(uid=0)
    await batch(world, ("two", b"22"))
    assert stat.S_IMODE(world.inode("two").mode) == 0o6755


async def test_what_is_no_file_is_not_written_to(world: World) -> None:
    """Nor anything that comes in the same part."""
    await world.mkdir("dir")
    await world.symlink("link", b"elsewhere")
    await world.write("file", b"old")
    for name, error in (
        ("dir", errors.IsADirectory),
        ("link", errors.InvalidArgument),
        ("x" * 256, errors.NameTooLong),
        ("..", errors.AlreadyExists),
    ):
        with pytest.raises(error):
            await batch(world, ("file", b"new"), ("other", b"1"), (name, b"2"))
    place = world.inode("file").ino
    with pytest.raises(errors.NotADirectory):
        await world.engine.write_batch([NewFile(place, Name(b"below"), b"1")], ALICE)
    gone = (await world.mkdir("gone")).ino
    await world.rmdir("gone")
    with pytest.raises(errors.NotFound):
        await world.engine.write_batch([NewFile(gone, Name(b"below"), b"1")], ALICE)
    assert set(world.tree()) == {b"", b"/dir", b"/link", b"/file"}
    assert world.read("file") == b"old"


async def test_a_batch_that_fails_in_the_middle_says_what_is_there(world: World) -> None:
    """The parts before, whole; of the part that fails and those after it nothing."""
    await world.mkdir("dir")
    names = [b"%06d" % number for number in range(2 * PART_FILES + 10)]
    files = [NewFile(ROOT_INO, Name(name), name) for name in names]
    files[PART_FILES + 5] = NewFile(ROOT_INO, Name(b"dir"), b"")
    kept: list[Inode] = []
    with pytest.raises(errors.IsADirectory):
        await world.engine.write_batch(files, ALICE, kept=kept.extend)
    assert set(world.tree()) == {b"", b"/dir", *(b"/" + name for name in names[:PART_FILES])}
    assert kept == [world.inode(name) for name in names[:PART_FILES]]


async def test_what_was_written_before_comes_before_in_the_log(world: World) -> None:
    """And who has the file open sees the new content."""
    await world.write("file", b"old")
    handle = await world.engine.open(world.inode("file").ino, os.O_RDWR, BOB)
    await world.engine.write(handle, 0, b"by bob, longer")
    begin = world.head
    (inode,) = await batch(world, ("file", b"by alice"))
    assert [e.record.actor.agent for e in follow(world.database, begin)] == ["bob", "alice"]
    assert await world.engine.read(handle, 0, 100) == b"by alice"
    assert (await world.engine.getattr(inode.ino)).size == 8
    await world.engine.write(handle, 3, b"bob")
    await world.engine.release(handle)
    assert world.read("file") == b"by bobce"


async def test_caches_are_told_of_a_batch(world: World) -> None:
    """The kernel's, in a daemon: unlike a request's, its answer does not say what changed."""
    world.engine.catch_up()
    await world.mkdir("dir")
    await world.write("dir/old", b"1")
    await batch(world, ("dir/old", b"2"), ("dir/new", b"3"))
    await world.write("dir/by request", b"4")
    stale = world.engine.catch_up()
    assert stale is not None
    directory = world.inode("dir").ino
    assert stale.entries == {(directory, b"old"), (directory, b"new")}
    assert stale.inodes == {directory, world.inode("dir/old").ino, world.inode("dir/new").ino}
    assert world.engine.catch_up() is None


async def test_a_quota_holds_for_batches(world: World) -> None:
    """EDQUOT, for files to be made and for those that are to grow; the whole part."""
    await world.mkdir("dir")
    await world.write("dir/file", b"x" * 100)
    world.store.transact(set_quota, ALICE, world.inode("dir").ino, 1000, 4)
    world.engine.content.held.reload()
    for files in (
        [("dir/a", b"x" * 500), ("dir/b", b"x" * 401)],
        [("dir/a", b"x" * 500), ("dir/file", b"x" * 501)],
        [("dir/a", b""), ("dir/b", b""), ("dir/c", b"")],
    ):
        with pytest.raises(errors.QuotaExceeded):
            await batch(world, *files)
    await batch(world, ("dir/a", b"x" * 500), ("dir/file", b"x" * 500))
    await batch(world, ("dir/file", b"x" * 200), ("dir/b", b"x" * 300))
    assert set(world.tree("dir")) == {b"", b"/a", b"/b", b"/file"}


async def test_a_full_disk_refuses_a_batch(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is left then is for deleting."""
    monkeypatch.setattr(world.store.reserve, "spent", True)
    with pytest.raises(errors.NoSpace):
        await batch(world, ("a", b"1"))
    monkeypatch.undo()
    await batch(world, ("a", b"2"))


async def test_small_batches_wait_for_their_commit_with_others(world: World) -> None:
    """And outlive the process before that: docs/FORMAT.md, "Journals"."""
    world.store.let_wait(lambda: None)
    await batch(world, ("a", b"1"), ("b", b"2"))
    assert world.database.waiting
    world.store.abandon()
    world.engine = type(world.engine).start(world.path, clock=world.clock)
    world.store, world.database = world.engine.store, world.engine.store.database
    assert (world.read("a"), world.read("b")) == (b"1", b"2")


async def test_gc_waits_for_a_batch_that_relies_on_what_goes(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Content that is in a pack already, and in no row yet when gc asks who relies on it."""
    monkeypatch.setattr("nexus_engine.cas.writer.PACK_SIZE", 50_000)
    same = os.urandom(60_000)
    await world.write("old", same)
    await world.write("filler", os.urandom(60_000))
    await world.unlink("old")
    world.clock.now_ns += 40 * DAY
    await Services(world.engine).upkeep()
    prune(world.store, Retention(keep_all="1d"), ALICE)

    write, may_commit, stored = world.store.write, anyio.Event(), anyio.Event()

    async def write_later(*args: Any, **kwargs: Any) -> Any:
        """Wait as for the transactions of another process."""
        stored.set()
        await may_commit.wait()
        return await write(*args, **kwargs)

    collected = []

    async def collect() -> None:
        collected.append(await beside(world, gc.collect))

    monkeypatch.setattr(world.store, "write", write_later)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(batch, world, ("new", same))
        await stored.wait()
        tasks.start_soon(collect)
        naming = world.engine.content.staging.naming
        while naming._event is None and not collected:  # noqa: ASYNC110
            await anyio.sleep(0.005)
        assert gc_queries.retiring_numbers(world.database.connection)
        may_commit.set()
    assert collected[0].packs >= 1
    assert world.read("new") == same


async def test_fsck_compares_a_batch_with_the_log(world: World) -> None:
    """A record that says what was written binds it, whatever its kind."""
    (inode,) = await batch(world, ("file", b"content"))
    await batch(world, ("other", b"CONTENT"))
    digest = world.database.connection.one("SELECT digest FROM extent WHERE ino = ?", (inode.ino,))
    assert digest is not None
    world.edit("UPDATE extent SET digest = (SELECT digest FROM extent WHERE ino <> ?1)", inode.ino)
    assert [line.split(":")[0] for line in world.problems()] == ["content-changed"]
    world.edit("UPDATE extent SET digest = ?2 WHERE ino = ?1", inode.ino, digest[0])
    world.edit("UPDATE inode SET size = 9 WHERE ino = ?", inode.ino)
    assert [line.split(":")[0] for line in world.problems()] == ["content-size"]
    world.edit("UPDATE inode SET size = 7 WHERE ino = ?", inode.ino)


async def test_two_batches_at_once_are_both_whole(world: World) -> None:
    names = [b"%d" % number for number in range(PART_FILES + 50)]
    for directory in ("one", "two"):
        await world.mkdir(directory)

    async def write(directory: str) -> None:
        parent = world.inode(directory).ino
        files = [NewFile(parent, Name(name), name * 100) for name in names]
        await world.engine.write_batch(files, ALICE)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(write, "one")
        tasks.start_soon(write, "two")
        await world.setattr("one", mode=0o700)
    assert len(world.tree("one")) == len(world.tree("two")) == len(names) + 1
