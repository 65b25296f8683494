"""One SQLite connection: opening, pragmas, errors. Nothing above ``meta`` sees ``apsw``."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

import apsw

from nexus_engine import errors
from nexus_engine.meta import schema
from nexus_engine.meta.known import Known
from nexus_engine.types import Ino

DATABASE_NAME = "meta.db"
RESTART_WAIT_MS = 2000
"""How long a checkpoint waits for a gap between writers."""
_STOP_STEPS = 10_000
"""Steps of a statement between two looks at whether to stop: a millisecond at most."""
_COPY_PAGES = 1024
"""Pages copied between two looks at how far a copy is."""

_SHARED = (
    "journal_mode = WAL",
    # Commits reach the page cache; fsync(2) is answered by Database.sync. A checkpoint in the
    # middle of a request would stall every other one for a disk sync.
    "synchronous = NORMAL",
    "wal_autocheckpoint = 0",
    "mmap_size = 268435456",
    "temp_store = MEMORY",
    # What a database of somebody else's making has in it does nothing but compute.
    "trusted_schema = OFF",
)
_ALONE = ("locking_mode = EXCLUSIVE", "journal_mode = MEMORY", "synchronous = OFF")

_DAMAGED = "meta.db is damaged; restore a backup, or nexus-ctl --store DIR fsck --repair"
_LEAVES: tuple[tuple[type[Exception], type[errors.EngineError], str], ...] = (
    (apsw.BusyError, errors.StoreBusy, "another process is writing to the store; try again"),
    (apsw.LockedError, errors.StoreBusy, "another process is writing to the store; try again"),
    (apsw.InterruptError, errors.Interrupted, "told to stop"),
    (apsw.FullError, errors.NoSpace, "no space left for the store's metadata; free some space"),
    (apsw.IOError, errors.MetadataFailed, "the disk failed under the store's metadata"),
    (apsw.PermissionsError, errors.StoreInaccessible, "no permission to use the store"),
    (apsw.ReadOnlyError, errors.StoreInaccessible, "the store's metadata is not writable"),
    (apsw.CantOpenError, errors.StoreInaccessible, "the store's metadata cannot be opened"),
    (apsw.NotADBError, errors.CorruptMetadata, "meta.db is no database any more; restore a backup"),
    (apsw.CorruptError, errors.CorruptMetadata, _DAMAGED),
    (UnicodeDecodeError, errors.CorruptMetadata, _DAMAGED),
)


_LACKS = re.compile(r"no such (table|column|index)|has no column named")
"""What SQLite says of a statement of ours where damage has renamed part of the schema."""

# Text that is no UTF-8 shows when it is fetched.
_FAILURES = (apsw.Error, UnicodeDecodeError)
GARBAGE = (apsw.SQLError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError)
"""What our own code trips over where a row holds what no row of ours can hold."""
UNFIT = (*GARBAGE, apsw.BindingsError, apsw.ConstraintError, apsw.MismatchError)
"""What statements trip over that were meant for another database."""


def detail(name: str, column: str = "details") -> str:
    """Return the SQL of a field of a record's details: NULL where these are no JSON (any more)."""
    return f"(CASE WHEN json_valid({column}) THEN {column} ->> '{name}' END)"


def translate(error: Exception) -> Exception:
    """Return the engine's error for a database error; what is our own mistake stays as it is."""
    if getattr(error, "extendedresult", None) == apsw.SQLITE_IOERR_SHMSIZE:
        return errors.NoSpace(f"no space left for the index of the write-ahead log ({error})")
    for source, leaf, message in _LEAVES:
        if isinstance(error, source):
            return leaf(f"{message} ({error})")
    if isinstance(error, apsw.SQLError) and _LACKS.search(str(error)):
        return errors.CorruptMetadata(f"{_DAMAGED} ({error})")
    return error


