"""Stores of any size, made through the engine's own rules, many operations in a transaction.

The past of such a store is dense: every file has been created, written, overwritten, had its mode
changed, been renamed, and some have been removed and made again, by many processes of a few agents.
Each works in one place for a while, as programs do.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from nexus_engine.clock import SystemClock
from nexus_engine.fs import attributes, namespace
from nexus_engine.fs.attributes import NewAttributes
from nexus_engine.fs.files import WriteSession, commit_session
from nexus_engine.meta.transaction import Transaction
from nexus_engine.store import Store
from nexus_engine.types import ROOT_INO, Actor, Digest, Extent, Ino, Inode, Name

FILES_PER_DIRECTORY = 100
AGENTS = 10
PROCESSES_PER_AGENT = 50
BATCH = 1000
"""Operations in one transaction, which is what one process does."""
NEIGHBOURS = 2_000
"""Files that it does that to."""
WIDE_FILES_MAX = 100_000
CONTENT_BYTES = 100


@dataclass(frozen=True, slots=True)
class Size:
    files: int
    records: int

    @property
    def wide_files(self) -> int:
        """How many of the files are in one directory."""
        return min(WIDE_FILES_MAX, self.files // 2)


class PastClock(SystemClock):
    """Goes on by a second for each batch, and ends about now."""

    def __init__(self, batches: int) -> None:
        self.now_ns = time.time_ns() - batches * 1_000_000_000

    def time_ns(self) -> int:
        return self.now_ns


def make_store(path: Path, size: Size, progress: Callable[[int], None]) -> None:
    """Make a store with so many files and at least so many records.

    Args:
        progress: Told the number of records, now and then.
    """
    clock = PastClock(size.records // BATCH + 1)
    actors = _actors()
    Store.create(path, actors[0], clock=clock).close()
    store = Store.open(path, clock=clock)
    store.announce_writing()
    try:
        steps = _Grower(store, size).steps()
        for number, batch in enumerate(_batches(steps)):
            store.transact(_run, actors[number % len(actors)], batch)
            store.checkpoint()
            clock.now_ns += 1_000_000_000
            if number % 100 == 0:
                progress(store.reader.head())
    finally:
        store.close()


Step = Callable[[Transaction], None]


class _Grower:
    """Yields the steps in which a store grows; each is one operation or two."""

    def __init__(self, store: Store, size: Size) -> None:
        self._store, self._size = store, size
        self._rng = random.Random(size.files)
        self._directories: list[Ino] = []
        self._inos = [Ino(0)] * size.files
        self._generations = [0] * size.files
        self._digests: list[Digest] = []

    def steps(self) -> Iterator[list[Step]]:
        """Yield steps a few at a time: what belongs together, in one transaction."""
        yield from self._make_directories()
        for number in range(self._size.files):
            if number % BATCH == 0:
                self._store_contents(number)
            yield [self._creation(number), self._overwriting(number, number)]
        changes = self._size.records - 2 * self._size.files - len(self._directories)
        for begun in range(0, changes, BATCH):
            first = self._rng.randrange(max(1, self._size.files - NEIGHBOURS))
            place = range(first, min(first + NEIGHBOURS, self._size.files))
            yield [self._change(place) for _ in range(min(BATCH, changes - begun))]

    def _make_directories(self) -> Iterator[list[Step]]:
        narrow = -(-(self._size.files - self._size.wide_files) // FILES_PER_DIRECTORY)
        groups: list[Ino] = []
        for number in range(1 + narrow):
            if number == 0:
                yield [self._directory(ROOT_INO, b"wide", self._directories)]
                continue
            if (number - 1) % FILES_PER_DIRECTORY == 0:
                yield [self._directory(ROOT_INO, b"group-%d" % number, groups)]
            yield [self._directory(groups, b"directory-%d" % number, self._directories)]

    def _directory(self, parent: Ino | list[Ino], name: bytes, made: list[Ino]) -> Step:
        def make(tx: Transaction) -> None:
            above = parent[-1] if isinstance(parent, list) else parent
            made.append(namespace.make(tx, above, Name(name), 0o40755).ino)

        return make

    def _store_contents(self, first: int) -> None:
        """Put the contents of the next files into a pack, before rows name them."""
        numbers = range(first, min(first + BATCH, self._size.files))
        contents = [b"%d %s" % (n, self._rng.randbytes(CONTENT_BYTES)) for n in numbers]
        self._digests += self._store.chunks.put_many(contents)

    def _creation(self, number: int) -> Step:
        def create(tx: Transaction) -> None:
            inode = namespace.make(tx, self._parent(number), self._name(number), 0o100644)
            self._inos[number] = inode.ino

        return create

    def _overwriting(self, number: int, content: int) -> Step:
        """Return the write of one of the contents."""

        def write(tx: Transaction) -> None:
            inode = tx.get_inode(self._inos[number])
            commit_session(tx, self._session(tx, inode, content), self._store.locate)

        return write

    def _session(self, tx: Transaction, inode: Inode, content: int) -> WriteSession:
        session = WriteSession(b"%016d" % content, inode, tx.actor, tx.now_ns)
        length = CONTENT_BYTES + len(b"%d " % content)
        session.floor, session.end = 0, length
        session.staged.put(Extent(0, length, self._digests[content], 0))
        return session

    def _change(self, place: range) -> Step:
        number = self._rng.choice(place)
        kind = self._rng.random()
        if kind < 0.5:
            return self._overwriting(number, self._rng.randrange(self._size.files))
        if kind < 0.8:
            mode = self._rng.choice((0o600, 0o640, 0o644))
            return lambda tx: void(
                attributes.set_attributes(tx, self._inos[number], NewAttributes(mode=mode))
            )
        return self._renaming(number) if kind < 0.9 else self._removal(number)

    def _renaming(self, number: int) -> Step:
        def rename(tx: Transaction) -> None:
            parent, old = self._parent(number), self._name(number)
            self._generations[number] += 1
            namespace.rename(tx, parent, old, parent, self._name(number), 0, ())

        return rename

    def _removal(self, number: int) -> Step:
        def remove_and_make_again(tx: Transaction) -> None:
            namespace.unlink(tx, self._parent(number), self._name(number), ())
            self._creation(number)(tx)

        return remove_and_make_again

    def _parent(self, number: int) -> Ino:
        beyond = number - self._size.wide_files
        return self._directories[0 if beyond < 0 else 1 + beyond // FILES_PER_DIRECTORY]

    def _name(self, number: int) -> Name:
        return Name(b"file-%d-%d" % (number, self._generations[number]))


def void(_: object) -> None:
    """Drop a result."""


def _run(tx: Transaction, steps: list[Step]) -> None:
    for step in steps:
        step(tx)


def _batches(steps: Iterator[list[Step]]) -> Iterator[list[Step]]:
    batch: list[Step] = []
    for some in steps:
        batch += some
        if len(batch) >= BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def _actors() -> list[Actor]:
    return [
        Actor(0, 0, pid, pid, f"command-{pid % 7}", pid // 5, f"agent-{pid % AGENTS}")
        for pid in range(1, AGENTS * PROCESSES_PER_AGENT + 1)
    ]
