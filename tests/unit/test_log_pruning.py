"""Records leave the log with age; what is left is proved, and what they were asked for stays."""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path as FilePath

import anyio
import pytest

from nexus_engine import errors
from nexus_engine.backup.making import make_backup
from nexus_engine.check.fsck import check
from nexus_engine.commands import ignore_progress
from nexus_engine.config import Retention
from nexus_engine.engine import Engine
from nexus_engine.history import snapshots
from nexus_engine.history.diff import diff
from nexus_engine.history.moments import resolve_moment
from nexus_engine.history.select import Selector, select
from nexus_engine.history.versions import versions
from nexus_engine.oplog.verify import verify_log
from nexus_engine.retention.prune import Pruned, prune
from nexus_engine.types import Path, Seq
from tests.docs.markdown import DOCS, fences
from tests.unit.retaining import DAY, HOUR, beside
from tests.unit.worlds import ALICE, BOB, World

DAYS = Retention(keep_all="1d", keep_log="2d")


@pytest.fixture
async def world(tmp_path: FilePath) -> AsyncIterator[World]:
    world = World(tmp_path / "store")
    yield world
    assert world.problems(deep=True) == []
    await world.close()


async def prune_beside(world: World, policy: Retention = DAYS) -> Pruned:
    return await beside(world, lambda store: prune(store, policy, ALICE))


async def age(world: World, days: int = 10) -> None:
    """Let days pass with a change on each."""
    for day in range(days):
        world.clock.now_ns += DAY
        await world.write("daily", b"%d" % day)


def first_seq(world: World) -> Seq:
    row = world.database.connection.one("SELECT min(seq) FROM oplog")
    assert row is not None
    return Seq(row[0])


async def test_old_records_go_and_the_chain_still_holds(world: World) -> None:
    await age(world)
    before = verify_log(world.database)
    done = await prune_beside(world)
    assert done.records > 5
    report = verify_log(world.database)
    assert report.holds
    assert report.pruned == first_seq(world) - 1 == done.records
    assert report.records == world.head - report.pruned
    assert verify_log(world.database, expected_head=before.head_hash).holds
    await age(world)
    assert (await prune_beside(world)).records > 5
    assert verify_log(world.database).holds


async def test_actors_and_notes_of_undo_go_with_their_records(world: World) -> None:
    world.actor = BOB
    await world.write("bobs", b"once")
    world.actor = ALICE
    await age(world)
    await prune_beside(world)
    agents = world.database.connection.all("SELECT agent FROM actor ORDER BY agent")
    assert ("bob",) not in agents
    assert ("alice",) in agents
    world.actor = BOB
    await world.write("bobs", b"again")  # an actor that this process knew is written again
    assert verify_log(world.database).holds


async def test_what_left_the_log_says_so_when_it_is_to_be_undone(world: World) -> None:
    await world.write("file", b"1")
    old = world.head
    await age(world)
    await prune_beside(world)
    with pytest.raises(errors.HistoryExpired, match=r"op-\d+ is not in the log any more"):
        select(world.database, Selector(ops=(old,)))
    assert select(world.database, Selector(last=1)) == [world.head - 1]


async def test_a_log_whose_beginning_was_cut_off_by_hand_is_broken(world: World) -> None:
    """The chain itself says where it begins."""
    await age(world)
    await prune_beside(world)
    cut = first_seq(world)
    row = world.database.connection.one("SELECT hash FROM oplog WHERE seq = ?", (cut,))
    assert row is not None
    hidden = world.database.connection.all("SELECT * FROM oplog WHERE seq = ?", (cut,))
    kept = world.database.connection.all("SELECT * FROM store WHERE key LIKE 'log_pruned%'")
    world.edit("DELETE FROM oplog WHERE seq = ?", cut)
    world.edit("UPDATE store SET value = ? WHERE key = 'log_pruned'", cut)
    world.edit("UPDATE store SET value = ? WHERE key = 'log_pruned_hash'", row[0])
    report = verify_log(world.database)
    assert report.reason == "the log begins with a hash that no prune operation names"
    assert "log-chain" in [problem.code for problem in check(world.store)]
    for table, rows in (("oplog", hidden), ("store", kept)):
        for values in rows:
            places = ", ".join("?" * len(values))
            world.edit(f"INSERT OR REPLACE INTO {table} VALUES ({places})", *values)


