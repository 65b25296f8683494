"""Operations that share a COMMIT: whoever was told that they are done finds them done."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import xxhash

from nexus_engine import errors
from nexus_engine.check.fsck import check
from nexus_engine.engine import Engine
from nexus_engine.fs.quotas import set_quota
from nexus_engine.meta.journal import HEADER
from nexus_engine.meta.schema import TABLES
from nexus_engine.oplog.verify import verify_log
from nexus_engine.store import Store
from nexus_engine.types import ROOT_INO, Actor, Name
from nexus_engine.writing import WAITING_MAX
from tests.crash.failing_io import Fault, failing_io

ACTOR = Actor(uid=0, gid=0, pid=os.getpid(), command="test", agent="alice")

WRITER = """
import os, pathlib, signal, sys, trio
from nexus_engine.engine import Engine
from nexus_engine.types import ROOT_INO, Actor, Name

async def main():
    engine = Engine.start(pathlib.Path(sys.argv[1]))
    actor = Actor(uid=0, gid=0, pid=os.getpid(), command="writer", agent="bob")
    make = lambda name, mode: engine.make(ROOT_INO, Name(name), mode, actor)
    handle, _ = await engine.create(ROOT_INO, Name(b"first"), 0o644, actor)
    await engine.write(handle, 0, b"to have a pack")
    await engine.release(handle)
    engine.store.let_wait(lambda: None)
    kept = await make(b"kept", 0o100644)
    directory = await make(b"directory", 0o40755)
    handle, inode = await engine.create(directory.ino, Name(b"file"), 0o644, actor)
    await engine.write(handle, 0, b"content")
    await engine.flush(handle)
    await engine.release(handle)
    await engine.setxattr(inode.ino, b"user.colour", b"red", actor)
    await engine.rename(ROOT_INO, Name(b"kept"), directory.ino, Name(b"moved"), 0, actor)
    await make(b"gone", 0o100644)
    await engine.unlink(ROOT_INO, Name(b"gone"), actor)
    assert engine.store.database.waiting == 8
    {last}
    os.kill(os.getpid(), signal.SIGKILL)

