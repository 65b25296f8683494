"""A store on disk: its directory, its database and its packs, opened by one process.

::

    STORE/meta.db      metadata and log (SQLite)
    STORE/packs/…      chunks; where packs live in a bucket, those that it does not have yet
    STORE/cache/…      copies of what is in the bucket
    STORE/reserve      space held back for emptying a full disk
    STORE/store.yaml   settings, optional
    STORE/peers/…      a lock, a socket and a journal for each process that has the store open
"""

from __future__ import annotations

import logging
import os
import stat
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path as FilePath
from typing import Any, ParamSpec, TypeVar

from nexus_engine import errors
from nexus_engine.backends.base import ObjectStore, View
from nexus_engine.backends.movable import MovableObjectStore
from nexus_engine.cas.pack import pack_key, pack_name
from nexus_engine.cas.store import ChunkStore, Location
from nexus_engine.clock import Clock, SystemClock, uuid7
from nexus_engine.config import CONFIG_NAME, StoreConfig, load_config
from nexus_engine.disk import Disk
from nexus_engine.meta.busy import retry
from nexus_engine.meta.connection import DATABASE_NAME, Connection, migrate, older_version
from nexus_engine.meta.database import Database
from nexus_engine.meta.reader import Reader
from nexus_engine.meta.transaction import Transaction
from nexus_engine.owners import claim, describe, living, synced_by_others
from nexus_engine.placing import (
    Place,
    find_place,
    limit_s,
    move_in,
    open_objects,
    send_orphans,
    staying,
)
from nexus_engine.records import Change
from nexus_engine.reserve import Reserve
from nexus_engine.sources import Sources
from nexus_engine.types import ROOT_INO, Actor, Digest, Ino, Inode, Path, Seq
from nexus_engine.writing import Writing

P = ParamSpec("P")
Q = TypeVar("Q")
R = TypeVar("R")

log = logging.getLogger(__name__)

_CACHE_MIB = 32
_MIB = 1024 * 1024
_UNFINISHED = DATABASE_NAME + ".new"
_BEFORE_CREATION = {CONFIG_NAME, "daemon.log", "packs", "peers"}


