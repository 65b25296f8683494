"""Dumps: the metadata as lines, and a store made of them; the index made of packs alone."""

from __future__ import annotations

import json
import lzma
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import AsyncIterator, Callable
from io import BytesIO
from pathlib import Path as FilePath
from typing import Any

import pytest

from nexus_engine import errors
from nexus_engine.backup.dump import Loaded, dump, load
from nexus_engine.backup.index import Rebuilt, rebuild_index
from nexus_engine.cas.pack import KIND_CHUNK, encode_record
from nexus_engine.commands import ignore_progress
from nexus_engine.history.snapshots import add_snapshot
from nexus_engine.meta import backup_queries
from nexus_engine.meta.connection import Connection
from nexus_engine.meta.transaction import Transaction
from nexus_engine.oplog.verify import verify_log
from nexus_engine.store import Store
from tests.docs.markdown import DOCS, code, fences, rows, section
from tests.golden.make import KILLED, build
from tests.unit.backups import Reopened, flip, pack_of, past
from tests.unit.undoing import fill
from tests.unit.worlds import World

FORMAT = DOCS / "FORMAT.md"
GOLDEN = FilePath(__file__).parents[1] / "golden/v1"
UGLY = b"\xff\x1b[31m \xe2\x82"


@pytest.fixture
async def rich(tmp_path: FilePath) -> AsyncIterator[World]:
    """One of everything, present and past."""
    world = await build(tmp_path / "store")
    await world.write(UGLY, b"ugly")
    yield world
    await world.close()


def dumped(world: World) -> bytes:
    lines: list[bytes] = []
    rows = dump(world.path, lines.append, ignore_progress)
    assert len(lines) == rows + 2
    return b"".join(lines)


