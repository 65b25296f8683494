"""Where the daemon's own time goes: CPU of each request's handler, and of the engine inside it.

In one process, without a mount: what the kernel, libfuse and pyfuse3 take is not in here. Each
request is made by the hundred; the best of several rounds counts, as noise only ever adds.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Protocol, cast

import pyfuse3
import trio
from trio.testing import wait_all_tasks_blocked

from benchlib.inprocess import measure_and_print
from nexus_engine import errors
from nexus_engine.engine import Engine
from nexus_engine.services import Services
from nexus_engine.store import Store
from nexus_engine.types import ROOT_INO, Actor, Ino, Name
from nexusfuse.actors import ActorResolver
from nexusfuse.operations import LiveDirectory, Operations

if TYPE_CHECKING:
    from nexusfuse.virtual.tree import VirtualTree

CONTENT_BYTES = 4096
LISTED = 64
DIRECTORY = stat.S_IFDIR | 0o755
CAPABILITY = b"security.capability"


class Side(Protocol):
    """What is asked: the handlers, or the engine as they ask it."""

    def lookup(self, parent: Ino, name: Name) -> Awaitable[Any]: ...
    def create(self, parent: Ino, name: Name) -> Awaitable[tuple[Any, Any]]: ...
    def write(self, file: Any, data: bytes) -> Awaitable[Any]: ...
    def flush(self, file: Any) -> Awaitable[Any]: ...
    def release(self, file: Any) -> Awaitable[Any]: ...
    def getattr(self, ino: Ino) -> Awaitable[Any]: ...
    def getxattr(self, ino: Ino, name: bytes) -> Awaitable[Any]: ...
    def open(self, ino: Ino) -> Awaitable[Any]: ...
    def read(self, file: Any) -> Awaitable[Any]: ...
    def list(self, directory: Ino) -> Awaitable[Any]: ...
    def rename(self, parent: Ino, name: Name, new_name: Name) -> Awaitable[Any]: ...
    def unlink(self, parent: Ino, name: Name) -> Awaitable[Any]: ...
    def mkdir(self, parent: Ino, name: Name) -> Awaitable[Any]: ...
    def rmdir(self, parent: Ino, name: Name) -> Awaitable[Any]: ...


class Handlers:
    """As pyfuse3 calls them."""

    def __init__(self, engine: Engine, context: Any) -> None:
        self._ask = Operations(engine, read_only=False)
        self._ask.tree = cast("VirtualTree", SimpleNamespace(start_soon=None))
        self._engine, self._context = engine, context

    def lookup(self, parent: Ino, name: Name) -> Awaitable[Any]:
        return self._ask.lookup(parent, name, self._context)

    async def create(self, parent: Ino, name: Name) -> tuple[Any, Any]:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        info, entry = await self._ask.create(parent, name, 0o644, flags, self._context)
        return info.fh, entry.st_ino

    def write(self, file: Any, data: bytes) -> Awaitable[Any]:
        return self._ask.write(file, 0, data)

    def flush(self, file: Any) -> Awaitable[Any]:
        return self._ask.flush(file)

    def release(self, file: Any) -> Awaitable[Any]:
        return self._ask.release(file)

    def getattr(self, ino: Ino) -> Awaitable[Any]:
        return self._ask.getattr(ino, self._context)

    async def getxattr(self, ino: Ino, name: bytes) -> None:
        with suppress(pyfuse3.FUSEError):
            await self._ask.getxattr(ino, name, self._context)

    async def open(self, ino: Ino) -> Any:
        return (await self._ask.open(ino, os.O_RDONLY, self._context)).fh

    def read(self, file: Any) -> Awaitable[Any]:
        return self._ask.read(file, 0, CONTENT_BYTES)

    def list(self, directory: Ino) -> Awaitable[Any]:
        return LiveDirectory(self._engine, directory).entries(2)

    def rename(self, parent: Ino, name: Name, new_name: Name) -> Awaitable[Any]:
        return self._ask.rename(parent, name, parent, new_name, 0, self._context)

    def unlink(self, parent: Ino, name: Name) -> Awaitable[Any]:
        return self._ask.unlink(parent, name, self._context)

    def mkdir(self, parent: Ino, name: Name) -> Awaitable[Any]:
        return self._ask.mkdir(parent, name, DIRECTORY, self._context)

    def rmdir(self, parent: Ino, name: Name) -> Awaitable[Any]:
        return self._ask.rmdir(parent, name, self._context)


class Inside:
    """The engine, as the handlers call it."""

    def __init__(self, engine: Engine, actor: Actor) -> None:
        self._ask, self._actor = engine, actor

    def lookup(self, parent: Ino, name: Name) -> Awaitable[Any]:
        return self._ask.lookup(parent, name)

    async def create(self, parent: Ino, name: Name) -> tuple[Any, Any]:
        handle, inode = await self._ask.create(parent, name, 0o644, self._actor)
        return handle, inode.ino

    def write(self, file: Any, data: bytes) -> Awaitable[Any]:
        return self._ask.write(file, 0, data)

    def flush(self, file: Any) -> Awaitable[Any]:
        return self._ask.flush(file)

    def release(self, file: Any) -> Awaitable[Any]:
        return self._ask.release(file)

    def getattr(self, ino: Ino) -> Awaitable[Any]:
        return self._ask.getattr(ino)

    async def getxattr(self, ino: Ino, name: bytes) -> None:
        with suppress(errors.NoXattr):
            await self._ask.getxattr(ino, name)

    def open(self, ino: Ino) -> Awaitable[Any]:
        return self._ask.open(ino, os.O_RDONLY, self._actor)

    def read(self, file: Any) -> Awaitable[Any]:
        return self._ask.read(file, 0, CONTENT_BYTES)

    def list(self, directory: Ino) -> Awaitable[Any]:
        return self._ask.list_children(directory, 0, LISTED)

    def rename(self, parent: Ino, name: Name, new_name: Name) -> Awaitable[Any]:
        return self._ask.rename(parent, name, parent, new_name, 0, self._actor)

    def unlink(self, parent: Ino, name: Name) -> Awaitable[Any]:
        return self._ask.unlink(parent, name, self._actor)

    def mkdir(self, parent: Ino, name: Name) -> Awaitable[Any]:
        return self._ask.make(parent, name, DIRECTORY, self._actor)

    def rmdir(self, parent: Ino, name: Name) -> Awaitable[Any]:
        return self._ask.rmdir(parent, name, self._actor)


class Stopwatch:
    """The least CPU that each kind of request took, µs."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.best: dict[str, float] = {}

    async def time(self, name: str, calls: Sequence[Callable[[], Awaitable[Any]]]) -> list[Any]:
        began_ns = time.thread_time_ns()
        results = [await call() for call in calls]
        self._store.settle()  # operations share a COMMIT: it is part of what they cost
        spent_us = (time.thread_time_ns() - began_ns) / 1000 / len(calls)
        self.best[name] = min(spent_us, self.best.get(name, spent_us))
        return results


