"""What a process leaves when it dies, and what the next one makes of it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import pytest
import trio

from nexus_engine import services
from nexus_engine.check.fsck import check
from nexus_engine.engine import Engine
from nexus_engine.fs.files import Handle
from nexus_engine.meta import gc_queries
from nexus_engine.meta.connection import Connection
from nexus_engine.meta.reader import Reader
from nexus_engine.retention import gc
from nexus_engine.store import Store
from nexus_engine.types import ROOT_INO, Actor, Digest, Name

ACTOR = Actor(uid=0, gid=0, pid=os.getpid(), command="test", agent="alice")

WRITER = """
import os, pathlib, signal, sys, trio
from nexus_engine.engine import Engine
from nexus_engine.types import ROOT_INO, Actor, Name

async def main():
    engine = Engine.start(pathlib.Path(sys.argv[1]))
    actor = Actor(uid=0, gid=0, pid=os.getpid(), command="writer", agent="bob")
    handle, inode = await engine.create(ROOT_INO, Name(b"file"), 0o644, actor)
    await engine.write(handle, 0, b"one ")
    await engine.flush(handle)
    await engine.write(handle, 4, b"two ")
    await engine.fsync(handle)
    await engine.write(handle, 8, b"three")
    {last}
    os.kill(os.getpid(), signal.SIGKILL)

trio.run(main)
"""


def die_writing(store: Path, last: str = "pass") -> None:
    done = subprocess.run([sys.executable, "-c", WRITER.format(last=last), store], check=False)
    assert done.returncode == -signal.SIGKILL


async def content(engine: Engine, name: bytes) -> bytes:
    inode = await engine.lookup(ROOT_INO, Name(name))
    assert inode is not None
    handle = await engine.open(inode.ino, os.O_RDONLY, ACTOR)
    try:
        return bytes(await engine.read(handle, 0, 1000))
    finally:
        await engine.release(handle)


@pytest.mark.parametrize(
    ("last", "expected"),
    [
        ("pass", b"one two "),
        ("await engine.flush(handle)", b"one two three"),
        ("await engine.release(handle)", b"one two three"),
    ],
)
async def test_what_was_flushed_outlives_its_process(
    tmp_path: Path, last: str, expected: bytes
) -> None:
    """close(2) and fsync(2) returned: kill -9 takes nothing of it away; the rest may go."""
    store = tmp_path / "store"
    Store.create(store, ACTOR).close()
    die_writing(store, last)
    for _ in range(2):  # the second time there is nothing left to recover, and nothing doubled
        engine = Engine.start(store)
        assert await content(engine, b"file") == expected
        writes = engine.store.database.connection.all(
            "SELECT a.agent FROM oplog o JOIN actor a ON a.id = o.actor WHERE o.kind = 'write'"
        )
        assert writes == [("bob",)]
        assert engine.store.database.open_packs() == []
        await engine.close()


async def test_a_living_process_is_left_alone(tmp_path: Path) -> None:
    """Recovery takes from the dead only: a session that goes on is nobody else's."""
    store = tmp_path / "store"
    Store.create(store, ACTOR).close()
    first = Engine.start(store)
    handle, _ = await first.create(ROOT_INO, Name(b"file"), 0o644, ACTOR)
    await first.write(handle, 0, b"unfinished")
    await first.flush(handle)
    second = Engine.start(store)
    assert await content(second, b"file") == b""
    await second.close()
    await first.release(handle)
    assert await content(first, b"file") == b"unfinished"
    await first.close()


async def test_an_unlinked_file_that_was_open_does_not_come_back(tmp_path: Path) -> None:
    store = tmp_path / "store"
    Store.create(store, ACTOR).close()
    die_writing(store, "await engine.unlink(ROOT_INO, Name(b'file'), actor)")
    engine = Engine.start(store)
    assert await engine.lookup(ROOT_INO, Name(b"file")) is None
    assert engine.store.database.unlinked_inodes() == []
    await engine.close()


MAKER = """
import os, pathlib, signal, sys
from nexus_engine.meta.database import Database
from nexus_engine.meta.reader import Reader
from nexus_engine.store import Store
from nexus_engine.types import Actor

{last} = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
Store.create(pathlib.Path(sys.argv[1]), Actor(uid=0, gid=0))
"""


