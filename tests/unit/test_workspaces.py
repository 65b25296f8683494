"""Workspaces: a directory that begins as another one is, and costs nothing until somebody looks."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path as FilePath

import anyio
import anyio.lowlevel
import pytest

from nexus_engine import errors
from nexus_engine.backup.dump import dump, load
from nexus_engine.commands import ignore_progress
from nexus_engine.config import Retention
from nexus_engine.engine import Engine
from nexus_engine.fs.quotas import set_quota
from nexus_engine.history.restore import restore
from nexus_engine.history.select import Selector
from nexus_engine.history.versions import names_with_versions, versions
from nexus_engine.meta.connection import DATABASE_NAME, Connection
from nexus_engine.repair.repair import repair
from nexus_engine.retention.prune import prune
from nexus_engine.store import Store
from nexus_engine.types import Name, Seq
from tests.unit.retaining import DAY
from tests.unit.undoing import ROOT, redo, undo
from tests.unit.working import apparent, discard, make, rows, status
from tests.unit.worlds import ALICE, BOB, World, to_path, walk


async def test_a_workspace_shows_what_the_base_was_and_keeps_its_own_changes(world: World) -> None:
    before = apparent(world, "docs")
    made = make(world, "w", "docs")
    await world.write("docs/a", b"changed in the base")
    await world.unlink("docs/b")
    assert apparent(world, "w") == before
    await world.write("w/old/c", b"changed in the workspace")
    assert world.read("docs/old/c") == b"first c"
    assert world.read("w/old/c") == b"changed in the workspace"
    assert apparent(world, "w", made.made_seq) == before


async def test_making_one_makes_no_rows_for_what_is_in_it(world: World) -> None:
    before = rows(world)
    make(world, "w", "docs")
    assert rows(world) == before + 1
    world.store.reader.list_children(world.inode("w").ino, 0, 100)
    assert rows(world) == before + 1 + 4  # a, b, old, s; not what is in old


async def test_a_link_count_is_that_of_the_base_before_anybody_looks(world: World) -> None:
    made = make(world, "w", "docs")
    assert world.inode("w").nlink == 3
    assert world.inode("w", made.made_seq).nlink == 3


async def test_looking_at_a_moment_before_anybody_looked_shows_what_was_there(
    world: World,
) -> None:
    before = apparent(world, "docs")
    make(world, "w", "docs")
    seq = world.head
    await world.remove("docs")
    await world.mkdir("elsewhere")
    assert apparent(world, "w", seq) == before
    assert apparent(world, "w") == before


async def test_a_workspace_of_a_workspace_and_of_the_root(world: World) -> None:
    before = apparent(world, "docs")
    make(world, "w", "docs")
    make(world, "v", "w")
    make(world, "all", "")
    assert apparent(world, "v") == before
    assert apparent(world, "all/v") == before
    assert not world.exists("all/all")


async def test_a_discarded_workspace_comes_back_whole_also_what_nobody_saw(world: World) -> None:
    before = apparent(world, "docs")
    made = make(world, "w", "docs")
    await world.write("w/new", b"new")
    seq = discard(world, made)
    assert not world.exists("w")
    assert world.problems() == []
    undo(world, Selector(ops=(seq,)))
    assert world.read("w/new") == b"new"
    await world.unlink("w/new")
    assert apparent(world, "w", times=False) == apparent(world, "docs", times=False)
    assert apparent(world, "w/old") == {
        path.removeprefix(b"/old"): values
        for path, values in before.items()
        if path.startswith(b"/old")
    }


async def test_what_was_first_looked_at_after_it_was_gone_comes_back_with_it(world: World) -> None:
    before = apparent(world, "docs")
    made = make(world, "w", "docs")
    seq = discard(world, made)
    assert apparent(world, "w", Seq(seq - 1)) == before  # now there are rows, of the past
    assert world.problems() == []
    undo(world, Selector(ops=(seq,)))
    assert apparent(world, "w") == before
    redo(world)
    assert not world.exists("w")
    assert world.problems() == []


async def test_rows_of_two_lives_and_the_time_between(world: World) -> None:
    before = apparent(world, "docs")
    made = make(world, "w", "docs")
    seq = discard(world, made)
    back = undo(world, Selector(ops=(seq,)))
    assert apparent(world, "w") == before
    assert apparent(world, "w", Seq(seq - 1)) == before
    assert back.seq is not None
    undo(world, Selector(ops=(back.seq,)))
    assert not world.exists("w")
    assert world.problems() == []


async def test_undoing_the_making_takes_away_what_appeared(world: World) -> None:
    made = make(world, "w", "docs")
    assert apparent(world, "w")
    undo(world, Selector(ops=(made.made_seq,)))
    assert not world.exists("w")
    assert world.problems() == []
    redo(world)
    assert apparent(world, "w") == apparent(world, "docs")


async def test_a_directory_that_nobody_looked_into_is_moved_and_removed(world: World) -> None:
    before = apparent(world, "docs/old")
    make(world, "w", "docs")
    await world.rename("w/old", "moved")
    assert apparent(world, "moved") == before
    make(world, "v", "docs")
    with pytest.raises(errors.DirectoryNotEmpty):
        await world.rmdir("v")
    with pytest.raises(errors.DirectoryNotEmpty):
        await world.rmdir("v/old")


async def test_each_of_several_names_is_a_file_of_its_own(world: World) -> None:
    make(world, "w", "docs")
    await world.write("w/a", b"one of two")
    assert world.read("w/old/a2") == b"first a"
    assert world.inode("w/a").nlink == 1


async def test_only_its_maker_and_the_keepers_discard_it(world: World) -> None:
    made = make(world, "w", "docs", actor=BOB)
    with pytest.raises(errors.OperationNotPermitted):
        discard(world, made, actor=BOB._replace(uid=1234))
    discard(world, made, actor=ALICE)


async def test_a_name_is_given_to_one_that_there_is(world: World) -> None:
    made = make(world, "w", "docs")
    with pytest.raises(errors.AlreadyExists):
        make(world, "w", "docs", at="other")
    discard(world, made)
    make(world, "w", "docs")


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a\nb", "\udcff", "x" * 256])
async def test_names_that_are_no_file_names_are_refused(world: World, name: str) -> None:
    with pytest.raises((errors.InvalidName, errors.NameTooLong)):
        make(world, name, "docs", at="w")


async def test_restoring_a_workspace_that_nobody_looked_into(world: World) -> None:
    before = apparent(world, "docs")
    made = make(world, "w", "docs")
    seq = discard(world, made)
    assert restore(world.store, to_path("w"), Seq(seq - 1), ROOT)
    assert apparent(world, "w") == before
    await world.remove("w/old")
    restore(world.store, to_path("w"), Seq(seq - 1), ROOT, to=to_path("copy"))
    assert apparent(world, "copy") == before


@pytest.mark.parametrize(
    ("damage", "code"),
    [
        ("DELETE FROM workspace", "shadow-orphan"),
        ("UPDATE shadow SET pending = 1 WHERE pending = 0", "shadow-entries"),
        ("UPDATE workspace SET base_seq = 1000000", "workspace-reference"),
        ("INSERT INTO applied VALUES (1, 1000000)", "applied-reference"),
        ("INSERT INTO store SELECT 'pruned_to', max(seq) FROM oplog", "workspace-kept"),
    ],
)
async def test_damage_to_what_is_known_of_workspaces_is_found_and_mended(
    world: World, damage: str, code: str
) -> None:
    made = make(world, "w", "docs")
    make(world, "v", "docs")
    world.store.reader.list_children(made.ino, 0, 10)
    seen = apparent(world, "docs")
    world.edit(damage)
    assert code in {problem.split(":")[0] for problem in world.problems()}
    mended, problems = repair(world.store, ROOT, lambda *_: None)
    assert code in {each.code for each in mended}
    assert problems == []
    assert apparent(world, "docs") == seen


def later(world: World) -> None:
    """Let a week go by, of which retention keeps a day."""
    world.clock.now_ns += 7 * DAY
    prune(world.store, Retention(keep_all="1d"), ROOT)


async def test_retention_keeps_what_a_workspace_began_as_until_nothing_is_left_of_it(
    world: World,
) -> None:
    before = apparent(world, "docs")
    made = make(world, "w", "docs")
    await world.remove("docs")
    await world.write("other", b"time goes by")
    later(world)
    assert apparent(world, "w/old") == {
        path.removeprefix(b"/old"): values
        for path, values in before.items()
        if path.startswith(b"/old")
    }
    discard(world, made)
    await world.write("other", b"more time goes by")
    later(world)
    await world.write("other", b"and more")
    later(world)
    assert world.database.connection.all("SELECT * FROM shadow") == []
    assert world.database.connection.all("SELECT * FROM workspace") == []
    assert world.database.connection.all("SELECT * FROM kept WHERE pinned") == []


async def test_a_dump_holds_what_nobody_looked_at(world: World, tmp_path: FilePath) -> None:
    make(world, "w", "docs")
    await world.engine.sync()
    lines = bytearray()
    dump(world.path, lines.extend, ignore_progress)
    load(BytesIO(lines), tmp_path / "new", packs=world.path / "packs", progress=ignore_progress)
    loaded = Store.open(tmp_path / "new", clock=world.clock)
    views = [walk(loaded, top=loaded.reader.resolve(to_path(path))) for path in ("w", "docs")]
    assert views[0].keys() == views[1].keys()
    loaded.close()


async def test_quotas_count_what_somebody_looked_at(world: World) -> None:
    world.store.transact(set_quota, ROOT, world.inode("").ino, 10**6, 14)
    made = make(world, "w", "docs")
    assert world.problems() == []
    assert apparent(world, "w/old")  # looking is never refused
    assert world.problems() == []
    with pytest.raises(errors.QuotaExceeded):
        await world.write("w/new", b"new")
    discard(world, made)
    await world.write("new", b"new")


async def test_set_id_bits_stay_on_files_of_whoever_makes_it(world: World) -> None:
    await world.chmod("docs/b", 0o4755)
    bobs, alices = make(world, "v", "docs", actor=BOB), make(world, "w", "docs", actor=ALICE)
    assert world.inode("v/b").mode & 0o7777 == 0o755
    assert world.inode("w/b").mode & 0o7777 == 0o4755
    await world.setxattr("v/b", b"user.x", b"y")
    assert status(world, bobs) == [("xattr", b"b")]
    assert status(world, alices) == []


async def test_a_lookup_waits_for_another_writer_and_lets_the_loop_go_on(world: World) -> None:
    """Who writes may be a thread that waits for the loop."""
    made = make(world, "w", "docs")
    other = Connection(str(world.path / DATABASE_NAME))
    other.run("BEGIN IMMEDIATE")
    async with anyio.create_task_group() as tasks:
        found = []

        async def look() -> None:
            found.append(await world.engine.lookup(made.ino, Name(b"old")))

        tasks.start_soon(look)
        for _ in range(20):
            await anyio.lowlevel.checkpoint()
        assert found == []
        other.run("ROLLBACK")
    other.close()
    assert found[0] is not None


async def test_another_process_sees_what_nobody_looked_at(world: World) -> None:
    other = Engine.start(world.path)
    docs = world.inode("docs").ino
    assert await other.lookup(docs, Name(b"none")) is None  # there are no workspaces, it knows now
    made = make(world, "w", "docs")
    other.catch_up()
    listed = await other.list_children(made.ino, 0, 10)
    assert {entry.name for entry in listed} == {b"a", b"b", b"old", b"s"}
    assert apparent(world, "w") == apparent(world, "docs")
    await other.close()


async def test_what_nobody_looked_at_has_versions(world: World) -> None:
    made = make(world, "w", "docs")
    (version,) = versions(world.database, made.ino, Name(b"a"))
    assert (version.seq, version.size) == (made.made_seq, len(b"first a"))
    assert set(names_with_versions(world.database, world.inode("w/old").ino)) == {b"a2", b"c"}