async def use(side: Side, time_all: Stopwatch, parent: Ino, label: str, count: int) -> None:
    """Make every kind of request ``count`` times, in an empty directory."""
    names = [Name(b"name-%06d" % number) for number in range(count)]
    # Each content is new to the store.
    contents = [f"{label} {number} ".encode().ljust(CONTENT_BYTES, b".") for number in range(count)]
    run = time_all.time

    await run("lookup, missing", [partial(side.lookup, parent, name) for name in names])
    made = await run("create", [partial(side.create, parent, name) for name in names])
    files, inos = zip(*made, strict=True)
    pairs = zip(files, contents, strict=True)
    await run("write 4 KiB", [partial(side.write, file, data) for file, data in pairs])
    await run("flush, written", [partial(side.flush, file) for file in files])
    await run("release, written", [partial(side.release, file) for file in files])
    await run("lookup", [partial(side.lookup, parent, name) for name in names])
    await run("getattr", [partial(side.getattr, ino) for ino in inos])
    await run("getxattr, none", [partial(side.getxattr, ino, CAPABILITY) for ino in inos])
    files = tuple(await run("open to read", [partial(side.open, ino) for ino in inos]))
    await run("read 4 KiB", [partial(side.read, file) for file in files])
    await run("flush, read", [partial(side.flush, file) for file in files])
    await run("release, read", [partial(side.release, file) for file in files])
    await run(f"listing, {LISTED} entries", [partial(side.list, parent)] * 20)
    await run("rename", [partial(side.rename, parent, name, Name(name + b"-")) for name in names])
    await run("unlink", [partial(side.unlink, parent, Name(name + b"-")) for name in names])
    await run("mkdir", [partial(side.mkdir, parent, name) for name in names])
    await run("rmdir", [partial(side.rmdir, parent, name) for name in names])


async def measure(directory: Path, count: int, rounds: int) -> dict[str, tuple[float, float]]:
    """Return µs of the handler, and of the engine in it, by request.

    Args:
        directory: For a store.
    """
    context: Any = SimpleNamespace(pid=os.getpid(), uid=os.getuid(), gid=os.getgid(), umask=0o022)
    resolver = ActorResolver()
    actor = resolver.resolve(context)
    resolver.close()
    Store.create(directory / "store", actor).close()
    engine = Engine.start(directory / "store")
    sides: list[Side] = [Handlers(engine, context), Inside(engine, actor)]
    watches = [Stopwatch(engine.store) for _ in sides]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Services(engine).run_settling)
        await wait_all_tasks_blocked()
        for number in range(rounds):
            for side, watch in zip(sides, watches, strict=True):
                label = f"{type(side).__name__} {number}"
                made = await engine.make(ROOT_INO, Name(label.encode()), DIRECTORY, actor)
                await use(side, watch, made.ino, label, count)
        nursery.cancel_scope.cancel()
    await engine.close()
    whole, inside = (watch.best for watch in watches)
    return {name: (cost, inside[name]) for name, cost in whole.items()}


def table(costs: dict[str, tuple[float, float]]) -> str:
    lines = [f"{'CPU µs':<22}{'handler':>9}{'engine in it':>14}"]
    lines += [f"{name:<22}{whole:9.1f}{inside:14.1f}" for name, (whole, inside) in costs.items()]
    return "\n".join(lines)


def main(argv: Sequence[str]) -> int:
    return measure_and_print(
        argv, "handlers", __doc__, measure, table,
        count=300, counted="of each request in a round",
    )  # fmt: skip
