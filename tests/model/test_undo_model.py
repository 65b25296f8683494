"""Undo against random histories: several agents, every kind of operation, undos in between.

Each example is a list of steps whose numbers pick among the paths that exist at that moment, so
that nearly every step does something and a failure shrinks well.
"""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path as FilePath
from typing import Any, NamedTuple

import pytest
import trio
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from nexus_engine import errors
from nexus_engine.fs.attributes import NewAttributes
from nexus_engine.fs.namespace import RENAME_EXCHANGE
from nexus_engine.history.select import Selector, select, select_redo
from nexus_engine.history.undo import UndoPlan, apply_undo, plan_undo
from nexus_engine.meta.reader import View
from nexus_engine.permissions import acl
from nexus_engine.types import Actor, Ino, Seq
from tests.unit.worlds import ALICE, BEGIN_NS, BOB, SECOND, World

from .running import LONGEST_S

pytestmark = pytest.mark.timeout(LONGEST_S)

ROOT = Actor(0, 0, 1, 1, "nexus-ctl", 1, "")
AGENTS = (ALICE, BOB)
NAMES = (b"a", b"b", b"c")

Tree = dict[bytes, tuple[Any, ...]]

_NEVER = Seq(0)


class Step(NamedTuple):
    agent: int
    kind: str
    first: int
    """Picks an existing path."""
    second: int
    """Picks the directory of a new one."""
    name: int
    number: int
    """Length, offset, mode, time: whatever the kind wants."""


KINDS = (
    "make", "make", "mkdir", "mkdir", "symlink", "link", "unlink", "unlink", "rmdir", "remove",
    "rename", "rename", "rename", "exchange", "write", "write", "patch", "truncate", "chmod",
    "chown", "utimes", "setxattr", "removexattr", "save", "mknod", "set_acl", "remove_acl",
    "write_far", "truncate_open", "swap",
)  # fmt: skip
SPECIAL = (stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFBLK)
ACLS = tuple(
    b"\2\0\0\0" + bytes.fromhex(entries)
    for entries in (
        "01000700ffffffff04000500ffffffff20000000ffffffff",
        "01000600ffffffff02000700e903000004000400ffffffff10000600ffffffff20000400ffffffff",
    )
)

UNDOS = ("undo_last", "undo_one", "redo", "force_one")


