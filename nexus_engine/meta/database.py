"""The metadata database of a store: reads, transactions, upkeep, durability."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

from nexus_engine.backends.files import sync_directory, translate, write_again
from nexus_engine.clock import Clock
from nexus_engine.meta.attached import AttachedRoots
from nexus_engine.meta.connection import Connection
from nexus_engine.meta.journal import Entry, Journal
from nexus_engine.meta.quotas import Usage
from nexus_engine.meta.reader import AsOfReader, Reader
from nexus_engine.meta.shadows import Shadows
from nexus_engine.meta.statements import ADD_CHUNK
from nexus_engine.meta.transaction import Transaction
from nexus_engine.types import Actor, Ino, Seq

P = ParamSpec("P")
R = TypeVar("R")

ChunkRow = tuple[Any, ...]

CHECKPOINT_BYTES = 16 * 1024 * 1024
"""Past this size the write-ahead log is copied back, by a thread."""
URGENT_BYTES = 4 * 1024 * 1024
RESTART_BYTES = 4 * CHECKPOINT_BYTES
"""Past this size writers wait a moment so that the log can begin anew: under a steady load it
would never find the gap by itself, and reading through a long log is slow."""


class Database:
    """One process's view of the metadata. Not thread-safe, but for ``sync`` and ``checkpoint``."""

    def __init__(self, connection: Connection, clock: Clock) -> None:
        self.connection = connection
        self.reader = Reader(connection)
        self.shadows = connection.shadows = Shadows(connection)
        self.attached = AttachedRoots(connection)
        self._transaction = Transaction(connection, clock, self.attached)
        self._wal_fd = -1
        self._sync_lock = threading.Lock()
        self._wanted = 0
        self._wanted_lock = threading.Lock()
        self._when_committed: list[Callable[[], None]] = []
        self._before_upkeep = self.settle
        self._unsure = False
        """The last sync of the write-ahead log, or a checkpoint, failed."""
        self._synced: tuple[int, int] | None = None
        """The `state` that is surely on the disk."""
        self._second: Connection | None = None
        self.own: set[Seq] | None = None
        """Operations of this process that ``Tail`` has not passed; ``None``: nobody asks."""

    @property
    def known_head(self) -> Seq:
        """The last operation as of this process's last transaction: a lower bound, for free."""
        return self._transaction.committed_seq

    @property
    def held(self) -> dict[Ino, Usage]:
        """What open files of this process take of quotas; theirs who keep them to change."""
        return self._transaction.held

    def as_of(self, seq: Seq) -> AsOfReader:
        return AsOfReader(self.connection, seq)

    def transact(
        self,
        rule: Callable[Concatenate[Transaction, P], R],
        actor: Actor,
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> R:
        """Run a rule in a transaction: all of it is kept, or nothing.

        Raises:
            StoreBusy: Another process is writing; nothing happened, try again.
        """
        transaction = self._transaction
        self.connection.intervene = self.connection.resume = None
        done = False
        try:
            transaction.begin(actor)
            first = transaction.seq
            result = rule(transaction, *args, **kwargs)
            transaction.end()
            done = True
        finally:
            if not done:
                transaction.abort()
            self._look_after_waiting()
        if self.own is not None:
            self.own.update(map(Seq, range(first, transaction.seq)))
        return result

    # -- operations that share a COMMIT --

    def let_wait(
        self, journal: Journal, may_wait: Callable[[], bool], settle: Callable[[], None]
    ) -> None:
        """Have operations wait for one COMMIT; whoever calls this calls `settle` soon after each.

        Args:
            journal: Keeps them until then.
            may_wait: Asked, with the write lock held, whether the next ones may wait.
            settle: Called before anything else is changed by this connection, and after a failure
                before anything is read; calls our `settle`.
        """
        self._transaction.let_wait(journal, may_wait)
        self._before_upkeep = settle
        self.connection.note_failure = self._note_interruption

    @property
    def waiting(self) -> int:
        """How many operations wait for a COMMIT: on this connection they are there already."""
        return len(self._transaction.waiting)

    @property
    def is_interrupted(self) -> bool:
        """Whether a COMMIT failed: what waits is not even on this connection."""
        return bool(self._transaction.waiting) and not self.connection.in_transaction

    def settle(self) -> None:
        """Commit what waits.

        Raises:
            StoreBusy, NoSpace, MetadataFailed: They still wait; try again.
        """
        transaction, connection = self._transaction, self.connection
        connection.intervene = connection.resume = None
        try:
            if transaction.waiting and connection.in_transaction:
                try:
                    transaction.commit_waiting()
                finally:
                    if transaction.waiting:
                        transaction.forget()
                        connection.rollback()
            elif transaction.waiting:
                transaction.redo(transaction.waiting.copy)
        finally:
            self._look_after_waiting()

    def redo(self, read: Callable[[], Iterable[Entry]]) -> tuple[int, int]:
        """Do what other processes left in their journals; see `Transaction.redo`."""
        return self._transaction.redo(read)

    def when_committed(self, action: Callable[[], None]) -> None:
        """Call this when what was done so far is in the database for others to see."""
        if self._transaction.waiting:
            self._when_committed.append(action)
        else:
            action()

    def _note_interruption(self) -> None:
        # Who reads must not find undone what programs were told is done: an error is honest.
        if self.is_interrupted:
            self.connection.resume = self._before_upkeep

    def _look_after_waiting(self) -> None:
        connection = self.connection
        if self._transaction.waiting:
            connection.intervene = self._before_upkeep
            connection.resume = None if connection.in_transaction else self._before_upkeep
        elif self._when_committed:
            actions, self._when_committed = self._when_committed, []
            for action in actions:
                action()

    @property
    def is_wanted(self) -> bool:
        """Whether another thread of this process waits for the write lock."""
        return self._wanted > 0

    @contextmanager
    def wanted(self) -> Iterator[None]:
        """Have operations not wait for others meanwhile; from any thread."""
        with self._wanted_lock:
            self._wanted += 1
        try:
            yield
        finally:
            with self._wanted_lock:
                self._wanted -= 1

    # -- upkeep: rows that no view of the tree, now or then, can see change --

    def adopt_unlinked(self, ino: Ino) -> None:
        """Keep what an inode held that another process removed while it was open here."""
        self.connection.run(
            "INSERT OR IGNORE INTO inode (ino, from_seq, mode, uid, gid, nlink, rdev, size,"
            " atime_ns, mtime_ns, ctime_ns, btime_ns, content_seq, target)"
            " SELECT ino, to_seq, mode, uid, gid, 0, rdev, size,"
            " atime_ns, mtime_ns, ctime_ns, btime_ns, content_seq, target"
            " FROM inode_past WHERE ino = ? ORDER BY to_seq DESC LIMIT 1",
            (ino,),
        )

    def drop_unlinked(self, ino: Ino) -> None:
        """Drop the current row of an inode whose last name and last handle are gone.

        The version that had a name became a past row when the name went.
        """
        self.connection.run("DELETE FROM inode WHERE ino = ? AND nlink = 0", (ino,))

    def unlinked_inodes(self) -> list[Ino]:
        """Return inodes without a name that are still there."""
        return [row[0] for row in self.connection.all("SELECT ino FROM inode WHERE nlink = 0")]

    def in_transaction(self, action: Callable[[Connection], R]) -> R:
        """Run statements that need no record: all of it is kept, or nothing.

        Raises:
            StoreBusy: Another process is writing; nothing happened, try again.
        """
        self.connection.run("BEGIN IMMEDIATE")
        try:
            result = action(self.connection)
            self.connection.run("COMMIT")
        finally:
            self.connection.rollback()
        return result

    def forget_cached(self) -> None:
        """Read again what transactions know of the store: rows went that they may rely on."""
        self._transaction.forget()

    def put_access_times(self, times: dict[Ino, int]) -> None:
        """Set atimes (ns) of current inodes, in place: reading makes no version."""

        def put(connection: Connection) -> None:
            sql = "UPDATE inode SET atime_ns = ?2 WHERE ino = ?1"
            connection.run_many(sql, list(times.items()))

        self.in_transaction(put)

    def add_pack(self, name: str, owner: str) -> None:
        """Register a pack, durably; from any thread that this object is for. May be repeated.

        Before anything is in it: a power loss must not leave chunks in a pack that nobody knows,
        for all that fsck could say they might be those of a newer database.
        """
        self.connection.run(
            "INSERT OR IGNORE INTO pack (name, owner, begun_seq)"
            " VALUES (?, ?, coalesce((SELECT max(seq) FROM oplog), 0))",
            (name, owner),
        )
        # Not `sync`, which would wait for a checkpoint in the event loop. An error that this
        # descriptor hears of, the other hears of as well: fsync(2).
        path = self.connection.path + "-wal"
        try:
            fd = os.open(path, os.O_RDONLY)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
        except OSError as error:
            raise translate(error, f"sync {path}") from error

    def close_packs(self, names: Iterable[str]) -> None:
        """Have the owners of packs, if they have any, finish them soon."""
        sql = "UPDATE pack SET closing = 1 WHERE name = ? AND owner IS NOT NULL"
        self.connection.run_many(sql, [(name,) for name in names])

    def seal_pack(self, name: str) -> None:
        self.connection.run("UPDATE pack SET owner = NULL WHERE name = ?", (name,))

    def retire_packs(self, empty: list[str], full: list[str], chunks: list[ChunkRow]) -> None:
        """Nobody appends to these packs any more, and recovery need not look into them.

        Args:
            empty: Nothing was written to them.
            chunks: What is in them that no row names yet: (digest, pack name, offset, stored
                length, length, codec). Sessions that go on rely on them.
        """

        def retire(connection: Connection) -> None:
            if chunks:
                connection.run_many(ADD_CHUNK, chunks)
            for name in empty:
                self.remove_pack(name)
            for name in full:
                self.seal_pack(name)

        self.in_transaction(retire)

    def remove_pack(self, name: str) -> None:
        """Forget a pack that nothing was written to."""
        seen = "DELETE FROM pack_seen WHERE pack IN (SELECT id FROM pack WHERE name = ?)"
        self.connection.run(seen, (name,))  # gc may have been about to drop it
        self.connection.run("DELETE FROM pack WHERE name = ?", (name,))

    def open_packs(self) -> list[tuple[str, str]]:
        """Return (name, owner) of packs that a process may still append to."""
        return [
            (row[0], row[1])
            for row in self.connection.all("SELECT name, owner FROM pack WHERE owner IS NOT NULL")
        ]

    def set_store_value(self, key: str, value: Any) -> None:
        self.connection.run("INSERT OR REPLACE INTO store (key, value) VALUES (?, ?)", (key, value))

    def drop_store_value(self, key: str) -> None:
        self.connection.run("DELETE FROM store WHERE key = ?", (key,))

    def add_content_hash(self, ino: Ino, content_seq: Seq, sha256: bytes) -> None:
        self.connection.run(
            "INSERT OR IGNORE INTO content_hash (ino, content_seq, sha256) VALUES (?, ?, ?)",
            (ino, content_seq, sha256),
        )

    # -- durability; both from worker threads --

    def state(self) -> tuple[int, int]:
        """Return what differs after any change by anybody that is committed."""
        return self.connection.total_changes(), self.connection.data_version()

    def sync(self, state: tuple[int, int] | None = None) -> None:
        """Make every committed transaction durable.

        With synchronous=NORMAL a commit is a write to the write-ahead log; what FULL would add is
        just this fsync. (A checkpoint syncs what it moves, so the log is all there is to sync.)

        Args:
            state: Of now or of a moment ago, with nothing waiting for a COMMIT: where that is on
                the disk already, there is nothing to do.
        """
        with self._sync_lock:
            if self._unsure or state is None or state != self._synced:
                self._synced = None
                self._sync()
                self._synced = state

    def _sync(self) -> None:
        path = Path(self.connection.path + "-wal")
        try:
            if self._wal_fd < 0:
                sync_directory(path.parent)
                self._wal_fd = os.open(path, os.O_RDWR)
            if self._unsure:
                with self.wanted(), self._own_connection().without_writers():
                    write_again(self._wal_fd)
            self._unsure = True
            os.fsync(self._wal_fd)
            self._unsure = False
        except OSError as error:
            raise translate(error, f"sync {path}") from error

    def _own_connection(self) -> Connection:
        """Return the connection of whoever holds the lock: the other one is the event loop's."""
        if self._second is None:
            self._second = Connection(self.connection.path)
        return self._second

    def needs_checkpoint(self, *, urgent: bool = False) -> bool:
        """Tell whether the write-ahead log is long; ``urgent``: every MiB counts."""
        return self.connection.wal_bytes() >= (URGENT_BYTES if urgent else CHECKPOINT_BYTES)

    def checkpoint(self, *, restart: bool = False) -> None:
        """Move the write-ahead log into the database. Blocks on the disk.

        Args:
            restart: Have the log give back its space in any case.
        """
        size = self.connection.wal_bytes()
        with self._sync_lock:
            if self._unsure:
                self._sync()  # SQLite's own sync would believe the kernel
            self._unsure = True
            with self.wanted():
                self._own_connection().checkpoint(restart=restart or size >= RESTART_BYTES)
            self._unsure = False

    def close(self) -> None:
        with self._sync_lock:
            if self._second is not None:
                self._second.close()
            if self._wal_fd >= 0:
                os.close(self._wal_fd)
                self._wal_fd = -1
        self.connection.close()
