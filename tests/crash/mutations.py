"""Every operation that changes a store, each with what must be there before it can be done."""

from __future__ import annotations

import os
import random
import stat
import struct
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import anyio
import anyio.to_thread

from nexus_engine import commands, errors
from nexus_engine.commands import Request, ignore_progress
from nexus_engine.engine import Engine
from nexus_engine.fs.batches import NewFile
from nexus_engine.fs.files import Handle
from nexus_engine.history import snapshots
from nexus_engine.permissions.acl import ACCESS
from nexus_engine.retention.prune import prune
from nexus_engine.services import Services
from nexus_engine.store import Store
from tests.unit.worlds import ALICE, BEGIN_NS, BOB, SECOND, StepClock, World

MIB = 1024 * 1024
RENAME_EXCHANGE = 2
ANYBODY = 0xFFFFFFFF
OWNER = ALICE._replace(uid=0)
POLICY = b"retention: {keep_all: 1s}\nreserve_mib: 1\n"
_ACL = struct.pack("<I", 2) + b"".join(
    struct.pack("<HHI", *entry)
    for entry in (
        (1, 6, ANYBODY),
        (2, 4, 1001),
        (4, 4, ANYBODY),
        (16, 4, ANYBODY),
        (32, 0, ANYBODY),
    )
)


class LaterClock(StepClock):
    """Of another process, a day later: neither its times nor what it draws were there before."""

    def __init__(self) -> None:
        super().__init__()
        self.now_ns = BEGIN_NS + 86400 * SECOND

    def random_bytes(self, length: int) -> bytes:
        return os.urandom(length)