def steps(kinds: tuple[str, ...], most: int) -> st.SearchStrategy[list[Step]]:
    small = st.integers(0, 11)
    step = st.builds(
        Step, st.integers(0, 1), st.sampled_from(kinds), small, small, st.integers(0, 2), small
    )
    return st.lists(step, min_size=most // 2, max_size=most)


class Player:
    """Plays steps in a world, below one directory."""

    def __init__(self, world: World, top: bytes = b"") -> None:
        self.world = world
        self.top = top
        self.clean = True
        """No undo among the steps left or forced anything, or reached below what came later.

        After one that did, names that went back and forth may be in conflict where a person
        would see that they cancel out.
        """

    async def play(self, step: Step, since: Seq = _NEVER) -> None:
        self.world.actor = AGENTS[step.agent]
        try:
            if step.kind in UNDOS:
                self._undo(step, since)
            else:
                await getattr(self, step.kind)(step)
        except (errors.NamespaceError, errors.NoXattr, errors.NothingToUndo):
            pass  # as it happens: the name is taken, the directory is not empty
        except errors.PermissionDenied:
            assert step.kind == "set_acl"  # a default ACL on what is no directory

    def _paths(self, kind: int = 0) -> list[bytes]:
        """Return existing paths below the top, of one type or all."""
        found: list[bytes] = []
        pending = [(self.top, self.world.inode(self.top).ino)]
        while pending:
            path, ino = pending.pop(0)
            for entry in self.world.store.reader.list_children(ino, 0, 1000):
                below = path + b"/" + entry.name if path else bytes(entry.name)
                if not kind or stat.S_IFMT(entry.inode.mode) == kind:
                    found.append(below)
                if entry.inode.is_dir:
                    pending.append((below, entry.inode.ino))
        return sorted(found)

    def _pick(self, step: Step, kind: int = 0) -> bytes:
        paths = self._paths(kind)
        if not paths:
            raise errors.NotFound("nothing there yet")
        return paths[step.first % len(paths)]

    def _new(self, step: Step) -> bytes:
        directories = [self.top, *self._paths(stat.S_IFDIR)]
        directory = directories[step.second % len(directories)]
        return directory + b"/" + NAMES[step.name] if directory else NAMES[step.name]

    async def make(self, step: Step) -> None:
        await self.world.engine.make(
            *self.world.place(self._new(step)), stat.S_IFREG | 0o644, self.world.actor
        )

    async def mkdir(self, step: Step) -> None:
        await self.world.mkdir(self._new(step))

    async def symlink(self, step: Step) -> None:
        await self.world.symlink(self._new(step), b"t%d" % step.number)

    async def link(self, step: Step) -> None:
        await self.world.link(self._pick(step, stat.S_IFREG), self._new(step))

    async def unlink(self, step: Step) -> None:
        await self.world.unlink(self._pick(step, stat.S_IFREG))

    async def rmdir(self, step: Step) -> None:
        await self.world.rmdir(self._pick(step, stat.S_IFDIR))

    async def remove(self, step: Step) -> None:
        await self.world.remove(self._pick(step))

    async def rename(self, step: Step) -> None:
        await self.world.rename(self._pick(step), self._new(step))

    async def exchange(self, step: Step) -> None:
        paths = self._paths()
        other = paths[step.second % len(paths)] if paths else b"-"
        await self.world.rename(self._pick(step), other, RENAME_EXCHANGE)

    async def write(self, step: Step) -> None:
        await self.world.write(self._pick(step, stat.S_IFREG), b"%d" % step.number * step.number)

    async def mknod(self, step: Step) -> None:
        kind = SPECIAL[step.number % len(SPECIAL)]
        rdev = os.makedev(step.number, step.second) if kind in SPECIAL[2:] else 0
        place = self.world.place(self._new(step))
        await self.world.engine.make(*place, kind | 0o640, self.world.actor, rdev=rdev)

    async def swap(self, step: Step) -> None:
        """Exchange a file with a directory."""
        file, directory = self._pick(step, stat.S_IFREG), self._pick(step, stat.S_IFDIR)
        await self.world.rename(file, directory, RENAME_EXCHANGE)

    async def write_far(self, step: Step) -> None:
        """Leave a hole of some chunks."""
        path = self._pick(step, stat.S_IFREG)
        await self.world.patch(path, step.number % 4 * 1_300_000, b"far %d" % step.second)

    async def truncate_open(self, step: Step) -> None:
        """Write, cut off some of it, write again, all in one session."""
        engine, ino = self.world.engine, self.world.inode(self._pick(step, stat.S_IFREG)).ino
        handle = await engine.open(ino, os.O_RDWR, self.world.actor)
        await engine.write(handle, step.second * 20_000, b"%d" % step.number * 30_000)
        await engine.setattr(ino, NewAttributes(size=step.number * 25_000), self.world.actor)
        await engine.write(handle, step.name * 90_000, b"end")
        await engine.release(handle)

    async def set_acl(self, step: Step) -> None:
        name = acl.NAMES[step.second % 2]
        await self.world.setxattr(self._pick(step), name, ACLS[step.number % 2])

    async def remove_acl(self, step: Step) -> None:
        ino = self.world.inode(self._pick(step)).ino
        await self.world.engine.removexattr(ino, acl.NAMES[step.second % 2], self.world.actor)

    async def save(self, step: Step) -> None:
        """As editors do: a new file in the old one's place."""
        path = self._pick(step, stat.S_IFREG)
        await self.world.write(path + b"~", b"saved %d" % step.number)
        await self.world.rename(path + b"~", path)

    async def patch(self, step: Step) -> None:
        path = self._pick(step, stat.S_IFREG)
        await self.world.patch(path, step.number * 50_000, b"%d" % step.second * 10)

    async def truncate(self, step: Step) -> None:
        path = self._pick(step, stat.S_IFREG)
        await self.world.setattr(path, size=step.number * 40_000)

    async def chmod(self, step: Step) -> None:
        await self.world.setattr(self._pick(step), mode=0o700 + step.number)

    async def chown(self, step: Step) -> None:
        await self.world.setattr(self._pick(step), uid=step.number, gid=step.second)

    async def utimes(self, step: Step) -> None:
        await self.world.setattr(self._pick(step), mtime_ns=step.number, atime_ns=step.second)

    async def setxattr(self, step: Step) -> None:
        await self.world.setxattr(
            self._pick(step), b"user.%d" % (step.name % 2), b"v%d" % step.number
        )

    async def removexattr(self, step: Step) -> None:
        ino = self.world.inode(self._pick(step)).ino
        await self.world.engine.removexattr(ino, b"user.%d" % (step.name % 2), self.world.actor)

    def _undo(self, step: Step, since: Seq) -> None:
        world, force = self.world, step.kind == "force_one"
        if step.kind == "redo":
            seqs = select_redo(world.database, Selector(last=1, since_seq=since))
        elif step.kind == "undo_last":
            last = 1 + step.number % 3
            seqs = select(world.database, Selector(last=last, since_seq=since))
        else:
            seqs = select(world.database, Selector(since_seq=since))
            seqs = [seqs[step.first % len(seqs)]] if seqs else []
        try:
            plan = apply_undo(world.store, seqs, actor=ROOT, force=force).plan
        except errors.NothingToUndo:
            return
        in_order = step.kind != "undo_one"
        self.clean = self.clean and in_order and not plan.conflicts and not force


def tree(world: World, at: Seq | None = None) -> Tree:
    """Return the tree with the hard-link groups in place of inode numbers, and device numbers."""
    found = world.tree(at=at)
    view: View = world.store.reader if at is None else world.database.as_of(at)
    groups: dict[Ino, list[bytes]] = {}
    devices: dict[Ino, int] = {}
    pending = [(b"", world.inode(b"").ino)]
    while pending:
        path, ino = pending.pop()
        for entry in view.list_children(ino, 0, 1000):
            below = path + b"/" + entry.name
            groups.setdefault(entry.inode.ino, []).append(below)
            devices[entry.inode.ino] = entry.inode.rdev
            if entry.inode.is_dir:
                pending.append((below, entry.inode.ino))
    for ino, paths in groups.items():
        for path in paths:
            found[path] = (*found[path], tuple(sorted(paths)), devices[ino])
    return found


def undo(world: World, selector: Selector, *, force: bool = False) -> UndoPlan | None:
    try:
        seqs = select(world.database, selector)
        return apply_undo(world.store, seqs, actor=ROOT, force=force).plan
    except errors.NothingToUndo:
        return None


def undo_operation(world: World, seq: Seq) -> None:
    apply_undo(world.store, [seq], actor=ROOT)


@contextmanager
def new_world() -> Iterator[World]:
    path = tempfile.mkdtemp(dir="/dev/shm" if os.path.isdir("/dev/shm") else None)
    world = World(FilePath(path) / "store")
    try:
        yield world
    finally:
        shutil.rmtree(path, ignore_errors=True)


def in_world(test: Callable[[World], Awaitable[None]]) -> None:
    async def run() -> None:
        with new_world() as world:
            await test(world)
            assert world.problems(deep=True) == []
            await world.close()

    trio.run(run)


def explore(
    request: pytest.FixtureRequest,
    test: Callable[..., None],
    *strategies: Any,
    quick: int,
    slow: int = 2000,
) -> None:
    """Run a property: the same few examples every time, or with --slow many new ones."""
    is_slow = bool(request.config.getoption("--slow"))
    number = 0
    run: Any = given(*strategies)(test)  # type: ignore[no-untyped-call]
    if is_slow:
        number = int(os.environ.get("NEXUS_MODEL_SEED") or int.from_bytes(os.urandom(4), "big"))
        run = seed(number)(run)
    again = f"NEXUS_MODEL_SEED={number}" if is_slow else "the same every time"
    run = settings(
        max_examples=int(os.environ.get("NEXUS_MODEL_EXAMPLES", slow if is_slow else quick)),
        derandomize=not is_slow,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.generate, Phase.shrink),
    )(run)
    try:
        run()
    except Exception as error:
        error.add_note(again)
        raise


