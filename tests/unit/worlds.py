"""A real store with an engine over it, driven by paths."""

from __future__ import annotations

import itertools
import stat
from collections.abc import Callable, Iterator
from pathlib import Path as FilePath
from typing import Any

from nexus_engine.check.fsck import check
from nexus_engine.engine import Engine
from nexus_engine.fs.attributes import NewAttributes
from nexus_engine.history.versions import read_content
from nexus_engine.meta.connection import DATABASE_NAME, Connection
from nexus_engine.meta.reader import View, resolve
from nexus_engine.store import Store
from nexus_engine.types import ROOT_INO, Actor, Ino, Inode, Name, Path, Seq

SECOND = 1_000_000_000
BEGIN_NS = 1_795_000_000 * SECOND
"""2026-11-18T10:26:40Z"""
ALICE = Actor(1000, 1000, 41, 7, "sh", 40, "alice")
BOB = Actor(1001, 1001, 52, 8, "vim", 50, "bob")


class StepClock:
    """Each look at the clock is a moment later; tests may set it."""

    def __init__(self) -> None:
        self.now_ns = BEGIN_NS
        self.step_ns = 1_000_000
        self._count = itertools.count(1)

    def time_ns(self) -> int:
        self.now_ns += self.step_ns
        return self.now_ns

    def random_bytes(self, length: int) -> bytes:
        return next(self._count).to_bytes(length, "big")


class World:
    """An engine, and what a shell would do to its files."""

    def __init__(self, path: FilePath) -> None:
        self.path = path
        self.clock = StepClock()
        Store.create(path, ALICE, clock=self.clock).close()
        self.engine = Engine.start(path, clock=self.clock)
        self.store = self.engine.store
        self.database = self.store.database
        self.actor = ALICE

    @property
    def head(self) -> Seq:
        return self.store.reader.head()

    def inode(self, path: str | bytes, at: Seq | None = None) -> Inode:
        view: View = self.store.reader if at is None else self.database.as_of(at)
        found = resolve(view, to_path(path))
        assert found is not None, path
        return found

    def exists(self, path: str | bytes) -> bool:
        return self.store.reader.resolve(to_path(path)) is not None

    def place(self, path: str | bytes) -> tuple[Ino, Name]:
        directory, _, name = to_path(path).rpartition(b"/")
        return self.inode(directory).ino, Name(name)

    async def mkdir(self, path: str | bytes, mode: int = 0o755) -> Inode:
        return await self.engine.make(*self.place(path), stat.S_IFDIR | mode, self.actor)

    async def symlink(self, path: str | bytes, target: bytes) -> Inode:
        mode = stat.S_IFLNK | 0o777
        return await self.engine.make(*self.place(path), mode, self.actor, target=target)

    async def write(self, path: str | bytes, data: bytes) -> Inode:
        """Like ``> path``: create or truncate, write, close."""
        if self.exists(path):
            handle = await self.engine.open(self.inode(path).ino, 0o1001, self.actor)
        else:
            handle, _ = await self.engine.create(*self.place(path), 0o644, self.actor)
        await self.engine.write(handle, 0, data)
        await self.engine.release(handle)
        return self.inode(path)

    async def patch(self, path: str | bytes, offset: int, data: bytes) -> None:
        handle = await self.engine.open(self.inode(path).ino, 1, self.actor)
        await self.engine.write(handle, offset, data)
        await self.engine.release(handle)

    async def unlink(self, path: str | bytes) -> None:
        await self.engine.unlink(*self.place(path), self.actor)

    async def rmdir(self, path: str | bytes) -> None:
        await self.engine.rmdir(*self.place(path), self.actor)

    async def remove(self, path: str | bytes) -> None:
        """Like ``rm -rf``."""
        inode = self.inode(path)
        if not inode.is_dir:
            await self.unlink(path)
            return
        for entry in self.store.reader.list_children(inode.ino, 0, 1000):
            await self.remove(to_path(path) + b"/" + entry.name)
        await self.rmdir(path)

    async def rename(self, old: str | bytes, new: str | bytes, flags: int = 0) -> None:
        await self.engine.rename(*self.place(old), *self.place(new), flags, self.actor)

    async def link(self, old: str | bytes, new: str | bytes) -> None:
        await self.engine.link(self.inode(old).ino, *self.place(new), self.actor)

    async def chmod(self, path: str | bytes, mode: int) -> None:
        await self.engine.setattr(self.inode(path).ino, NewAttributes(mode=mode), self.actor)

    async def setattr(self, path: str | bytes, **fields: int) -> None:
        await self.engine.setattr(self.inode(path).ino, NewAttributes(**fields), self.actor)

    async def setxattr(self, path: str | bytes, name: bytes, value: bytes) -> None:
        await self.engine.setxattr(self.inode(path).ino, name, value, self.actor)

    def read(self, path: str | bytes, at: Seq | None = None) -> bytes:
        view: View = self.store.reader if at is None else self.database.as_of(at)
        inode = self.inode(path, at)
        return read_content(self.store, view, inode, 0, inode.size)

    def tree(self, path: str | bytes = "", at: Seq | None = None) -> dict[bytes, tuple[Any, ...]]:
        """Return everything a program sees at and below a path, but ino, ctime and atime."""
        view: View = self.store.reader if at is None else self.database.as_of(at)
        return walk(self.store, view, self.inode(path, at))

    def problems(self, *, deep: bool = False) -> list[str]:
        return [f"{p.code}: {p.where}: {p.message}" for p in check(self.store, deep=deep)]

    def edit(self, sql: str, *arguments: object) -> int:
        """Change rows behind the engine's back.

        Not through the standard library's sqlite3: two copies of SQLite in one process do not see
        each other's locks, and the one that closes first deletes the other's write-ahead log.

        Returns:
            How many rows.
        """
        connection = Connection(str(self.path / DATABASE_NAME))
        connection.run(sql, arguments)
        changes = connection.changes()
        connection.close()
        return changes

    async def restart(self, meanwhile: Callable[[], object] = lambda: None) -> None:
        """Close the store, and open it again."""
        await self.close()
        meanwhile()
        self.engine = Engine.start(self.path, clock=self.clock)
        self.store = self.engine.store
        self.database = self.store.database

    async def close(self) -> None:
        await self.engine.close()


def to_path(path: str | bytes) -> Path:
    return Path(path.encode() if isinstance(path, str) else path)


def walk(
    store: Store, view: View | None = None, top: Inode | None = None
) -> dict[bytes, tuple[Any, ...]]:
    """Return everything a program sees of a tree, but ino, ctime and atime, by path."""
    view = view or store.reader
    return dict(_walk(store, view, top or view.get_inode(ROOT_INO), b""))


def _walk(
    store: Store, view: View, inode: Inode, path: bytes
) -> Iterator[tuple[bytes, tuple[Any, ...]]]:
    xattrs = tuple(
        sorted((name, view.find_xattr(inode.ino, name)) for name in view.xattr_names(inode.ino))
    )
    content = read_content(store, view, inode, 0, inode.size) if inode.is_file else inode.target
    size = None if inode.is_dir else inode.size
    yield (
        path,
        (inode.mode, inode.uid, inode.gid, inode.nlink, size, inode.mtime_ns, content, xattrs),
    )
    if inode.is_dir:
        for entry in view.list_children(inode.ino, 0, 10_000):
            yield from _walk(store, view, entry.inode, path + b"/" + entry.name)


__all__ = [
    "ALICE",
    "BEGIN_NS",
    "BOB",
    "ROOT_INO",
    "SECOND",
    "StepClock",
    "World",
    "to_path",
    "walk",
]
