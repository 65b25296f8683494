"""Quotas: the counters agree with what is there, whatever is done, and limits hold to the byte."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path as FilePath

import pytest

from nexus_engine import errors
from nexus_engine.fs.quotas import remove_quota, set_quota
from nexus_engine.history.restore import restore
from nexus_engine.history.undo import apply_undo
from nexus_engine.meta.quotas import Usage, all_quotas
from nexus_engine.store import Store
from nexus_engine.types import Ino, Path, Seq
from tests.unit.worlds import World

DIRECTORIES = ("", "a", "a/in", "a/in/deep", "b", "b/in", "c", "c/in")
LIMITED = ("", "a", "a/in", "b")


@pytest.fixture
async def world(tmp_path: FilePath) -> AsyncIterator[World]:
    """Yield directories, some of them with quotas that nothing here fills."""
    world = World(tmp_path / "store")
    for path in DIRECTORIES[1:]:
        await world.mkdir(path)
    yield world
    assert world.problems(deep=True) == []
    await world.close()


def limit(world: World, path: str, max_bytes: int | None, max_inodes: int | None = None) -> None:
    """Set a quota, as another process does."""
    peer = Store.open(world.path, clock=world.clock)
    peer.transact(set_quota, world.actor, world.inode(path).ino, max_bytes, max_inodes)
    peer.close()
    world.engine.catch_up()


def below(world: World, directory: Ino) -> Usage:
    """Count as du does: walk, and take each inode once."""
    sizes: dict[Ino, int] = {directory: 0}
    pending = [directory]
    while pending:
        for entry in world.store.reader.list_children(pending.pop(), 0, 100_000):
            sizes[entry.inode.ino] = entry.inode.size
            if entry.inode.is_dir:
                pending.append(entry.inode.ino)
    return Usage(sum(sizes.values()), len(sizes))


def require_exact(world: World) -> None:
    quotas = all_quotas(world.database.connection)
    assert len(quotas) == len(LIMITED)
    for quota in quotas:
        if world.store.reader.find_inode(quota.ino) is None:
            assert quota.used == Usage(0, 0)
        else:
            assert quota.used == below(world, quota.ino), world.store.reader.find_path(quota.ino)


class Doer:
    """Does something random, where that is possible."""

    def __init__(self, world: World, rng: random.Random) -> None:
        self.world = world
        self.rng = rng
        self.done = 0
        """Steps that changed something."""

    def pick(self, *, directory: bool | None = None) -> str | None:
        reader = self.world.store.reader
        found = []
        pending = [("", Ino(1))]
        while pending:
            path, ino = pending.pop()
            for entry in reader.list_children(ino, 0, 100_000):
                below = f"{path}/{entry.name.decode()}".lstrip("/")
                if directory is None or entry.inode.is_dir == directory:
                    found.append(below)
                if entry.inode.is_dir:
                    pending.append((below, entry.inode.ino))
        return self.rng.choice(found) if found else None

    def new(self) -> str:
        where = self.pick(directory=True) or ""
        return f"{where}/n{self.rng.randrange(12)}".lstrip("/")

    async def step(self) -> None:
        actions = (
            self.write, self.write, self.write, self.append, self.truncate, self.link, self.link,
            self.remove, self.rename, self.rename, self.rename, self.exchange, self.mkdir,
            self.symlink, self.chmod, self.undo, self.undo, self.restore, self.remove_tree,
        )  # fmt: skip
        head = self.world.head
        # Not everything is possible everywhere.
        with suppress(errors.NamespaceError, errors.ConflictError, errors.OperationNotPermitted):
            await self.rng.choice(actions)()
        self.done += self.world.head > head

    async def write(self) -> None:
        path = self.new()
        if not self.world.exists(path) or self.world.inode(path).is_file:
            await self.world.write(path, bytes(self.rng.randrange(5000)))

    async def append(self) -> None:
        path = self.pick(directory=False)
        if path and self.world.inode(path).is_file:
            await self.world.patch(path, self.world.inode(path).size, b"more")

    async def truncate(self) -> None:
        path = self.pick(directory=False)
        if path and self.world.inode(path).is_file:
            await self.world.setattr(path, size=self.rng.randrange(9000))

    async def link(self) -> None:
        path = self.pick(directory=False)
        if path:
            await self.world.link(path, self.new())

    async def remove(self) -> None:
        path = self.pick(directory=False)
        if path:
            await self.world.unlink(path)

    async def remove_tree(self) -> None:
        path = self.pick(directory=True)
        if path and self.rng.random() < 0.3:
            await self.world.remove(path)

    async def rename(self) -> None:
        old = self.pick(directory=self.rng.choice((True, False, None)))
        if old:
            new = self.rng.choice((self.new(), self.pick() or self.new()))
            await self.world.rename(old, new)

    async def exchange(self) -> None:
        old, new = self.pick(), self.pick()
        if old and new:
            await self.world.rename(old, new, 2)

    async def mkdir(self) -> None:
        await self.world.mkdir(self.new())

    async def symlink(self) -> None:
        await self.world.symlink(self.new(), b"x" * self.rng.randrange(1, 50))

    async def chmod(self) -> None:
        path = self.pick()
        if path:
            await self.world.chmod(path, 0o700)

    async def undo(self) -> None:
        head = self.world.head
        seqs = {Seq(self.rng.randrange(max(2, head - 30), head + 1)) for _ in range(5)}
        store = self.world.store
        apply_undo(store, sorted(seqs), actor=self.world.actor, force=self.rng.random() < 0.5)
        self.world.engine.content.refresh()

    async def restore(self) -> None:
        path = self.pick()
        if path:
            moment = Seq(self.rng.randrange(len(DIRECTORIES) + 1, self.world.head + 1))
            exact = self.rng.random() < 0.5
            restore(self.world.store, Path(path.encode()), moment, self.world.actor, exact=exact)
            self.world.engine.content.refresh()


async def do_at_random(world: World, seed: int, steps: int) -> None:
    for path in LIMITED:
        limit(world, path, 10**12, 10**9)
    doer = Doer(world, random.Random(seed))
    for _ in range(steps):
        await doer.step()
        require_exact(world)
    assert doer.done > steps / 3


async def test_counters_are_exact_whatever_is_done(world: World) -> None:
    """Hard links, moved directories, nested quotas, undo, restore; as du counts."""
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")  # noqa: T201 - shown when it fails
    await do_at_random(world, seed, 300)


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_counters_are_exact_for_longer(world: World) -> None:
    """The same, with more of it."""
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")  # noqa: T201 - shown when it fails
    await do_at_random(world, seed, 3000)


async def test_a_limit_holds_to_the_byte_and_lets_go_of_what_was_removed(world: World) -> None:
    """A write gets what fits; bytes in memory count; what is removed makes room."""
    limit(world, "a", 1000)
    await world.write("a/one", bytes(400))
    handle, _ = await world.engine.create(*world.place("a/in/two"), 0o644, world.actor)
    assert await world.engine.write(handle, 0, bytes(500)) == 500
    assert await world.engine.write(handle, 500, bytes(500)) == 100
    with pytest.raises(errors.QuotaExceeded, match="/a"):
        await world.engine.write(handle, 600, b"x")
    assert await world.engine.write(handle, 0, b"over what is there") == 18
    with pytest.raises(errors.QuotaExceeded):  # not yet in the log, and known all the same
        await world.setattr("a/one", size=401)
    await world.unlink("a/one")
    assert await world.engine.write(handle, 600, bytes(500)) == 400
    await world.engine.release(handle)
    assert world.inode("a/in/two").size == 1000
    with pytest.raises(errors.QuotaExceeded):
        await world.symlink("a/link", b"1")
    await world.write("b/elsewhere", bytes(5000))


async def test_what_comes_in_is_refused_whichever_way_it_comes(world: World) -> None:
    """Create, link, rename of a file and of a directory, undo, restore, truncate; EDQUOT."""
    await world.write("b/file", bytes(600))
    await world.mkdir("b/tree")
    await world.write("b/tree/file", bytes(600))
    await world.write("a/gone", bytes(600))
    await world.unlink("a/gone")
    removed = world.head
    limit(world, "a", 500, 4)
    before = world.tree()
    for refused in (
        world.rename("b/file", "a/file"),
        world.rename("b/tree", "a/in/tree"),
        world.rename("b/tree", "a/in", 2),
        world.link("b/file", "a/in/file"),
    ):
        with pytest.raises(errors.QuotaExceeded):
            await refused
    with pytest.raises(errors.QuotaExceeded):
        apply_undo(world.store, [removed], actor=world.actor)
    with pytest.raises(errors.QuotaExceeded):
        restore(world.store, Path(b"a/gone"), Seq(removed - 1), world.actor)
    assert world.tree() == before
    await world.write("a/last", b"")
    with pytest.raises(errors.QuotaExceeded):
        await world.mkdir("a/one too many")
    await world.rename("a/last", "c/last")
    await world.mkdir("a/room again")


async def test_more_than_a_new_limit_stays_and_only_growth_is_refused(world: World) -> None:
    """A limit below what is there: nothing is lost, renames within and shrinking go on."""
    await world.write("a/big", bytes(5000))
    limit(world, "a", 100, 1)
    await world.rename("a/big", "a/in/big")
    await world.patch("a/in/big", 0, b"overwritten")
    await world.chmod("a/in/big", 0o600)
    await world.setattr("a/in/big", size=4000)
    with pytest.raises(errors.QuotaExceeded):
        await world.setattr("a/in/big", size=4001)
    with pytest.raises(errors.QuotaExceeded):
        await world.mkdir("a/more")
    limit(world, "a", 10_000, 10)
    await world.setattr("a/in/big", size=4001)


async def test_a_file_without_a_name_counts_while_it_is_open(world: World) -> None:
    """What is unlinked takes space until it is closed."""
    limit(world, "a", 1000, 5)
    handle, _ = await world.engine.create(*world.place("a/file"), 0o644, world.actor)
    await world.engine.write(handle, 0, bytes(600))
    await world.unlink("a/file")
    await world.write("a/other", b"x")
    with pytest.raises(errors.QuotaExceeded):
        await world.setattr("a/other", size=401)
    assert await world.engine.write(handle, 600, bytes(600)) == 399
    assert (await world.engine.usage(world.inode("a").ino)).blocks_free == 0
    await world.engine.release(handle)
    await world.setattr("a/other", size=1000)


async def test_a_file_of_two_names_counts_once_in_each_quota(world: World) -> None:
    """As du counts what it is given; the last name in a quota takes it out of that one."""
    limit(world, "a", 10_000)
    limit(world, "b", 10_000)

    def used() -> list[int]:
        return [quota.used.bytes for quota in all_quotas(world.database.connection)]

    await world.write("a/file", bytes(100))
    await world.link("a/file", "a/in/again")
    assert used() == [100, 0]
    await world.link("a/file", "b/there")
    assert used() == [100, 100]
    await world.patch("b/there", 100, bytes(50))
    assert used() == [150, 150]
    await world.unlink("a/file")
    assert used() == [150, 150]
    await world.unlink("a/in/again")
    assert used() == [0, 150]


async def test_a_quota_comes_back_with_its_directory_and_can_be_lifted(world: World) -> None:
    """Removing the directory and undoing that leaves the limit as it was."""
    limit(world, "c", 1000)
    await world.write("c/in/file", bytes(900))
    before = world.head
    await world.remove("c")
    apply_undo(world.store, [Seq(s) for s in range(before + 1, world.head + 1)], actor=world.actor)
    world.engine.content.refresh()
    await world.write("c/more", bytes(101))  # a hundred of them
    with pytest.raises(errors.QuotaExceeded):
        await world.setattr("c/more", size=101)
    world.store.transact(remove_quota, world.actor, world.inode("c").ino)
    world.engine.content.refresh()
    await world.setattr("c/in/file", size=5000)
    with pytest.raises(errors.NotFound):
        world.store.transact(remove_quota, world.actor, world.inode("c").ino)


async def test_fsck_tells_a_counter_that_is_wrong(world: World) -> None:
    """And setting the quota again mends it."""
    limit(world, "a", 1000)
    world.edit("UPDATE quota SET bytes = bytes + 7")
    assert [problem.split(":")[0] for problem in world.problems()] == ["quota-usage"]
    limit(world, "a", 1000)
    assert world.problems() == []
