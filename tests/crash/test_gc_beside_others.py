"""gc beside processes that begin packs, answer it late, or purge: nothing that is kept goes."""

from __future__ import annotations

import os
import threading
from collections.abc import AsyncIterator, Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path as FilePath

import pytest
import trio

from nexus_engine.check.fsck import check
from nexus_engine.engine import Engine
from nexus_engine.meta import gc_queries
from nexus_engine.meta.connection import Connection
from nexus_engine.meta.database import Database
from nexus_engine.retention import gc
from nexus_engine.retention.purge import purge_path
from nexus_engine.services import Services
from nexus_engine.store import Store
from nexus_engine.types import ROOT_INO, Actor, Name, Path
from tests.unit.retaining import beside, seal
from tests.unit.worlds import ALICE, World

FIRST, NEXT = "1" * 32, "2" * 32


@pytest.fixture
async def world(tmp_path: FilePath) -> AsyncIterator[World]:
    world = World(tmp_path / "store")
    yield world
    await world.engine.close()


async def test_a_pack_is_its_process_s_before_gc_can_ask_about_it(
    tmp_path: FilePath, monkeypatch: pytest.MonkeyPatch
) -> None:
    """gc asks while a thread registers it: told that it is nobody's, gc would wait no longer."""
    world = World(tmp_path / "store")
    asked: list[str] = []
    add_pack = Database.add_pack

    def add_pack_and_ask(self: Database, name: str, owner: str) -> None:
        add_pack(self, name, owner)
        if not asked:
            asked.append(name)
            numbers = [number for number, _ in gc_queries.all_packs(self.connection)]
            gc_queries.retire(self.connection, numbers)
            trio.from_thread.run(Services(world.engine).upkeep)

    monkeypatch.setattr(Database, "add_pack", add_pack_and_ask)
    await world.store.disk.write(world.store.chunks.put, b"the first of its pack")
    assert asked
    handle, _ = await world.engine.create(*world.place("file"), 0o644, ALICE)
    await world.engine.write(handle, 0, b"promised")
    await world.engine.fsync(handle)
    await seal(world)  # gc waits for that
    await beside(world, gc.collect)
    world.store.abandon()
    engine = Engine.start(world.path)
    inode = engine.reader.find_child(ROOT_INO, Name(b"file"))
    assert inode is not None
    assert await engine.read_at(engine.reader, inode, 0, 100) == b"promised"
    assert check(engine.store, deep=True) == []
    await engine.close()


async def test_a_pack_that_is_given_up_before_it_is_registered_leaves_no_row(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk has all packs of now given up, while a thread waits to register one."""
    given_up: list[str] = []
    add_pack = Database.add_pack

    def give_up_and_add_pack(self: Database, name: str, owner: str) -> None:
        if not given_up:
            given_up.append(name)
            trio.from_thread.run(seal, world)
        add_pack(self, name, owner)

    monkeypatch.setattr(Database, "add_pack", give_up_and_add_pack)
    await world.store.disk.write(world.store.chunks.put, b"goes into the next")
    await Services(world.engine).upkeep()
    (pack,) = (world.path / "packs").iterdir()
    assert [name for _, name in gc_queries.all_packs(world.database.connection)] == [pack.stem]


def removed_empty(database: Database, _: list[str]) -> None:
    database.remove_pack(FIRST)


def dropped_before_the_answer(database: Database, answer: list[str]) -> None:
    gc_queries.drop_pack(database.connection, 1)
    gc_queries.note_seen(database.connection, answer, "other")


@pytest.mark.parametrize("go", [removed_empty, dropped_before_the_answer])
def test_an_answer_about_a_pack_is_none_about_the_next_of_its_number(
    tmp_path: FilePath, go: Callable[[Database, list[str]], None]
) -> None:
    """gc would not wait for whoever relies on what is in that one."""
    store = Store.create(tmp_path / "store", ALICE)
    database, connection = store.database, store.database.connection
    database.add_pack(FIRST, store.owner)
    gc_queries.retire(connection, [1])
    names = [name for _, name in gc_queries.unseen_packs(connection, "other")]
    gc_queries.note_seen(connection, names, "other")
    go(database, names)
    assert check(store) == []
    database.add_pack(NEXT, store.owner)
    gc_queries.retire(connection, [1])
    assert gc_queries.unseen_packs(connection, "other") == [(1, NEXT)]
    store.close()


async def test_gc_leaves_a_pack_that_a_purge_marks_when_it_has_looked_what_lives(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That one is for the purge's own gc."""
    kept = os.urandom(5000)
    await world.write("kept", kept)
    await world.write("secret", os.urandom(100))
    await seal(world)
    await world.write("other", os.urandom(100))
    _, (now, _) = gc_queries.all_packs(world.database.connection)
    marked = threading.Event()
    purging: list[Future[None]] = []
    find_outgoing, retire = gc_queries.find_outgoing, gc_queries.retire

    def purge() -> None:
        store = Store.open(world.path, clock=world.clock)
        purge_path(store, Path(b"secret"), Actor(0, 0))
        store.close()

    def retire_and_tell(connection: Connection, numbers: Iterable[int]) -> None:
        retire(connection, numbers)
        marked.set()

    def find_outgoing_and_purge(connection: Connection) -> None:
        find_outgoing(connection)
        if not purging:
            monkeypatch.setattr(gc_queries, "retire", retire_and_tell)
            purging.append(pool.submit(purge))
            assert marked.wait(30)

    def collect(store: Store) -> None:
        retire(store.database.connection, [now])
        monkeypatch.setattr(gc_queries, "find_outgoing", find_outgoing_and_purge)
        gc.collect(store)
        purging[0].result(30)

    with ThreadPoolExecutor(1) as pool:
        await beside(world, collect)
    assert world.read("kept") == kept
    assert world.read("secret") == b""
    assert world.problems(deep=True) == []
