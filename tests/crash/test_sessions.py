"""Write sessions of several processes, and of some that die, on one store."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import trio

from nexus_engine.cas.own_packs import OwnPacks
from nexus_engine.engine import Engine
from nexus_engine.fs.attributes import NewAttributes
from nexus_engine.fs.content import SESSION_EXTENTS_MAX
from nexus_engine.fs.extents import CHUNK_BYTES
from nexus_engine.fs.files import Handle
from nexus_engine.services import Services
from nexus_engine.store import Store
from nexus_engine.types import ROOT_INO, Actor, Name

ALICE = Actor(uid=0, gid=0, pid=1, command="a", session=1, agent="alice")
BOB = Actor(uid=0, gid=0, pid=2, command="b", session=2, agent="bob")

DYING = """
import os, pathlib, signal, sys, trio
from nexus_engine.engine import Engine
from nexus_engine.services import Services
from nexus_engine.fs.attributes import NewAttributes
from nexus_engine.types import ROOT_INO, Actor, Name

async def main():
    engine = Engine.start(pathlib.Path(sys.argv[1]))
    actor = Actor(uid=0, gid=0, pid=os.getpid(), command="dying", agent="carol")
    inode = await engine.lookup(ROOT_INO, Name(b"file"))
    handle = await engine.open(inode.ino, os.O_RDWR, actor)
{steps}
    os.kill(os.getpid(), signal.SIGKILL)