@pytest.mark.parametrize("kind", sorted(set(KINDS)))
def test_every_kind_of_operation_can_be_undone_and_redone_alone(
    request: pytest.FixtureRequest, kind: str
) -> None:
    """After things of every kind have happened; and the past stays what it was."""

    def check(before: list[Step], steps: list[Step]) -> None:
        async def play(world: World) -> None:
            player = Player(world)
            for step in before:
                await player.play(step)
            for step in steps:
                start, then = world.head, tree(world)
                await player.play(step._replace(kind=kind))
                end, changed = world.head, tree(world)
                plan = undo(world, Selector(since_seq=start))
                if plan is None:
                    continue
                assert plan.conflicts == []
                assert tree(world) == then
                undo_operation(world, world.head)
                assert tree(world) == changed == tree(world, end)
                assert tree(world, start) == then

        in_world(play)

    explore(request, check, steps(KINDS, 12), steps((kind,), 4), quick=4, slow=300)


def test_undoing_all_since_a_moment_is_that_moment_and_redo_takes_it_back(
    request: pytest.FixtureRequest,
) -> None:
    """With undos, redos, partial ones and forced ones in between."""

    def check(before: list[Step], after: list[Step]) -> None:
        async def play(world: World) -> None:
            player = Player(world)
            for step in before:
                await player.play(step)
            start, then = world.head, tree(world)
            for step in after:
                await player.play(step, since=start)
            end, changed = world.head, tree(world)
            plan = undo(world, Selector(since_seq=start))
            if plan is None:
                return
            undone = tree(world)
            if player.clean:
                assert plan.conflicts == []
            if not plan.conflicts:
                assert undone == then
            undo_operation(world, world.head)
            assert tree(world) == changed
            undo_operation(world, world.head)
            assert tree(world) == undone
            assert tree(world, start) == then
            assert tree(world, end) == changed

        in_world(play)

    everything = KINDS + UNDOS[:3] * 2
    explore(request, check, steps(KINDS, 12), steps(everything, 15), quick=60)