def objects(text: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def loaded(text: bytes, path: FilePath, packs: FilePath | None = None) -> Loaded:
    return load(BytesIO(text), path, packs=packs, progress=ignore_progress)


async def test_a_store_loaded_from_a_dump_and_the_packs_is_the_same(
    rich: World, tmp_path: FilePath
) -> None:
    new = tmp_path / "new"
    done = loaded(dumped(rich), new, rich.path / "packs")
    assert done.problems == []
    assert done.gaps == []
    copy = Reopened(new)
    assert past(copy) == past(rich)
    assert verify_log(copy.database) == verify_log(rich.database)
    assert copy.problems(deep=True) == []
    # Row by row: what it would dump itself is what it was made of.
    assert dumped(copy) == dumped(rich)
    await copy.close()
    for path in new.rglob("*"):
        assert path.stat().st_mode & 0o077 == 0, path


async def test_packs_may_be_in_the_new_store_already(rich: World, tmp_path: FilePath) -> None:
    shutil.copytree(rich.path / "packs", tmp_path / "new/packs")
    assert loaded(dumped(rich), tmp_path / "new").problems == []


async def test_without_the_packs_everything_but_the_content_is_there(
    rich: World, tmp_path: FilePath
) -> None:
    done = loaded(dumped(rich), tmp_path / "new")
    assert {problem.code for problem in done.problems} == {"content-lost", "content-lost-past"}
    copy = Reopened(tmp_path / "new")
    assert copy.inode(UGLY).size == 4
    with pytest.raises(errors.MissingChunk):
        copy.read(UGLY)
    await copy.close()


async def test_a_dump_can_be_read_by_anything_that_knows_json(rich: World) -> None:
    """docs/FORMAT.md: text where it is UTF-8, base64 where it is not, hex for digests."""
    header, *lines, end = objects(dumped(rich))
    assert header["nexus_dump"] == 1
    assert header["head"] == rich.head
    assert end == {"end": len(lines)}
    names = [row["name"] for row in lines if row["table"] == "dentry"]
    assert "docs" in names
    assert {"base64": "/xtbMzFtIOKC"} in names
    for row in lines:
        kinds = header["tables"][row.pop("table")]
        assert row.keys() == kinds.keys()
    (record,) = [row for row in lines if row.get("kind") == "mkdir" and row.get("path") == "docs"]
    assert len(bytes.fromhex(record["hash"])) == 32
    tables = set(backup_queries.table_names(rich.database.connection))
    assert tables - header["tables"].keys() == {"pack", "chunk", "pack_seen"}


def test_what_is_documented_is_what_is_written() -> None:
    header, *_ = objects(golden_dump())
    text = section(FORMAT, "Dumps").text
    first, second = text.split("| kind |")
    assert [name for row in rows(first) for name in code(row[0])] == list(header)
    kinds = {kind for table in header["tables"].values() for kind in table.values()}
    assert {name for row in rows("| kind |" + second) for name in code(row[0])} == kinds


def test_the_documented_program_lists_the_tree() -> None:
    (program,) = fences(FORMAT.read_text(), "python", marker="<!-- run: dump -->")
    done = subprocess.run(
        [sys.executable, "-c", program], input=golden_dump(), capture_output=True, check=True
    )
    facts = json.loads(lzma.decompress((GOLDEN / "facts.json.xz").read_bytes()))
    paths = {path.encode("latin-1") for path in facts["trees"][-1]} - {b""}
    assert set(done.stdout.splitlines()) == paths


def golden_dump() -> bytes:
    return lzma.decompress((GOLDEN / "dump.jsonl.xz").read_bytes())


async def test_a_dump_is_of_one_moment_whatever_is_written_meanwhile(
    rich: World, tmp_path: FilePath
) -> None:
    expected = dumped(rich)
    lines: list[bytes] = []

    def write(line: bytes) -> None:
        if b'"table":"dentry"' in line and not lines[-1].startswith(b'{"table":"dentry"'):
            rich.store.transact(touch, rich.actor)
        lines.append(line)

    dump(rich.path, write, ignore_progress)
    assert b"".join(lines) == expected
    assert dumped(rich) != expected


def touch(tx: Transaction) -> None:
    add_snapshot(tx, f"meanwhile{tx.seq}")


def change(lines: list[bytes], table: str, column: str, value: object) -> None:
    """Change the last row of a table."""
    for number in reversed(range(len(lines))):
        row = json.loads(lines[number])
        if row.get("table") == table:
            lines[number] = json.dumps(row | {column: value}).encode() + b"\n"
            return


def double(lines: list[bytes]) -> None:
    lines.insert(1, lines[1])
    lines[-1] = b'{"end": %d}\n' % (len(lines) - 2)


def head(lines: list[bytes], **values: object) -> None:
    lines[0] = json.dumps(json.loads(lines[0]) | values).encode() + b"\n"


WRONG: list[tuple[str, Callable[[list[bytes]], object], type[errors.EngineError], str]] = [
    ("nothing", lambda lines: lines.clear(), errors.CorruptMetadata, "not a dump"),
    ("no header", lambda lines: lines.pop(0), errors.CorruptMetadata, "not a dump"),
    ("no JSON", lambda lines: lines.insert(3, b"hello\n"), errors.CorruptMetadata, "line 4"),
    ("no object", lambda lines: lines.insert(3, b"[1]\n"), errors.CorruptMetadata, "line 4"),
    ("cut off", lambda lines: lines.pop(), errors.CorruptMetadata, "not all of it"),
    ("a row left out", lambda lines: lines.pop(9), errors.CorruptMetadata, "not all of it"),
    ("half a line", lambda lines: lines.__setitem__(-1, b'{"e'), errors.CorruptMetadata, "cut off"),
    ("more", lambda lines: lines.append(lines[5]), errors.CorruptMetadata, "after the dump's end"),
    ("newer dump", lambda lines: head(lines, nexus_dump=2), errors.StoreVersion, "upgrade"),
    ("newer schema", lambda lines: head(lines, schema_version=99), errors.StoreVersion, "upgrade"),
    ("no hash", lambda lines: head(lines, head=None), errors.CorruptMetadata, "line 1"),
    ("other tables", lambda lines: head(lines, tables={"x": {}}), errors.CorruptMetadata, "table"),
    (
        "no such table",
        lambda lines: change(lines, "inode", "table", "sqlite_schema"),
        errors.CorruptMetadata,
        "no table",
    ),
    (
        "wrong type",
        lambda lines: change(lines, "inode", "mode", "644"),
        errors.CorruptMetadata,
        "mode",
    ),
    ("no flag", lambda lines: change(lines, "inode", "mode", True), errors.CorruptMetadata, "mode"),
    (
        "too big",
        lambda lines: change(lines, "inode", "mode", 1 << 64),
        errors.CorruptMetadata,
        "mode",
    ),
    ("null", lambda lines: change(lines, "inode", "mode", None), errors.CorruptMetadata, "inode"),
    (
        "no base64",
        lambda lines: change(lines, "dentry", "name", {"base64": "€"}),
        errors.CorruptMetadata,
        "name",
    ),
    ("no hex", lambda lines: change(lines, "oplog", "hash", "xy"), errors.CorruptMetadata, "hash"),
    (
        "another column",
        lambda lines: change(lines, "inode", "colour", 1),
        errors.CorruptMetadata,
        "columns",
    ),
    ("a row twice", lambda lines: double(lines), errors.CorruptMetadata, "UNIQUE"),
]


@pytest.mark.parametrize(("name", "spoil", "error", "hint"), WRONG, ids=[w[0] for w in WRONG])
def test_what_is_no_whole_dump_is_refused_and_leaves_nothing(
    tmp_path: FilePath,
    name: str,
    spoil: Callable[[list[bytes]], object],
    error: type[errors.EngineError],
    hint: str,
) -> None:
    lines = golden_dump().splitlines(keepends=True)
    spoil(lines)
    with pytest.raises(error, match=hint) as caught:
        loaded(b"".join(lines), tmp_path / "new")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "new").exists() or not list((tmp_path / "new").iterdir())


