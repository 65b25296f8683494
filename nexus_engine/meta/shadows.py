"""Directories that began as another one was: their entries become rows when somebody looks.

Every reader of a directory's entries asks `Shadows.appear` first, or when it finds nothing. What it
writes is derived: it has no record, and the rows say what they would say if all had been copied in
the operation that made the workspace. So views of the past, undo and diff need not know of any of
this.
"""

from __future__ import annotations

import stat
from collections.abc import Callable
from itertools import pairwise
from typing import Any, NamedTuple

from nexus_engine import errors
from nexus_engine.meta import quotas, retention_queries
from nexus_engine.meta import statements as sql
from nexus_engine.meta.busy import retry
from nexus_engine.meta.connection import Connection
from nexus_engine.meta.quotas import QuotaTrees, Usage
from nexus_engine.meta.reader import AsOfReader, Listed, name_hash
from nexus_engine.types import Ino, Inode, Seq

_PAGE = 512
_SET_IDS = stat.S_ISUID | stat.S_ISGID

_ANY_PENDING = "SELECT 1 FROM shadow WHERE pending = 1 LIMIT 1"
_FIND_PENDING = (
    "SELECT s.ino, s.base_ino, w.ino, w.base_seq, w.made_seq, w.uid FROM shadow s"
    " JOIN workspace w ON w.ino = s.workspace WHERE s.ino = ? AND s.pending = 1"
)
_VERSIONS = (
    "SELECT from_seq, to_seq FROM inode_past WHERE ino = ?1"
    " UNION ALL SELECT from_seq, NULL FROM inode WHERE ino = ?1 AND nlink > 0 ORDER BY from_seq"
)
_ADD_PAST_INODE = (
    "INSERT INTO inode_past (ino, from_seq, mode, uid, gid, nlink, rdev, size, atime_ns, mtime_ns,"
    " ctime_ns, btime_ns, content_seq, target, to_seq) VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)"
)
_ADD_PAST_DENTRY = (
    "INSERT INTO dentry_past (parent, hash, name, ino, kind, from_seq, to_seq)"
    " VALUES (?, ?, ?, ?, ?, ?, ?)"
)
# ?1 the new inode, ?2 that of the base, ?3 the moment of the base, ?4 the operation.
_COPY_EXTENTS = (
    "INSERT INTO extent (ino, start, length, digest, chunk_offset, from_seq)"
    " SELECT ?1, start, length, digest, chunk_offset, ?4 FROM extent"
    "  WHERE ino = ?2 AND from_seq <= ?3"
    " UNION ALL SELECT ?1, start, length, digest, chunk_offset, ?4 FROM extent_past"
    "  WHERE ino = ?2 AND from_seq <= ?3 AND to_seq > ?3"
)
COPY_XATTRS = (
    "INSERT INTO xattr (ino, name, value, from_seq)"
    " SELECT ?1, name, value, ?4 FROM xattr WHERE ino = ?2 AND from_seq <= ?3"
    " UNION ALL SELECT ?1, name, value, ?4 FROM xattr_past"
    "  WHERE ino = ?2 AND from_seq <= ?3 AND to_seq > ?3"
)
ADD_SHADOW = "INSERT OR REPLACE INTO shadow (ino, workspace, base_ino, pending) VALUES (?, ?, ?, ?)"


class _Pending(NamedTuple):
    """A directory whose entries are no rows yet."""

    ino: Ino
    base_ino: Ino
    workspace: Ino
    base_seq: Seq
    made_seq: Seq
    uid: int
    """Of who made the workspace."""


class _Life(NamedTuple):
    """A directory was there in ``[from_seq, to_seq)``; ``None``: it still is."""

    from_seq: Seq
    to_seq: Seq | None