def test_any_undo_leaves_a_sound_tree_and_can_be_taken_back(
    request: pytest.FixtureRequest,
) -> None:
    """Agents work on the same files: conflicts, force, undos of single operations."""

    def check(after: list[Step], force: bool, agent: int) -> None:
        async def play(world: World) -> None:
            player = Player(world)
            moments: dict[Seq, Tree] = {}
            for index, step in enumerate(after):
                await player.play(step)
                if index % 5 == 0:
                    moments[world.head] = tree(world)
            changed = tree(world)
            selector = Selector(agent=AGENTS[agent].agent, since_seq=Seq(1))
            seqs = select(world.database, selector)
            dry = plan_undo(world.store, seqs, actor=ROOT, force=force)
            plan = undo(world, selector, force=force)
            if plan is not None:
                assert plan.items == dry.items
                undone = tree(world)
                assert world.problems(deep=True) == []
                undo_operation(world, world.head)
                assert tree(world) == changed
                undo_operation(world, world.head)
                assert tree(world) == undone
            for seq, then in moments.items():
                assert tree(world, seq) == then

        in_world(play)

    everything = KINDS * 2 + UNDOS
    explore(request, check, steps(everything, 25), st.booleans(), st.integers(0, 1), quick=60)


def test_undoing_one_agent_is_as_if_it_had_never_been_there(
    request: pytest.FixtureRequest,
) -> None:
    """Where agents keep to their own subtrees, compared with a replay of the other one alone."""

    def check(played: list[Step]) -> None:
        async def run(world: World, agents: tuple[int, ...]) -> None:
            for number, actor in enumerate(AGENTS):
                world.actor = actor
                world.clock.now_ns = BEGIN_NS + number * SECOND
                await world.mkdir(actor.agent)
            players = [Player(world, actor.agent.encode()) for actor in AGENTS]
            for index, step in enumerate(played):
                if step.agent in agents:
                    world.clock.now_ns = BEGIN_NS + (index + 10) * SECOND
                    await players[step.agent].play(step)

        async def both(world: World) -> None:
            await run(world, (0, 1))
            with new_world() as other:
                await run(other, (1,))
                expected = tree(other)
                await other.close()
            selector = Selector(agent="alice", since_seq=Seq(3))
            plan = undo(world, selector)
            assert plan is None or plan.conflicts == []
            assert tree(world) == expected

        in_world(both)

    explore(request, check, steps(KINDS, 30), quick=40)
