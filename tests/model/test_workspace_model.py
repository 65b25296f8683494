"""A workspace behaves like a copy of its base, whatever is done in it and when; and is applied."""

from __future__ import annotations

import random
from pathlib import Path as FilePath

import pytest

from nexus_engine import errors
from nexus_engine.history.select import Selector
from nexus_engine.meta.workspace_queries import Workspace
from nexus_engine.types import Seq
from tests.unit.undoing import undo
from tests.unit.working import apparent, apply, discard, make, status
from tests.unit.worlds import World, to_path

NAMES = ("a", "b", "c", "d")
STEPS = 40
ROUNDS = 12
SLOW_ROUNDS = 300


class Doing:
    """Random operations, each on several trees at once: what they do must be the same."""

    def __init__(self, world: World, chance: random.Random) -> None:
        self._world = world
        self._chance = chance
        self._count = 0

    def _path(self) -> str:
        depth = self._chance.choice((1, 1, 2, 2, 3))
        return "/".join(self._chance.choice(NAMES) for _ in range(depth))

    async def step(self, *trees: str) -> None:
        """Do one thing in every tree."""
        world, chance = self._world, self._chance
        self._count += 1
        path, other, kind = self._path(), self._path(), chance.randrange(10)
        content = b"%d" % self._count * chance.choice((0, 1, 50))
        mode, flags = chance.choice((0o600, 0o644, 0o755)), chance.choice((0, 0, 0, 1, 2))
        outcomes = []
        for tree in trees:
            try:
                where, there = f"{tree}/{path}", f"{tree}/{other}"
                if kind < 3:
                    # A program would not get to open these: the kernel sees to that.
                    if world.exists(where) and not world.inode(where).is_file:
                        raise errors.IsADirectory(where)
                    await world.write(where, content)
                elif kind == 3:
                    await world.unlink(where)
                elif kind == 4:
                    await world.mkdir(where)
                elif kind == 5:
                    await world.remove(where)
                elif kind == 6:
                    await world.rename(where, there, flags)
                elif kind == 7:
                    if world.inode(where).is_symlink:
                        raise errors.NotSupported(where)
                    await world.chmod(where, mode)
                elif kind == 8:
                    await world.symlink(where, b"target %d" % self._count)
                else:
                    await world.setxattr(where, b"user.x", content)
                outcomes.append("done")
            except (errors.EngineError, AssertionError) as error:
                # (Worlds assert that what they work on is there.)
                outcomes.append(type(error).__name__)
        assert len(set(outcomes)) == 1, (path, other, kind, outcomes)


async def copy(world: World, source: str, target: str) -> None:
    """Copy a tree, as ``cp -a`` does but for links of files."""
    for below, values in sorted(world.tree(source).items()):
        path, mode, content = target + below.decode(), values[0], values[6]
        kind = mode & 0o170000
        if kind == 0o040000:
            await world.mkdir(path)
        elif kind == 0o120000:
            await world.symlink(path, content)
        else:
            await world.write(path, content)
        for name, value in values[7]:
            await world.setxattr(path, name, value)
        if kind != 0o120000:
            await world.chmod(path, mode & 0o7777)


async def play(world: World, chance: random.Random) -> None:
    doing = Doing(world, chance)
    await world.mkdir("base")
    for _ in range(STEPS):
        await doing.step("base")
    began = apparent(world, "base", times=False)
    await copy(world, "base", "copy")
    made = make(world, "w", "base")
    began_at = world.head
    moments: list[tuple[Seq, dict[bytes, object]]] = []
    for _ in range(STEPS // 2):
        await doing.step("w", "copy")
        if chance.random() < 0.3:
            await doing.step("base")
        if chance.random() < 0.1:
            moments.append((world.head, dict(apparent(world, "copy", times=False))))
        if chance.random() < 0.05:
            # What is gone for a while comes back, and has not changed.
            undo(world, Selector(ops=(discard(world, made),)))
    assert apparent(world, "w", times=False) == apparent(world, "copy", times=False)
    for seq, then in moments:
        assert apparent(world, "w", seq, times=False) == then
    assert apparent(world, "w", began_at, times=False) == began
    assert world.problems() == []
    await settle(world, made)


async def settle(world: World, made: Workspace) -> None:
    """Apply what can be; where nobody else changed anything, base and workspace are then one."""
    before = apparent(world, "base")
    found = status(world, made)
    done = apply(world, made)
    assert world.problems() == []
    left = status(world, made)
    assert all(path.startswith(b"!") for _, path in left), left
    if not any(path.startswith(b"!") for _, path in found):
        assert left == []
    if done.seq is not None:
        undo(world, Selector(ops=(done.seq,)))
        assert apparent(world, "base") == before
        assert status(world, made) == found
        assert world.problems() == []


async def test_a_workspace_behaves_like_a_copy(tmp_path: FilePath, seed: int) -> None:
    for number in range(ROUNDS):
        await play_in(tmp_path, seed + number)


@pytest.mark.slow
async def test_many_workspaces_behave_like_copies(tmp_path: FilePath, seed: int) -> None:
    for number in range(SLOW_ROUNDS):
        await play_in(tmp_path, seed + number)


async def play_in(tmp_path: FilePath, seed: int) -> None:
    print(f"--seed {seed}")  # noqa: T201
    world = World(tmp_path / f"store-{seed}")
    try:
        await play(world, random.Random(seed))
    finally:
        await world.close()


async def test_applying_to_a_base_that_nobody_touched_makes_it_the_workspace(
    tmp_path: FilePath, seed: int
) -> None:
    for number in range(ROUNDS):
        print(f"--seed {seed + number}")  # noqa: T201
        world = World(tmp_path / f"store-{number}")
        doing = Doing(world, random.Random(seed + number))
        await world.mkdir("base")
        for _ in range(STEPS):
            await doing.step("base")
        made = make(world, "w", "base")
        for _ in range(STEPS):
            await doing.step("w")
        before = apparent(world, "base")
        done = apply(world, made)
        assert apparent(world, "base", times=False) == apparent(world, "w", times=False)
        assert status(world, made) == []
        for _ in range(STEPS // 4):
            await doing.step("w")
        apply(world, made)
        assert apparent(world, "base", times=False) == apparent(world, "w", times=False)
        assert world.problems() == []
        if done.seq is not None:
            undo(world, Selector(since_seq=Seq(done.seq - 1), path=to_path("base")))
            assert apparent(world, "base") == before
        await world.close()
