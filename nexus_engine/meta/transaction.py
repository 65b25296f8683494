"""The only way to change the metadata: rows and their log record, one commit.

A rule reads, refuses or changes rows, and calls ``commit(change)``, which writes the record and
closes the operation. Rows changed without a ``commit`` after them are rolled back as a bug.
"""

from __future__ import annotations

from typing import Any

from nexus_engine import errors, records
from nexus_engine.clock import Clock, uuid7
from nexus_engine.meta import quotas
from nexus_engine.meta.connection import Connection
from nexus_engine.meta.quotas import Accounts, Quota, Usage
from nexus_engine.meta.reader import OVERLAPPING, AsOfReader, Reader, name_hash
from nexus_engine.types import (
    NO_INO,
    ROOT_INO,
    Actor,
    Digest,
    Extent,
    Ino,
    Inode,
    Name,
    Path,
    Seq,
)

_INO_BLOCK = 1024
_PATHS_MAX = 65536
_ACTORS_MAX = 4096

_PAST_COLUMNS = (
    "ino, from_seq, mode, uid, gid, nlink, rdev, size, atime_ns, mtime_ns, ctime_ns, btime_ns,"
    " content_seq, target"
)
_ADD_INODE = f"INSERT INTO inode ({_PAST_COLUMNS}) VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?)"
_PUT_INODE = f"INSERT OR REPLACE INTO inode ({_PAST_COLUMNS}) VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?)"
_BURY_VERSION = (
    f"INSERT INTO inode_past ({_PAST_COLUMNS}, to_seq) SELECT {_PAST_COLUMNS}, ?2 FROM inode"
    " WHERE ino = ?1 AND from_seq < ?2 AND nlink > 0"
)
_ADD_DENTRY = (
    "INSERT INTO dentry (parent, hash, name, ino, kind, from_seq) VALUES (?, ?, ?, ?, ?, ?)"
)
_BURY_DENTRY = (
    "INSERT INTO dentry_past (parent, hash, name, ino, kind, from_seq, to_seq)"
    " SELECT parent, hash, name, ino, kind, from_seq, ?4 FROM dentry"
    " WHERE parent = ?1 AND hash = ?2 AND name = ?3 AND from_seq < ?4"
)
_DROP_DENTRY = "DELETE FROM dentry WHERE parent = ? AND hash = ? AND name = ?"
_ADD_CHILD_CHANGE = "INSERT OR IGNORE INTO child_change (parent, seq) VALUES (?, ?)"
_TOUCH = "UPDATE inode SET touched_ns = ?, nlink = nlink + ? WHERE ino = ?"
_BURY_EXTENT = (
    "INSERT INTO extent_past (ino, start, length, digest, chunk_offset, from_seq, to_seq)"
    " SELECT ino, start, length, digest, chunk_offset, from_seq, ?3 FROM extent"
    " WHERE ino = ?1 AND start = ?2 AND from_seq < ?3"
)
_ADD_EXTENT = (
    "INSERT INTO extent (ino, start, length, digest, chunk_offset, from_seq)"
    " VALUES (?, ?, ?, ?, ?, ?)"
)
_REWIND_EXTENTS = (
    "DELETE FROM extent WHERE ino = ?1 AND from_seq >= ?2",
    "DELETE FROM extent_past WHERE ino = ?1 AND from_seq >= ?2",
    "INSERT INTO extent SELECT ino, start, length, digest, chunk_offset, from_seq"
    " FROM extent_past WHERE ino = ?1 AND to_seq >= ?2",
    "DELETE FROM extent_past WHERE ino = ?1 AND to_seq >= ?2",
)
_BURY_XATTR = (
    "INSERT INTO xattr_past (ino, name, value, from_seq, to_seq)"
    " SELECT ino, name, value, from_seq, ?3 FROM xattr WHERE ino = ?1 AND name = ?2"
    " AND from_seq < ?3"
)
ADD_CHUNK = (
    "INSERT INTO chunk (digest, pack, offset, stored_length, length, codec)"
    " VALUES (?, (SELECT id FROM pack WHERE name = ?), ?, ?, ?, ?)"
    # The first one to come stays, unless its pack is on its way out.
    " ON CONFLICT (digest) DO UPDATE SET pack = excluded.pack, offset = excluded.offset,"
    " stored_length = excluded.stored_length, codec = excluded.codec"
    " WHERE (SELECT retiring FROM pack WHERE id = chunk.pack)"
)
_ADD_RECORD = (
    "INSERT INTO oplog (seq, id, time_ns, kind, ino, path, path2, details, undo_state, undoes,"
    " actor, hash) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
)


