"""SQL for undo: which names and inodes operations changed, and what became of those since.

A log has no index from an operation to its rows: the record names the inode, and the rows of an
inode or a name say at which operation each of their versions began and ended. Questions come in
batches, as JSON arrays, because one statement for five thousand files costs less than a tenth of
five thousand statements.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from itertools import islice
from typing import Any, NamedTuple

import msgspec

from nexus_engine.meta import retention_queries
from nexus_engine.meta.connection import Connection, detail
from nexus_engine.meta.reader import PATH_DEPTH_MAX, name_hash
from nexus_engine.records import OF_MANY
from nexus_engine.types import NO_INO, ROOT_INO, Ino, Inode, Name, Path, Seq

Key = tuple[Ino, Name]
"""A name's place: (parent, name)."""

_BATCH = 5000
_OF_NAMES = frozenset("create mkdir mknod symlink link unlink rmdir rename exchange".split())

_ITEM = "json_each(?1) j CROSS JOIN"
_OPERATIONS = (
    "SELECT o.seq, o.kind, o.ino, o.path, o.path2, o.time_ns, a.uid, a.pid, a.command, a.agent,"
    f" a.principal, coalesce({detail('redo', 'o.details')}, 0)"
    f" FROM {_ITEM} oplog o ON o.seq = j.value CROSS JOIN actor a ON a.id = o.actor"
    " ORDER BY o.seq"
)
_NAMES_CHANGED = (
    f"SELECT j.value ->> 0, d.parent, d.name FROM {_ITEM} dentry d"
    " ON d.ino = j.value ->> 1 WHERE d.from_seq = j.value ->> 0"
    f" UNION ALL SELECT j.value ->> 0, d.parent, d.name FROM {_ITEM} dentry_past d"
    " ON d.ino = j.value ->> 1 WHERE d.from_seq = j.value ->> 0 OR d.to_seq = j.value ->> 0"
)
_NAME_HISTORY = (
    f"SELECT d.parent, d.name, d.ino, d.kind, d.from_seq, NULL FROM {_ITEM} dentry d"
    " ON d.parent = j.value ->> 0 AND d.hash = j.value ->> 1 AND d.name = unhex(j.value ->> 2)"
    f" UNION ALL SELECT d.parent, d.name, d.ino, d.kind, d.from_seq, d.to_seq FROM {_ITEM}"
    " dentry_past d ON d.parent = j.value ->> 0 AND d.hash = j.value ->> 1"
    " AND d.name = unhex(j.value ->> 2) AND d.to_seq >= j.value ->> 3"
)
_VERSION = (
    "i.ino, i.from_seq, i.mode, i.uid, i.gid, i.nlink, i.rdev, i.size, i.atime_ns,"
    " i.mtime_ns, i.ctime_ns, i.btime_ns, i.content_seq, i.target"
)
# Besides the versions that ended since, the one before them: where an inode was gone for a while,
# it is what came back.
_VERSIONS = (
    f"SELECT {_VERSION}, NULL FROM {_ITEM} inode i ON i.ino = j.value ->> 0 AND i.nlink > 0"
    f" UNION ALL SELECT {_VERSION}, i.to_seq FROM {_ITEM} inode_past i"
    " ON i.ino = j.value ->> 0 AND i.to_seq >= coalesce((SELECT max(p.to_seq) FROM inode_past p"
    "  WHERE p.ino = j.value ->> 0 AND p.to_seq < j.value ->> 1), 0)"
)
_SETS_ATIME = (
    f"SELECT o.seq FROM {_ITEM} oplog o ON o.seq = j.value"
    f" WHERE o.kind IN ({', '.join(map(repr, sorted(OF_MANY)))})"
    f" OR (o.kind = 'setattr' AND {detail('atime_ns', 'o.details')} IS NOT NULL)"
)
_XATTRS = (
    f"SELECT x.ino, x.name, x.value, x.from_seq, NULL FROM {_ITEM} xattr x"
    " ON x.ino = j.value ->> 0 AND x.from_seq >= j.value ->> 1"
    f" UNION ALL SELECT x.ino, x.name, x.value, x.from_seq, x.to_seq FROM {_ITEM} xattr_past x"
    " ON x.ino = j.value ->> 0 AND x.to_seq >= j.value ->> 1"
)
_NAMES_OF = (
    "SELECT d.ino, d.parent, d.name, d.from_seq, d.kind"
    f" FROM {_ITEM} dentry d ON d.ino = j.value ORDER BY d.from_seq"
)
_EXTENTS_CHANGED = (
    "SELECT j.value ->> 0 FROM json_each(?1) j WHERE EXISTS (SELECT 1 FROM extent e"
    "  WHERE e.ino = j.value ->> 0 AND e.from_seq > j.value ->> 1)"
    " OR EXISTS (SELECT 1 FROM extent_past e"
    "  WHERE e.ino = j.value ->> 0 AND e.to_seq > j.value ->> 1)"
)
_ANY_PARENT = (
    "SELECT parent FROM dentry WHERE ino = ?1 UNION ALL"
    " SELECT parent FROM dentry_past WHERE ino = ?1 LIMIT 1"
)
_CHILD_CHANGES = "SELECT seq, time_ns FROM child_change WHERE parent = ?1 AND seq >= ?2"
_MTIME_ASOF = (
    "SELECT from_seq, mtime_ns FROM inode WHERE ino = ?1 AND from_seq <= ?2"
    " UNION ALL SELECT * FROM (SELECT from_seq, mtime_ns FROM inode_past"
    "  WHERE ino = ?1 AND to_seq > ?2 ORDER BY to_seq LIMIT 1) WHERE from_seq <= ?2 LIMIT 1"
)
_LAST_CHILD_CHANGE = (
    "SELECT c.seq, coalesce(c.time_ns, o.time_ns) FROM child_change c LEFT JOIN oplog o"
    " ON o.seq = c.seq WHERE c.parent = ?1 AND c.seq <= ?2 ORDER BY c.seq DESC LIMIT 1"
)


