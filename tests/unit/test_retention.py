"""Pruning keeps what the policy keeps, whole; gc gives back the space of the rest."""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path as FilePath

import anyio
import msgspec
import pytest

from nexus_engine import errors
from nexus_engine.check.fsck import check
from nexus_engine.config import ClassRule, Retention, Thinning
from nexus_engine.fs import namespace
from nexus_engine.history import snapshots
from nexus_engine.history.moments import resolve_moment
from nexus_engine.history.undo import apply_undo, plan_undo
from nexus_engine.meta import gc_queries
from nexus_engine.meta.connection import Connection
from nexus_engine.oplog.verify import verify_log
from nexus_engine.retention import gc
from nexus_engine.retention.policy import Kept, choose
from nexus_engine.retention.prune import prune
from nexus_engine.services import Services
from nexus_engine.store import Store
from nexus_engine.types import Seq
from tests.unit.retaining import DAY, HOUR, MINUTE, beside, seal, stored
from tests.unit.worlds import ALICE, BOB, World

DAY_THEN_HOURS = Retention(keep_all="1d", thin=[Thinning("1h", "3d"), Thinning("1d", "30d")])


@pytest.fixture
async def world(tmp_path: FilePath) -> AsyncIterator[World]:
    world = World(tmp_path / "store")
    yield world
    world.store.chunks.close()
    world.database.close()


