"""The machine stops: what was fsynced is there, the rest is as before, and nothing reads EIO."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from nexus_engine import errors
from nexus_engine.check.fsck import check
from nexus_engine.engine import Engine
from nexus_engine.fs import namespace
from nexus_engine.meta import gc_queries
from nexus_engine.meta.transaction import Transaction
from nexus_engine.oplog.verify import verify_log
from nexus_engine.owners import owners, take_over
from nexus_engine.retention import gc
from nexus_engine.store import Store
from nexus_engine.types import ROOT_INO, Actor, Inode, Name, Seq

ALICE = Actor(uid=0, gid=0, pid=1, command="a", session=1, agent="alice")

# Writes what `steps` say, then dies; prints how long each pack was when it was synced last.
DYING = """
import os, pathlib, sys, trio
from nexus_engine.engine import Engine
from nexus_engine.types import ROOT_INO, Actor, Name

ACTOR = Actor(uid=0, gid=0, pid=os.getpid(), command="dying", agent="carol")

async def main():
    engine = Engine.start(pathlib.Path(sys.argv[1]))

    async def put(name, content, *, sync=False):
        inode = await engine.lookup(ROOT_INO, Name(name))
        if inode is None:
            handle, _ = await engine.create(ROOT_INO, Name(name), 0o644, ACTOR)
        else:
            handle = await engine.open(inode.ino, os.O_RDWR | os.O_TRUNC, ACTOR)
        await engine.write(handle, 0, content)
        if sync:
            await engine.fsync(handle)
        await engine.release(handle)

{steps}
    for pack in engine.store.chunks.packs_written():
        print(pack.pack, pack.synced_length)
    sys.stdout.flush()
    os._exit(9)