async def test_a_changed_record_in_a_dump_shows(rich: World, tmp_path: FilePath) -> None:
    lines = dumped(rich).splitlines(keepends=True)
    change(lines, "oplog", "kind", "unlink")
    done = loaded(b"".join(lines), tmp_path / "new", rich.path / "packs")
    assert "log-chain" in {problem.code for problem in done.problems}


async def test_records_cut_off_a_dump_show(rich: World, tmp_path: FilePath) -> None:
    lines = dumped(rich).splitlines(keepends=True)
    last = max(i for i, line in enumerate(lines) if b'"table":"oplog"' in line)
    del lines[last]
    lines[-1] = b'{"end": %d}\n' % (len(lines) - 2)
    done = loaded(b"".join(lines), tmp_path / "new", rich.path / "packs")
    assert "log-chain" in {problem.code for problem in done.problems}


async def test_a_load_goes_into_an_empty_directory_only(rich: World, tmp_path: FilePath) -> None:
    before = rich.tree()
    with pytest.raises(errors.StoreExists):
        loaded(dumped(rich), rich.path)
    assert rich.tree() == before


# -- the index --


@pytest.fixture
async def closed(tmp_path: FilePath) -> World:
    """A store that nobody has open."""
    world = World(tmp_path / "store")
    await fill(world)
    await world.write("raw", os.urandom(5000))
    await world.write("after", os.urandom(5000))
    await world.close()
    return world


def rebuild(path: FilePath) -> Rebuilt:
    store = Store.open(path)
    try:
        return rebuild_index(store, ignore_progress)
    finally:
        store.close()


def lose_index(world: World) -> None:
    world.edit("DELETE FROM chunk")
    world.edit("DELETE FROM pack")


async def test_the_index_is_found_again_in_the_packs(closed: World) -> None:
    before = Reopened(closed.path)
    rows = index_of(before)
    trees = past(before)
    await before.close()
    lose_index(closed)
    rebuilt = rebuild(closed.path)
    assert rebuilt.gaps == []
    after = Reopened(closed.path)
    assert index_of(after) == rows
    assert past(after) == trees
    assert after.problems(deep=True) == []
    await after.close()


def index_of(world: World) -> list[tuple[Any, ...]]:
    return world.database.connection.all(
        "SELECT c.digest, p.name, c.offset, c.stored_length, c.length, c.codec, p.owner"
        " FROM chunk c JOIN pack p ON p.id = c.pack ORDER BY c.digest"
    )