class Operation(NamedTuple):
    """What undo wants to know of a record."""

    seq: Seq
    kind: str
    ino: Ino
    path: Path
    path2: Path | None
    time_ns: int
    uid: int
    pid: int
    command: str
    agent: str
    principal: str
    redo: bool
    """An undo that takes back undos."""


class NameRow(NamedTuple):
    """A name meant an inode in ``[from_seq, to_seq)``; ``None``: it still does."""

    parent: Ino
    name: Name
    ino: Ino
    kind: int
    from_seq: Seq
    to_seq: Seq | None


class VersionRow(NamedTuple):
    """A version of an inode, true until ``to_seq``; ``None``: it still is.

    A directory's times are those of ``from_seq``.
    """

    inode: Inode
    to_seq: Seq | None


class XattrRow(NamedTuple):
    ino: Ino
    name: bytes
    value: bytes
    from_seq: Seq
    to_seq: Seq | None


class UndoQueries:
    """Read-only questions on one connection."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._one = connection.one
        self._all = connection.all

    def one_moment(self) -> AbstractContextManager[None]:
        """Make all questions inside see the same state, whoever else writes meanwhile."""
        return self._connection.one_moment()

    def operations(self, seqs: Iterable[Seq]) -> list[Operation]:
        """Return the records, in the order of the log; those that don't exist are left out."""
        return [Operation._make(row) for row in self._batches(_OPERATIONS, seqs)]

    def names_changed(self, operations: Collection[Operation]) -> dict[Seq, set[Key]]:
        """Return the names that each operation gave, took or changed."""
        changed: dict[Seq, set[Key]] = {}
        pairs = [(o.seq, o.ino) for o in operations if o.kind in _OF_NAMES]
        for seq, parent, name in self._batches(_NAMES_CHANGED, pairs):
            changed.setdefault(seq, set()).add((parent, name))
        for operation in operations:
            if operation.kind in OF_MANY:
                rows = self._all(
                    "SELECT parent, name FROM touched WHERE seq = ? AND parent <> ?",
                    (operation.seq, NO_INO),
                )
                if rows:
                    changed[operation.seq] = {(parent, name) for parent, name in rows}
        return changed

    def inodes_changed(self, operations: Collection[Operation]) -> dict[Seq, list[Ino]]:
        """Return the inodes of which each operation may have changed more than the names."""
        changed: dict[Seq, list[Ino]] = {}
        for operation in operations:
            if operation.kind in OF_MANY:
                rows = self._all("SELECT DISTINCT ino FROM touched WHERE seq = ?", (operation.seq,))
                changed[operation.seq] = [row[0] for row in rows]
            elif operation.kind not in _OF_NAMES:
                changed[operation.seq] = [operation.ino]
        return changed

    def name_history(self, firsts: Mapping[Key, Seq]) -> list[NameRow]:
        """Return what each name meant just before an operation, and ever since."""
        items = ((p, name_hash(n), n.hex(), first) for (p, n), first in firsts.items())
        return [NameRow._make(row) for row in self._batches(_NAME_HISTORY, items)]

    def pruned_to(self) -> Seq:
        """Return the operation from which on all of the past is there."""
        return retention_queries.pruned_to(self._connection)

    def is_expired(self, operation: Operation) -> bool:
        """Tell whether a class let go of what an operation changed."""
        if operation.seq > retention_queries.expired_to(self._connection):
            return False
        current, depth = operation.ino, 0
        while current != ROOT_INO and depth < PATH_DEPTH_MAX:
            if operation.seq <= retention_queries.expired_until(self._connection, current):
                return True
            row = self._one(_ANY_PARENT, (current,))
            if row is None:
                return True  # all that was known is gone
            current, depth = row[0], depth + 1
        return False

    def versions(self, firsts: Mapping[Ino, Seq]) -> dict[Ino, list[VersionRow]]:
        """Return each inode's last version from before an operation, and those since, in order.

        An inode that is open but has no name is absent. An atime is that of the last operation
        that set one: reading sets it as well, in no version of its own.
        """
        found: dict[Ino, list[VersionRow]] = {}
        for row in self._batches(_VERSIONS, firsts.items()):
            found.setdefault(row[0], []).append(VersionRow(Inode._make(row[:-1]), row[-1]))
        for versions in found.values():
            versions.sort(key=lambda version: version.inode.from_seq)
        later = [row.inode for versions in found.values() for row in versions[1:]]
        sets_atime = {
            seq for (seq,) in self._batches(_SETS_ATIME, {inode.from_seq for inode in later})
        }
        for versions in found.values():
            atime_ns = versions[0].inode.atime_ns
            for index, (inode, to_seq) in enumerate(versions):
                if index and inode.from_seq in sets_atime:
                    atime_ns = inode.atime_ns
                versions[index] = VersionRow(inode._replace(atime_ns=atime_ns), to_seq)
        return found

    def xattr_history(self, firsts: Mapping[Ino, Seq]) -> list[XattrRow]:
        """Return the values that began or ended since an operation."""
        return [XattrRow._make(row) for row in self._batches(_XATTRS, firsts.items())]

    def names_of(self, inos: Iterable[Ino]) -> list[NameRow]:
        """Return every current name of the inodes, the oldest of each first."""
        return [
            NameRow(parent, name, ino, kind, from_seq, None)
            for ino, parent, name, from_seq, kind in self._batches(_NAMES_OF, inos)
        ]

    def last_name(self, ino: Ino) -> NameRow | None:
        """Return the name that an inode lost last."""
        row = self._one(
            "SELECT parent, name, ino, kind, from_seq, to_seq FROM dentry_past WHERE ino = ?"
            " ORDER BY to_seq DESC LIMIT 1",
            (ino,),
        )
        return None if row is None else NameRow._make(row)

    def children(self, directory: Ino, limit: int) -> list[NameRow]:
        """Return up to ``limit`` current entries of a directory."""
        rows = self._all(
            "SELECT parent, name, ino, kind, from_seq, NULL FROM dentry WHERE parent = ? LIMIT ?",
            (directory, limit),
        )
        return [NameRow._make(row) for row in rows]

    def extents_changed(self, since: Mapping[Ino, Seq]) -> set[Ino]:
        """Return the inodes of which extents began or ended after an operation."""
        return {row[0] for row in self._batches(_EXTENTS_CHANGED, since.items())}

    def child_changes(self, directory: Ino, first: Seq) -> list[tuple[Seq, int]]:
        """Return (operation, time) of each change of an entry since an operation, in order."""
        sql = (
            "SELECT DISTINCT c.seq, coalesce(c.time_ns, o.time_ns)"
            f" FROM ({_CHILD_CHANGES}) c LEFT JOIN oplog o ON o.seq = c.seq ORDER BY c.seq"
        )
        return [(row[0], row[1]) for row in self._all(sql, (directory, first))]

    def iter_child_changes_back(self, directory: Ino, first: Seq) -> Iterator[Seq]:
        """Yield the operations that changed an entry, newest first, some more than once.

        Reads no more than is taken: each part comes in the order of its index.
        """
        sql = _CHILD_CHANGES + " ORDER BY seq DESC"
        for row in self._connection.iterate(sql, (directory, first)):
            yield row[0]

    def time_of(self, seq: Seq) -> int | None:
        row = self._one("SELECT time_ns FROM oplog WHERE seq = ?", (seq,))
        return None if row is None else row[0]

    def directory_mtime(self, directory: Ino, seq: Seq) -> tuple[int, Seq] | None:
        """Return a directory's mtime after an operation, and which operation set it.

        Returns:
            ``None`` if it did not exist.
        """
        version = self._one(_MTIME_ASOF, (directory, seq))
        if version is None:
            return None
        changed, time_ns = self._one(_LAST_CHILD_CHANGE, (directory, seq)) or (0, None)
        if changed > version[0] and time_ns is not None:
            return time_ns, changed
        return version[1], version[0]

    def iter_versions_before(self, inode: Inode) -> Iterator[Inode]:
        """Yield the versions before one, newest first, reading no more than is taken."""
        sql = (
            f"SELECT {_VERSION} FROM inode_past i WHERE ino = ? AND to_seq <= ?"
            " ORDER BY to_seq DESC"
        )
        for row in self._connection.iterate(sql, (inode.ino, inode.from_seq)):
            yield Inode._make(row)

    def reverses(self, seq: Seq) -> bool:
        """Tell whether an undo reversed any operation altogether."""
        return self._one("SELECT 1 FROM reversal WHERE by_seq = ? LIMIT 1", (seq,)) is not None

    def first_reversed(self, seq: Seq) -> Seq | None:
        """Return the oldest operation that an undo reversed."""
        row = self._one("SELECT min(target) FROM reversal WHERE by_seq = ?", (seq,))
        return None if row is None else row[0]

    def last_reversal(self, seq: Seq) -> Seq | None:
        """Return the newest undo of an operation."""
        row = self._one("SELECT max(by_seq) FROM reversal WHERE target = ?", (seq,))
        return None if row is None else row[0]

    def _batches(self, sql: str, items: Iterable[Any]) -> Iterator[tuple[Any, ...]]:
        remaining = iter(items)
        while batch := list(islice(remaining, _BATCH)):
            yield from self._all(sql, (msgspec.json.encode(batch).decode(),))
