"""kill -9 at every step of pruning, gc and purge: the store stays whole, and the next run finishes.

A child process dies before or after the Nth thing that it does to the disk, for every N.
"""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from itertools import count
from pathlib import Path as FilePath
from typing import Any

import pytest

from nexus_engine.backends.local import LocalObjectStore
from nexus_engine.cas.store import ChunkStore
from nexus_engine.check.fsck import check
from nexus_engine.config import ClassRule, Retention
from nexus_engine.history import snapshots
from nexus_engine.meta.connection import Connection
from nexus_engine.meta.database import Database
from nexus_engine.oplog.verify import verify_log
from nexus_engine.recovery import recover
from nexus_engine.retention import gc
from nexus_engine.retention.prune import prune
from nexus_engine.retention.purge import purge_path
from nexus_engine.store import Store
from nexus_engine.types import Actor, Path, Seq
from tests.unit.retaining import DAY, seal
from tests.unit.worlds import ALICE, StepClock, World, walk

POLICY = Retention(keep_all="1d", keep_log="2d", classes=[ClassRule("1h", names=["node_modules"])])
ROOT_ACTOR = Actor(0, 0)
Tree = dict[bytes, tuple[Any, ...]]

STEPS = (
    (Database, "in_transaction"),
    (Database, "transact"),
    (Database, "checkpoint"),
    (Connection, "run"),
    (Connection, "rewrite"),
    (ChunkStore, "copy"),
    (ChunkStore, "sync"),
    (LocalObjectStore, "delete"),
)
"""What changes the disk; a transaction shows as a whole or not at all, whatever it is made of."""


def do_prune(store: Store) -> None:
    prune(store, POLICY, ALICE)


def do_gc(store: Store) -> None:
    gc.collect(store)


def do_purge(store: Store) -> None:
    purge_path(store, Path(b"secret"), ROOT_ACTOR)


class Prepared:
    """A store at rest, and what must be in it whatever dies."""

    def __init__(self, path: FilePath) -> None:
        self.path = path
        self.present: Tree = {}
        self.pinned: Tree = {}
        self.moment = Seq(0)
        self.secret = os.urandom(30_000)
        self.attribute = os.urandom(200).hex().encode()

    def open(self, path: FilePath) -> Store:
        clock = StepClock()
        clock.now_ns += 100 * DAY
        return Store.open(path, clock=clock)


@pytest.fixture
async def prepared(tmp_path: FilePath, monkeypatch: pytest.MonkeyPatch) -> Prepared:
    monkeypatch.setattr("nexus_engine.cas.writer.PACK_SIZE", 100_000)
    prepared = Prepared(tmp_path / "template")
    world = World(prepared.path)
    await world.mkdir("node_modules")
    for number in range(12):
        await world.write(f"file{number}", os.urandom(20_000))
        await world.write(f"node_modules/{number}", os.urandom(20_000))
        await world.write(f"file{number}", os.urandom(1_000))
        await world.remove(f"node_modules/{number}")
    await world.write("secret", prepared.secret)
    await world.setxattr("secret", b"user.secret", prepared.attribute)
    snapshots.create(world.store, "pin", ALICE)
    prepared.moment = Seq(world.head - 1)
    world.clock.now_ns += 40 * DAY
    for number in range(6):
        await world.write(f"file{number}", os.urandom(2_000))
    world.clock.now_ns += 40 * DAY
    await world.write("last", b"last")
    await seal(world)
    prepared.present = world.tree()
    prepared.pinned = world.tree("", prepared.moment)
    await world.close()
    return prepared


def run_to_step(step: int | None, *, after: bool, action: Callable[[], None]) -> int:
    """Fork; have the child do something and die at a step, by kill -9.

    Returns:
        The status of the child, as waitpid(2) has it; of a child that was not to die, the number
        of steps that it took is the exit code.
    """
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1]
    numbers = count(1)
    last = 0

    def spied(method: Callable[..., object]) -> Callable[..., object]:
        def call(*args: object, **kwargs: object) -> object:
            nonlocal last
            last = number = next(numbers)
            if number == step and not after:
                os.kill(os.getpid(), signal.SIGKILL)
            result = method(*args, **kwargs)
            if number == step and after:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return call

    code = 255
    try:
        for owner, name in STEPS:
            setattr(owner, name, spied(getattr(owner, name)))
        action()
        code = last
    finally:
        os._exit(code)


def require_whole(prepared: Prepared, store: Store, *, purged: bool) -> None:
    """Ask of everything that is kept that it can be read, and of the store that it is sound."""
    assert [str(problem) for problem in check(store, deep=True)] == []
    assert verify_log(store.database).holds
    trees = (
        (prepared.present, walk(store)),
        (prepared.pinned, walk(store, store.database.as_of(prepared.moment))),
    )
    for wanted, found in trees:
        if purged:
            wanted = {path: facts for path, facts in wanted.items() if path != b"/secret"}
            found.pop(b"/secret")
        assert found == wanted


def size(path: FilePath) -> int:
    return sum(file.stat().st_size for file in (path / "packs").iterdir())


def raw(path: FilePath) -> bytes:
    return b"".join(file.read_bytes() for file in path.rglob("*") if file.is_file())


@pytest.mark.parametrize("action", [do_prune, do_gc, do_purge])
async def test_a_kill_at_any_step_leaves_a_whole_store(
    prepared: Prepared,
    tmp_path: FilePath,
    action: Callable[[Store], None],
    request: pytest.FixtureRequest,
) -> None:
    template = prepared.path
    if action is do_gc:
        store = prepared.open(template)
        do_prune(store)
        store.close()
    path = tmp_path / "store"

    def work() -> None:
        store = prepared.open(path)
        action(store)

    shutil.copytree(template, path)
    steps = os.waitstatus_to_exitcode(run_to_step(None, after=False, action=work))
    assert 5 < steps < 255
    recovered = prepared.open(path)
    recover(recovered)
    wanted = size(path)
    recovered.close()
    stride = 1 if request.config.getoption("--slow") else max(1, steps // 12)
    fired = 0
    for step in range(1, steps + 1, stride):
        for after in (False, True):
            shutil.rmtree(path)
            shutil.copytree(template, path)
            status = run_to_step(step, after=after, action=work)
            if not os.WIFSIGNALED(status):
                # How many batches it takes follows from how long they take: it was done before.
                assert os.waitstatus_to_exitcode(status) < step
                continue
            assert os.WTERMSIG(status) == signal.SIGKILL
            fired += 1
            store = prepared.open(path)
            recover(store)
            secret = store.reader.resolve(Path(b"secret"))
            emptied = secret is not None and secret.size == 0
            require_whole(prepared, store, purged=emptied)
            action(store)
            require_whole(prepared, store, purged=action is do_purge)
            store.close()
            assert size(path) < wanted * 1.1
            if action is do_purge:
                found = raw(path)
                assert prepared.secret[100:1000] not in found
                assert prepared.attribute not in found
    assert fired >= steps // stride