class Transaction(Reader):
    """Reads, and changes that a record makes permanent. One per connection, reused."""

    actor: Actor
    seq: Seq
    """The operation being built; rows changed now are true from it on."""
    now_ns: int
    """The wall clock at the start of the transaction."""

    def __init__(self, connection: Connection, clock: Clock) -> None:
        super().__init__(connection)
        self._clock = clock
        self._run = connection.run
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
        self._accounts: Accounts | None = None
        self.held: dict[Ino, Usage] = {}
        """What open files of this process take of quotas, besides what is in rows."""

    # -- life of a transaction; called by Database alone --

    def begin(self, actor: Actor) -> None:
        self._run("BEGIN IMMEDIATE")
        self._begun = (self._head_seq, self._head_hash, self._head_time_ns)
        (version,) = self._one("PRAGMA data_version") or (0,)
        if version != self._data_version:
            self._reload()
            self._data_version = version
            self.committed_seq = self._head_seq
        self.actor = actor
        self.seq = Seq(self._head_seq + 1)
        self.now_ns = self._clock.time_ns()
        self._dirty = False
        if self._accounts is not None:
            self._accounts.begin()

    def end(self) -> None:
        """Commit what was recorded.

        Raises:
            RuntimeError: Rows were changed without a record: a bug. Nothing is kept.
        """
        if self._dirty:
            raise RuntimeError("rows changed without a log record")
        self._run("COMMIT")
        self.committed_seq = self._head_seq

    @property
    def connection(self) -> Connection:
        """For statements of ``meta`` that only one rule needs."""
        return self._connection

    @property
    def head_seq(self) -> Seq:
        """The last operation written."""
        return self._head_seq

    def abort(self) -> None:
        self._head_seq, self._head_hash, self._head_time_ns = self._begun
        self._data_version = -1
        self._connection.rollback()

    def forget(self) -> None:
        """Read everything anew at the next ``begin``."""
        self._data_version = -1

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
        self._begin_accounts()

    def _begin_accounts(self) -> None:
        accounts = Accounts(self._connection, self.held)
        self._accounts = accounts if accounts.roots else None

    def commit(self, change: records.Change) -> Seq:
        """Write the record of the operation; the next change belongs to the next one.

        Returns:
            The operation's place in the log.

        Raises:
            QuotaExceeded: A quota has no room for it.
        """
        seq = self.seq
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
        self._run(_ADD_RECORD, (*row, self._actor_id(), digest))
        self._head_seq, self._head_hash, self._head_time_ns = seq, digest, time_ns
        self.seq = Seq(seq + 1)
        self._dirty = False
        return seq

    def _actor_id(self) -> int:
        known = self._actors.get(self.actor)
        if known is not None:
            return known
        a = self.actor
        columns = (a.pid, a.start_ticks, a.command, a.agent, a.uid, a.gid, a.session, a.principal)
        self._run(
            "INSERT OR IGNORE INTO actor (pid, start_ticks, command, agent, uid, gid, session,"
            " principal) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            columns,
        )
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
            row = self._one(
                "UPDATE store SET value = value + ? WHERE key = 'next_ino' RETURNING value",
                (_INO_BLOCK,),
            )
            if row is None:
                raise errors.CorruptMetadata("the store has no next_ino: run nexus-ctl fsck")
            self._next_ino, self._ino_limit = row[0] - _INO_BLOCK, row[0]
        self._next_ino += 1
        return Ino(self._next_ino - 1)

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
        row = self._one(
            "SELECT parent, name FROM dentry WHERE ino = ? ORDER BY from_seq LIMIT 1", (ino,)
        )
        return self.path_of(*row) if row is not None else Path(b"")

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
        self._run(_ADD_INODE, (inode.ino, self.seq, *inode[2:]))

    def put_inode(self, inode: Inode) -> None:
        """Replace the current version, which becomes a past one."""
        self._dirty = True
        self.touch(inode.ino)
        self._run(_BURY_VERSION, (inode.ino, self.seq))
        self._run(_PUT_INODE, (inode.ino, self.seq, *inode[2:]))

    def remove_inode(self, ino: Ino) -> None:
        """The inode is gone as of this operation."""
        self._dirty = True
        self.touch(ino)
        self._run(_BURY_VERSION, (ino, self.seq))
        self._run("DELETE FROM inode WHERE ino = ?", (ino,))
        self._paths.pop(ino, None)

    def touch_directory(self, ino: Ino, *, subdirectories: int = 0) -> None:
        """A child came, went or was replaced: mtime, ctime and nlink follow, with no version."""
        # The record's time, which as-of views go by, even where the clock went back.
        time_ns = max(self.now_ns, self._head_time_ns)
        self._run(_TOUCH, (time_ns, subdirectories, ino))

    # -- dentries --

    def add_dentry(self, parent: Ino, name: Name, inode: Inode) -> None:
        self._dirty = True
        self.touch(inode.ino)
        kind = inode.mode & 0o170000
        self._run(_ADD_DENTRY, (parent, name_hash(name), name, inode.ino, kind, self.seq))
        self._run(_ADD_CHILD_CHANGE, (parent, self.seq))

    def remove_dentry(self, parent: Ino, name: Name) -> None:
        self._dirty = True
        key = (parent, name_hash(name), name)
        if self._accounts is not None:
            self._accounts.name_goes(*key)
        self._run(_BURY_DENTRY, (*key, self.seq))
        self._run(_DROP_DENTRY, key)
        self._run(_ADD_CHILD_CHANGE, (parent, self.seq))

    # -- content --

    def put_extents(self, ino: Ino, extents: list[Extent]) -> None:
        """Lay extents over the file; what they cover becomes past, remainders stay.

        Args:
            extents: Ascending and disjoint.
        """
        self._dirty = True
        for extent in extents:
            self._clear_range(ino, extent.start, extent.end)
            self._run(_ADD_EXTENT, (ino, *extent, self.seq))

    def truncate_extents(self, ino: Ino, size: int) -> None:
        """End every extent at ``size``."""
        self._dirty = True
        last = self._one("SELECT max(start + length) FROM extent WHERE ino = ?", (ino,))
        if last is not None and last[0] is not None and last[0] > size:
            self._clear_range(ino, size, last[0])

    def clear_extents(self, ino: Ino, start: int, end: int) -> None:
        """Make a range a hole; remainders of extents on its edges stay."""
        self._dirty = True
        self._clear_range(ino, start, end)

    def _clear_range(self, ino: Ino, start: int, end: int) -> None:
        rows = self._all(OVERLAPPING, (ino, start, end))
        for old in map(Extent._make, rows):
            self._run(_BURY_EXTENT, (ino, old.start, self.seq))
            self._run("DELETE FROM extent WHERE ino = ? AND start = ?", (ino, old.start))
            if old.start < start:
                kept = old._replace(length=start - old.start)
                self._run(_ADD_EXTENT, (ino, *kept, self.seq))
            if old.end > end:
                skipped = end - old.start
                kept = Extent(end, old.end - end, old.digest, old.chunk_offset + skipped)
                self._run(_ADD_EXTENT, (ino, *kept, self.seq))

    def rewind_extents(self, ino: Ino, seq: Seq) -> None:
        """Take back what operations from ``seq`` on did to a file's content, as if it never was.

        The only way to change the past: for bytes that a power loss took.
        """
        self._dirty = True
        for sql in _REWIND_EXTENTS:
            self._run(sql, (ino, seq))

    def rewind_content(self, ino: Ino, seq: Seq, size: int, content_seq: Seq) -> None:
        """Let every version of an inode from ``seq`` on have this content."""
        self._dirty = True
        self.touch(ino)
        for table in ("inode", "inode_past"):
            self._run(
                f"UPDATE {table} SET size = ?3, content_seq = ?4"
                " WHERE ino = ?1 AND content_seq >= ?2",
                (ino, seq, size, content_seq),
            )
        self._run("DELETE FROM content_hash WHERE ino = ? AND content_seq >= ?", (ino, seq))

    def remove_chunk(self, digest: Digest) -> None:
        """Take a chunk out of the index: its bytes are lost."""
        self._run("DELETE FROM chunk WHERE digest = ?", (digest,))

    def add_chunk(self, digest: Digest, location: tuple[Any, ...]) -> None:
        """Enter a chunk into the index.

        Args:
            location: (pack name, offset, stored length, length, codec).
        """
        self._run(ADD_CHUNK, (digest, *location))

    # -- xattrs --

    def put_xattr(self, ino: Ino, name: bytes, value: bytes) -> None:
        self._dirty = True
        self._run(_BURY_XATTR, (ino, name, self.seq))
        self._run(
            "INSERT OR REPLACE INTO xattr (ino, name, value, from_seq) VALUES (?, ?, ?, ?)",
            (ino, name, value, self.seq),
        )

    def remove_xattr(self, ino: Ino, name: bytes) -> None:
        self._dirty = True
        self._run(_BURY_XATTR, (ino, name, self.seq))
        self._run("DELETE FROM xattr WHERE ino = ? AND name = ?", (ino, name))

    # -- quotas --

    def put_quota(self, ino: Ino, max_bytes: int | None, max_inodes: int | None) -> Quota:
        """Set a directory's limits, and count what is below it; reads all of that."""
        self._dirty = True
        quota = Quota(ino, max_bytes, max_inodes, quotas.count(self._connection, ino))
        quotas.put_quota(self._connection, quota)
        self._begin_accounts()
        return quota

    def remove_quota(self, ino: Ino) -> None:
        self._dirty = True
        quotas.remove_quota(self._connection, ino)
        self._begin_accounts()

    # -- snapshots and undo --

    def add_snapshot(self, name: str, seq: Seq) -> None:
        self._dirty = True
        self._run(
            "INSERT INTO snapshot (name, seq, created_seq, time_ns, uid) VALUES (?, ?, ?, ?, ?)",
            (name, seq, self.seq, max(self.now_ns, self._head_time_ns), self.actor.uid),
        )

    def remove_snapshot(self, name: str) -> None:
        self._dirty = True
        self._run("DELETE FROM snapshot WHERE name = ?", (name,))

    def add_reversal(self, target: Seq) -> None:
        """This operation reverses ``target``."""
        self._run(
            "INSERT OR IGNORE INTO reversal (target, by_seq) VALUES (?, ?)", (target, self.seq)
        )

    def add_touched(self, ino: Ino, parent: Ino = NO_INO, name: bytes = b"") -> None:
        """This operation changed an inode, or a name of it."""
        self._run(
            "INSERT OR IGNORE INTO touched (seq, ino, parent, name) VALUES (?, ?, ?, ?)",
            (self.seq, ino, parent, name),
        )

    def as_of(self, seq: Seq) -> AsOfReader:
        return AsOfReader(self._connection, seq)