trio.run(main)
"""


@pytest.fixture
def store(tmp_path: Path) -> Path:
    path = tmp_path / "store"
    Store.create(path, ALICE).close()
    return path


def lose_power(store: Path, *steps: str, spared: int = 0) -> None:
    """Do the steps in a process, then lose every byte of packs that was not synced.

    Args:
        spared: So many of the latest packs lose nothing: the kernel had written them back.
    """
    packs = die(store, *steps)
    for path, synced in packs[: len(packs) - spared]:
        lose(path, synced)


def die(store: Path, *steps: str) -> list[tuple[Path, int]]:
    """Do the steps in a process that dies; return its packs, and how far it had synced them."""
    script = DYING.format(steps="\n".join("    " + step for step in steps))
    done = subprocess.run(
        [sys.executable, "-c", script, store],
        check=False,
        timeout=60,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 9, done.stderr
    lines = (line.split() for line in done.stdout.splitlines())
    return [(store / "packs" / f"{pack}.pack", int(synced)) for pack, synced in lines]


def lose(path: Path, synced: int) -> None:
    """Leave of a file what was synced."""
    if synced:
        os.truncate(path, synced)
    else:
        path.unlink()


async def read(engine: Engine, name: bytes, at: Seq | None = None) -> bytes | None:
    view = engine.reader if at is None else engine.as_of(at)
    inode: Inode | None = view.find_child(ROOT_INO, Name(name))
    return None if inode is None else await engine.read_at(view, inode, 0, inode.size)


async def test_unsynced_content_goes_back_to_what_it_was(store: Path) -> None:
    lose_power(
        store,
        "await put(b'kept', b'synced', sync=True)",
        "await put(b'changed', b'old', sync=True)",
        "await put(b'changed', b'new')",
        "await put(b'changed', b'newer')",
        "await put(b'fresh', b'never synced')",
    )
    engine = Engine.start(store)
    assert await read(engine, b"kept") == b"synced"
    assert await read(engine, b"changed") == b"old"
    assert await read(engine, b"fresh") == b""
    for seq in range(1, engine.reader.head() + 1):
        for name in (b"kept", b"changed", b"fresh"):
            assert await read(engine, name, Seq(seq)) in (None, b"", b"synced", b"old")
    assert check(engine.store, deep=True) == []
    assert verify_log(engine.store.database).holds
    # Content that was lost is stored anew, not taken for known.
    handle, _ = await engine.create(ROOT_INO, Name(b"again"), 0o644, ALICE)
    await engine.write(handle, 0, b"never synced")
    await engine.release(handle)
    assert await read(engine, b"again") == b"never synced"
    await engine.close()


async def test_a_pack_that_is_gone_altogether_takes_no_name_with_it(store: Path) -> None:
    lose_power(store, "await put(b'a', b'1')", "await put(b'b', b'2')")
    engine = Engine.start(store)
    assert (await read(engine, b"a"), await read(engine, b"b")) == (b"", b"")
    assert check(engine.store, deep=True) == []
    await engine.close()


async def test_what_was_removed_meanwhile_is_no_worse_off(store: Path) -> None:
    lose_power(
        store,
        "await put(b'a', b'1', sync=True)",
        "await put(b'a', b'2')",
        "await engine.unlink(ROOT_INO, Name(b'a'), ACTOR)",
    )
    engine = Engine.start(store)
    assert await read(engine, b"a") is None
    assert await read(engine, b"a", Seq(engine.reader.head() - 2)) == b"1"
    assert check(engine.store, deep=True) == []
    await engine.close()


async def test_recovery_says_what_it_took_back(store: Path) -> None:
    lose_power(store, "await put(b'a', b'1', sync=True)", "await put(b'a', b'2')")
    engine = Engine.start(store)
    row = engine.store.database.connection.one(
        "SELECT path, details ->> 'size' FROM oplog WHERE kind = 'recover'"
    )
    assert row == (b"a", 1)
    await engine.close()


SYNCED_A = (
    "handle, _ = await engine.create(ROOT_INO, Name(b'a'), 0o644, ACTOR)",
    "await engine.write(handle, 0, b'kept')",
    "await engine.fsync(handle)",
)


@pytest.mark.parametrize("how", ["os.O_TRUNC", "0"])
async def test_a_version_that_is_lost_and_was_written_over_shows_what_was_before(
    store: Path, how: str
) -> None:
    """The file shows what the disk has; a look at the moment between does not fail."""
    lost, newest = random.Random(1).randbytes(700), random.Random(2).randbytes(900)
    packs = die(
        store,
        "await put(b'file', b'old', sync=True)",
        f"await put(b'file', {lost!r})",
        "ino = (await engine.lookup(ROOT_INO, Name(b'file'))).ino",
        f"handle = await engine.open(ino, os.O_RDWR | {how}, ACTOR)",
        f"await engine.write(handle, 0, {newest!r})",
        "await engine.release(handle)",
    )
    for path, _ in packs:
        content = path.read_bytes()
        assert content.count(lost) == 1
        path.write_bytes(content.replace(lost, bytes(len(lost))))
    engine = Engine.start(store)
    assert await read(engine, b"file") == newest
    shown = [await read(engine, b"file", Seq(seq)) for seq in range(2, engine.reader.head() + 1)]
    # Made, written, lost, written, and the record of the recovery.
    assert shown == [b"", b"old", b"old", newest, newest]
    assert check(engine.store, deep=True) == []
    assert verify_log(engine.store.database).holds
    await engine.close()


async def test_what_was_fsynced_stays_where_the_end_of_the_session_is_lost(store: Path) -> None:
    """The session's record goes back, and the intent of the fsync is what the file shows."""
    lose_power(
        store,
        *SYNCED_A,
        "await engine.write(handle, 4, b' lost')",
        "await engine.release(handle)",
    )
    heads = []
    for _ in range(2):  # the second time there is nothing left to do
        engine = Engine.start(store)
        assert await read(engine, b"a") == b"kept"
        assert check(engine.store, deep=True) == []
        heads.append(engine.reader.head())
        await engine.close()
    assert heads[0] == heads[1]


