"""What is answered from memory while operations wait for a COMMIT is what SQLite would answer."""

from __future__ import annotations

import errno
import os
import random
import stat
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from nexus_engine import errors
from nexus_engine.check.fsck import check
from nexus_engine.engine import Engine
from nexus_engine.fs import namespace
from nexus_engine.fs.attributes import NewAttributes
from nexus_engine.fs.batches import NewFile
from nexus_engine.fs.files import Handle
from nexus_engine.history.workspaces.lifecycle import make_workspace
from nexus_engine.meta.connection import Connection
from nexus_engine.meta.known import FACTS_MAX, UNKNOWN, Known
from nexus_engine.meta.reader import Reader
from nexus_engine.meta.schema import TABLES
from nexus_engine.meta.transaction import Transaction
from nexus_engine.oplog.verify import verify_log
from nexus_engine.permissions.acl import DEFAULT
from nexus_engine.records import Change
from nexus_engine.store import Store
from nexus_engine.types import ROOT_INO, SIZE_MAX, Actor, Ino, Name
from nexus_engine.types import Path as TreePath
from tests.crash.failing_io import FailingIO, Fault, failing_io

ACTOR = Actor(uid=0, gid=0, pid=os.getpid(), command="test", agent="alice")
NAMES = [Name(name) for name in (b"a", b"b", b"c", b"d", b"e", b"f", b"\xff")]
XATTRS = [b"user.a", b"user.b", b"security.capability", DEFAULT]
ACL = bytes.fromhex("0200000001000700ffffffff04000500ffffffff20000500ffffffff")
STEPS = 1000


class Asking(Reader):
    """Knows nothing: asks SQLite each time."""

    def __init__(self, connection: Connection) -> None:
        super().__init__(connection)
        self._known = Known()