class Scene(World):
    """The world of `furnish`, opened again with what the test needs at hand."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.actor = ALICE
        self.clock = LaterClock()
        self.handles: dict[str, Handle] = {}
        self.closing: dict[str, Handle] = {}
        """Open, and about to be closed by the test."""
        self.start()

    def start(self) -> None:
        self.engine = Engine.start(self.path, clock=self.clock)
        self.store, self.database = self.engine.store, self.engine.store.database

    async def leave(self) -> None:
        """Close everything and take leave."""
        for handle in self.handles.values():
            await self.engine.release(handle)
        self.handles.clear()
        await self.engine.close()

    def die(self) -> None:
        """End without having taken leave."""
        self.handles.clear()
        self.store.abandon()

    async def open_file(self, path: str, flags: int = os.O_RDWR) -> Handle:
        handle = await self.engine.open(self.inode(path).ino, flags, self.actor)
        self.handles[path] = handle
        return handle

    async def command(self, verb: str, **args: Any) -> Any:
        """Do what the control file does."""
        await self.engine.settle()
        request, keep = Request(verb, args), self.engine.content

        def run(store: Store) -> Any:
            return commands.execute(store, request, OWNER, ignore_progress, keep=keep)

        return await self.engine.in_peer(run)

    async def offline(self, verb: str, **args: Any) -> Any:
        """Do what ``nexus-ctl --store`` does where nothing is mounted."""
        store = Store.open(self.path, clock=self.clock)
        try:
            reply = commands.execute(store, Request(verb, args), OWNER, ignore_progress)
            store.close()
        except errors.EngineError:
            store.abandon()
            raise
        return reply


class Mutation(NamedTuple):
    """What a program asks for in one call."""

    name: str
    act: Callable[[Scene], Awaitable[Any]]
    prepare: Callable[[Scene], Awaitable[Any]] | None = None
    again: Callable[[Scene], Awaitable[Any]] | None = None
    """How it is tried again, where that is not the same call."""
    mounted: bool = True
    """Whether a process serves the store meanwhile."""
    in_memory: bool = False
    """It does no I/O: there is nothing to fail."""
    in_parts: bool = False
    """Several transactions of which each leaves the tree as it is: none, some or all are done."""


async def furnish(path: Path) -> None:
    """Make the store that every scene begins with."""
    world = World(path)
    (path / "store.yaml").write_bytes(POLICY)
    for name in ("a", "b", "dir", "dir/sub", "empty"):
        await world.mkdir(name)
    for name in ("a/one", "a/two", "b/one", "dir/sub/deep"):
        await world.write(name, b"%s: first\n" % name.encode())
        await world.write(name, b"%s: second, which is longer\n" % name.encode() * 40)
    await world.write("big", bytes(range(256)) * 5000)
    await world.symlink("a/link", b"one")
    await world.link("a/one", "b/hard")
    await world.setxattr("a/one", b"user.color", b"red")
    await world.setxattr("a/one", b"user.nexus.tag.mood", b"good")
    snapshots.create(world.store, "monday", ALICE)
    world.actor = BOB
    await world.write("a/two", b"bob was here")
    await world.write("dir/sub/waste", random.Random(1).randbytes(200_000))
    await world.unlink("dir/sub/waste")
    await world.unlink("dir/sub/deep")
    await world.close()
    store = Store.open(path)  # with the settings written above
    store.reserve.fill()
    store.close()


# -- one function for each, where a line is not enough --


async def _opened(path: str, scene: Scene) -> None:
    await scene.open_file(path)


async def _written(path: str, content: bytes, scene: Scene, *, offset: int = 0) -> None:
    await scene.engine.write(await scene.open_file(path), offset, content)


async def _flushed(path: str, content: bytes, scene: Scene) -> None:
    await _written(path, content, scene)
    await scene.engine.flush(scene.handles[path])


async def _flushed_twice(scene: Scene) -> None:
    await _flushed("a/one", b"new", scene)
    await scene.engine.write(scene.handles["a/one"], 0, b"newer")


async def _scattered(path: str, count: int, scene: Scene) -> None:
    handle = await scene.open_file(path)
    for index in range(count):
        await scene.engine.write(handle, index * 4, b"%d" % (index % 10))


async def _about_to_close(path: str, content: bytes, scene: Scene) -> None:
    await _written(path, content, scene)
    scene.closing[path] = scene.handles.pop(path)


async def _unlinked_while_open(scene: Scene) -> None:
    await _about_to_close("a/one", b"kept by its handle", scene)
    await scene.unlink("a/one")
    await scene.unlink("b/hard")


async def _write(path: str, content: bytes, scene: Scene) -> None:
    await scene.engine.write(scene.handles[path], 0, content)


async def _flush(path: str, scene: Scene) -> None:
    await scene.engine.flush(scene.handles[path])


async def _fsync(path: str, scene: Scene) -> None:
    await scene.engine.fsync(scene.handles[path])


async def _release(path: str, scene: Scene) -> None:
    await scene.engine.release(scene.closing[path])


async def _settle(scene: Scene) -> None:
    await scene.engine.settle()


async def _create(scene: Scene) -> None:
    place = scene.place("empty/new")
    scene.handles["empty/new"], _ = await scene.engine.create(*place, 0o640, scene.actor)


async def _batch(content: bytes, scene: Scene) -> None:
    paths = ("empty/new", "a/one", "empty/newer", "b/one")
    files = [NewFile(*scene.place(path), path.encode() + content) for path in paths]
    await scene.engine.write_batch(files, scene.actor)


async def _truncating_open(scene: Scene) -> None:
    await scene.open_file("a/one", os.O_WRONLY | os.O_TRUNC)


async def _set_acl(scene: Scene) -> None:
    await scene.setxattr("b/one", ACCESS, _ACL)


async def _removexattr(scene: Scene) -> None:
    await scene.engine.removexattr(scene.inode("a/one").ino, b"user.color", scene.actor)


async def _mknod(scene: Scene) -> None:
    await scene.engine.make(*scene.place("empty/fifo"), stat.S_IFIFO | 0o600, scene.actor)


async def _checkpoint(scene: Scene) -> None:
    await anyio.to_thread.run_sync(scene.store.chunks.sync)
    await anyio.to_thread.run_sync(scene.database.checkpoint)


async def _pack_is_complete(scene: Scene) -> None:
    """A session whose intent is in a pack that is about to be left, and bytes since."""
    await _flushed("a/one", b"promised", scene)
    scene.store.chunks.finish({pack.pack for pack in scene.store.chunks.packs_written()})
    await scene.engine.write(scene.handles["a/one"], 0, b"PROMISED and not yet more")


async def _upkeep(scene: Scene) -> None:
    services = Services(scene.engine)
    services._synced = (0.0, scene.engine.reader.head())
    await services.upkeep()
    await services.upkeep()


async def _prune(scene: Scene) -> None:
    policy = scene.store.config.retention
    assert policy is not None
    await scene.engine.in_peer(lambda store: prune(store, policy, OWNER))


async def _open_and_close(scene: Scene) -> None:
    scene.start()
    await scene.engine.close()


async def _collect(scene: Scene) -> None:
    await scene.offline("gc")


async def _purge(scene: Scene) -> None:
    await scene.offline("purge", path="a/two")


async def _quota_set(scene: Scene) -> None:
    await scene.command("quota-set", path="a", bytes=10**6, inodes=100)


async def _create_below_quota(scene: Scene) -> None:
    place = scene.place("a/new")
    scene.handles["a/new"], _ = await scene.engine.create(*place, 0o640, scene.actor)


async def _written_below_quota(scene: Scene) -> None:
    await _quota_set(scene)
    await _written("a/one", b"new", scene, offset=5000)


async def _undone(scene: Scene) -> None:
    await scene.command("undo", agent="bob")


def _command(verb: str, **args: Any) -> Callable[[Scene], Awaitable[Any]]:
    return lambda scene: scene.command(verb, **args)


MUTATIONS = (
    Mutation("create", _create),
    Mutation("mkdir", lambda scene: scene.mkdir("empty/new")),
    Mutation("mknod", _mknod),
    Mutation("symlink", lambda scene: scene.symlink("empty/new", b"target")),
    Mutation("link", lambda scene: scene.link("a/two", "empty/new")),
    Mutation("unlink", lambda scene: scene.unlink("a/two")),
    Mutation("unlink of one of two names", lambda scene: scene.unlink("b/hard")),
    Mutation(
        "unlink of a file being written",
        lambda scene: scene.unlink("a/two"),
        partial(_flushed, "a/two", b"unfinished"),
    ),
    Mutation("rmdir", lambda scene: scene.rmdir("empty")),
    Mutation("rename", lambda scene: scene.rename("a/two", "empty/new")),
    Mutation("rename over", lambda scene: scene.rename("a/two", "b/one")),
    Mutation(
        "rename of a file being written",
        lambda scene: scene.rename("a/two", "b/one"),
        partial(_flushed, "a/two", b"unfinished"),
    ),
    Mutation("rename of a directory", lambda scene: scene.rename("dir", "empty/dir")),
    Mutation("exchange", lambda scene: scene.rename("a/two", "dir/sub", RENAME_EXCHANGE)),
    Mutation("chmod", lambda scene: scene.chmod("a/one", 0o600)),
    Mutation("chown", lambda scene: scene.setattr("a/one", uid=7, gid=8)),
    Mutation("utimens", lambda scene: scene.setattr("a/one", atime_ns=5, mtime_ns=6)),
    Mutation("truncate", lambda scene: scene.setattr("big", size=1000)),
    Mutation("truncate to more", lambda scene: scene.setattr("a/one", size=9000)),
    Mutation(
        "truncate of an open file",
        lambda scene: scene.setattr("big", size=1000),
        partial(_flushed, "big", b"written before"),
    ),
    Mutation(
        "truncate and chmod of an open file",
        lambda scene: scene.setattr("big", size=1000, mode=0o600),
        partial(_flushed, "big", b"written before"),
    ),
    Mutation("open with O_TRUNC", _truncating_open, in_memory=True),
    Mutation("setxattr", lambda scene: scene.setxattr("a/one", b"user.color", b"blue")),
    Mutation("removexattr", _removexattr),
    Mutation("setting an ACL", _set_acl),
    Mutation("write", partial(_write, "a/one", b"new"), partial(_opened, "a/one"), in_memory=True),
    Mutation(
        "write of much",
        partial(_write, "a/one", b"m" * 3 * MIB),
        partial(_written, "a/one", b"n" * 3 * MIB),
    ),
    Mutation(
        "write of many pieces", partial(_write, "big", b"last"), partial(_scattered, "big", 257)
    ),
    Mutation("flush", partial(_flush, "a/one"), partial(_written, "a/one", b"new")),
    Mutation("flush of much", partial(_flush, "a/one"), partial(_written, "a/one", b"n" * 3 * MIB)),
    Mutation("flush of many pieces", partial(_flush, "big"), partial(_scattered, "big", 300)),
    Mutation("second flush", partial(_flush, "a/one"), _flushed_twice),
    Mutation("fsync", partial(_fsync, "a/one"), partial(_written, "a/one", b"new")),
    Mutation(
        "release", partial(_release, "a/one"), partial(_about_to_close, "a/one", b"new"), _settle
    ),
    Mutation(
        "release of much",
        partial(_release, "a/one"),
        partial(_about_to_close, "a/one", b"n" * 3 * MIB),
        _settle,
    ),
    Mutation(
        "release of an unlinked file", partial(_release, "a/one"), _unlinked_while_open, _settle
    ),
    Mutation("batch", partial(_batch, b"new"), partial(_flushed, "a/one", b"unfinished")),
    Mutation("batch of much", partial(_batch, b"m" * 900_000)),
    Mutation("batch below a quota", partial(_batch, b"new"), _quota_set),
    Mutation("settling", _settle, partial(_flushed, "a/one", b"new")),
    Mutation("checkpoint", _checkpoint, in_parts=True),
    Mutation("upkeep with a complete pack", _upkeep, _pack_is_complete, in_parts=True),
    Mutation("snapshot", _command("snapshot-create", name="tuesday")),
    Mutation("dropping a snapshot", _command("snapshot-delete", name="monday")),
    Mutation("tag", _command("tag-set", path="a/one", key="who", value="me")),
    Mutation("removing a tag", _command("tag-remove", path="a/one", key="mood")),
    Mutation("quota", _command("quota-set", path="a", bytes=10**6)),
    Mutation("lifting a quota", _command("quota-remove", path="a"), _quota_set),
    Mutation("create below a quota", _create_below_quota, _quota_set),
    Mutation("flush below a quota", partial(_flush, "a/one"), _written_below_quota),
    Mutation("rename below a quota", lambda scene: scene.rename("dir", "a/dir"), _quota_set),
    Mutation("undo", _command("undo", agent="bob")),
    Mutation("redo", _command("redo", last=1), _undone),
    Mutation("restore", _command("restore", path="dir", moment="monday")),
    Mutation("prune", _prune, in_parts=True),
    Mutation("gc", _collect, _prune, mounted=False, in_parts=True),
    Mutation("purge", _purge, mounted=False, in_parts=True),
    Mutation("opening and closing", _open_and_close, mounted=False),
)
