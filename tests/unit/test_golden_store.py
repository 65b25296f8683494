"""Stores of every version of the format that there was: opened, read, used, for ever.

``tests/golden/make.py`` made them. A version of Nexus that fails here loses somebody's files.
"""

from __future__ import annotations

import json
import lzma
import os
import tarfile
from collections.abc import AsyncIterator
from io import BytesIO
from pathlib import Path as FilePath
from typing import Any

import pytest

from nexus_engine.backup.dump import load
from nexus_engine.backup.making import make_backup
from nexus_engine.backup.restoring import restore_store
from nexus_engine.commands import ignore_progress
from nexus_engine.config import Retention
from nexus_engine.errors import StoreBusy
from nexus_engine.history import snapshots
from nexus_engine.history.select import Selector
from nexus_engine.history.versions import versions
from nexus_engine.meta import backup_queries, schema
from nexus_engine.oplog.verify import verify_log
from nexus_engine.owners import claim
from nexus_engine.retention.prune import prune
from nexus_engine.store import Store
from nexus_engine.types import Name, Seq
from tests.golden.make import KILLED, UGLY, as_bob, build, shown, trees
from tests.unit.backups import Reopened
from tests.unit.undoing import undo
from tests.unit.worlds import ALICE, World

GOLDEN = FilePath(__file__).parents[1] / "golden"
MADE = sorted(path.name for path in GOLDEN.glob("v*"))


@pytest.fixture(params=MADE)
def golden(request: pytest.FixtureRequest) -> FilePath:
    return GOLDEN / str(request.param)


def facts(golden: FilePath) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(lzma.decompress((golden / "facts.json.xz").read_bytes()))
    return found


def unpack(golden: FilePath, name: str, target: FilePath) -> FilePath:
    with tarfile.open(golden / f"{name}.tar.xz") as archive:
        archive.extractall(target)
    return target


@pytest.fixture
async def old(golden: FilePath, tmp_path: FilePath) -> AsyncIterator[World]:
    """The golden store, opened; afterwards it must be sound."""
    world = Reopened(unpack(golden, "store", tmp_path / "store"))
    yield world
    assert world.problems(deep=True) == []
    await world.close()


def test_there_are_golden_stores() -> None:
    assert "v1" in MADE
    for path in GOLDEN.rglob("*.xz"):
        assert path.stat().st_size < 200 << 10


async def test_it_is_brought_to_the_present_format_and_is_sound(old: World) -> None:
    assert backup_queries.version(old.database.connection) == schema.VERSION
    assert old.problems(deep=True) == []


@pytest.mark.skipif(schema.VERSION < 2, reason="there is no older format")
def test_it_is_left_alone_while_an_older_version_has_it_open(tmp_path: FilePath) -> None:
    """That would go on writing rows as it knows them."""
    store = unpack(GOLDEN / "v1", "store", tmp_path / "store")
    lock = claim(store / "peers")
    with pytest.raises(StoreBusy, match=rf"format 1 and is in use by process {os.getpid()}"):
        Store.open(store)
    lock.release()
    Store.open(store).close()


async def test_compacted_once_its_database_gives_space_back(golden: FilePath, old: World) -> None:
    """https://sqlite.org/pragma.html#pragma_auto_vacuum: VACUUM changes the mode."""
    connection = old.database.connection
    assert connection.shrinks == (golden.name != "v1")
    policy = Retention(keep_all="1000w")
    prune(old.store, policy, ALICE, compact=True)
    assert connection.shrinks


async def test_its_log_is_the_one_that_was_written(old: World, golden: FilePath) -> None:
    report = verify_log(old.database)
    assert report.holds
    assert report.records == facts(golden)["head"]
    assert report.head_hash.hex() == facts(golden)["head_hash"]


async def test_every_moment_of_it_is_what_it_was(old: World, golden: FilePath) -> None:
    """Names, modes, owners, links, sizes, times, contents, attributes: after each operation."""
    expected = facts(golden)["trees"]
    for seq, tree in enumerate(expected, start=1):
        assert shown(old, Seq(seq)) == tree, f"op-{seq}"
    assert shown(old) == expected[-1]