async def test_a_damaged_chunk_costs_itself_and_no_more(closed: World) -> None:
    world = Reopened(closed.path)
    flip(world, "raw")
    await world.close()
    lose_index(closed)
    (gap,) = rebuild(closed.path).gaps
    assert gap.end - gap.start == 5056
    after = Reopened(closed.path)
    assert len(after.read("after")) == 5000
    assert [problem.partition(":")[0] for problem in after.problems(deep=True)] == ["content-lost"]
    with pytest.raises(errors.MissingChunk):
        after.read("raw")
    await after.close()


@pytest.mark.parametrize(("start", "length"), [(0, 8), (0, 32), (32, 4), (32 + 8, 4), (20, 100)])
async def test_a_pack_whose_beginning_is_destroyed_gives_what_follows(
    closed: World, start: int, length: int
) -> None:
    """Its header, or the first record: its magic, its length."""
    world = Reopened(closed.path)
    path = pack_of(world, "after")
    await world.close()
    with path.open("r+b") as file:
        file.seek(start)
        file.write(b"\xff" * length)
    rebuild(closed.path)
    after = Reopened(closed.path)
    assert len(after.read("after")) == 5000
    assert len(after.read("raw")) == 5000
    await after.close()


async def test_a_torn_end_is_a_gap(closed: World) -> None:
    world = Reopened(closed.path)
    path = pack_of(world, "after")
    await world.close()
    with path.open("ab") as file:
        file.write(b"NXR1" + b"\0" * 20 + b"NXR1")
    (gap,) = rebuild(closed.path).gaps
    assert (gap.end - gap.start, gap.end) == (28, path.stat().st_size)


async def test_what_looks_like_a_record_within_a_damaged_file_is_none(tmp_path: FilePath) -> None:
    """Content may hold anything: a record with a right checksum and a wrong digest, too."""
    world = World(tmp_path / "store")
    forged = encode_record(KIND_CHUNK, 0, 4, bytes(32), b"fake")  # type: ignore[arg-type]
    await world.write("forgery", os.urandom(200) + forged + os.urandom(200))
    await world.write("after", os.urandom(500))
    flip(world, "forgery")
    await world.close()
    rebuild(world.path)
    after = Reopened(world.path)
    assert len(after.read("after")) == 500
    assert bytes(32) not in {row[0] for row in index_of(after)}
    await after.close()


async def test_a_store_in_use_is_left_alone(closed: World) -> None:
    world = Reopened(closed.path)
    with pytest.raises(errors.StoreBusy, match=f"process {os.getpid()} has the store open"):
        rebuild(closed.path)
    assert world.problems(deep=True) == []
    await world.close()


async def test_unfinished_writes_of_a_process_that_died_survive_it(tmp_path: FilePath) -> None:
    """The packs of the dead keep their owner, so that recovery looks for intents in them."""
    with tarfile.open(GOLDEN / "killed.tar.xz") as archive:
        archive.extractall(tmp_path / "store")
    connection = Connection(str(tmp_path / "store/meta.db"))
    connection.run("DELETE FROM chunk")
    connection.close()
    rebuild(tmp_path / "store")
    after = Reopened(tmp_path / "store")
    assert after.read("unfinished") == KILLED
    assert after.problems(deep=True) == []
    await after.close()


async def test_an_older_database_is_made_to_fit_newer_packs(
    closed: World, tmp_path: FilePath
) -> None:
    """meta.db from a backup beside the packs of now: what is in them is known again."""
    shutil.copy(closed.path / "meta.db", tmp_path / "meta.db")
    world = Reopened(closed.path)
    await world.write("newer", os.urandom(5000))
    await world.close()
    shutil.copy(tmp_path / "meta.db", closed.path / "meta.db")
    before = Reopened(closed.path)
    assert [problem.partition(":")[0] for problem in before.problems()] == ["pack-unknown"]
    await before.close()
    rebuild(closed.path)
    after = Reopened(closed.path)
    assert after.problems(deep=True) == []
    assert not after.exists("newer")
    await after.close()
