"""A store that somebody else made: its files lead nowhere else, and its database does nothing."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from nexus_engine import errors
from nexus_engine.engine import Engine
from nexus_engine.meta.connection import Connection
from nexus_engine.repair.salvage import salvage
from nexus_engine.store import Store
from nexus_engine.types import ROOT_INO, Actor, Name

ALICE = Actor(uid=0, gid=0, pid=1, command="a", session=1, agent="alice")


@pytest.fixture
async def store(tmp_path: Path) -> Path:
    """Return a store with a file in it."""
    path = tmp_path / "store"
    Store.create(path, ALICE).close()
    engine = Engine.start(path)
    handle, _ = await engine.create(ROOT_INO, Name(b"file"), 0o644, ALICE)
    await engine.write(handle, 0, os.urandom(1000))
    await engine.release(handle)
    await engine.close()
    return path


def edit(store: Path, *statements: str) -> None:
    connection = Connection(str(store / "meta.db"))
    for sql in statements:
        connection.run(sql)
    connection.close()


@pytest.mark.parametrize("make", [lambda p: p.symlink_to("/etc/passwd"), os.mkfifo])
async def test_a_pack_that_is_no_file_is_not_followed_and_keeps_nobody_waiting(
    store: Path, make: Callable[[Path], None]
) -> None:
    pack = next((store / "packs").iterdir())
    pack.unlink()
    make(pack)
    engine = Engine.start(store)
    inode = await engine.lookup(ROOT_INO, Name(b"file"))
    assert inode is not None
    handle = await engine.open(inode.ino, os.O_RDONLY, ALICE)
    with pytest.raises((errors.ObjectStoreFailed, errors.IntegrityError)):
        await engine.read(handle, 0, 1000)
    await engine.release(handle)
    await engine.close()


@pytest.mark.parametrize("name", ["meta.db", "peers"])
async def test_a_store_whose_parts_are_links_is_not_opened(
    store: Path, tmp_path: Path, name: str
) -> None:
    elsewhere = tmp_path / "elsewhere"
    (store / name).rename(elsewhere)
    (store / name).symlink_to(elsewhere)
    with pytest.raises(errors.BackendError):
        Store.open(store)
    assert not elsewhere.is_dir() or not list(elsewhere.iterdir())


async def test_the_lock_of_a_process_is_no_link(store: Path, tmp_path: Path) -> None:
    """Taking over from the dead opens files of any name in peers/."""
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (store / "peers" / "1-00.lock").symlink_to(victim)
    with pytest.raises(errors.BackendError):
        Engine.start(store)
    assert victim.read_text() == "precious"


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TRIGGER t AFTER INSERT ON oplog BEGIN DELETE FROM inode; END",
        "DROP TABLE extent",
        "PRAGMA application_id = 7",
        "PRAGMA user_version = 99",
    ],
)
async def test_a_database_of_another_shape_is_not_opened(store: Path, statement: str) -> None:
    edit(store, statement)
    with pytest.raises((errors.CorruptMetadata, errors.StoreVersion)):
        Store.open(store)


async def test_a_database_that_only_a_newer_sqlite_writes_is_damaged_and_can_be_salvaged(
    store: Path,
) -> None:
    """A bit of the header's format version, that is; not a store that one may not write to."""
    with (store / "meta.db").open("r+b") as file:
        file.seek(18)
        file.write(b"\x42")
    with pytest.raises(errors.CorruptMetadata):
        Store.open(store)
    assert salvage(store).rows > 0
    Store.open(store).close()


@pytest.mark.parametrize(
    "statements",
    [
        ["UPDATE inode SET size = -1"],
        ["UPDATE inode SET mode = 7"],
        ["UPDATE inode SET mode = -1"],
        ["UPDATE inode SET size = 9223372036854775807"],
        ["UPDATE dentry SET ino = 99999"],
        ["UPDATE dentry SET parent = ino"],
        ["UPDATE extent SET length = -5"],
        ["UPDATE extent SET digest = x'00'"],
        ["UPDATE chunk SET offset = -1"],
        ["UPDATE chunk SET stored_length = 9000000000"],
        ["DELETE FROM chunk"],
        ["DELETE FROM oplog"],
        ["UPDATE oplog SET details = 'no json'"],
        ["UPDATE store SET value = -1 WHERE key = 'next_ino'"],
    ],
)
async def test_rows_that_make_no_sense_are_errors_of_ours(
    store: Path, statements: list[str]
) -> None:
    """Each request has an answer or an error; nothing else comes out, and nothing hangs."""
    edit(store, *statements)
    try:
        engine = Engine.start(store)
    except errors.EngineError:
        return
    for request in (look, write, read, list_all):
        with suppress(errors.EngineError):
            await request(engine)
    engine.store.abandon()


async def look(engine: Engine) -> None:
    await engine.lookup(ROOT_INO, Name(b"file"))
    await engine.getattr(ROOT_INO)


async def write(engine: Engine) -> None:
    handle, _ = await engine.create(ROOT_INO, Name(b"new"), 0o644, ALICE)
    await engine.write(handle, 0, b"content")
    await engine.release(handle)


async def read(engine: Engine) -> None:
    inode = await engine.lookup(ROOT_INO, Name(b"file"))
    if inode is not None and inode.size < 1 << 30:
        handle = await engine.open(inode.ino, os.O_RDWR, ALICE)
        await engine.read(handle, 0, 4096)
        await engine.release(handle)


async def list_all(engine: Engine) -> None:
    await engine.list_children(ROOT_INO, 0, 100)
    engine.reader.find_path((await engine.list_children(ROOT_INO, 0, 1))[0].inode.ino)