trio.run(main)
"""
BEFORE = ["mkdir", "create", "write"]
KINDS = [
    *BEFORE, "create", "mkdir", "create", "write", "setxattr", "rename", "create", "unlink",
]  # fmt: skip


@pytest.fixture
def store(tmp_path: Path) -> Path:
    Store.create(tmp_path / "store", ACTOR).close()
    return tmp_path / "store"


def die_writing(store: Path, last: str = "pass") -> None:
    done = subprocess.run([sys.executable, "-c", WRITER.format(last=last), store], check=False)
    assert done.returncode == -signal.SIGKILL


@asynccontextmanager
async def engine_of(store: Path) -> AsyncIterator[Engine]:
    engine = Engine.start(store)
    try:
        yield engine
    finally:
        await engine.close()


def log_of(store: Store) -> list[str]:
    return [row[0] for row in store.database.connection.all("SELECT kind FROM oplog ORDER BY seq")]


def require_sound(store: Store) -> None:
    assert list(check(store)) == []
    verify_log(store.database)


async def names_of(engine: Engine, *way: bytes) -> list[bytes]:
    ino = ROOT_INO
    for name in way:
        inode = await engine.lookup(ino, Name(name))
        assert inode is not None
        ino = inode.ino
    return sorted(entry.name for entry in await engine.list_children(ino, 0, 1000))


@pytest.mark.parametrize("last", ["pass", "engine.store.settle()"])
async def test_what_waited_outlives_its_process(store: Path, last: str) -> None:
    die_writing(store, last)
    for _ in range(2):  # the second time nothing is done again
        async with engine_of(store) as engine:
            assert log_of(engine.store) == KINDS
            assert await names_of(engine) == [b"directory", b"first"]
            assert await names_of(engine, b"directory") == [b"file", b"moved"]
            require_sound(engine.store)
            assert not [path for path in (store / "peers").iterdir() if path.suffix == ".journal"]


async def test_what_is_committed_is_in_no_journal_any_more(store: Path) -> None:
    """A purge would not find it there."""
    async with engine_of(store) as engine:
        handle, inode = await engine.create(ROOT_INO, Name(b"file"), 0o644, ACTOR)
        await engine.release(handle)
        engine.store.let_wait(lambda: None)
        for number in range(20):
            await engine.make(ROOT_INO, Name(b"%d" % number), 0o100644, ACTOR)
        await engine.setxattr(inode.ino, b"user.secret", b"nobody's business", ACTOR)
        (journal,) = (store / "peers").glob("*.journal")
        assert b"nobody's business" in journal.read_bytes()
        engine.store.settle()
        await engine.make(ROOT_INO, Name(b"last"), 0o100644, ACTOR)
        assert b"last" in journal.read_bytes()
        assert b"nobody's business" not in journal.read_bytes()


async def test_a_store_that_is_only_read_shows_what_waited(store: Path) -> None:
    """Without a recovery: whoever opens a store has all that its log promised."""
    die_writing(store)
    opened = Store.open(store)
    assert log_of(opened) == KINDS
    opened.close()


async def test_inode_numbers_are_not_given_twice(store: Path) -> None:
    die_writing(store)
    async with engine_of(store) as engine:
        used = {row[0] for row in engine.store.database.connection.all("SELECT ino FROM oplog")}
        assert (await engine.make(ROOT_INO, Name(b"new"), 0o100644, ACTOR)).ino not in used


async def test_a_journal_that_ends_anywhere_gives_a_beginning_of_the_log(
    store: Path, tmp_path: Path
) -> None:
    die_writing(store)
    (journal,) = (store / "peers").glob("*.journal")
    content = journal.read_bytes().rstrip(b"\0")
    lengths = set()
    for end in range(0, len(content), 97):
        copy = tmp_path / f"copy-{end}"
        shutil.copytree(store, copy)
        (copy / "peers" / journal.name).write_bytes(content[:end] + b"\xff" * 10)
        opened = Store.open(copy)
        kinds = log_of(opened)
        assert kinds == KINDS[: len(kinds)]
        lengths.add(len(kinds))
        verify_log(opened.database)
        opened.close()
        shutil.rmtree(copy)
    assert lengths == set(range(len(BEFORE), len(KINDS)))


async def test_who_opens_the_store_sees_what_waits_and_has_none_wait(store: Path) -> None:
    async with engine_of(store) as engine:
        waiting = []
        engine.store.let_wait(lambda: waiting.append(True))
        await engine.make(ROOT_INO, Name(b"waits"), 0o100644, ACTOR)
        assert engine.store.database.waiting == 1
        assert waiting

        def look(peer: Store) -> list[str]:
            return log_of(peer)

        assert await engine.in_peer(look) == ["mkdir", "create"]
        assert await engine.in_reader(lambda database: database.reader.head()) == 2
        peer = Store.open(store)
        await engine.make(ROOT_INO, Name(b"at once"), 0o100644, ACTOR)
        assert engine.store.database.waiting == 0
        assert log_of(peer) == ["mkdir", "create", "create"]
        peer.close()
        await engine.make(ROOT_INO, Name(b"waits again"), 0o100644, ACTOR)
        assert engine.store.database.waiting == 1


async def test_an_operation_that_fails_half_way_takes_nothing_along(store: Path) -> None:
    async with engine_of(store) as engine:
        await engine.store.write(set_quota, ACTOR, ROOT_INO, None, 3)
        engine.store.let_wait(lambda: None)
        await engine.make(ROOT_INO, Name(b"one"), 0o100644, ACTOR)
        await engine.make(ROOT_INO, Name(b"two"), 0o100644, ACTOR)
        assert engine.store.database.waiting == 2
        with pytest.raises(errors.QuotaExceeded):
            await engine.make(ROOT_INO, Name(b"three"), 0o100644, ACTOR)
        assert await names_of(engine) == [b"one", b"two"]
        await engine.unlink(ROOT_INO, Name(b"one"), ACTOR)
        await engine.make(ROOT_INO, Name(b"three"), 0o100644, ACTOR)
        assert await names_of(engine) == [b"three", b"two"]
        engine.store.settle()
        require_sound(engine.store)


async def test_an_operation_that_is_refused_leaves_those_that_wait(store: Path) -> None:
    async with engine_of(store) as engine:
        engine.store.let_wait(lambda: None)
        await engine.make(ROOT_INO, Name(b"one"), 0o100644, ACTOR)
        with pytest.raises(errors.AlreadyExists):
            await engine.make(ROOT_INO, Name(b"one"), 0o100644, ACTOR)
        assert engine.store.database.waiting == 1
        await engine.make(ROOT_INO, Name(b"two"), 0o100644, ACTOR)
        assert engine.store.database.waiting == 2


async def test_many_do_not_wait_for_ever(store: Path) -> None:
    async with engine_of(store) as engine:
        engine.store.let_wait(lambda: None)
        for number in range(WAITING_MAX + 1):
            await engine.make(ROOT_INO, Name(b"%d" % number), 0o100644, ACTOR)
        assert engine.store.database.waiting == 1
        assert len(await engine.in_peer(log_of)) == WAITING_MAX + 2


@pytest.mark.parametrize("lasting", [False, True])
@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO])
async def test_a_commit_that_fails_loses_nothing(tmp_path: Path, error: int, lasting: bool) -> None:
    store = tmp_path / "store"
    with failing_io(tmp_path) as io:
        Store.create(store, ACTOR).close()
        engine = Engine.start(store)
        engine.store.let_wait(lambda: None)
        await engine.make(ROOT_INO, Name(b"one"), 0o100644, ACTOR)
        await engine.make(ROOT_INO, Name(b"two"), 0o100644, ACTOR)
        io.arm(Fault("of the disk", error, lasting=lasting), 1)
        try:
            engine.store.settle()
        except errors.EngineError:
            assert engine.store.database.waiting == 2
            if lasting:
                with pytest.raises(errors.EngineError):
                    await engine.make(ROOT_INO, Name(b"refused"), 0o100644, ACTOR)
                with pytest.raises(errors.EngineError):  # and not: there is no such file
                    await engine.lookup(ROOT_INO, Name(b"one"))
        assert io.hits
        io.heal()
        assert await names_of(engine) == [b"one", b"two"]
        await engine.make(ROOT_INO, Name(b"three"), 0o100644, ACTOR)
        assert await names_of(engine) == [b"one", b"three", b"two"]
        await engine.close()
    async with engine_of(store) as engine:
        assert await names_of(engine) == [b"one", b"three", b"two"]
        require_sound(engine.store)


async def test_a_read_that_fails_takes_nothing_back(tmp_path: Path) -> None:
    """SQLite ends the transaction, whatever the statement: sqlite.org/lang_transaction.html."""
    Store.create(tmp_path / "store", ACTOR).close()
    with failing_io(tmp_path) as io:
        async with engine_of(tmp_path / "store") as engine:
            engine.store.let_wait(lambda: None)
            await engine.make(ROOT_INO, Name(b"waits"), 0o100644, ACTOR)
            connection = engine.store.database.connection
            io.arm(Fault("of the disk", errno.EIO), 1)
            with pytest.raises(errors.MetadataFailed):
                connection.all(" UNION ".join(f"SELECT count(*) FROM {name}" for name in TABLES))
            io.heal()
            assert engine.store.database.is_interrupted
            assert await names_of(engine) == [b"waits"]
            await engine.make(ROOT_INO, Name(b"later"), 0o100644, ACTOR)
            engine.store.settle()
            assert sorted(await names_of(engine)) == [b"later", b"waits"]
            require_sound(engine.store)


async def test_a_journal_runs_nothing_but_its_own_statements(store: Path) -> None:
    die_writing(store)
    forge(store, b"add-record", b"drop-table")
    opened = Store.open(store)
    assert log_of(opened) == BEFORE
    opened.close()


async def test_a_journal_that_does_not_fit_is_refused(store: Path) -> None:
    die_writing(store)
    forge(store, b"add-inode", b"put-xattr")
    with pytest.raises(errors.CorruptMetadata, match="a journal in the store"):
        Store.open(store)


def forge(store: Path, old: bytes, new: bytes) -> None:
    """Replace bytes in the first entry of a journal, and have its checksum fit."""
    (path,) = (store / "peers").glob("*.journal")
    content = path.read_bytes()
    magic, length, _ = HEADER.unpack_from(content)
    payload = content[HEADER.size : HEADER.size + length]
    assert old in payload
    payload = payload.replace(old, new)
    header = HEADER.pack(magic, length, xxhash.xxh3_64_intdigest(payload))
    path.write_bytes(header + payload + content[HEADER.size + length :])