async def test_what_was_fsynced_stays_where_a_later_flush_is_lost_in_part(store: Path) -> None:
    """The later intent is on the disk, in a pack of its own, and its chunks are not."""
    lose_power(
        store,
        "from nexus_engine.cas import writer; writer.PACK_SIZE = 40",
        *SYNCED_A,
        "await engine.write(handle, 4, os.urandom(100_000))",
        "await engine.flush(handle)",
        spared=1,
    )
    engine = Engine.start(store)
    assert await read(engine, b"a") == b"kept"
    assert check(engine.store, deep=True) == []
    await engine.close()


# Dies when it has finished a session of a process that died.
RECOVERING = """
import os, pathlib, sys
from nexus_engine import recovery
from nexus_engine.store import Store

finish = recovery._finish

def finish_and_die(*args):
    finish(*args)
    os._exit(9)

recovery._finish = finish_and_die
recovery.recover(Store.open(pathlib.Path(sys.argv[1])))
"""


def die_recovering(store: Path) -> None:
    done = subprocess.run([sys.executable, "-c", RECOVERING, store], check=False, timeout=60)
    assert done.returncode == 9


@pytest.mark.parametrize("interrupted", [False, True])
async def test_what_was_laid_over_lost_content_is_not_laid_over_other_content(
    store: Path, interrupted: bool
) -> None:
    """The intent is on the disk; the operation whose content it was laid over is not.

    Finishing another session gives that operation's number away, for the same file.
    """
    die(
        store,
        *SYNCED_A,
        "log = engine.store.path / 'meta.db-wal'",
        "log.with_name('synced').write_bytes(log.read_bytes())",
        "await engine.write(handle, 0, b'lost')",
        "await engine.release(handle)",
        "handle = await engine.open(handle.file.ino, os.O_RDWR, ACTOR)",
        "await engine.write(handle, 0, b'X')",
        "await engine.flush(handle)",
    )
    (store / "synced").replace(store / "meta.db-wal")
    if interrupted:
        die_recovering(store)
    engine = Engine.start(store)
    assert await read(engine, b"a") == b"kept"
    for seq in range(1, engine.reader.head() + 1):
        assert await read(engine, b"a", Seq(seq)) in (None, b"", b"kept")
    notes = "SELECT key FROM store WHERE key LIKE 'end:%'"
    assert engine.store.database.connection.all(notes) == []
    assert check(engine.store, deep=True) == []
    assert verify_log(engine.store.database).holds
    await engine.close()


@pytest.mark.parametrize("reverse", [False, True])
async def test_what_was_fsynced_stays_where_another_process_lost_what_was_laid_over_it(
    store: Path, monkeypatch: pytest.MonkeyPatch, reverse: bool
) -> None:
    """Whichever of the two is recovered first: the later intent relies on a chunk of the other."""
    lose_power(
        store,
        "other = Engine.start(pathlib.Path(sys.argv[1]))",
        *SYNCED_A,
        "theirs, _ = await other.create(ROOT_INO, Name(b'theirs'), 0o644, ACTOR)",
        "await other.write(theirs, 0, b'same')",
        "await other.release(theirs)",
        "await engine.write(handle, 0, b'same')",
        "await engine.flush(handle)",
        "for pack in other.store.chunks.packs_written(): print(pack.pack, pack.synced_length)",
        spared=1,
    )

    def ordered(peers: Path) -> list[str]:
        """Only one of them has ever synced."""
        how_far = {owner: (peers / f"{owner}.lock").read_bytes() for owner in owners(peers)}
        return sorted(how_far, key=how_far.__getitem__, reverse=reverse)

    monkeypatch.setattr("nexus_engine.recovery.owners", ordered)
    engine = Engine.start(store)
    assert await read(engine, b"a") == b"kept"
    assert await read(engine, b"theirs") == b""
    assert check(engine.store, deep=True) == []
    await engine.close()


