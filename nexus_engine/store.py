"""A store on disk: its directory, its database and its packs, opened by one process.

::

    STORE/meta.db      metadata and log (SQLite)
    STORE/packs/…      chunks
    STORE/reserve      space held back for emptying a full disk
    STORE/store.yaml   settings, optional
    STORE/peers/…      a lock, a socket and a journal for each process that has the store open
"""

from __future__ import annotations

import logging
import os
import stat
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path as FilePath
from typing import Any, Concatenate, ParamSpec, TypeVar

import anyio

from nexus_engine import errors
from nexus_engine.backends.local import LocalObjectStore
from nexus_engine.cas.store import ChunkStore, Location
from nexus_engine.clock import Clock, SystemClock, uuid7
from nexus_engine.config import CONFIG_NAME, StoreConfig, load_config
from nexus_engine.disk import Disk
from nexus_engine.meta.connection import DATABASE_NAME, Connection, migrate, older_version
from nexus_engine.meta.database import Database
from nexus_engine.meta.journal import Entry, Journal, read_journal
from nexus_engine.meta.reader import Reader
from nexus_engine.meta.transaction import Transaction
from nexus_engine.owners import JOURNAL, claim, describe, is_alone, living, synced_by_others
from nexus_engine.records import Change
from nexus_engine.reserve import Reserve, full, may_use_reserve
from nexus_engine.types import ROOT_INO, Actor, Digest, Ino, Inode, Path, Seq

P = ParamSpec("P")
R = TypeVar("R")

log = logging.getLogger(__name__)

BUSY_LIMIT_S = 30.0
"""A writer waits this long for another process's transaction."""
WAITING_MAX = 256
"""So many operations share a COMMIT at the most: it keeps others waiting."""
_CACHE_MIB = 32
_MIB = 1024 * 1024
_UNFINISHED = DATABASE_NAME + ".new"
_BEFORE_CREATION = {CONFIG_NAME, "daemon.log", "packs", "peers"}


