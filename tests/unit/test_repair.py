"""fsck --repair: what is mended is mended for good, and what is there stays there."""

from __future__ import annotations

import os

import pytest

from nexus_engine.check.fsck import check
from nexus_engine.commands import ignore_progress
from nexus_engine.oplog.verify import verify_log
from nexus_engine.repair.repair import repair
from nexus_engine.types import Actor
from tests.unit.test_fsck import BROKEN, pack_file
from tests.unit.worlds import ALICE, World

ROOT = Actor(0, 0, 99, 1, "nexus-ctl")
LEFT = {"log-chain", "log-gap", "content-lost", "content-lost-past", "content-changed",
        "pack-unknown"}  # fmt: skip
"""What no repair can bring back: evidence, and bytes."""


@pytest.fixture
def world(breakable: World) -> World:
    return breakable


def mend(world: World, *, deep: bool = False) -> list[str]:
    mended, _ = repair(world.store, ROOT, ignore_progress, deep=deep)
    return [f"{m.code}: {m.where}: {m.action}" for m in mended]


def codes(world: World, *, deep: bool = False) -> set[str]:
    return {problem.code for problem in check(world.store, deep=deep)}


def contents(world: World) -> set[bytes]:
    """Return what the files of now hold, as far as it can be read."""
    return {row[6] for row in world.tree().values() if isinstance(row[6], bytes)}


@pytest.mark.parametrize(
    ("sql", "code"),
    [(sql, code) for sql, code, _ in BROKEN],
    ids=[f"{sql[:70]} {code}" for sql, code, _ in BROKEN],
)
async def test_what_is_broken_is_mended_once(world: World, sql: str, code: str) -> None:
    world.edit(sql)
    before = codes(world)
    mended = mend(world)
    assert codes(world) <= LEFT, mended
    assert mended or before <= LEFT
    assert mend(world) == [], "a second repair has nothing to do"
    if before.isdisjoint(("log-chain", "log-gap", "unreadable")):
        assert verify_log(world.database).holds
    records = world.database.connection.all("SELECT details FROM oplog WHERE kind = 'repair'")
    assert bool(records) == bool(mended)
    # It can be used: seen now and then, and changed.
    if code != "extent-range-overlap" and "content-lost" not in codes(world):
        assert b"two " * 1000 in contents(world)
    await world.mkdir("after")
    assert codes(world) <= LEFT


async def test_content_that_is_said_to_be_of_a_later_operation_is_mended_once(world: World) -> None:
    before = contents(world)
    world.edit("UPDATE extent SET from_seq = (SELECT max(seq) FROM oplog) WHERE ino = 4")
    assert mend(world)
    assert mend(world) == []
    assert codes(world) == set()
    assert contents(world) == before


async def test_an_extent_that_is_gone_between_remainders_is_laid_down_again(world: World) -> None:
    """The log says what was written where; the rows beside it are of the same operation."""
    inode = await world.write("cut", b"0" * 5000)
    handle = await world.engine.open(inode.ino, os.O_RDWR, ALICE)
    await world.engine.write(handle, 100, b"written")
    await world.engine.release(handle)
    before = contents(world)
    world.edit(f"DELETE FROM extent WHERE ino = {inode.ino} AND start = 100")
    assert codes(world) == {"content-changed"}
    assert mend(world)
    assert codes(world) == set()
    assert contents(world) == before


async def test_a_past_extent_that_came_from_another_file_is_dropped_once(world: World) -> None:
    """The row says that it was true while the file it came to had another content."""
    quiet = await world.write("quiet", b"q" * 5000)
    other = await world.write("other", b"1" * 500)
    await world.write("other", b"2" * 500)
    before = contents(world)
    world.edit(f"UPDATE extent_past SET ino = {quiet.ino} WHERE ino = {other.ino}")
    assert mend(world)
    assert mend(world) == []
    assert codes(world) <= LEFT
    assert contents(world) == before


async def test_a_sound_store_is_left_alone(world: World) -> None:
    head = world.head
    assert mend(world, deep=True) == []
    assert world.head == head
    assert not world.exists("lost+found")


async def test_what_lost_its_name_is_found_in_lost_and_found(world: World) -> None:
    world.edit("DELETE FROM dentry WHERE ino IN (3, 4, 5)")
    lines = mend(world)
    assert any("/sym (inode 5): lost its name; it is /lost+found/#5" in line for line in lines)
    assert world.read("lost+found/#4") == b"two " * 1000
    assert world.inode("lost+found/#5").target == b"dir/file"
    assert world.inode("lost+found/#3/empty").ino == 7
    assert world.inode("lost+found").mode & 0o777 == 0o700


