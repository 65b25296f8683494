"""The Nth I/O fails, for every N, in every operation that changes a store.

Before or after, never between; the right errno; and once the disk works again, so do we.
"""

from __future__ import annotations

import errno
import gc
import itertools
import logging
import os
import random
import shutil
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import trio

from nexus_engine import errors
from nexus_engine.check.fsck import check
from nexus_engine.engine import Engine
from nexus_engine.history import snapshots
from nexus_engine.meta import quotas
from nexus_engine.oplog.verify import verify_log
from nexus_engine.recovery import recover
from nexus_engine.repair.salvage import salvage
from nexus_engine.store import Store
from nexus_engine.types import ROOT_INO, Inode, Name
from nexusfuse.errno_map import ERRNO
from tests.crash.failing_io import FAULTS, FailingIO, Fault, failing_io
from tests.crash.mutations import MUTATIONS, Mutation, Scene, furnish

State = dict[Any, Any]


@pytest.fixture(scope="module")
def furnished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("furnished") / "store"
    trio.run(furnish, path)
    return path


@pytest.fixture
def io(tmp_path: Path) -> Iterator[FailingIO]:
    with failing_io(tmp_path) as io:
        # pytest would keep every error that is logged, with all that is open in its frames.
        logging.disable(logging.CRITICAL)
        yield io
        logging.disable(logging.NOTSET)


async def look(scene: Scene) -> State:
    """Return all that programs can see, sessions included, but times."""
    engine = scene.engine
    engine.catch_up()  # as a daemon does every second
    state: State = {}
    todo: list[tuple[bytes, Inode]] = [(b"", await engine.getattr(ROOT_INO))]
    while todo:
        path, inode = todo.pop()
        names = await engine.listxattr(inode.ino)
        xattrs = {name: await engine.getxattr(inode.ino, name) for name in names}
        state[path] = (inode.mode, inode.uid, inode.gid, inode.nlink, inode.target, xattrs)
        if inode.is_dir:
            entries = await engine.list_children(inode.ino, 0, 1000)
            todo.extend((path + b"/" + entry.name, entry.inode) for entry in entries)
        elif inode.is_file:
            handle = engine.content.open(inode, scene.actor, silent=True)
            state[path] += (inode.size, await engine.read(handle, 0, inode.size + 1))
            handle.file.handles -= 1
            engine.content._drop_if_unused(handle.file)  # not a release: that would end sessions
    for name, handle in scene.handles.items():
        state["open", name] = await engine.read(handle, 0, 10**8)
    state["snapshots"] = [row.name for row in snapshots.list_all(scene.database)]
    state["quotas"] = quotas.all_quotas(scene.database.connection)
    # A session may end on the way to what was asked for: that changes nothing that can be seen.
    state["records"] = scene.database.connection.all(
        "SELECT kind, path FROM oplog WHERE kind NOT IN ('write', 'recover', 'prune', 'purge')"
    )
    return state


class Expected:
    """What is to be seen before and after a mutation, and by the next process after each."""

    def __init__(self, before: State, after: State, lost: State, kept: State) -> None:
        self.before, self.after = before, after
        self.lost, self.kept = lost, kept