class Shadows:
    """What one connection does about them; costs nothing in a store that has none."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._any: bool | None = None
        """Whether some directory is pending; ``None``: not known."""
        self.run: Callable[[Callable[[], None]], None] = retry
        """Runs what writes the rows, in a transaction of its own."""

    def forget(self) -> None:
        """Somebody else changed the database."""
        self._any = None

    def is_pending(self, directory: Ino) -> bool:
        """Tell whether a directory's entries are no rows yet."""
        return self._find(directory) is not None

    def appear(self, directory: Ino) -> bool:
        """Have a directory's entries become rows; tell whether they did just now.

        Raises:
            HistoryExpired: What it began as is not kept.
            StoreBusy: Another process is writing; nothing happened, try again.
        """
        if self._find(directory) is None:
            return False
        connection = self._connection
        if connection.in_transaction and connection.intervene is None:
            connection.known.close()
            self._write(directory)  # a part of the rule that asks
            connection.unlisted = True
        else:
            self.run(lambda: self._write_by_itself(directory))
        return True

    def _find(self, directory: Ino) -> _Pending | None:
        if self._any is None:
            self._any = self._connection.one(_ANY_PENDING) is not None
        if not self._any:
            return None
        row = self._connection.one(_FIND_PENDING, (directory,))
        return None if row is None else _Pending._make(row)

    def _write_by_itself(self, directory: Ino) -> None:
        connection = self._connection
        connection.run("BEGIN IMMEDIATE")
        try:
            self._write(directory)
            connection.change("COMMIT")
        finally:
            connection.rollback()

    def _write(self, directory: Ino) -> None:
        pending = self._find(directory)
        if pending is None:
            return  # somebody else was faster
        lives = self._lives(pending)
        if not lives:
            return  # it is nobody's past any more
        if retention_queries.nearest_kept(self._connection, pending.base_seq) != pending.base_seq:
            raise errors.HistoryExpired(f"what this began as at op-{pending.base_seq} is not kept")
        view, after = AsOfReader(self._connection, pending.base_seq), 0
        added = quotas.NOTHING
        while page := view.list_children(pending.base_ino, after, _PAGE):
            self._write_page(pending, lives, page)
            after = page[-1].cookie
            added = added.plus(Usage(sum(entry.inode.size for entry in page), len(page)))
        self._connection.change("UPDATE shadow SET pending = 0 WHERE ino = ?", (directory,))
        if lives[-1].to_seq is None:
            self._charge(directory, added)

    def _lives(self, pending: _Pending) -> list[_Life]:
        """Return when a directory was there: undo and `discard` take it away and bring it back.

        Where retention took versions, a gap says nothing; but nothing of before can be undone.
        """
        pruned_to = retention_queries.pruned_to(self._connection)
        versions = self._connection.all(_VERSIONS, (pending.ino,))
        lives: list[_Life] = []
        begin = pending.made_seq
        for (_, to_seq), (from_seq, _) in pairwise(versions):
            if from_seq != to_seq and from_seq > pruned_to:
                lives.append(_Life(begin, to_seq))
                begin = from_seq
        return [*lives, _Life(begin, versions[-1][1])] if versions else []

    def _write_page(self, pending: _Pending, lives: list[_Life], page: list[Listed]) -> None:
        change_many = self._connection.change_many
        first = self._take_inos(len(page))
        numbered = [(Ino(first + index), entry) for index, entry in enumerate(page)]
        for life in lives:
            inodes = [_row(ino, life.from_seq, pending, entry.inode) for ino, entry in numbered]
            dentries = [
                (pending.ino, name_hash(entry.name), entry.name, ino, _kind(entry), life.from_seq)
                for ino, entry in numbered
            ]
            if life.to_seq is None:
                change_many(sql.ADD_INODE, inodes)
                change_many(sql.ADD_DENTRY, dentries)
            else:
                change_many(_ADD_PAST_INODE, [(*row, life.to_seq) for row in inodes])
                change_many(_ADD_PAST_DENTRY, [(*row, life.to_seq) for row in dentries])
            for seq in life:
                if seq is not None:
                    keys = [(seq, ino, pending.ino, entry.name) for ino, entry in numbered]
                    change_many(sql.ADD_TOUCHED, keys)
                    change_many(sql.ADD_CHILD_CHANGE, [(pending.ino, seq)])
        copies = [
            (ino, entry.inode.ino, pending.base_seq, pending.made_seq) for ino, entry in numbered
        ]
        change_many(_COPY_EXTENTS, copies)
        change_many(COPY_XATTRS, copies)
        shadows = [
            (ino, pending.workspace, entry.inode.ino, 1 if entry.inode.is_dir else None)
            for ino, entry in numbered
        ]
        change_many(ADD_SHADOW, shadows)

    def _take_inos(self, count: int) -> int:
        row = self._connection.one(sql.TAKE_INOS, (count,))
        assert row is not None
        return int(row[0]) - count

    def _charge(self, directory: Ino, added: Usage) -> None:
        """Count what appeared in the quotas above; looking is never refused."""
        trees = QuotaTrees(self._connection)
        for ino in trees.of_directory(directory) if trees.roots else ():
            self._connection.one(sql.CHARGE_QUOTA, (*added, ino))


def _row(ino: Ino, seq: Seq, pending: _Pending, base: Inode) -> tuple[Any, ...]:
    """Return the columns of a copy. Of a file with several names, each is a file of its own.

    As of a file that somebody copies, set-ID bits stay if it is his: others might keep a program
    that its owner thinks is mended or gone.
    """
    nlink = base.nlink if base.is_dir else 1
    keeps = base.is_dir or pending.uid in (0, base.uid)
    mode = base.mode if keeps else base.mode & ~_SET_IDS
    return (ino, seq, *base._replace(mode=mode, nlink=nlink, content_seq=pending.made_seq)[2:])


def _kind(entry: Listed) -> int:
    return entry.inode.mode & 0o170000