class Store:
    """The open store. Use from one thread, but for ``sync`` and ``checkpoint``."""

    def __init__(self, path: FilePath, database: Database, config: StoreConfig, clock: Clock):
        self.path = path
        self.config = config
        self.clock = clock
        self.database = database
        self.reader = database.reader
        self._thread = threading.get_ident()
        self._turn = anyio.Lock()
        """Held by whoever waits for another process's transaction."""
        self._idle_readers: list[Reader] = []
        self._reader_connections: list[Connection] = []
        self.peers = path / "peers"
        self.reserve = Reserve(path, config.reserve_mib * _MIB)
        self._lock = claim(self.peers)
        self.owner = self._lock.owner
        self._journal: Journal | None = None
        self._on_waiting: Callable[[], None] | None = None
        self.objects = LocalObjectStore(path)
        self.disk = Disk(
            path / "packs", read_limit_s=config.read_limit_s, sync_limit_s=config.sync_limit_s
        )
        self.chunks = ChunkStore(
            self.objects,
            path / "packs",
            find=partial(self._find_chunk, Reader.find_chunk),
            find_reusable=partial(self._find_chunk, Reader.find_reusable_chunk),
            on_new_pack=self._add_pack,
            before_waiting=self._let_others_write,
            cache_bytes=config.chunk_cache_mib * _MIB,
        )

    @classmethod
    def open(cls, path: FilePath, *, clock: Clock | None = None) -> Store:
        """Open an existing store.

        Raises:
            StoreNotFound, StoreInaccessible, StoreVersion, CorruptMetadata.
        """
        try:
            kind = (path / DATABASE_NAME).lstat().st_mode
        except FileNotFoundError:
            raise errors.StoreNotFound(f"no store at {path}; nexus-ctl mount makes one") from None
        except OSError as error:
            raise errors.StoreInaccessible(f"cannot look into {path}: {error.strerror}") from error
        if not stat.S_ISREG(kind):
            raise errors.StoreInaccessible(f"{path / DATABASE_NAME} is not a regular file")
        config = load_config(path)
        Reserve(path, config.reserve_mib * _MIB).spend_if_full()
        connection = Connection(str(path / DATABASE_NAME), cache_mib=_CACHE_MIB)
        clock = clock or SystemClock()
        try:
            _require_no_older_user(path / "peers", connection)
            _retry(migrate, connection)
            store = cls(path, Database(connection, clock), config, clock)
        except errors.EngineError:
            connection.close()
            raise
        try:
            store._finish_journals()
        except errors.EngineError:
            store.abandon()
            raise
        return store

    @classmethod
    def create(cls, path: FilePath, actor: Actor, *, clock: Clock | None = None) -> Store:
        """Make an empty store and open it.

        Raises:
            StoreExists: There is one, or the directory holds something else.
        """
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            _require_empty(path)
            (path / "packs").mkdir(mode=0o700, exist_ok=True)
            (path / "peers").mkdir(mode=0o700, exist_ok=True)
            os.close(os.open(path / _UNFINISHED, os.O_CREAT | os.O_RDWR, 0o600))
        except OSError as error:
            raise errors.StoreInaccessible(f"cannot make a store: {error}") from error
        connection = Connection(str(path / _UNFINISHED), create=True)
        migrate(connection)
        clock = clock or SystemClock()
        database = Database(connection, clock)
        for key in ("store_id", "tenant_id"):
            identity = uuid7(clock.time_ns(), clock.random_bytes(10)).hex()
            database.set_store_value(key, identity)
        database.set_store_value("created_ns", clock.time_ns())
        database.set_store_value("next_ino", ROOT_INO + 1)
        database.transact(_make_root, actor)
        database.sync()
        database.close()
        (path / _UNFINISHED).rename(path / DATABASE_NAME)  # now there is a store
        for directory in (path, path.parent):
            fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
            os.fsync(fd)
            os.close(fd)
        return cls.open(path, clock=clock)

    # -- changing things --

    async def write(
        self,
        rule: Callable[Concatenate[Transaction, P], R],
        actor: Actor,
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> R:
        """Run a rule in a transaction, in the event loop; wait only for other processes.

        Whoever waits does so in the order of calls: what was done first comes first in the log.

        Raises:
            NoSpace: The disk is full; what frees space is tried again with the reserve.
        """
        transact = self._transact
        if not self._turn.locked():
            with suppress(errors.StoreBusy):
                return transact(rule, actor, *args, **kwargs)
        deadline_s = time.monotonic() + BUSY_LIMIT_S
        async with self._turn:
            delay_s = 0.0005
            while True:
                try:
                    return transact(rule, actor, *args, **kwargs)
                except errors.StoreBusy:
                    if time.monotonic() > deadline_s:
                        raise
                # Asking again beats a thread that waits: the transactions of others are short, and
                # a request that is cancelled leaves nothing behind.
                await anyio.sleep(delay_s)
                delay_s = min(delay_s * 2, 0.05)

    def transact(
        self,
        rule: Callable[Concatenate[Transaction, P], R],
        actor: Actor,
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> R:
        """Run a rule in a transaction; blocks while another process writes."""
        return _retry(self._transact, rule, actor, *args, **kwargs)

    def _transact(
        self,
        rule: Callable[Concatenate[Transaction, P], R],
        actor: Actor,
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> R:
        try:
            if not self.reserve.spent:
                try:
                    return self.database.transact(rule, actor, *args, **kwargs)
                except errors.NoSpace:
                    if not may_use_reserve(rule):
                        raise
            elif not may_use_reserve(rule):
                raise full()
            result = self.with_reserve(self.database.transact, rule, actor, *args, **kwargs)
        finally:
            if self.database.waiting:
                self._look_after_waiting()
        # A thousand deletes a second would outrun the thread that shortens the write-ahead log.
        self.checkpoint()
        return result

    def upkeep(self, action: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run one of the database's upkeep methods; blocks while another process writes."""
        return _retry(self.with_reserve, action, *args, **kwargs)

    def with_reserve(self, action: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run what must go on while the disk is full; it can be run again after it failed."""
        while True:
            try:
                return action(*args, **kwargs)
            except errors.NoSpace:
                if not self.reserve.spend():
                    raise

    # -- operations that share a COMMIT --

    def let_wait(self, on_waiting: Callable[[], None] | None) -> None:
        """Let operations wait for one COMMIT, while no other process has the store open.

        Args:
            on_waiting: Called when one begins to wait; `settle` must be called soon after.
                ``None``: from now on they do not wait.
        """
        if on_waiting is None:
            self._on_waiting = None
            return
        if self._journal is None:
            self._journal = Journal(self.peers / f"{self.owner}{JOURNAL}")
        self._on_waiting = on_waiting
        self.database.let_wait(self._journal, self._may_wait, self.settle)

    def settle(self) -> None:
        """Commit what waits for it, so that every connection sees it.

        Raises:
            MetadataFailed, NoSpace, StoreBusy: It still waits, in the journal.
        """
        if self.database.waiting:
            _retry(self.with_reserve, self.database.settle)

    def _may_wait(self) -> bool:
        """Tell whether operations may wait now.

        Asked with the write lock held: who opens the store has it for a moment, after making his
        own lock file, and finds either our journal as of then or that we have seen his file.
        """
        if self._on_waiting is None or self.reserve.spent or self.database.is_wanted:
            return False
        return is_alone(self.peers)

    def _look_after_waiting(self) -> None:
        """An operation waits, and its caller is told that it is done: what fails now is no news."""
        database = self.database
        if (
            database.waiting >= WAITING_MAX
            or database.is_wanted
            or database.is_interrupted
            or self.reserve.spent
            or self._on_waiting is None
        ):
            try:
                self.settle()
            except errors.EngineError as error:
                log.error("%s; what was done waits in the journal", error)
        elif database.waiting == 1:
            self._on_waiting()

    def _finish_journals(self) -> None:
        """Do what processes that died, or could not, left to be committed."""
        # See docs/FORMAT.md, "Journals", for why nothing can slip through.
        journals = [path for path in self.peers.glob(f"*{JOURNAL}") if path.stem != self.owner]
        if not journals:
            return

        def read() -> list[Entry]:
            return [entry for path in journals for entry in read_journal(path)]

        done, lost = _retry(self.with_reserve, self.database.redo, read)
        if done:
            log.warning("committed %d operations that a process which died left to be", done)
        if lost:
            log.warning("%d operations in a journal have no place in the log: power was lost", lost)

    def announce_writing(self) -> None:
        """Say that this process stores content from now on: gc then waits for its answers."""
        self._lock.note_writing()

    def locate(self, digest: Digest) -> tuple[Any, ...] | None:
        """Return where a chunk is that the index does not know yet."""
        return self.chunks.pending(digest)

    # -- durability; from any thread --

    def sync(self, ino: Ino | None = None) -> None:
        """Make everything committed, and every intent, durable. Chunks before what names them.

        Args:
            ino: A file; with all its content, also what other processes stored and have not synced.
        """
        head = self.database.known_head
        if ino is not None:
            self._rely_on_others(ino)
        self.chunks.sync()
        self.database.sync()
        self._lock.note_synced(head)

    def _rely_on_others(self, ino: Ino) -> None:
        synced = synced_by_others(self.peers, self.owner)
        if synced is not None:
            with self._lent_reader() as reader:
                for pack, end in reader.packs_of_others(ino, self.owner, Seq(synced)):
                    self.chunks.rely_on(pack, end)

    def checkpoint(self) -> None:
        """Shorten the write-ahead log if it has grown; that makes what is in it durable."""
        if self.database.needs_checkpoint(urgent=self.reserve.spent):
            self.chunks.sync()  # never a durable name for a chunk that is not
            self.with_reserve(self.database.checkpoint, restart=self.reserve.spent)

    def has_unsynced_chunks(self) -> bool:
        return any(pack.synced_length < pack.length for pack in self.chunks.packs_written())

    def with_reader(self, action: Callable[[Database], R]) -> R:
        """Run queries on a connection of their own; from any thread."""
        database = Database(Connection(str(self.path / DATABASE_NAME)), self.clock)
        try:
            return action(database)
        finally:
            database.close()

    def complete_packs(self) -> list[str]:
        """Return this process's packs that are complete and not yet retired."""
        return [pack.pack for pack in self.chunks.packs_written() if pack.sealed]

    def retire_packs(self, names: list[str]) -> None:
        """Enter into the database that recovery need not look into these packs any more.

        Their intents must have been renewed, or their sessions ended. Tried once.

        Raises:
            StoreBusy: Another process is writing; nothing happened.
        """
        packs = [pack for pack in self.chunks.packs_written() if pack.pack in names]
        pending = self.chunks.pending_in(names)
        self.database.retire_packs(
            empty=[pack.pack for pack in packs if not pack.length],
            full=[pack.pack for pack in packs if pack.length],
            chunks=[(digest, *location) for digest, location in pending.items()],
        )
        self.chunks.forget_pending(pending)
        self.chunks.forget_sealed(names)

    def close(self) -> None:
        """Sync and close.

        Raises:
            EngineError: Not everything is durable, and the store still open: for another try, or
                to `abandon`.
        """
        self._on_waiting = None
        self.settle()
        self.chunks.close()
        self.upkeep(self.retire_packs, self.complete_packs())
        self.database.sync()
        self._close_database()
        self._lock.release()

    def abandon(self, word: str = "") -> None:
        """Close without taking leave: whoever opens the store next takes over.

        Args:
            word: What it then does, for people.
        """
        if not self.disk.silent_s:  # else a thread that was left behind may be using it
            self._close_database()
        self._lock.abandon(word)

    def leave(self) -> None:
        """Close; where that fails, leave the rest to whoever opens the store next."""
        try:
            self.close()
        except errors.EngineError as error:
            word = f"not everything is on the disk: {error}; the next process finishes it"
            log.error(word)
            self.abandon(word)

    def _close_database(self) -> None:
        self.objects.close()
        for connection in self._reader_connections:
            connection.close()
        self.database.close()
        if self._journal is not None:
            self._journal.close()

    # -- callbacks of the chunk store, which may come from worker threads --

    def _find_chunk(
        self, find: Callable[[Reader, Digest], tuple[Any, ...] | None], digest: Digest
    ) -> Location | None:
        if threading.get_ident() == self._thread:
            row = find(self.reader, digest)
        else:
            with self._lent_reader() as reader:
                row = find(reader, digest)
        return None if row is None else Location._make(row)

    def _let_others_write(self) -> None:
        # The thread that is to be waited for may register a pack, and wait for our COMMIT.
        if threading.get_ident() == self._thread:
            self.settle()

    @contextmanager
    def _lent_reader(self) -> Iterator[Reader]:
        if threading.get_ident() == self._thread:
            yield self.reader
            return
        # A connection serves one thread at a time; threads come and go, so it is lent.
        try:
            reader = self._idle_readers.pop()
        except IndexError:
            connection = Connection(str(self.path / DATABASE_NAME))
            self._reader_connections.append(connection)
            reader = Reader(connection)
        try:
            yield reader
        finally:
            self._idle_readers.append(reader)

    def _add_pack(self, name: str) -> None:
        if threading.get_ident() == self._thread:
            self.upkeep(self.database.add_pack, name, self.owner)
        else:
            with self.database.wanted():
                self.with_reader(lambda database: _retry(database.add_pack, name, self.owner))


def _require_empty(path: FilePath) -> None:
    """Refuse a directory that holds anything but settings, a log or an unfinished creation."""
    for found in path.iterdir():
        if found.name.startswith(_UNFINISHED):
            found.unlink()
        elif found.name not in _BEFORE_CREATION:
            raise errors.StoreExists(f"{path} is not empty")


def _require_no_older_user(peers: FilePath, connection: Connection) -> None:
    """Leave alone the schema of a store that a process of an older version has open.

    It would go on writing rows as it knows them: of the wrong shape, or without what is new.

    Raises:
        StoreBusy: There is one.
    """
    version = older_version(connection)
    if version is None:
        return
    for owner in living(peers):
        raise errors.StoreBusy(
            f"the store has format {version} and is in use by {describe(owner)}, of an older"
            " version of Nexus: unmount it there, then it can be opened and brought up to date"
        )


def _make_root(tx: Transaction) -> Seq:
    now, actor = tx.now_ns, tx.actor
    times = (now, now, now, now)
    tx.add_inode(
        Inode(ROOT_INO, tx.seq, 0o040755, actor.uid, actor.gid, 2, 0, 0, *times, tx.seq, None)
    )
    return tx.commit(Change("mkdir", ROOT_INO, Path(b""), details={"mode": 0o040755}))


def _retry(action: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    delay_s, deadline_s = 0.0005, time.monotonic() + BUSY_LIMIT_S
    while True:
        try:
            return action(*args, **kwargs)
        except errors.StoreBusy:
            if time.monotonic() > deadline_s:
                raise
        time.sleep(delay_s)
        delay_s = min(delay_s * 2, 0.05)