class Laboratory:
    """Repeats a mutation on copies of the furnished store."""

    def __init__(
        self,
        furnished: Path,
        directory: Path,
        io: FailingIO,
        mutation: Mutation,
        *,
        waits: bool = False,
    ) -> None:
        """Prepare for it.

        Args:
            waits: Operations share a COMMIT, as in a daemon that has the store to itself.
        """
        self._furnished = furnished
        self._directory = directory
        self._io = io
        self._mutation = mutation
        self._waits = waits and mutation.mounted
        self._runs = 0

    async def _set(self) -> Scene:
        path = self._directory / f"store-{self._runs}"
        self._runs += 1
        shutil.copytree(self._furnished, path)
        scene = Scene(path)
        if self._mutation.prepare is not None:
            await self._mutation.prepare(scene)
        if not self._mutation.mounted:
            await scene.leave()
        if self._waits:
            scene.store.let_wait(lambda: None)
            await scene.engine.make(ROOT_INO, Name(b"waits"), 0o100644, scene.actor)
        return scene

    async def _do(
        self, act: Callable[[Scene], Awaitable[Any]], scene: Scene
    ) -> type[errors.EngineError] | None:
        """Do it, and return how it failed; commit what waits as soon as a thread wants to write."""
        failure: type[errors.EngineError] | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_settle_where_wanted, scene)
            # Only the type: a traceback would keep everything open that the frames in it know.
            try:
                await act(scene)
            except errors.EngineError as error:
                self._message = str(error)
                failure = type(error)
            nursery.cancel_scope.cancel()
        return failure

    async def _act(self, scene: Scene) -> type[errors.EngineError] | None:
        failure = await self._do(self._mutation.act, scene)
        if failure is None:
            with suppress(errors.EngineError):  # what was done is in the journal
                scene.store.settle()
        return failure

    async def expect(self) -> Expected:
        states = []
        for acts in (False, True):
            for dies in (False, True):
                scene = await self._set()
                if acts:
                    assert await self._do(self._mutation.act, scene) is None
                if not self._mutation.mounted:
                    scene.start()
                if dies:
                    scene.die()
                    scene.start()
                states.append(await look(scene))
                await self._end(scene)
        before, lost, after, kept = states
        return Expected(before, after, lost, kept)

    async def count(self, fault: Fault) -> int:
        """Return how many I/Os of the mutation a fault could hit."""
        scene = await self._set()
        self._io.arm(fault, 10**9)
        assert await self._do(self._mutation.act, scene) is None
        scene.store.settle()
        seen = self._io.seen
        self._io.heal()
        if not self._mutation.mounted:
            scene.start()
        await self._end(scene)
        return seen

    async def run(self, expected: Expected, fault: Fault, nth: int, *, dies: bool) -> bool:
        """Do it with a fault and look at what came of it; return whether the fault was hit."""
        try:
            return await self._run(expected, fault, nth, dies=dies)
        except BaseException as error:
            error.add_note(f"{self._mutation.name}: {fault.name}, I/O {nth}, {dies=}")
            raise

    async def _run(self, expected: Expected, fault: Fault, nth: int, *, dies: bool) -> bool:
        mutation, scene = self._mutation, await self._set()
        self._io.arm(fault, nth)
        failure = await self._act(scene)
        hit = bool(self._io.hits)
        self._io.heal()
        if not dies:
            scene.store.settle()  # as a daemon does soon
        if failure is not None:
            assert ERRNO[failure] == fault.error, self._message
        if not mutation.mounted:
            scene.start()
        if dies:
            scene.die()
            scene.start()
        scene.store.reserve.renew()  # as a daemon does every second
        assert_is_one_of(
            self._allowed(expected, failed=failure is not None, dies=dies), await look(scene)
        )
        if failure is not None and not dies:
            await self._again(scene)
            assert_is_one_of([expected.after], await look(scene))
        await self._end(scene)
        return hit

    def _allowed(self, expected: Expected, *, failed: bool, dies: bool) -> list[State]:
        if dies:
            # What failed may be found whole by the next process, but nothing between.
            either = [expected.lost, expected.kept]
            done = [expected.kept]
        else:
            either = [expected.before, expected.after]
            done = [expected.after]
        if self._mutation.in_parts or (failed and (dies or not self._mutation.mounted)):
            return either
        return [expected.before] if failed else done

    async def _again(self, scene: Scene) -> None:
        """The disk works again: so must what failed."""
        act = self._mutation.again or self._mutation.act
        if not self._mutation.mounted:
            await scene.leave()
        assert await self._do(act, scene) is None, self._message
        if not self._mutation.mounted:
            scene.start()

    async def _end(self, scene: Scene) -> None:
        """Whatever happened, the store is sound, now and for the next process; nothing is left."""
        scene.store.let_wait(None)
        scene.store.settle()
        for handle in scene.handles.values():
            await scene.engine.release(handle)
        scene.handles.clear()
        await scene.engine.settle()
        seen = await look(scene)
        assert check(scene.store, deep=True) == []
        assert verify_log(scene.database).holds
        await scene.leave()
        scene.start()
        assert await look(scene) == seen
        assert check(scene.store, deep=True) == []
        await scene.leave()
        assert os.listdir(scene.path / "peers") == []
        scene.__dict__.clear()
        gc.collect()
        assert descriptors(self._directory) == []
        shutil.rmtree(self._directory / f"store-{self._runs - 1}")


async def _settle_where_wanted(scene: Scene) -> None:
    """As a daemon does, which settles soon in any case."""
    while True:
        await trio.sleep(0.005)
        if scene.database.is_wanted:
            with suppress(errors.EngineError):
                scene.store.settle()


def descriptors(directory: Path) -> list[str]:
    """Return the files below a directory that this process has open."""
    found = []
    for number in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{number}")
        except FileNotFoundError:
            continue
        if target.startswith(str(directory)):
            found.append(target)
    return found