async def test_its_contents_are_known(old: World) -> None:
    assert old.read("docs/todo.md") == b"buy milk\ncall Alice\n"
    assert old.read("docs/todo.md", Seq(8)) == b"buy milk\n"
    assert old.inode(UGLY).target == b"docs/todo.md"
    assert old.read(UGLY, Seq(12)) == b"name is not UTF-8\n"
    sparse = old.read("sparse")
    assert (len(sparse), sparse.strip(b"\0")) == (9 << 20, b"island")
    assert old.store.reader.stored_bytes(old.inode("sparse").ino) == 6
    assert old.read("big")[(1 << 20) - 3 :].startswith(b"across the border of two chunks")
    assert old.inode("docs/todo.md", Seq(8)).nlink == 2
    assert os.major(old.inode("block").rdev) == 7


async def test_its_snapshots_and_versions_are_there(old: World) -> None:
    assert [snapshot.name for snapshot in snapshots.list_all(old.database)] == ["übrig"]
    found = versions(old.database, old.inode("docs").ino, Name(b"todo.md"))
    assert [version.size for version in reversed(found)] == [0, 9, 20, 5, 20, 5, 20]


async def test_what_one_agent_did_can_be_undone(old: World, golden: FilePath) -> None:
    """Bob's first operations, from among those of both."""
    then = old.tree(at=Seq(53))
    undo(old, Selector(since_seq=Seq(53)))
    assert {**old.tree(), b"": ()} == {**then, b"": ()}
    undone = undo(old, Selector(agent="bob", until_seq=Seq(26)), force=True)
    assert undone.plan.operations
    for name in ("fifo", "socket", "character", "block"):
        assert not old.exists(name)
    assert old.exists("sparse")
    assert old.exists("deep/leaf")


async def test_it_goes_on(old: World, golden: FilePath) -> None:
    """Old content is not stored again, and the chain has the old head in it."""
    before = {path.name for path in (old.path / "packs").iterdir()}
    as_bob(old)
    await old.write("again", b"needle\n" * 40)
    await old.unlink("big")
    assert old.read("again") == old.read("same as leaf")
    assert {path.name for path in (old.path / "packs").iterdir()} == before
    assert verify_log(old.database, expected_head=bytes.fromhex(facts(golden)["head_hash"])).holds


async def test_a_process_of_old_that_was_killed_is_taken_over(
    golden: FilePath, tmp_path: FilePath
) -> None:
    world = Reopened(unpack(golden, "killed", tmp_path / "store"))
    assert world.read("unfinished") == KILLED
    assert world.problems(deep=True) == []
    await world.close()


async def test_a_dump_of_old_can_be_loaded(golden: FilePath, tmp_path: FilePath) -> None:
    lines = BytesIO(lzma.decompress((golden / "dump.jsonl.xz").read_bytes()))
    packs = unpack(golden, "store", tmp_path / "store") / "packs"
    loaded = load(lines, tmp_path / "loaded", packs=packs, progress=ignore_progress)
    assert loaded.problems == []
    world = Reopened(tmp_path / "loaded")
    assert trees(world) == facts(golden)["trees"]
    assert world.problems(deep=True) == []
    await world.close()


async def test_it_can_be_backed_up_and_restored(old: World, tmp_path: FilePath) -> None:
    made = make_backup(
        old.path, tmp_path / "backup", keep=1, verify=False, progress=ignore_progress
    )
    assert made.damaged_files == []
    new = tmp_path / "new"
    assert restore_store(tmp_path / "backup", new, generation=None, progress=ignore_progress)
    world = Reopened(new)
    assert trees(world) == trees(old)
    await world.close()


async def test_the_script_still_makes_what_it_made(golden: FilePath, tmp_path: FilePath) -> None:
    """The same steps, by today's engine, give the same trees."""
    world = await build(tmp_path / "store")
    assert trees(world) == facts(golden)["trees"]
    await world.close()
