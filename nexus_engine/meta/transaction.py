"""The only way to change the metadata: rows and their log record, all or nothing.

A rule reads, refuses or changes rows, and calls ``commit(change)``, which writes the record and
closes the operation. Rows changed without a ``commit`` after them are rolled back as a bug.

SQLite commits at once, or, where a journal keeps what was done, several operations together.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from nexus_engine import errors, records
from nexus_engine.clock import Clock, uuid7
from nexus_engine.meta import quotas
from nexus_engine.meta import statements as sql
from nexus_engine.meta.attached import AttachedRoots
from nexus_engine.meta.connection import UNFIT, Connection
from nexus_engine.meta.journal import Entry, Journal
from nexus_engine.meta.known import UNKNOWN
from nexus_engine.meta.quotas import Accounts, Quota, Usage
from nexus_engine.meta.reader import OVERLAPPING, AsOfReader, Reader, name_hash
from nexus_engine.types import (
    NO_INO,
    ROOT_INO,
    SIZE_MAX,
    Actor,
    Digest,
    Extent,
    Ino,
    Inode,
    Name,
    Path,
    Seq,
)

_NO_END = Seq(SIZE_MAX)
_INO_BLOCK = 1024
_PATHS_MAX = 65536
_ACTORS_MAX = 4096
_JOURNALED_MAX = 256
"""What runs more statements is committed at once: to write them all down costs as much."""


class Transaction(Reader):
    """Reads, and changes that a record makes permanent. One per connection, reused."""

    actor: Actor
    seq: Seq
    """The operation being built; rows changed now are true from it on."""
    now_ns: int
    """The wall clock at the start of the transaction."""

    def __init__(self, connection: Connection, clock: Clock, attached: AttachedRoots) -> None:
        super().__init__(connection)
        self.attached = attached
        """Directories whose files are objects elsewhere."""
        self._by_source = False
        self._clock = clock
        self._change = connection.change
        self._data_version = -1
        self._head_hash = records.GENESIS_HASH
        self._head_seq = Seq(0)
        self._head_time_ns = 0
        self._begun = (self._head_seq, self._head_hash, self._head_time_ns)
        self.committed_seq = self._head_seq
        """The last operation known to be committed; any thread may ask, also amid a transaction."""
        self._next_ino = self._ino_limit = 0
        self._paths: dict[Ino, Path] = {ROOT_INO: Path(b"")}
        self._actors: dict[Actor, int] = {}
        self._dirty = False
        self._child_change = NO_INO, self._head_seq
        """The last directory, and the operation, of which it was noted that names changed."""
        self._statements: list[tuple[str, tuple[Any, ...]]] = []
        """What the operation ran so far."""
        self._opaque = False
        """It changed something by statements that are not listed."""
        self._gathered: defaultdict[str, list[tuple[Any, ...]]] | None = None
        """Statements that are still to be run, with their arguments."""
        self._journal: Journal | None = None
        self.waiting: list[Entry] = []
        """What is in the journal and waits for a COMMIT."""
        self._may_wait: Callable[[], bool] = bool
        self._waits = False
        self._accounts: Accounts | None = None
        self.held: dict[Ino, Usage] = {}
        """What open files of this process take of quotas, besides what is in rows."""

    # -- life of a transaction; called by Database alone --

    def let_wait(self, journal: Journal, may_wait: Callable[[], bool]) -> None:
        """Have operations share a COMMIT.

        Args:
            journal: Keeps them until then.
            may_wait: Asked before the first of them.
        """
        self._journal, self.waiting, self._may_wait = journal, journal.waiting, may_wait

    def begin(self, actor: Actor) -> None:
        self._statements = []
        self._opaque = self._connection.unlisted = False
        self._begun = (self._head_seq, self._head_hash, self._head_time_ns)
        if not self._connection.in_transaction:
            if self.waiting:
                self.redo(self.waiting.copy)
            self._open()
        self.actor = actor
        self.seq = Seq(self._head_seq + 1)
        self.now_ns = self._clock.time_ns()
        self._dirty = False
        self._child_change = NO_INO, self.seq
        if self._accounts is not None:
            self._accounts.begin()
        if self._waits:
            self._known.open()

    def _open(self) -> None:
        self._known.close()
        self._change("BEGIN IMMEDIATE")
        version = self._connection.data_version()
        if version != self._data_version:
            self._reload()
            self._data_version = version
            self._begun = (self._head_seq, self._head_hash, self._head_time_ns)
        self.committed_seq = self._head_seq
        self._waits = self._journal is not None and self._may_wait()

    def end(self) -> None:
        """Keep what was recorded: in the journal, or by a COMMIT.

        Raises:
            RuntimeError: Rows were changed without a record: a bug. Nothing is kept.
        """
        if self._dirty:
            raise RuntimeError("rows changed without a log record")
        if not self._waits or self._is_opaque or not self._keep():
            self.commit_waiting()

    @property
    def _is_opaque(self) -> bool:
        return self._opaque or self._connection.unlisted

    def _keep(self) -> bool:
        """Have the operation wait for its COMMIT, in the journal; tell whether it can."""
        if not self._statements:
            return bool(self.waiting)
        if len(self._statements) > _JOURNALED_MAX:
            return False
        try:
            statements = [(sql.NAMES[text], values) for text, values in self._statements]
        except KeyError:
            return False
        assert self._journal is not None
        before_seq, before_hash, _ = self._begun
        return self._journal.append(Entry(before_seq, before_hash, statements))

    def commit_waiting(self) -> None:
        """COMMIT, with all that waits for it."""
        self._known.close()
        self._change("COMMIT")
        self.committed_seq = self._head_seq
        if self._journal is not None:
            self._journal.clear()

    @property
    def connection(self) -> Connection:
        """For statements of ``meta`` that only one rule needs."""
        self._opaque = True
        self._known.close()
        return self._connection

    @property
    def head_seq(self) -> Seq:
        """The last operation written."""
        return self._head_seq

    def abort(self) -> None:
        """Take back the operation that did not end. Those that wait may have to be `redo`ne."""
        self._known.close()
        self._head_seq, self._head_hash, self._head_time_ns = self._begun
        untouched = not self._statements and not self._is_opaque
        if untouched and self.waiting and self._connection.in_transaction:
            return
        self._data_version = -1
        self._connection.rollback()

    def forget(self) -> None:
        """Read everything anew at the next ``begin``."""
        self._data_version = -1

    def redo(self, read: Callable[[], Iterable[Entry]]) -> tuple[int, int]:
        """Run again what waited for a COMMIT that never came, in the order of the log.

        Args:
            read: Returns it. Called when nobody else can change anything any more.

        Returns:
            How many entries the log did not have yet; how many of others do not go on from its end.

        Raises:
            StoreBusy: Another process is writing; nothing happened, try again.
            CorruptMetadata: They do not fit the database.
        """
        done = lost = 0
        # What is known of the log's end may be with them: a COMMIT that failed took them back, or a
        # read that the disk failed under, which also ends the transaction.
        self._data_version = -1
        try:
            self._open()
            for entry in sorted(read(), key=lambda entry: entry.before):
                if (entry.before, entry.before_hash) == (self._head_seq, self._head_hash):
                    for name, values in entry.statements:
                        self._change(sql.JOURNALED[name], values)
                    self._reload()
                    done += 1
                else:
                    lost += entry.before >= self._head_seq
            self.commit_waiting()
        except UNFIT as error:
            raise errors.CorruptMetadata(
                "a journal in the store's peers/ does not fit the database: move the .journal files"
                f" away, and what they hold is lost ({error})"
            ) from error
        finally:
            self._data_version = -1
            self._connection.rollback()
        return done, lost

    def _reload(self) -> None:
        """Forget what another process may have changed."""
        row = self._one("SELECT seq, hash, time_ns FROM oplog ORDER BY seq DESC LIMIT 1")
        self._head_seq, self._head_hash, self._head_time_ns = row or (
            Seq(0),
            records.GENESIS_HASH,
            0,
        )
        self._next_ino = self._ino_limit = 0
        self._paths = {ROOT_INO: Path(b"")}
        self._actors = {}
        self.forget_shadows()
        self.attached.forget()
        self._begin_accounts()

    def forget_shadows(self) -> None:
        """There may be directories from now on whose entries are no rows yet."""
        if self._connection.shadows is not None:
            self._connection.shadows.forget()

    def _begin_accounts(self) -> None:
        accounts = Accounts(self._connection, self.held, self._run_returning)
        self._accounts = accounts if accounts.roots else None

    def _run(self, statement: str, values: tuple[Any, ...]) -> None:
        if self._gathered is not None:
            self._gathered[statement].append(values)
            return
        self._change(statement, values)
        self._statements.append((statement, values))

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """Run what changes inside at its end, each statement for all of its rows: half the cost.

        For operations of which none reads or changes a row that another one does: the log apart,
        they may come in any order. What of a file's content goes comes first: where the first file
        had none, it would come after what takes its place in the others.
        """
        if self._accounts is not None:  # which read the rows of each operation
            yield
            return
        self._actor_id()
        gathered = self._gathered = defaultdict[str, list[tuple[Any, ...]]](list)
        gathered |= {sql.BURY_EXTENT: [], sql.DROP_EXTENT: []}
        try:
            yield
        finally:
            self._gathered = None
        for statement, rows in gathered.items():
            self._statements += [(statement, values) for values in rows]
            self._connection.change_many(statement, rows)

    def _run_returning(self, statement: str, values: tuple[Any, ...]) -> tuple[Any, ...] | None:
        row = self._one(statement, values)
        self._statements.append((statement, values))
        return row

    def commit(self, change: records.Change) -> Seq:
        """Write the record of the operation; the next change belongs to the next one.

        Returns:
            The operation's place in the log.

        Raises:
            QuotaExceeded: A quota has no room for it.
        """
        seq = self.seq
        if self.attached.any_read_only and not self._by_source:
            self._require_writable(change)
        if self._accounts is not None:
            self._accounts.settle(seq, change.kind)
        # Times in the log never decrease, whatever the clock does: moments are found by bisection.
        time_ns = max(self.now_ns, self._head_time_ns)
        row = (
            seq,
            uuid7(time_ns, self._clock.random_bytes(10)),
            time_ns,
            change.kind,
            change.ino,
            change.path,
            change.path2,
            records.to_json(change.details) or "{}",
            records.to_json(change.undo_state),
            change.undoes,
        )
        digest = records.chain_hash(self._head_hash, row, self.actor)
        self._run(sql.ADD_RECORD, (*row, self._actor_id(), digest))
        self._head_seq, self._head_hash, self._head_time_ns = seq, digest, time_ns
        self.seq = Seq(seq + 1)
        self._dirty = False
        return seq

    @contextmanager
    def by_source(self) -> Iterator[None]:
        """Let what is done inside be done in attachments that are read-only, and to them."""
        self._by_source = True
        try:
            yield
        finally:
            self._by_source = False

    def _require_writable(self, change: records.Change) -> None:
        """Refuse to change anything in an attachment that is read-only.

        By paths: what was removed or moved is in no directory any more, or in another one.
        """
        for root, read_only in self.attached.roots.items():
            if read_only:
                top = self.directory_path(root)
                for path in _changed_paths(change):
                    if path == top or path.startswith(top + b"/"):
                        raise errors.ReadOnly(
                            f"/{top.decode(errors='backslashreplace')} is attached read-only"
                        )

    def _actor_id(self) -> int:
        known = self._actors.get(self.actor)
        if known is not None:
            return known
        a = self.actor
        columns = (a.pid, a.start_ticks, a.command, a.agent, a.uid, a.gid, a.session, a.principal)
        self._run(sql.ADD_ACTOR, columns)
        row = self._one(
            "SELECT id FROM actor WHERE pid = ? AND start_ticks = ? AND command = ? AND agent = ?"
            " AND uid = ? AND gid = ? AND session = ? AND principal = ?",
            columns,
        )
        assert row is not None
        if len(self._actors) >= _ACTORS_MAX:
            self._actors.clear()
        self._actors[self.actor] = row[0]
        return int(row[0])

    # -- names --

    def new_ino(self) -> Ino:
        """Return an inode number that was never used."""
        if self._next_ino >= self._ino_limit:
            row = self._run_returning(sql.TAKE_INOS, (_INO_BLOCK,))
            if row is None:
                raise errors.CorruptMetadata("the store has no next_ino: run nexus-ctl fsck")
            self._next_ino, self._ino_limit = row[0] - _INO_BLOCK, row[0]
        ino = Ino(self._next_ino)
        self._next_ino += 1
        self._known.note_new(ino)
        return ino

    def directory_path(self, ino: Ino) -> Path:
        """Return a directory's path; cached until a directory is moved."""
        known = self._paths.get(ino)
        if known is not None:
            return known
        path = self.find_path(ino)
        if path is None:
            raise errors.StaleInode(f"directory {ino} is gone")
        if len(self._paths) >= _PATHS_MAX:
            self._paths = {ROOT_INO: Path(b"")}
        self._paths[ino] = path
        return path

    def path_of(self, parent: Ino, name: Name) -> Path:
        directory = self.directory_path(parent)
        return Path(directory + b"/" + name if directory else name)

    def any_path_of(self, ino: Ino) -> Path:
        """Return a path of the inode, b"" where it has none (unlinked, still open)."""
        name = self._known.only_names.get(ino, UNKNOWN)
        if name is UNKNOWN:
            row = self._one(
                "SELECT parent, name FROM dentry WHERE ino = ? ORDER BY from_seq LIMIT 1", (ino,)
            )
            name = None if row is None else (row[0], row[1])
        return self.path_of(*name) if name is not None else Path(b"")

    def forget_paths(self) -> None:
        """A directory moved: what was known of paths below it is wrong."""
        self._paths = {ROOT_INO: Path(b"")}

    # -- inodes --

    def touch(self, ino: Ino) -> None:
        """Say that the size of an inode, or where it has names, is going to change."""
        if self._accounts is not None:
            self._accounts.touch(ino)

    def add_inode(self, inode: Inode) -> None:
        self._dirty = True
        if self._accounts is not None:
            self._accounts.appear(inode.ino)
        self._run(sql.ADD_INODE, (inode.ino, self.seq, *inode[2:]))
        self._note_inode(inode)

    def put_inode(self, inode: Inode) -> None:
        """Replace the current version, which becomes a past one."""
        self._dirty = True
        self.touch(inode.ino)
        self._run(sql.BURY_VERSION, (inode.ino, self.seq))
        self._run(sql.PUT_INODE, (inode.ino, self.seq, *inode[2:]))
        self._note_inode(inode)

    def _note_inode(self, inode: Inode) -> None:
        seq = self.seq
        self._known.note_inode(
            inode.ino, inode if inode.from_seq == seq else inode._replace(from_seq=seq)
        )

    def remove_inode(self, ino: Ino) -> None:
        """The inode is gone as of this operation.

        Raises:
            InUse: Something is attached there.
        """
        if not self._by_source:
            self.attached.require_free(ino)
        self._dirty = True
        self.touch(ino)
        self._run(sql.BURY_VERSION, (ino, self.seq))
        self._run(sql.DROP_INODE, (ino,))
        self._known.note_inode(ino, None)
        self._paths.pop(ino, None)

    def touch_directory(self, ino: Ino, *, subdirectories: int = 0) -> None:
        """A child came, went or was replaced: mtime, ctime and nlink follow, with no version."""
        # The record's time, which as-of views go by, even where the clock went back.
        time_ns = max(self.now_ns, self._head_time_ns)
        self._run(sql.TOUCH, (time_ns, subdirectories, ino))
        self._known.note_touched(ino, time_ns, subdirectories)

    # -- dentries --

    def add_dentry(self, parent: Ino, name: Name, inode: Inode) -> None:
        self._dirty = True
        self.touch(inode.ino)
        kind = inode.mode & 0o170000
        self._run(sql.ADD_DENTRY, (parent, name_hash(name), name, inode.ino, kind, self.seq))
        self._note_child_change(parent)
        self._known.note_named(parent, name, inode.ino)

    def remove_dentry(self, parent: Ino, name: Name) -> None:
        self._dirty = True
        key = (parent, name_hash(name), name)
        if self._accounts is not None:
            self._accounts.name_goes(*key)
        self._run(sql.BURY_DENTRY, (*key, self.seq))
        self._run(sql.DROP_DENTRY, key)
        self._note_child_change(parent)
        self._known.note_unnamed(parent, name)

    def _note_child_change(self, parent: Ino) -> None:
        """Note that names in a directory changed: once, where an operation changes several."""
        change = parent, self.seq
        if change != self._child_change:
            self._child_change = change
            self._run(sql.ADD_CHILD_CHANGE, change)

    # -- content --

    def put_extents(self, ino: Ino, extents: list[Extent]) -> None:
        """Lay extents over the file; what they cover becomes past, remainders stay.

        Args:
            extents: Ascending and disjoint.
        """
        self._dirty = True
        for extent in extents:
            self._clear_range(ino, extent.start, extent.end)
            self._run(sql.ADD_EXTENT, (ino, *extent, self.seq))
        self._known.note_filled(ino)

    def add_extents(self, ino: Ino, extents: list[Extent]) -> None:
        """Lay extents into a file that has none; as `put_extents`."""
        self._dirty = True
        for extent in extents:
            self._run(sql.ADD_EXTENT, (ino, *extent, self.seq))
        self._known.note_filled(ino)

    def replace_extents(self, ino: Ino, extents: list[Extent]) -> None:
        """Lay extents down in the place of all that are there; as `put_extents`."""
        self._clear_range(ino, 0, SIZE_MAX)
        self.add_extents(ino, extents)

    def truncate_extents(self, ino: Ino, size: int) -> None:
        """End every extent at ``size``."""
        self._dirty = True
        if self._known.is_empty(ino):
            return
        last = self._one("SELECT max(start + length) FROM extent WHERE ino = ?", (ino,))
        if last is not None and last[0] is not None and last[0] > size:
            self._clear_range(ino, size, last[0])

    def clear_extents(self, ino: Ino, start: int, end: int) -> None:
        """Make a range a hole; remainders of extents on its edges stay."""
        self._dirty = True
        self._clear_range(ino, start, end)

    def _clear_range(self, ino: Ino, start: int, end: int) -> None:
        if self._known.is_empty(ino):
            return
        rows = self._all(OVERLAPPING, (ino, start, end))
        for old in map(Extent._make, rows):
            self._run(sql.BURY_EXTENT, (ino, old.start, self.seq))
            self._run(sql.DROP_EXTENT, (ino, old.start))
            if old.start < start:
                kept = old._replace(length=start - old.start)
                self._run(sql.ADD_EXTENT, (ino, *kept, self.seq))
            if old.end > end:
                skipped = end - old.start
                kept = Extent(end, old.end - end, old.digest, old.chunk_offset + skipped)
                self._run(sql.ADD_EXTENT, (ino, *kept, self.seq))

    def rewind_extents(self, ino: Ino, seq: Seq) -> None:
        """Take back what operations from ``seq`` on did to a file's content, as if it never was.

        The only way to change the past: for bytes that a power loss took.
        """
        self._dirty = True
        self._known.close()
        for statement in sql.REWIND_EXTENTS:
            self._run(statement, (ino, seq))

    def replace_past_extents(self, ino: Ino, seq: Seq, until: Seq) -> None:
        """Let a file's content from ``seq`` until ``until`` be what it was before."""
        self._dirty = True
        self._known.close()
        for statement in sql.REPLACE_PAST_EXTENTS:
            self._run(statement, (ino, seq, until))

    def rewind_content(
        self, ino: Ino, seq: Seq, size: int, content_seq: Seq, until: Seq = _NO_END
    ) -> None:
        """Let every version of an inode with content from ``seq`` until ``until`` have this one."""
        self._dirty = True
        self.touch(ino)
        self._known.close()
        span = "ino = ?1 AND content_seq >= ?2 AND content_seq < ?3"
        for table in ("inode", "inode_past"):
            self._run(
                f"UPDATE {table} SET size = ?4, content_seq = ?5 WHERE {span}",
                (ino, seq, until, size, content_seq),
            )
        self._run(f"DELETE FROM content_hash WHERE {span}", (ino, seq, until))

    def remove_chunk(self, digest: Digest) -> None:
        """Take a chunk out of the index: its bytes are lost."""
        self._run("DELETE FROM chunk WHERE digest = ?", (digest,))

    def add_chunk(self, digest: Digest, location: tuple[Any, ...]) -> None:
        """Enter a chunk into the index.

        Args:
            location: (pack name, offset, stored length, length, codec).
        """
        self._run(sql.ADD_CHUNK, (digest, *location))

    # -- xattrs --

    def put_xattr(self, ino: Ino, name: bytes, value: bytes) -> None:
        self._dirty = True
        self._run(sql.BURY_XATTR, (ino, name, self.seq))
        self._run(sql.PUT_XATTR, (ino, name, value, self.seq))
        self._known.note_xattr(ino, name, value)

    def remove_xattr(self, ino: Ino, name: bytes) -> None:
        self._dirty = True
        self._run(sql.BURY_XATTR, (ino, name, self.seq))
        self._run(sql.DROP_XATTR, (ino, name))
        self._known.note_xattr(ino, name, None)

    # -- quotas --

    def put_quota(self, ino: Ino, max_bytes: int | None, max_inodes: int | None) -> Quota:
        """Set a directory's limits, and count what is below it; reads all of that."""
        self._dirty = True
        quota = Quota(ino, max_bytes, max_inodes, quotas.count(self._connection, ino))
        quotas.put_quota(self.connection, quota)
        self._begin_accounts()
        return quota

    def remove_quota(self, ino: Ino) -> None:
        self._dirty = True
        quotas.remove_quota(self.connection, ino)
        self._begin_accounts()

    # -- snapshots and undo --

    def add_snapshot(self, name: str, seq: Seq) -> None:
        self._dirty = True
        time_ns = max(self.now_ns, self._head_time_ns)
        self._run(sql.ADD_SNAPSHOT, (name, seq, self.seq, time_ns, self.actor.uid))

    def remove_snapshot(self, name: str) -> None:
        self._dirty = True
        self._run(sql.DROP_SNAPSHOT, (name,))

    def add_reversal(self, target: Seq) -> None:
        """This operation reverses ``target``."""
        self._run(sql.ADD_REVERSAL, (target, self.seq))

    def add_touched(self, ino: Ino, parent: Ino = NO_INO, name: bytes = b"") -> None:
        """This operation changed an inode, or a name of it."""
        if self.attached.any_read_only and not self._by_source:
            self.attached.require_writable(parent if parent != NO_INO else ino)
        self._run(sql.ADD_TOUCHED, (self.seq, ino, parent, name))

    def as_of(self, seq: Seq) -> AsOfReader:
        return AsOfReader(self._connection, seq)


def _changed_paths(change: records.Change) -> Iterator[Path]:
    yield change.path
    if change.path2 is not None and change.kind != "workspace":  # there it is what is copied
        yield change.path2