async def test_snapshots_keep_their_trees_times_and_makers(world: World) -> None:
    """A directory's time was that of a record; it is noted before the record goes."""
    await world.mkdir("dir")
    await world.write("dir/file", b"then")
    world.clock.now_ns += HOUR
    await world.mkdir("dir/sub")
    snapshots.create(world.store, "old", BOB)
    moment = Seq(world.head - 1)
    tree, listed = world.tree("", moment), snapshots.list_all(world.database)
    await age(world)
    await world.remove("dir")
    assert (await prune_beside(world)).records > moment
    assert world.tree("", moment) == tree
    assert resolve_moment(world.database, "old", world.clock.now_ns) == moment
    assert resolve_moment(world.database, "10d", world.clock.now_ns) == moment
    assert snapshots.list_all(world.database) == listed
    changes = {c.path for c in diff(world.database, Path(b""), moment, world.head)}
    assert {b"dir", b"dir/file", b"dir/sub"} <= changes
    snapshots.drop(world.store, "old", BOB)


async def test_a_moment_from_before_the_log_is_not_kept(world: World) -> None:
    await world.write("file", b"1")
    await age(world)
    await prune_beside(world)
    for text in ("op-2", "10d", "before-op-3"):
        with pytest.raises(errors.HistoryExpired, match="kept"):
            resolve_moment(world.database, text, world.clock.now_ns)


async def test_a_content_outlives_the_record_that_made_it(world: World) -> None:
    await world.write("file", b"lasting")
    made = world.inode("file").mtime_ns
    await age(world)
    await prune_beside(world)
    (version,) = versions(world.database, *world.place("file"))
    assert (version.kind, version.time_ns, version.size) == ("", made, 7)
    assert world.read("file", version.moment) == b"lasting"


async def test_nothing_that_a_dead_process_finished_is_done_again(tmp_path: FilePath) -> None:
    """Its packs say what it began; only the log says what of that was done."""
    world = World(tmp_path / "store")
    handle, _ = await world.engine.create(*world.place("file"), 0o644, ALICE)
    await world.engine.write(handle, 0, b"old")
    await world.engine.flush(handle)  # the pack says that this is begun
    await world.engine.release(handle)
    await age(world)
    assert (await prune_beside(world)).records > 5
    await world.write("file", b"new")
    world.store.chunks.sync()
    head = world.head
    os.close(world.store._lock._fd)  # as if it had been killed
    engine = Engine.start(world.path, clock=world.clock)
    assert engine.reader.head() == head
    assert check(engine.store, deep=True) == []
    await engine.close()


async def test_a_backup_goes_on_from_one_whose_head_left_the_log(
    world: World, tmp_path: FilePath
) -> None:
    await world.write("file", b"1")
    save = partial(
        make_backup, world.path, tmp_path / "backup", keep=7, verify=False,
        progress=ignore_progress, clock=world.clock,
    )  # fmt: skip
    save()
    await age(world)
    await prune_beside(world)
    assert save().diverged is None


async def test_pages_of_the_database_go_back_to_the_disk(world: World) -> None:
    for number in range(3000):
        await world.write(f"file{number % 10}", b"%d" % number)
    await beside(world, lambda store: store.database.checkpoint(restart=True))
    database = world.path / "meta.db"
    before = database.stat().st_size
    await age(world)
    await prune_beside(world)
    assert database.stat().st_size < before / 3


async def test_the_script_in_the_documents_verifies_a_pruned_log(world: World) -> None:
    await age(world)
    await prune_beside(world)
    (script,) = fences((DOCS / "FORMAT.md").read_text(), "python", marker="<!-- run: chain -->")
    done = await anyio.run_process([sys.executable, "-c", script, str(world.path)])
    assert done.stdout.decode().strip() == verify_log(world.database).head_hash.hex()