class Store:
    """The open store. Use from one thread, but for ``sync`` and ``checkpoint``."""

    def __init__(
        self,
        path: FilePath,
        database: Database,
        config: StoreConfig,
        clock: Clock,
        beside: Store | None = None,
    ) -> None:
        self.path = path
        self.config = config
        self.clock = clock
        self.database = database
        self.reader = database.reader
        self._thread = threading.get_ident()
        self._idle_readers: list[Reader] = []
        self._noting = threading.Lock()
        self._notes: Database | None = None
        self._reader_connections: list[Connection] = []
        self.stopping = threading.Event()
        """Set when long work on this store is to end."""
        self.disk = Disk(
            path / "packs", read_limit_s=config.read_limit_s, sync_limit_s=config.sync_limit_s
        )
        self._lent_objects = beside is not None
        self.objects: MovableObjectStore[Place] = (
            MovableObjectStore(self._find_place, self._open_objects)
            if beside is None
            else beside.objects
        )
        # Last: who fails to open a store must not seem to have it open.
        self.peers = path / "peers"
        self.reserve = Reserve(path, config.reserve_mib * _MIB)
        self._lock = claim(self.peers)
        self.owner = self._lock.owner
        self._writing = Writing(database, self.reserve, self.peers, self.owner, self.checkpoint)
        self.write = self._writing.write
        self.transact = self._writing.transact
        self.upkeep = self._writing.upkeep
        self.with_reserve = self._writing.with_reserve
        self.let_wait = self._writing.let_wait
        self.settle = self._writing.settle
        database.shadows.run = self._writing.upkeep
        self.chunks = ChunkStore(
            self.objects,
            path / "packs",
            find=self._find_chunk,
            find_reusable=self._find_reusable_chunks,
            on_new_pack=self._add_pack,
            before_waiting=self._let_others_write,
            before_securing=self.send_orphans,
            close_others=self._close_others,
            cache_bytes=config.chunk_cache_mib * _MIB,
        )
        self.sources: Sources = Sources(
            self.chunks, self.look, self.note, None if beside is None else beside.sources
        )

    @property
    def packs_url(self) -> str | None:
        """The bucket that packs live in, if they are not to stay in the store's directory."""
        return self.objects.place.url

    @property
    def fsync_secures(self) -> bool:
        """Tell whether fsync waits for the bucket."""
        return self.packs_url is not None and self.config.durability == "remote"

    @classmethod
    def open(
        cls, path: FilePath, *, clock: Clock | None = None, beside: Store | None = None
    ) -> Store:
        """Open an existing store.

        Args:
            beside: The same, opened by this process already: they share the way to a bucket.

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
            retry(migrate, connection)
            store = cls(path, Database(connection, clock), config, clock, beside)
        except errors.EngineError:
            connection.close()
            raise
        try:
            store._writing.finish_journals()
        except errors.EngineError:
            store.abandon()
            raise
        return store

    @classmethod
    def create(
        cls,
        path: FilePath,
        actor: Actor,
        *,
        clock: Clock | None = None,
        packs_url: str | None = None,
    ) -> Store:
        """Make an empty store and open it.

        Args:
            packs_url: Where its packs are to live: an empty prefix of a bucket.

        Raises:
            StoreExists: There is one, or the directory holds something else; or the prefix is
                another store's.
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
        try:
            if packs_url is not None:
                move_in(database, packs_url)
            database.sync()
        finally:
            database.close()
        (path / _UNFINISHED).rename(path / DATABASE_NAME)  # now there is a store
        for directory in (path, path.parent):
            fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
            os.fsync(fd)
            os.close(fd)
        return cls.open(path, clock=clock)

    def announce_writing(self) -> None:
        """Say that this process stores content from now on: gc then waits for its answers."""
        self._lock.note_writing()

    def locate(self, digest: Digest) -> tuple[Any, ...] | None:
        """Return where a chunk is that the index does not know yet."""
        return self.chunks.pending(digest)

    # -- durability; from any thread --

    def sync(self, ino: Ino | None = None, state: tuple[int, int] | None = None) -> None:
        """Make everything committed, and every intent, durable. Chunks before what names them.

        Args:
            ino: A file; with all its content, also what other processes stored and have not synced.
            state: See `Database.sync`.
        """
        head = self.database.known_head
        if ino is not None:
            self._rely_on_others(ino)
        self.chunks.sync()
        self.database.sync(state)
        self._lock.note_synced(head)

    def secure(self, packs: Iterable[str] = ()) -> None:
        """Have the bucket, if packs live in one, get all content stored so far; from any thread.

        Args:
            packs: These as well, whoever writes them.

        Raises:
            StoreHung, ObjectStoreFailed: It is not there yet.
        """
        if self.packs_url is not None:
            self.chunks.secure(packs)

    def drain(self) -> None:
        """Wait until everything is in the bucket; from any thread. Goes on while that gets on.

        Raises:
            EngineError: It does not. What is left is sent by whoever opens the store next.
        """
        self.objects.drain()

    def send_orphans(self) -> None:
        """Have the bucket get what processes that are gone left on this disk; from any thread."""
        own = {pack.pack: pack.sealed for pack in self.chunks.packs_written()}
        with self._lent_reader() as reader:
            send_orphans(self.path, self.objects, reader, own)

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

    def reader_value(self, key: str) -> Any:
        """Return a fact about the store; from any thread."""
        with self._lent_reader() as reader:
            return reader.store_value(key)

    def with_reader(self, action: Callable[[Database], R]) -> R:
        """Run queries on a connection of their own; from any thread."""
        database = Database(Connection(str(self.path / DATABASE_NAME)), self.clock)
        try:
            return action(database)
        finally:
            database.close()

    def look(self, question: Callable[[Connection], R]) -> R:
        """Ask the database something; from any thread."""
        with self._lent_reader() as reader:
            return reader.ask(question)

    def note(self, change: Callable[[Connection], R]) -> R:
        """Change rows that no view of the tree can see; from any thread, in no transaction."""
        with self.database.wanted(), self._noting:
            if self._notes is None:
                path = str(self.path / DATABASE_NAME)
                self._notes = Database(Connection(path), self.clock)
            return retry(self._notes.in_transaction, change)

    def read_chunk(self, digest: Digest, offset: int, length: int) -> View:
        """Return a slice of a chunk, also of one that is still at its source; from any thread.

        Raises:
            as `ChunkStore.read`; for what is at a source, as `Bucket.read`.
        """
        try:
            return self.chunks.read(digest, offset, length)
        except errors.MissingChunk:
            if not self.sources.fetch(digest):
                raise
        return self.chunks.read(digest, offset, length)

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
        self.let_wait(None)
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

    def stop_on(self, event: threading.Event) -> None:
        """Have long work raise `errors.Interrupted` soon after this is set, by any thread."""
        self.stopping = event
        self.database.connection.stop_when(event.is_set)

    def leave(self) -> None:
        """Close; where that fails, leave the rest to whoever opens the store next."""
        try:
            self.close()
        except errors.EngineError as error:
            word = f"not everything is on the disk: {error}; the next process finishes it"
            log.error(word)
            self.abandon(word)

    def _close_database(self) -> None:
        self.sources.close()
        if self._notes is not None:
            self._notes.close()
        if not self._lent_objects:
            self.objects.close()
        for connection in self._reader_connections:
            connection.close()
        self.database.close()
        self._writing.close()

    # -- callbacks of the chunk store, which may come from worker threads --

    def _find_place(self) -> Place:
        with self._lent_reader() as reader:
            return find_place(reader)

    def _open_objects(self, place: Place) -> ObjectStore:
        # The bucket has limits of its own: it must not be taken for a disk that hangs.
        self.disk.allow(limit_s(place.url, self.config))
        with self._lent_reader() as reader:
            return open_objects(
                self.path,
                reader,
                place,
                self.config,
                press=self.disk.press,
                staying=partial(staying, self.path, place, self._find_place),
                find_next=self._find_next,
            )

    def _find_next(self, key: str) -> str | None:
        with self._lent_reader() as reader:
            following = reader.find_next_pack(pack_name(key))
        return None if following is None else pack_key(following)

    def _find_chunk(self, digest: Digest) -> Location | None:
        row = self._look(Reader.find_chunk, digest)
        return None if row is None else Location._make(row)

    def _find_reusable_chunks(self, digests: Sequence[Digest]) -> dict[Digest, Location]:
        found = self._look(Reader.find_reusable_chunks, digests)
        return {digest: Location._make(row) for digest, row in found.items()}

    def _look(self, find: Callable[[Reader, Q], R], what: Q) -> R:
        if threading.get_ident() == self._thread:
            return find(self.reader, what)
        with self._lent_reader() as reader:
            return find(reader, what)

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

    def _close_others(self, names: Collection[str]) -> None:
        with self.database.wanted():
            self.with_reader(lambda database: retry(database.close_packs, names))

    def _add_pack(self, name: str) -> None:
        if threading.get_ident() == self._thread:
            self.upkeep(self.database.add_pack, name, self.owner)
        else:
            self.objects.await_room()  # not in the event loop: see `Disk.press`
            with self.database.wanted():
                self.with_reader(lambda database: retry(database.add_pack, name, self.owner))


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