def test_what_is_kept_thins_out_with_age() -> None:
    """One operation a minute for forty days."""
    minutes = 40 * 24 * 60
    now_ns = minutes * MINUTE

    def seq_at(time_ns: int) -> Seq | None:
        return Seq(time_ns // MINUTE) if time_ns >= MINUTE else None

    kept = choose(DAY_THEN_HOURS, Kept(Seq(0), []), [Seq(77)], seq_at, now_ns)
    assert kept.pruned_to == minutes - 24 * 60
    assert kept.moments[0] == 77
    ages_h = [(minutes - seq) / 60 for seq in kept.moments[1:]]
    assert max(ages_h) <= 30 * 24
    assert len([age for age in ages_h if age <= 72]) in (47, 48)
    assert len([age for age in ages_h if age > 72]) in (26, 27)
    again = choose(DAY_THEN_HOURS, kept, [Seq(77)], seq_at, now_ns)
    assert again == kept


def test_what_is_gone_does_not_come_back() -> None:
    def seq_at(time_ns: int) -> Seq:
        return Seq(time_ns // MINUTE)

    before = Kept(Seq(1000), [Seq(10), Seq(500)])
    kept = choose(DAY_THEN_HOURS, before, [], seq_at, 2000 * MINUTE)
    assert kept.pruned_to == 1000
    assert set(kept.moments) <= {10, 500}


async def grow(world: World) -> dict[Seq, dict[bytes, tuple[object, ...]]]:
    """Work for ten days; return the tree after every operation."""
    trees = {}
    await world.mkdir("dir")
    for day in range(10):
        for hour in range(0, 24, 3):
            content = os.urandom(3000) + b"%d %d" % (day, hour)
            await world.write("dir/file", content)
            await world.write(f"dir/day{day}", content[:2000])
            await world.chmod(f"dir/day{day}", 0o600 + hour % 8)
            if hour == 12:
                await world.setxattr("dir/file", b"user.x", b"%d" % day)
                await world.mkdir(f"dir/sub{day}")
                await world.rename(f"dir/day{day}", f"dir/sub{day}/moved")
            if hour == 21 and day % 3 == 1:
                await world.remove(f"dir/sub{day - 1}")
            trees[world.head] = world.tree("", world.head)
            world.clock.now_ns += 3 * HOUR
    return trees


async def test_kept_moments_are_whole_and_the_others_are_not_shown(world: World) -> None:
    trees = await grow(world)
    snapshots.create(world.store, "pinned", ALICE)
    pinned = world.head - 1
    dropped = prune(world.store, DAY_THEN_HOURS, ALICE).rows
    assert dropped > 100
    whole = expired = 0
    for seq, tree in trees.items():
        try:
            resolve_moment(world.database, f"op-{seq}", world.clock.now_ns)
        except errors.HistoryExpired:
            expired += 1
            continue
        whole += 1
        assert world.tree("", seq) == tree
    assert whole >= 10
    assert expired >= 10
    assert world.tree("", Seq(pinned)) == trees[Seq(pinned)]
    assert check(world.store, deep=True) == []
    assert verify_log(world.database).holds
    assert prune(world.store, DAY_THEN_HOURS, ALICE).rows < dropped / 5


async def test_a_time_means_the_last_kept_moment_before_it(world: World) -> None:
    trees = await grow(world)
    prune(world.store, DAY_THEN_HOURS, ALICE)
    for age in ("30h", "55h", "4d", "7d"):
        seq = resolve_moment(world.database, age, world.clock.now_ns)
        assert world.tree("", seq) == trees[max(s for s in trees if s <= seq)]


async def test_snapshots_pin_what_they_hold(world: World) -> None:
    await world.write("file", b"pinned content")
    snapshots.create(world.store, "kept", ALICE)
    tree = world.tree("", Seq(world.head - 1))
    await world.write("file", b"later")
    await world.remove("file")
    world.clock.now_ns += 100 * DAY
    await world.write("other", b"now")
    prune(world.store, DAY_THEN_HOURS, ALICE)
    assert world.tree("", resolve_moment(world.database, "kept", world.clock.now_ns)) == tree


async def test_a_kept_moment_at_which_a_file_was_gone_keeps_nothing_of_it(world: World) -> None:
    await world.write("file", b"content")
    await world.remove("file")
    removed = world.head
    snapshots.create(world.store, "without", ALICE)
    apply_undo(world.store, [removed], actor=ALICE)
    await world.patch("file", 7, b" and more")
    await world.remove("file")
    world.clock.now_ns += 100 * DAY
    await world.write("other", b"now")
    prune(world.store, DAY_THEN_HOURS, ALICE)
    assert check(world.store, deep=True) == []


async def test_the_past_of_a_class_goes_sooner(world: World) -> None:
    policy = Retention(
        keep_all="30d", classes=[ClassRule("1h", names=["node_modules"], paths=["/tmp"])]
    )
    for directory in ("app", "app/node_modules", "tmp"):
        await world.mkdir(directory)
        await world.write(f"{directory}/file", b"old")
        await world.write(f"{directory}/file", b"new")
        await world.write(f"{directory}/gone", b"gone")
        await world.remove(f"{directory}/gone")
    then = world.head
    world.clock.now_ns += DAY
    await world.write("app/file", b"newest")
    prune(world.store, policy, ALICE)
    assert world.read("app/file", then) == b"new"
    assert world.exists("app/node_modules/file")
    assert world.inode("app/node_modules", then).is_dir
    for path in ("app/node_modules/gone", "tmp/gone"):
        with pytest.raises(errors.HistoryExpired):
            world.inode(path, Seq(then - 1))
    inside = world.database.connection.one(
        "SELECT count(*) FROM dentry_past WHERE CAST(name AS TEXT) = 'gone'"
    )
    assert inside == (1,)  # app's own
    assert check(world.store, deep=True) == []
    with pytest.raises(errors.HistoryExpired):
        plan_undo(world.store, [Seq(then)], actor=ALICE)


async def test_what_is_too_old_cannot_be_undone(world: World) -> None:
    await world.write("file", b"1")
    old = world.head
    world.clock.now_ns += 40 * DAY
    await world.write("file", b"2")
    new = world.head
    prune(world.store, DAY_THEN_HOURS, ALICE)
    with pytest.raises(errors.HistoryExpired):
        plan_undo(world.store, [old], actor=ALICE)
    assert plan_undo(world.store, [new], actor=ALICE).items


async def test_gc_moves_what_is_live_and_removes_the_rest(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nexus_engine.cas.writer.PACK_SIZE", 200_000)
    kept = os.urandom(5000)
    await world.write("kept", kept)
    for number in range(100):
        await world.write("changing", os.urandom(20_000) + b"%d" % number)
    last = world.read("changing")
    await Services(world.engine).upkeep()
    before = stored(world)
    assert gc.collect(world.store).packs == 0  # all of it is history
    world.clock.now_ns += 40 * DAY
    await world.write("other", b"now")
    prune(world.store, Retention(keep_all="1d"), ALICE)
    collected = gc.collect(world.store)
    assert collected.packs >= 8
    assert stored(world) < before / 5
    assert world.read("kept") == kept
    assert world.read("changing") == last
    assert check(world.store, deep=True) == []


async def test_gc_leaves_what_an_open_file_relies_on(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Content that equals what is being dropped is stored again, not dropped with it."""
    monkeypatch.setattr("nexus_engine.cas.writer.PACK_SIZE", 100_000)
    same = os.urandom(150_000)
    await world.write("old", same)
    await world.write("filler", os.urandom(150_000))
    await world.remove("old")
    world.clock.now_ns += 40 * DAY
    await Services(world.engine).upkeep()
    handle, _ = await world.engine.create(*world.place("new"), 0o644, ALICE)
    await world.engine.write(handle, 0, same)
    await world.engine.flush(handle)  # its chunks are those of the dead file
    prune(world.store, Retention(keep_all="1d"), ALICE)
    assert (await beside(world, gc.collect)).packs >= 1
    await world.engine.release(handle)
    assert world.read("new") == same
    assert check(world.store, deep=True) == []


async def test_gc_leaves_a_pack_that_a_purge_beside_it_gives_up(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who writes was not asked about that one yet, and an open file relies on it."""
    await world.write("old", os.urandom(150_000))
    await world.remove("old")
    await seal(world)
    content = os.urandom(150_000)
    handle, _ = await world.engine.create(*world.place("new"), 0o644, ALICE)
    await world.engine.write(handle, 0, content)
    await world.engine.flush(handle)
    await world.write("kept", os.urandom(150_000))
    await seal(world)
    world.clock.now_ns += 40 * DAY
    prune(world.store, Retention(keep_all="1d"), ALICE)
    find_live = gc_queries.find_live

    def retire_all_and_find(connection: Connection) -> None:
        numbers = [number for number, _ in gc_queries.all_packs(connection)]
        if gc_queries.retiring_numbers(connection):
            gc_queries.retire(connection, numbers)
        find_live(connection)

    monkeypatch.setattr(gc_queries, "find_live", retire_all_and_find)
    assert (await beside(world, partial(gc.collect, dead_share=0.99))).packs == 1
    await world.engine.release(handle)
    assert world.read("new") == content
    assert check(world.store, deep=True) == []


async def test_a_daemon_that_ends_does_not_wait_for_its_pruning(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It ends its upkeep at the same time, which answers gc: there is nobody left to ask."""
    caplog.set_level(logging.INFO, "nexus_engine.services")
    monkeypatch.setattr(gc, "_is_worth_it", lambda *_: True)
    policy = Retention(keep_all="1d", interval="1s")
    world.store.config = msgspec.structs.replace(world.store.config, retention=policy)
    await world.write("file", os.urandom(150_000))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(Services(world.engine).run_retention)
        with anyio.fail_after(gc.WAIT_S / 2):
            while not gc_queries.retiring_numbers(world.database.connection):  # noqa: ASYNC110
                await anyio.sleep(0.01)
            tasks.cancel_scope.cancel()
    assert [record.message for record in caplog.records] == [
        "pruning: stopped; the next run goes on"
    ]
    assert check(world.store, deep=True) == []


async def test_what_is_open_is_kept_whoever_removed_it(world: World) -> None:
    """unlink(2): the file lives until its last descriptor is closed, in another process too."""
    content = os.urandom(100_000)
    await world.write("file", content)
    handle = await world.engine.open(world.inode("file").ino, os.O_RDONLY, ALICE)

    def remove(store: Store) -> None:
        store.transact(namespace.unlink, BOB, *world.place("file"))

    await beside(world, remove)
    await seal(world)
    world.clock.now_ns += 40 * DAY
    await world.write("other", b"now")
    await beside(world, lambda store: prune(store, Retention(keep_all="1d"), ALICE))
    await beside(world, lambda store: gc.collect(store, dead_share=0))
    assert await world.engine.read(handle, 0, 200_000) == content
    await world.engine.release(handle)
    await beside(world, lambda store: prune(store, Retention(keep_all="1d"), ALICE))
    assert world.database.connection.all("SELECT 1 FROM extent") == [(1,)]
    assert check(world.store, deep=True) == []


async def test_gc_does_not_wait_for_who_only_reads(world: World) -> None:
    reading = Store.open(world.path, clock=world.clock)
    await world.write("file", os.urandom(50_000))
    await world.remove("file")
    await age_out(world)
    assert (await beside(world, partial(gc.collect, dead_share=0))).packs >= 1
    reading.close()


async def test_gc_names_the_process_that_does_not_answer(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gc, "WAIT_S", 0.1)
    await world.write("file", os.urandom(50_000))
    await world.remove("file")
    await age_out(world)
    peer = Store.open(world.path, clock=world.clock)
    with pytest.raises(errors.StoreBusy, match=rf"process {os.getpid()} \(.+\) writes"):
        gc.collect(peer, dead_share=0)  # nobody does the engine's upkeep
    peer.close()


async def age_out(world: World) -> None:
    """Let go of everything but the present."""
    world.clock.now_ns += 40 * DAY
    await world.write("other", b"now")
    await seal(world)
    for _ in range(2):
        await beside(world, lambda store: prune(store, Retention(keep_all="1d"), ALICE))