def assert_is_one_of(allowed: list[State], seen: State) -> None:
    if seen in allowed:
        return
    nearest = min(allowed, key=lambda state: len(differences(state, seen)))
    pytest.fail(f"neither before nor after: {differences(nearest, seen)}"[:2000])


def differences(one: State, other: State) -> list[str]:
    """Return what tells two states apart, the latest of it."""
    return [
        f"{key!r}: …{repr(one.get(key))[-300:]} / …{repr(other.get(key))[-300:]}"
        for key in sorted(one.keys() | other.keys(), key=repr)
        if one.get(key) != other.get(key)
    ]


async def test_a_store_that_could_not_be_opened_is_held_by_nobody(
    furnished: Path, tmp_path: Path, io: FailingIO
) -> None:
    """Whichever I/O fails on the way."""
    path = tmp_path / "store"
    shutil.copytree(furnished, path)
    for nth in itertools.count(1):
        io.arm(FAULTS[0], nth)
        engine: Engine | None = None
        failure: type[errors.EngineError] = errors.ObjectStoreFailed
        try:
            engine = Engine.start(path)
        except errors.EngineError as error:
            failure = type(error)
        hit = bool(io.hits)
        io.heal()
        assert ERRNO[failure] == errno.EIO
        if engine is not None:
            await engine.close()
        store = Store.open(path)
        recover(store)
        assert os.listdir(path / "peers") == [f"{store.owner}.lock"], nth
        store.close()
        if not hit:
            break
    assert nth > 10


# apsw tells of an error in xRead twice.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_salvage_whose_io_fails_leaves_a_database_to_salvage(
    furnished: Path, tmp_path: Path, io: FailingIO
) -> None:
    """Whichever I/O fails while one database takes the place of the other; a few before that."""
    path = tmp_path / "store"
    shutil.copytree(furnished, path)
    io.arm(FAULTS[0], 10**9)
    rows, count = salvage(path).rows, io.seen
    assert rows > 100
    failures = 0
    for nth in (*range(1, count - 10, 12), *range(count - 10, count + 1)):
        io.arm(FAULTS[0], nth)
        try:
            salvage(path)
        except errors.EngineError:
            failures += 1
        assert io.hits
        io.heal()
        assert salvage(path).rows == rows, nth
    assert failures > 10


async def test_a_pack_is_begun_though_the_disk_was_full_for_a_moment(
    furnished: Path, tmp_path: Path, io: FailingIO
) -> None:
    """Whichever I/O finds it full; what keeps a promise may use the reserve."""
    used = 0
    for nth in itertools.count(1):
        path = tmp_path / f"store{nth}"
        shutil.copytree(furnished, path)
        scene = Scene(path)
        handle = await scene.open_file("a/one")
        await scene.engine.write(handle, 0, b"kept")
        io.arm(FAULTS[1], nth)
        try:
            await scene.engine.flush(handle)
        except errors.NoSpace:
            io.heal()
            scene.store.reserve.renew()
            await scene.engine.flush(handle)
        io.heal()
        used += scene.store.reserve.spent
        assert (await scene.engine.read(handle, 0, 4)) == b"kept"
        await scene.leave()
        if not io.hits:
            break
    assert nth > 5
    assert used


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
@pytest.mark.parametrize("waits", [False, True])
async def test_an_operation_whose_io_fails_is_done_or_not_done(
    furnished: Path, tmp_path: Path, io: FailingIO, mutation: Mutation, *, waits: bool
) -> None:
    """A few of the I/Os, so that every commit tries some."""
    laboratory = Laboratory(furnished, tmp_path, io, mutation, waits=waits)
    expected = await laboratory.expect()
    chosen, hits = random.Random(f"{mutation.name} {waits}"), 0
    for fault in FAULTS if mutation.in_parts and not waits else chosen.sample(FAULTS, 1):
        count = await laboratory.count(fault)
        if count:
            hits += await laboratory.run(
                expected, fault, chosen.randint(1, count), dies=chosen.random() < 0.5
            )
    assert hits or mutation.in_memory


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
@pytest.mark.parametrize("waits", [False, True])
async def test_whichever_io_fails_an_operation_is_done_or_not_done(
    furnished: Path, tmp_path: Path, io: FailingIO, mutation: Mutation, *, waits: bool
) -> None:
    """Every I/O, in turn, with every fault."""
    laboratory = Laboratory(furnished, tmp_path, io, mutation, waits=waits)
    expected = await laboratory.expect()
    hits = 0
    for turn, fault in enumerate(FAULTS):
        for nth in range(1, await laboratory.count(fault) + 1):
            hits += await laboratory.run(expected, fault, nth, dies=(turn + nth) % 2 == 0)
    assert hits or mutation.in_memory