async def test_an_inode_that_is_gone_comes_back_with_its_content(world: World) -> None:
    world.edit("DELETE FROM inode WHERE ino IN (2, 4)")
    mend(world)
    assert world.read("dir/file") == b"two " * 1000
    assert world.inode("dir/file").mode == 0o100644
    assert world.inode("dir").mode == 0o040755
    assert world.inode("dir").uid == 1000


async def test_a_directory_that_lay_within_itself_is_free_again(world: World) -> None:
    world.edit("UPDATE dentry SET parent = 7 WHERE ino = 2")
    mend(world)
    found = [path for path in world.tree() if path.endswith(b"/file")]
    assert len(found) == 1
    assert world.read(found[0].strip(b"/")) == b"two " * 1000


async def test_a_file_that_lost_a_chunk_keeps_its_other_bytes(world: World) -> None:
    """And is whole again once the content is written somewhere."""
    lost, kept = os.urandom(1 << 20), os.urandom(5000)
    await world.write("big", lost + kept)
    await world.write("other", lost)
    world.store.chunks.sync()
    path = pack_file(world)
    content = bytearray(path.read_bytes())
    content[content.index(lost[:64]) + 1000] ^= 1
    path.write_bytes(content)
    assert any("is lost" in line for line in mend(world, deep=True))
    problems = world.problems(deep=True)
    assert len(problems) == 2
    assert "content-lost: /big (inode 8): bytes 0-1048575 are lost" in problems[0]
    handle = await world.engine.open(world.inode("big").ino, os.O_RDONLY, ROOT)
    assert await world.engine.read(handle, 1 << 20, 5000) == kept
    await world.engine.release(handle)
    await world.write("again", lost)
    assert world.problems(deep=True) == []
    assert world.read("big") == lost + kept


async def test_damage_tells_which_older_version_is_whole(world: World) -> None:
    world.edit(
        "DELETE FROM chunk WHERE digest = (SELECT digest FROM extent WHERE ino = 4 AND start = 0)"
    )
    whole = world.database.connection.one(
        "SELECT max(to_seq) - 1 FROM inode_past WHERE ino = 4 AND content_seq <>"
        " (SELECT content_seq FROM inode WHERE ino = 4) AND size > 0"
    )
    assert whole is not None
    (problem,) = world.problems()
    assert f"whole at op-{whole[0]}" in problem
    assert world.read("dir/file", at=whole[0]) == b"one " * 1000


async def test_chunks_are_found_again_in_packs_that_nobody_knows(world: World) -> None:
    world.store.chunks.sync()
    world.edit("DELETE FROM chunk")
    world.edit("DELETE FROM pack")
    assert any("is in pack" in line for line in mend(world))
    assert world.problems(deep=True) == []
    assert world.read("dir/file") == b"two " * 1000


async def test_a_pack_gets_its_header_again(world: World) -> None:
    world.store.chunks.sync()
    with pack_file(world).open("r+b") as file:
        file.write(b"garbage!")
    assert any("has its header again" in line for line in mend(world))
    assert world.problems(deep=True) == []


async def test_indexes_of_the_database_are_made_anew(world: World) -> None:
    """Rows that an index does not know of, as after a failing disk."""
    connection = world.database.connection
    connection.run("PRAGMA writable_schema = 1")
    sql = "UPDATE sqlite_schema SET sql = ? WHERE name = 'dentry_ino'"
    connection.run(sql, ("CREATE INDEX dentry_ino ON dentry (kind, from_seq)",))
    connection.run("PRAGMA writable_schema = 0")
    connection.run("PRAGMA schema_version = 777")
    assert "database" in codes(world, deep=True)
    assert any("indexes are made anew" in line for line in mend(world))
    assert world.problems(deep=True) == []


async def test_history_and_undo_go_on_over_a_repair(world: World) -> None:
    world.edit("UPDATE inode SET nlink = 7 WHERE ino = 4")
    before = world.head
    mend(world)
    await world.write("dir/file", b"after")
    assert world.read("dir/file", at=before) == b"two " * 1000
    from nexus_engine.history.select import Selector, select
    from nexus_engine.history.undo import apply_undo, plan_undo

    seqs = select(world.database, Selector(last=2))
    assert all(seq != before + 1 for seq in seqs), "a repair is nothing to undo"
    plan = plan_undo(world.store, seqs[-1:], actor=ROOT, force=False, groups=[])
    apply_undo(world.store, plan, actor=ROOT, force=False, groups=[], selector={}, keep=())
    assert world.problems() == []