def test_what_is_not_committed_is_not_said_to_be_on_the_disk(store: Path) -> None:
    """Or the operation that gets its number later would not be looked at after a power loss."""
    opened = Store.open(store)

    def fail(tx: Transaction) -> None:
        namespace.make(tx, ROOT_INO, Name(b"directory"), 0o40755)
        opened.sync()  # as a thread does at any time
        raise errors.AlreadyExists

    with pytest.raises(errors.AlreadyExists):
        opened.transact(fail, ALICE)
    head, owner = opened.reader.head(), opened.owner
    opened.abandon()
    lock = take_over(store / "peers", owner)
    assert lock is not None
    assert lock.synced() == head
    lock.release()


async def test_a_pack_without_its_header_is_mended(store: Path) -> None:
    """The first sector may be the one that did not reach the disk."""
    lose_power(store, "await put(b'a', b'1', sync=True)", "await put(b'b', b'2')", spared=1)
    (pack,) = (store / "packs").iterdir()
    with pack.open("r+b") as file:
        file.write(bytes(32))
    engine = Engine.start(store)
    assert (await read(engine, b"a"), await read(engine, b"b")) == (b"1", b"2")
    assert check(engine.store, deep=True) == []
    await engine.close()


async def test_a_copy_that_is_lost_takes_nothing_from_whom_it_was_made_for(store: Path) -> None:
    """gc has begun to empty a pack: what is stored anew meanwhile is all that the index names."""
    engine = Engine.start(store)
    handle, _ = await engine.create(ROOT_INO, Name(b"old"), 0o644, ALICE)
    await engine.write(handle, 0, b"the same")
    await engine.fsync(handle)
    await engine.release(handle)
    await engine.close()
    opened = Store.open(store)
    numbers = [number for number, _ in gc_queries.all_packs(opened.database.connection)]
    opened.upkeep(
        opened.database.in_transaction, lambda connection: gc_queries.retire(connection, numbers)
    )
    opened.close()

    lose_power(store, "await put(b'new', b'the same')", "await put(b'other', b'lost')")
    engine = Engine.start(store)
    assert await read(engine, b"old") == b"the same"
    assert await read(engine, b"new") == b"the same"
    assert await read(engine, b"other") == b""
    assert check(engine.store, deep=True) == []
    await engine.close()
    opened = Store.open(store)
    assert gc.collect(opened).copied_bytes > 0
    assert check(opened, deep=True) == []
    opened.close()
    engine = Engine.start(store)
    assert await read(engine, b"old") == b"the same"
    await engine.close()


async def test_fsync_in_one_mount_covers_what_another_mount_wrote(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """fsync(2) is about the file: all of it is there, whichever process stored which part."""
    engine = Engine.start(store)
    handle, inode = await engine.create(ROOT_INO, Name(b"shared"), 0o644, ALICE)
    await engine.write(handle, 0, b"ours ")
    await engine.fsync(handle)
    await engine.release(handle)
    packs = die(
        store,
        "inode = await engine.lookup(ROOT_INO, Name(b'shared'))",
        "handle = await engine.open(inode.ino, os.O_RDWR, ACTOR)",
        "await engine.write(handle, 5, b'theirs')",
        "await engine.release(handle)",
        "await put(b'other', b'not synced by anybody')",
    )
    synced: dict[int, int] = {}
    for call in ("fsync", "fdatasync"):
        real = getattr(os, call)

        def sync(fd: int, real: Callable[[int], None] = real) -> None:
            real(fd)
            synced[os.fstat(fd).st_ino] = os.fstat(fd).st_size

        monkeypatch.setattr(os, call, sync)
    engine.catch_up()
    handle = await engine.open(inode.ino, os.O_RDONLY, ALICE)
    await engine.fsync(handle)
    for path, by_its_process in packs:
        lose(path, max(by_its_process, synced.get(path.stat().st_ino, 0)))
    again = len(synced)
    synced.clear()
    await engine.fsync(handle)
    assert len(synced) < again, "what is known to be durable is not synced again"
    engine.store.abandon()
    engine = Engine.start(store)
    assert await read(engine, b"shared") == b"ours theirs"
    assert check(engine.store, deep=True) == []
    await engine.close()