@pytest.mark.parametrize("last", ["Database.transact", "Database.sync", "pathlib.Path.rename"])
def test_a_store_whose_making_was_killed_is_made_anew(tmp_path: Path, last: str) -> None:
    path = tmp_path / "store"
    done = subprocess.run([sys.executable, "-c", MAKER.format(last=last), path], check=False)
    assert done.returncode == -signal.SIGKILL
    assert not (path / "meta.db").exists()
    store = Store.create(path, ACTOR)
    assert Reader(store.database.connection).head() == 1
    store.close()


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> dict[Path, int]:
    """Return how long each file was when it was synced last."""
    lengths: dict[Path, int] = {}

    def sync(real: Callable[[int], None], fd: int) -> None:
        length = os.fstat(fd).st_size
        real(fd)
        lengths[Path(f"/proc/self/fd/{fd}").readlink()] = length

    for name in ("fsync", "fdatasync"):
        monkeypatch.setattr(os, name, partial(sync, getattr(os, name)))
    return lengths


async def test_what_was_fsynced_outlives_gc_and_its_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, synced: dict[Path, int]
) -> None:
    """The file is open: gc empties the pack that its bytes were synced into."""
    monkeypatch.setattr(services, "UPKEEP_INTERVAL_S", 0.02)
    engine, _, first = await with_fsynced_file(tmp_path / "store", b"kept")
    dropped = []
    drop = gc_queries.drop_chunks

    def drop_what_is_elsewhere(
        connection: Connection, number: int, digests: Iterable[Digest]
    ) -> None:
        """No row names a chunk of an open file but the one that gc drops."""
        dropped.append([synced[pack] - pack.stat().st_size for pack in first.parent.iterdir()])
        drop(connection, number, digests)

    monkeypatch.setattr(gc_queries, "drop_chunks", drop_what_is_elsewhere)

    await empty_beside(engine, first)
    assert dropped == [[0, 0]]
    await die_and_recover(engine, b"kept")


async def test_what_was_fsynced_outlives_gc_of_what_it_was_written_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An intent names all that was written in turn; gc takes what later writes cover."""
    monkeypatch.setattr(services, "UPKEEP_INTERVAL_S", 0.02)
    engine, handle, first = await with_fsynced_file(tmp_path / "store", b"old ")
    await begin_new_pack(engine)
    await engine.write(handle, 0, b"kept")
    await engine.fsync(handle)
    await empty_beside(engine, first)
    await die_and_recover(engine, b"kept")


async def test_gc_is_answered_when_what_takes_the_place_of_what_goes_is_durable(
    tmp_path: Path, synced: dict[Path, int]
) -> None:
    """What an open file had in the pack may have been fsynced, and gc goes by the answer."""
    engine, handle, first = await with_fsynced_file(tmp_path / "store", b"kept")
    await begin_new_pack(engine)
    (second,) = set(first.parent.iterdir()) - {first}
    before = second.stat().st_size
    retire(engine.store, first)
    await services.Services(engine).upkeep()
    assert gc_queries.unseen_packs(engine.store.database.connection, engine.store.owner) == []
    assert second.stat().st_size > before, "the chunk was stored again"
    assert synced[second] == second.stat().st_size
    await engine.release(handle)
    await engine.close()


async def with_fsynced_file(store: Path, written: bytes) -> tuple[Engine, Handle, Path]:
    """Make a store with an open file; return its engine, the handle and the only pack."""
    Store.create(store, ACTOR).close()
    engine = Engine.start(store)
    handle, _ = await engine.create(ROOT_INO, Name(b"file"), 0o644, ACTOR)
    await engine.write(handle, 0, written)
    await engine.fsync(handle)
    (pack,) = (store / "packs").iterdir()
    return engine, handle, pack


async def begin_new_pack(engine: Engine) -> None:
    """Have the pack of now complete, as one that is full."""
    chunks = engine.store.chunks
    chunks.finish({pack.pack for pack in chunks.packs_written()})
    await services.Services(engine).upkeep()
    assert not engine.store.complete_packs()


def retire(store: Store, pack: Path) -> None:
    connection = store.database.connection
    numbers = [n for n, name in gc_queries.all_packs(connection) if name == pack.stem]
    store.upkeep(store.database.in_transaction, lambda c: gc_queries.retire(c, numbers))


async def empty_beside(engine: Engine, pack: Path) -> None:
    """Have another process empty a pack while the engine's upkeep goes on."""

    def collect(peer: Store) -> None:
        retire(peer, pack)
        assert gc.collect(peer).packs == 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(services.Services(engine).run_upkeep)
        await engine.in_peer(collect)
        nursery.cancel_scope.cancel()
    assert not pack.exists()


async def die_and_recover(engine: Engine, expected: bytes) -> None:
    """Leave as by kill -9; the next process finds this in the file."""
    engine.store.abandon()
    engine = Engine.start(engine.store.path)
    assert await content(engine, b"file") == expected
    assert check(engine.store, deep=True) == []
    await engine.close()