trio.run(main)
"""


@pytest.fixture
def store(tmp_path: Path) -> Path:
    path = tmp_path / "store"
    Store.create(path, ALICE).close()
    return path


def die(store: Path, *steps: str) -> None:
    script = DYING.format(steps="\n".join("    " + step for step in steps))
    done = subprocess.run([sys.executable, "-c", script, store], check=False, timeout=60)
    assert done.returncode == -signal.SIGKILL


async def put(engine: Engine, name: bytes, content: bytes, actor: Actor = ALICE) -> None:
    handle, _ = await engine.create(ROOT_INO, Name(name), 0o644, actor)
    await engine.write(handle, 0, content)
    await engine.flush(handle)
    await engine.release(handle)


async def reopen(engine: Engine, name: bytes, actor: Actor = ALICE, flags: int = 0) -> Handle:
    inode = await engine.lookup(ROOT_INO, Name(name))
    assert inode is not None
    return await engine.open(inode.ino, os.O_RDWR | flags, actor)


async def content(engine: Engine, name: bytes, length: int = 1 << 20) -> bytes:
    handle = await reopen(engine, name)
    try:
        return bytes(await engine.read(handle, 0, length))
    finally:
        await engine.release(handle)


async def test_equal_content_outlives_the_removal_of_its_twin(store: Path) -> None:
    """A chunk that one session discards is still there for another that relies on it."""
    first, second = Engine.start(store), Engine.start(store)
    handles = []
    for name in (b"x", b"y"):
        handle, _ = await first.create(ROOT_INO, Name(name), 0o644, ALICE)
        await first.write(handle, 0, b"same bytes")
        await first.flush(handle)
        handles.append(handle)
    await second.unlink(ROOT_INO, Name(b"x"), BOB)
    for handle in handles:
        await first.release(handle)
    assert await content(first, b"y") == b"same bytes"
    await first.close()
    assert await content(second, b"y") == b"same bytes"
    await second.close()


async def test_what_a_dead_process_wrote_does_not_cover_what_came_later(store: Path) -> None:
    """Recovery keeps the old bytes as a version; the newest stay what the file shows."""
    engine = Engine.start(store)
    await put(engine, b"file", b"original")
    die(store, "await engine.write(handle, 0, b'OLD-from-carol')", "await engine.fsync(handle)")
    handle = await reopen(engine, b"file", flags=os.O_TRUNC)
    await engine.write(handle, 0, b"newer")
    await engine.release(handle)
    await engine.close()

    engine = Engine.start(store)
    assert await content(engine, b"file") == b"newer"
    (seq,) = engine.store.database.connection.one(
        "SELECT o.seq FROM oplog o JOIN actor a ON a.id = o.actor"
        " WHERE o.kind = 'write' AND a.agent = 'carol'"
    ) or (0,)
    view = engine.as_of(seq)
    inode = view.find_child(ROOT_INO, Name(b"file"))
    assert inode is not None
    assert bytes(await engine.read_at(view, inode, 0, 100)) == b"OLD-from-carol"
    await engine.close()


async def test_a_session_survives_the_packs_that_fill_up_meanwhile(store: Path) -> None:
    """A pack that is complete is not looked at after a crash: intents are renewed before."""
    engine = Engine.start(store)
    await put(engine, b"file", b"")
    await engine.close()
    die(
        store,
        "await engine.write(handle, 0, b'precious')",
        "await engine.fsync(handle)",
        "big, _ = await engine.create(ROOT_INO, Name(b'big'), 0o644, actor)",
        "for i in range(70): await engine.write(big, i << 20, os.urandom(1 << 20))",
        "await engine.release(big)",
        "await Services(engine).upkeep()",
    )
    engine = Engine.start(store)
    assert await content(engine, b"file") == b"precious"
    await engine.close()


async def test_truncating_an_open_file_survives_kill_9(store: Path) -> None:
    """truncate(2) returned: no close of the file needs to follow."""
    engine = Engine.start(store)
    await put(engine, b"file", b"a long log")
    await engine.close()
    die(store, "await engine.setattr(inode.ino, NewAttributes(size=2), actor)")
    engine = Engine.start(store)
    assert await content(engine, b"file") == b"a "
    await engine.close()


async def test_what_two_agents_write_to_one_file_is_two_operations(store: Path) -> None:
    engine = Engine.start(store)
    handle, inode = await engine.create(ROOT_INO, Name(b"log"), 0o644, ALICE)
    await engine.write(handle, 0, b"alice ")
    other = await engine.open(inode.ino, os.O_WRONLY, BOB)
    await engine.write(other, 6, b"bob")
    await engine.release(other)
    await engine.release(handle)
    rows = engine.store.database.connection.all(
        "SELECT a.agent FROM oplog o JOIN actor a ON a.id = o.actor"
        " WHERE o.kind = 'write' ORDER BY o.seq"
    )
    assert rows == [("alice",), ("bob",)]
    assert await content(engine, b"log") == b"alice bob"
    await engine.close()


async def test_an_open_session_keeps_what_a_peer_appended(store: Path) -> None:
    """A session that did not truncate does not cut off what others made longer meanwhile."""
    first, second = Engine.start(store), Engine.start(store)
    await put(first, b"file", b"0123456789")
    first.catch_up()
    handle = await reopen(first, b"file")
    await first.write(handle, 0, b"X")
    await first.flush(handle)
    appending = await reopen(second, b"file", BOB)
    await second.write(appending, 10, b"APPENDED")
    await second.release(appending)
    await first.release(handle)
    assert await content(second, b"file") == b"X123456789APPENDED"
    await first.setattr(
        (await reopen(first, b"file")).file.ino, NewAttributes(size=3), ALICE
    )  # and one that truncates does
    await first.close()
    assert await content(second, b"file") == b"X12"
    await second.close()


async def test_a_pack_is_not_left_before_what_was_promised_in_it_is_elsewhere(store: Path) -> None:
    """A file is open, was fsynced, and is written to again when its pack has become full."""
    engine = Engine.start(store)
    await put(engine, b"file", b"")
    await engine.close()
    die(
        store,
        "await engine.write(handle, 0, b'promised')",
        "await engine.fsync(handle)",
        "chunks = engine.store.chunks",
        "chunks.finish({pack.pack for pack in chunks.packs_written()})",
        "await engine.write(handle, 100, b'later')",
        "await Services(engine).upkeep()",
        "assert not engine.store.complete_packs()",
    )
    engine = Engine.start(store)
    assert (await content(engine, b"file")).startswith(b"promised")
    await engine.close()


async def test_a_pack_is_not_left_before_it_is_known_what_was_just_put_into_it(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread appends the chunk that makes it full, and gets no further until it is sealed."""
    engine = Engine.start(store)
    handle, _ = await engine.create(ROOT_INO, Name(b"file"), 0o644, ALICE)
    append = OwnPacks.append
    packs: list[str] = []

    def append_and_be_slow(self: OwnPacks, *args: Any) -> tuple[str, list[int]]:
        pack, offsets = append(self, *args)
        if not packs:
            packs.append(pack)
            self.finish(packs)
            trio.from_thread.run(Services(engine).upkeep)
        return pack, offsets

    monkeypatch.setattr(OwnPacks, "append", append_and_be_slow)
    promised = os.urandom(2 * CHUNK_BYTES)
    await engine.write(handle, 0, promised)
    await engine.fsync(handle)
    assert packs
    engine.store.abandon()
    engine = Engine.start(store)
    assert await content(engine, b"file", len(promised)) == promised
    await engine.close()


async def test_a_writer_of_single_bytes_takes_little_memory_and_keeps_nobody_waiting(
    store: Path,
) -> None:
    """Each piece is an extent: a session ends before there are too many of them."""
    engine = Engine.start(store)
    handle, _ = await engine.create(ROOT_INO, Name(b"file"), 0o644, ALICE)
    pieces = 3 * SESSION_EXTENTS_MAX
    for index in range(pieces):
        await engine.write(handle, index * 2, b"x")
        session = handle.file.session
        assert session is not None
        assert len(session.staged) + session.dirty.count <= SESSION_EXTENTS_MAX
    await engine.release(handle)
    assert (await content(engine, b"file"))[: 2 * pieces] == (b"x\0" * pieces)[:-1]
    assert engine.figures()["dirty_bytes"] == 0
    await engine.close()