class Program:
    """Does this and that to a store, by chance."""

    def __init__(self, engine: Engine, io: FailingIO, seed: int) -> None:
        self.engine, self.io = engine, io
        self.by_chance = random.Random(seed)
        self.inos, self.directories = [ROOT_INO], [ROOT_INO]
        self.open: list[Handle] = []
        self.done: Counter[str] = Counter()
        self.workspaces = 0

    async def step(self) -> None:
        """Do something; count it, or the error that it ended with."""
        steps = {
            self.make: 12, self.write: 10, self.overwrite: 3, self.truncate: 2, self.set: 5,
            self.link: 3, self.rename: 6, self.remove: 4, self.attribute: 5, self.look: 6,
            self.fail_half_way: 2, self.change_twice: 1, self.change_by_hand: 1,
            self.keep_house: 1, self.batch: 1, self.peer: 1.5, self.settle: 1,
            self.workspace: 0.3, self.break_disk: 0.3,
        }  # fmt: skip
        (step,) = self.by_chance.choices(list(steps), list(steps.values()))
        try:
            await step()
            self.done[step.__name__] += 1
        except errors.EngineError as error:
            self.done[type(error).__name__] += 1

    @property
    def ino(self) -> Ino:
        return self.by_chance.choice(self.inos[-8:])

    @property
    def parent(self) -> Ino:
        return self.by_chance.choice([*self.directories[-3:], ROOT_INO, self.ino])

    @property
    def name(self) -> Name:
        return self.by_chance.choice(NAMES)

    async def make(self) -> None:
        kind = self.by_chance.choice([stat.S_IFREG, stat.S_IFDIR, stat.S_IFDIR, stat.S_IFLNK])
        target = b"a/b" if kind == stat.S_IFLNK else None
        made = await self.engine.make(self.parent, self.name, kind | 0o755, ACTOR, target=target)
        self.inos.append(made.ino)
        if made.is_dir:
            self.directories.append(made.ino)

    async def write(self) -> None:
        handle, inode = await self.engine.create(self.parent, self.name, 0o644, ACTOR)
        self.inos.append(inode.ino)
        await self._fill(handle)

    async def overwrite(self) -> None:
        inode = await self.engine.getattr(self.ino)
        if inode.is_file:
            flags = self.by_chance.choice([os.O_RDWR, os.O_RDWR | os.O_TRUNC])
            await self._fill(await self.engine.open(inode.ino, flags, ACTOR))

    async def _fill(self, handle: Handle) -> None:
        offset = self.by_chance.choice([0, 0, 100, 3_000_000])
        await self.engine.write(handle, offset, self.by_chance.randbytes(200))
        await self.engine.flush(handle)
        self.open.append(handle)
        if len(self.open) > 2 or self.by_chance.random() < 0.7:
            await self.engine.release(self.open.pop(0))

    async def truncate(self) -> None:
        inode = await self.engine.getattr(self.ino)
        size = self.by_chance.choice([0, 50, 5000])
        if inode.is_file:
            await self.engine.setattr(inode.ino, NewAttributes(size=size), ACTOR)

    async def set(self) -> None:
        new = [NewAttributes(mode=0o2700), NewAttributes(uid=1, gid=2), NewAttributes(mtime_ns=7)]
        await self.engine.setattr(self.ino, self.by_chance.choice(new), ACTOR)

    async def link(self) -> None:
        await self.engine.link(self.ino, self.parent, self.name, ACTOR)

    async def rename(self) -> None:
        flags = self.by_chance.choice([0, 0, 0, 1, 2])
        await self.engine.rename(self.parent, self.name, self.parent, self.name, flags, ACTOR)

    async def remove(self) -> None:
        remove = self.by_chance.choice([self.engine.unlink, self.engine.rmdir])
        await remove(self.parent, self.name, ACTOR)

    async def attribute(self) -> None:
        name, ino = self.by_chance.choice(XATTRS), self.ino
        value = ACL if name == DEFAULT else self.by_chance.choice([b"", b"x", b"long" * 1000])
        if self.by_chance.random() < 0.6:
            await self.engine.setxattr(ino, name, value, ACTOR)
        else:
            await self.engine.removexattr(ino, name, ACTOR)

    async def look(self) -> None:
        await self.engine.lookup(self.parent, self.name)
        await self.engine.getattr(self.ino)
        await self.engine.list_children(self.parent, 0, 10)
        await self.engine.getxattr(self.ino, self.by_chance.choice(XATTRS))

    async def fail_half_way(self) -> None:
        parent, name = self.parent, self.name
        how_far = self.by_chance.randrange(3)

        def rule(tx: Transaction) -> None:
            directory = namespace.get_directory(tx, parent)
            if how_far == 2:
                namespace.make(tx, parent, name, stat.S_IFDIR | 0o700)
            if how_far > 0:
                tx.put_xattr(parent, b"user.a", b"never")
            with tx.gathered():
                tx.put_inode(directory._replace(uid=77))
                raise errors.NoSpace("half way")

        await self.engine.store.write(rule, ACTOR)

    async def change_twice(self) -> None:
        ino = self.ino

        def rule(tx: Transaction) -> None:
            for uid in (3, 4):
                tx.put_inode(tx.get_inode(ino)._replace(uid=uid))
                tx.commit(Change("setattr", ino, tx.any_path_of(ino)))

        await self.engine.store.write(rule, ACTOR)

    async def change_by_hand(self) -> None:
        ino = self.ino

        def rule(tx: Transaction) -> None:
            before = tx.find_inode(ino)
            tx.connection.change("UPDATE inode SET atime_ns = 99 WHERE ino = ?", (ino,))
            after = tx.find_inode(ino)
            assert (before and before.nlink) == (after and after.nlink)
            assert after is None or after.atime_ns == 99
            tx.commit(Change("setattr", ino, TreePath(b"")))

        await self.engine.store.write(rule, ACTOR)

    async def keep_house(self) -> None:
        times = {self.ino: self.by_chance.randrange(100)}
        self.engine.store.upkeep(self.engine.store.database.put_access_times, times)

    async def batch(self) -> None:
        parent = self.parent
        files = [NewFile(parent, name, self.by_chance.randbytes(9)) for name in NAMES[:2]]
        self.inos += [inode.ino for inode in await self.engine.write_batch(files, ACTOR)]

    async def peer(self) -> None:
        parent, name = self.parent, self.name
        mode = stat.S_IFREG | 0o600

        def change(store: Store) -> Ino:
            return store.transact(namespace.make, ACTOR, parent, name, mode).ino

        self.inos.append(await self.engine.in_peer(change))
        self.engine.catch_up()

    async def settle(self) -> None:
        self.engine.store.settle()

    async def workspace(self) -> None:
        self.workspaces += 1
        name = f"workspace-{self.workspaces}"
        made = self.engine.store.transact(
            make_workspace, ACTOR, name, self.parent, TreePath(name.encode())
        )
        self.inos.append(made.ino)
        self.directories.append(made.ino)

    async def break_disk(self) -> None:
        """SQLite ends the transaction, whatever the statement: sqlite.org/lang_transaction.html."""
        self.io.arm(Fault("of the disk", errno.EIO), 1)
        try:
            self.engine.store.database.connection.all(
                " UNION ".join(f"SELECT count(*) FROM {table}" for table in TABLES)
            )
        finally:
            self.io.heal()