class Appearing(Protocol):
    """Knows of directories whose entries become rows when somebody looks (``shadows``)."""

    def appear(self, directory: Ino) -> bool:
        """Have the entries of a directory become rows; tell whether they did just now."""
        ...

    def is_pending(self, directory: Ino) -> bool:
        """Tell whether a directory's entries are no rows yet."""
        ...

    def forget(self) -> None:
        """Somebody else changed the database."""
        ...


class Connection:
    """Thin wrapper: statements in, rows out, engine errors raised."""

    def __init__(
        self, path: str, *, create: bool = False, alone: bool = False, cache_mib: int = 4
    ) -> None:
        """Open a database.

        Args:
            alone: Nobody else looks at the file, and it is thrown away should this process die: no
                write-ahead log, no shared memory, so that any file system will do; no syncs.
            cache_mib: Pages kept, besides those of the database that are mapped.
        """
        flags = apsw.SQLITE_OPEN_READWRITE | (apsw.SQLITE_OPEN_CREATE if create else 0)
        self.path = path
        try:
            self._db = apsw.Connection(path, flags=flags, statementcachesize=256)
        except apsw.Error as error:
            raise translate(error) from error
        self.execute = self._db.execute
        self._execute = self._db.cursor().execute
        """Always with the same cursor: a new one for each costs as much as a short statement. What
        is left of the answer would hold SQLite's locks until the next one, so all is fetched."""
        self.intervene: Callable[[], None] | None = None
        """Called before something is changed that is no part of the transaction that is open."""
        self.resume: Callable[[], None] | None = None
        """Called before something is read, while something that was done does not show here."""
        self.note_failure: Callable[[], None] | None = None
        """Called when a statement failed: that may have ended the transaction, whatever it was."""
        self.shadows: Appearing | None = None
        """Asked where a directory seems to lack an entry, and before all are listed."""
        self.unlisted = False
        """The transaction changed something that it does not know of."""
        self.known = Known()
        """What queries need not be asked for, while nobody else can change it."""
        try:
            # Reads and writes run inline in the event loop: never wait for another process's lock
            # here, the caller retries when it can.
            self._db.set_busy_timeout(0)
            pragmas = _ALONE if alone else _SHARED
            if create:
                # Only in an empty file: pages that pruning frees can go back to the disk.
                self._db.execute("PRAGMA auto_vacuum = INCREMENTAL")
            # Plans that depend on bound values are made again at each execution (STAT4): as dear as
            # the query itself.
            self._db.config(apsw.SQLITE_DBCONFIG_ENABLE_QPSG, 1)
            for pragma in (*pragmas, f"cache_size = {-1024 * cache_mib}", "foreign_keys = OFF"):
                self._db.execute(f"PRAGMA {pragma}")
            # Its header may say that only a newer SQLite can write it.
            damaged = self._db.readonly("main") and os.access(path, os.W_OK)
        except apsw.Error as error:
            self.close()
            raise translate(error) from error
        if damaged:
            self.close()
            raise errors.CorruptMetadata(_DAMAGED)

    def one(self, sql: str, arguments: tuple[Any, ...] = ()) -> tuple[Any, ...] | None:
        """Return the first row, or ``None``."""
        if self.resume is not None:
            self.resume()
        try:
            rows = self._execute(sql, arguments).fetchall()
        except _FAILURES as error:
            raise self._translate(error) from error
        return rows[0] if rows else None

    def all(self, sql: str, arguments: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        """Return every row; for results whose size is bounded by their question."""
        if self.resume is not None:
            self.resume()
        try:
            return self._execute(sql, arguments).fetchall()
        except _FAILURES as error:
            raise self._translate(error) from error

    def iterate(self, sql: str, arguments: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
        """Yield rows as they come."""
        if self.resume is not None:
            self.resume()
        try:
            yield from self.execute(sql, arguments)
        except _FAILURES as error:
            raise self._translate(error) from error

    def appear(self, directory: Ino) -> bool:
        """Have the entries of a directory become rows; tell whether they did just now."""
        return self.shadows is not None and self.shadows.appear(directory)

    def run(self, sql: str, arguments: tuple[Any, ...] = ()) -> None:
        """Run a statement for its effect."""
        if self.intervene is not None:
            self.intervene()
        self.change(sql, arguments)

    def change(self, sql: str, arguments: tuple[Any, ...] = ()) -> None:
        """Run a statement as part of the transaction that is open."""
        try:
            self._execute(sql, arguments)
        except apsw.Error as error:
            raise self._translate(error) from error

    def run_many(self, sql: str, rows: list[tuple[Any, ...]]) -> None:
        """Run a statement once for each row of arguments."""
        if self.intervene is not None:
            self.intervene()
        self.change_many(sql, rows)

    def change_many(self, sql: str, rows: list[tuple[Any, ...]]) -> None:
        """Run a statement once for each row of arguments, as part of the open transaction."""
        try:
            self._db.executemany(sql, rows)
        except apsw.Error as error:
            raise self._translate(error) from error

    def stop_when(self, wanted: Callable[[], bool]) -> None:
        """Have long statements fail with `errors.Interrupted` from when ``wanted`` says so."""
        self._db.set_progress_handler(wanted, _STOP_STEPS)

    def changes(self) -> int:
        """Return how many rows the last statement changed."""
        return self._db.changes()

    def data_version(self) -> int:
        """Return what differs after another connection has changed something."""
        (version,) = self.one("PRAGMA data_version") or (0,)
        return int(version)

    def total_changes(self) -> int:
        """Return how many rows this connection ever changed."""
        return self._db.total_changes()

    @contextmanager
    def one_moment(self) -> Iterator[None]:
        """Make all questions inside see the same state, whoever else writes meanwhile."""
        if self.in_transaction:
            yield
            return
        self.run("BEGIN")
        try:
            yield
        finally:
            self.rollback()

    def pages(self) -> tuple[int, int]:
        """Return (pages of the database, those of them that are free)."""
        count, free = self.one("PRAGMA page_count"), self.one("PRAGMA freelist_count")
        return (count[0] if count else 0), (free[0] if free else 0)

    @property
    def shrinks(self) -> bool:
        """Whether free pages can go back to the disk without the database being written anew."""
        return self.one("PRAGMA auto_vacuum") == (2,)

    def free_pages(self, count: int) -> None:
        """Cut so many free pages off the end of the database; in a transaction."""
        self.all(f"PRAGMA incremental_vacuum({count})")

    @property
    def in_transaction(self) -> bool:
        return self._db.in_transaction

    def rollback(self) -> None:
        """End the transaction, if there still is one: a full disk makes SQLite end it by itself."""
        self.known.close()
        if self.in_transaction:
            self.change("ROLLBACK")

    def wal_bytes(self) -> int:
        """Return the size of the write-ahead log."""
        try:
            return Path(self.path + "-wal").stat().st_size
        except FileNotFoundError:
            return 0

    def checkpoint(self, *, restart: bool = False) -> None:
        """Copy the write-ahead log into the database. Syncs: never call it in the event loop.

        Args:
            restart: Have the log begin anew as well. Writers wait while the last bit is copied,
                so most of it is copied before.
        """
        try:
            frames, copied = self._db.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
            # Where a reader keeps frames from being copied, it may stay for minutes: a backup or
            # a check. Writers would wait for it in vain, again and again.
            if restart and copied >= frames:
                self._db.set_busy_timeout(RESTART_WAIT_MS)
                self._db.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
        except apsw.BusyError:
            return  # a reader or writer is in the way; the next round gets it
        except apsw.Error as error:
            raise self._translate(error) from error

    @contextmanager
    def without_writers(self) -> Iterator[None]:
        """Keep everybody from changing the write-ahead log; other threads and processes wait.

        Raises:
            StoreBusy: Another process writes all the time.
        """
        self._db.set_busy_timeout(RESTART_WAIT_MS)
        self.run("BEGIN IMMEDIATE")
        try:
            yield
        finally:
            self.rollback()

    def rewrite(self) -> None:
        """Write the whole database anew: what was deleted is in none of its pages then.

        Others read meanwhile and cannot write. Free pages can go back to the disk from then on,
        also in a database from before that was so.
        """
        self.run("PRAGMA auto_vacuum = INCREMENTAL")
        # The copy is as large as the database.
        self.run("PRAGMA temp_store = FILE")
        self.run("VACUUM")

    def copy_to(self, target: Connection, progress: Callable[[int, int], None]) -> None:
        """Copy the whole database, as of one moment, beside writers that go on.

        One read transaction from the first page to the last: without it SQLite would begin again
        whenever somebody else writes. It keeps nobody from writing, but the write-ahead log from
        beginning anew, so that it grows meanwhile.

        Args:
            target: New and empty, opened ``alone``.
            progress: Told how many pages are copied, of how many.

        Source: https://sqlite.org/c3ref/backup_finish.html
        """
        try:
            self._db.execute("BEGIN")
            self._db.execute("SELECT count(*) FROM sqlite_schema").fetchall()
            with target._db.backup("main", self._db, "main") as copying:
                while not copying.done:
                    copying.step(_COPY_PAGES)
                    progress(copying.page_count - copying.remaining, copying.page_count)
            # The first page says that there is a write-ahead log; the copy is one plain file.
            target.execute("PRAGMA journal_mode = DELETE").fetchall()
            target.execute("PRAGMA journal_mode = MEMORY").fetchall()
        except apsw.Error as error:
            raise self._translate(error) from error
        finally:
            self.rollback()

    def _translate(self, error: Exception) -> Exception:
        """See ``translate``. What the system said, SQLite keeps for itself but for a full disk."""
        self.known.close()
        if self.note_failure is not None:
            self.note_failure()
        if isinstance(error, apsw.IOError) and self._db.system_errno == errno.EDQUOT:
            return errors.NoSpace(f"no space left for the store's metadata: disk quota ({error})")
        return translate(error)

    def close(self) -> None:
        """Close. What cannot be moved out of the write-ahead log then just stays in it."""
        with suppress(apsw.IOError, apsw.FullError):
            self._db.close(True)


def older_version(connection: Connection) -> int | None:
    """Return the schema's version if it is an older one than ours."""
    (version,) = connection.one("PRAGMA user_version") or (0,)
    return version if 0 < version < schema.VERSION else None


def migrate(connection: Connection) -> None:
    """Bring the schema to this version, creating it where there is none.

    Raises:
        StoreVersion: The store was written by a newer version of Nexus.
        CorruptMetadata: The file is a database of something else.
    """
    connection.run("BEGIN IMMEDIATE")
    try:
        (version,) = connection.one("PRAGMA user_version") or (0,)
        (application,) = connection.one("PRAGMA application_id") or (0,)
        (tables,) = connection.one("SELECT count(*) FROM sqlite_schema") or (0,)
        if (version or tables) and application != schema.APPLICATION_ID:
            raise errors.CorruptMetadata(f"{connection.path} is not a Nexus database")
        if version > schema.VERSION:
            raise errors.StoreVersion(
                f"the store has format {version}, this Nexus knows up to {schema.VERSION}: upgrade"
            )
        for script in schema.MIGRATIONS[version:]:
            connection.run(script)
        _require_schema(connection)
        if version != schema.VERSION:
            connection.run(f"PRAGMA application_id = {schema.APPLICATION_ID}")
            connection.run(f"PRAGMA user_version = {schema.VERSION}")
        connection.run("COMMIT")
    finally:
        connection.rollback()


def _require_schema(connection: Connection) -> None:
    """Refuse a database that lacks a table, or does more than is asked of it.

    Raises:
        CorruptMetadata: It is not what Nexus makes.
    """
    found = connection.all("SELECT type, name FROM sqlite_schema")
    missing = sorted({("table", name) for name in schema.TABLES}.difference(found))
    if missing:
        raise errors.CorruptMetadata(
            f"{connection.path} has no table {missing[0][1]}; restore a backup"
        )
    if any(kind == "trigger" for kind, _ in found):
        raise errors.CorruptMetadata(f"{connection.path} has triggers, which are not of Nexus")