def wrong_facts(connection: Connection, counts: Counter[str]) -> list[str]:
    """Compare all that is known with the rows that the same connection sees."""
    known, ask = connection.known, Asking(connection)
    facts: dict[str, list[tuple[object, object, object]]] = {
        "inode": [(ino, fact, ask.find_inode(ino)) for ino, fact in known.inodes.items()],
        "child": [
            (key, fact, child.ino if (child := ask.find_child(*key)) else None)
            for key, fact in known.children.items()
        ],
        "xattr": [(key, fact, ask.find_xattr(*key)) for key, fact in known.xattrs.items()],
        "bare": [
            ((ino, name), None, ask.find_xattr(ino, name))
            for ino in known.inodes
            for name in ask.xattr_names(ino)
            if (ino, name) not in known.xattrs and known.find_xattr(ino, name) is not UNKNOWN
        ],
        "empty": [
            (ino, [], ask.extents(ino, 0, SIZE_MAX)) for ino in known.inodes if known.is_empty(ino)
        ],
        "name": [
            (ino, [fact] if fact else [], [dentry[:2] for dentry in ask.dentries_of(ino)])
            for ino, fact in known.only_names.items()
        ],
    }
    counts.update({kind: len(rows) for kind, rows in facts.items()})
    return [
        f"{kind} {key}: {fact} is known, {row} is there"
        for kind, rows in facts.items()
        for key, fact, row in rows
        if fact != row
    ]


@pytest.fixture
def io(tmp_path: Path) -> Iterator[FailingIO]:
    with failing_io(tmp_path) as io:
        yield io


@pytest.mark.parametrize("facts_max", [FACTS_MAX, 7])
async def test_what_is_known_is_what_is_in_the_rows(
    tmp_path: Path, io: FailingIO, seed: int, facts_max: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After each of many operations, also failing ones, and those of others in between."""
    monkeypatch.setattr("nexus_engine.meta.known.FACTS_MAX", facts_max)
    Store.create(tmp_path / "store", ACTOR).close()
    engine = Engine.start(tmp_path / "store")
    engine.store.let_wait(lambda: None)
    connection = engine.store.database.connection
    program, counts = Program(engine, io, seed), Counter[str]()
    for number in range(STEPS):
        await program.step()
        assert wrong_facts(connection, counts) == [], f"after step {number}"
        assert not connection.known.inodes or connection.in_transaction
    assert {"inode", "child", "xattr", "empty", "name"} <= counts.keys()
    assert {"peer", "settle", "batch", "keep_house", "NoSpace", "NotFound"} <= program.done.keys()
    for handle in program.open:
        await engine.release(handle)
    engine.store.settle()
    assert list(check(engine.store)) == []
    verify_log(engine.store.database)
    await engine.close()
