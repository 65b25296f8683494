"""SQL over the past: snapshots, versions of a name, where an inode was, what a span changed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from nexus_engine.meta import retention_queries
from nexus_engine.meta.connection import Connection, detail
from nexus_engine.meta.reader import name_hash
from nexus_engine.types import Digest, Ino, Name, Seq

_PAGE = 512

_INODES_OF_NAME = (
    "SELECT ino FROM dentry WHERE parent = ?1 AND hash = ?2 AND name = ?3 AND kind = 32768"
    " UNION SELECT ino FROM dentry_past"
    " WHERE parent = ?1 AND hash = ?2 AND name = ?3 AND kind = 32768"
)
# The current row of an open file without a name is in no view: its content was never committed.
# A record that left the log is no reason to pass over the content that it made.
_CONTENTS = (
    "SELECT v.content_seq, v.size, coalesce(o.time_ns, v.mtime_ns), coalesce(o.kind, ''), a.uid,"
    " a.gid, a.pid, a.start_ticks, a.command, a.session, a.agent, a.principal, h.sha256,"
    " v.from_seq, v.to_seq"
    " FROM (SELECT ino, content_seq, size, mtime_ns, from_seq, NULL AS to_seq FROM inode"
    "   WHERE ino = ?1 AND nlink > 0"
    "  UNION ALL SELECT ino, content_seq, size, mtime_ns, from_seq, to_seq FROM inode_past"
    "   WHERE ino = ?1) v"
    " LEFT JOIN oplog o ON o.seq = v.content_seq"
    " LEFT JOIN actor a ON a.id = o.actor"
    " LEFT JOIN content_hash h ON h.ino = v.ino AND h.content_seq = v.content_seq"
    " ORDER BY v.content_seq DESC, v.from_seq DESC"
)
_NAMES_OF_FILES = (
    "SELECT hash, name FROM dentry WHERE parent = ?1 AND (hash, name) > (?2, ?3) AND kind = 32768"
    " UNION SELECT hash, name FROM dentry_past"
    "  WHERE parent = ?1 AND (hash, name) > (?2, ?3) AND kind = 32768"
    " ORDER BY 1, 2 LIMIT ?4"
)
_DENTRIES_ASOF = (
    "SELECT parent, name FROM dentry WHERE ino = ?1 AND from_seq <= ?2"
    " UNION SELECT parent, name FROM dentry_past WHERE ino = ?1 AND from_seq <= ?2 AND to_seq > ?2"
    " ORDER BY 1, 2"
)
_PERIODS = (
    "SELECT parent, name, from_seq, NULL AS to_seq FROM dentry WHERE ino = ?1"
    " UNION ALL SELECT parent, name, from_seq, to_seq FROM dentry_past WHERE ino = ?1"
    " ORDER BY from_seq DESC LIMIT ?2"
)
# What a rename replaced and the other half of an exchange are named in the details; what an undo
# or a restore changed, in `touched`.
_CHANGED_INODES = (
    "SELECT ino FROM oplog WHERE seq > ?1 AND seq <= ?2"
    f" UNION SELECT {detail('replaced')} FROM oplog"
    "  WHERE seq > ?1 AND seq <= ?2 AND kind = 'rename'"
    f" UNION SELECT {detail('exchanged')} FROM oplog"
    "  WHERE seq > ?1 AND seq <= ?2 AND kind = 'exchange'"
    " UNION SELECT ino FROM touched WHERE seq > ?1 AND seq <= ?2"
)


_UNKNOWN = (0, 0, 0, 0, "", 0, "", "")
"""The actor of an operation that left the log."""


class SnapshotRow(NamedTuple):
    """A named moment."""

    name: str
    seq: Seq
    """The last operation that it contains."""
    time_ns: int
    """When it was made."""


class ContentRow(NamedTuple):
    """One content that an inode had, and the operation that made it."""

    seq: Seq
    size: int
    time_ns: int
    kind: str
    actor: tuple[int, int, int, int, str, int, str, str]
    sha256: Digest | None
    moment: Seq
    """One at which the inode had it, and at which it can be read."""


class Period(NamedTuple):
    """An inode had this name in ``[from_seq, to_seq)``."""

    parent: Ino
    name: Name
    from_seq: Seq
    to_seq: Seq | None
    """``None``: it still has."""


def list_snapshots(connection: Connection) -> list[SnapshotRow]:
    """Return every snapshot, oldest first."""
    rows = connection.all("SELECT name, seq, time_ns FROM snapshot ORDER BY created_seq")
    return [SnapshotRow._make(row) for row in rows]


def inodes_of_name(connection: Connection, parent: Ino, name: Name) -> list[Ino]:
    """Return every regular file that ever had this name."""
    connection.appear(parent)
    rows = connection.all(_INODES_OF_NAME, (parent, name_hash(name), name))
    return [row[0] for row in rows]


def list_contents(connection: Connection, ino: Ino) -> list[ContentRow]:
    """Return every content that an inode had, newest first."""
    until = retention_queries.expired_until(connection, ino)
    found: dict[Seq, ContentRow] = {}
    for row in connection.all(_CONTENTS, (ino,)):
        if row[0] in found:
            continue
        moment = _moment_within(connection, until, *row[13:])
        if moment is not None:
            actor = _UNKNOWN if row[4] is None else row[4:12]
            found[row[0]] = ContentRow._make((*row[:4], actor, row[12], moment))
    return list(found.values())


def _moment_within(
    connection: Connection, until: Seq, from_seq: Seq, to_seq: Seq | None
) -> Seq | None:
    """Return a moment at which a version of an inode was true, and has its content still.

    The content of a version is the same as long as it was true: its last moment will do, also if
    that moment is not kept as a whole. Where a rule keeps less, only pinned ones do.
    """
    last = max(from_seq, until) if to_seq is None else Seq(to_seq - 1)
    if last >= until:
        return last
    return retention_queries.last_pinned(connection, from_seq, Seq(last + 1))


def iter_file_names(connection: Connection, parent: Ino) -> Iterator[Name]:
    """Yield every name that a regular file ever had in a directory, in directory order.

    Reads a page at a time: no cursor stays open in between.
    """
    connection.appear(parent)
    after: tuple[int, bytes] = (0, b"")
    while True:
        page = connection.all(_NAMES_OF_FILES, (parent, *after, _PAGE))
        for row in page:
            yield row[1]
        if len(page) < _PAGE:
            return
        after = (page[-1][0], page[-1][1])


def dentries_as_of(connection: Connection, ino: Ino, seq: Seq) -> list[tuple[Ino, Name]]:
    """Return (parent, name) of every name that an inode had at a moment."""
    return [(row[0], row[1]) for row in connection.all(_DENTRIES_ASOF, (ino, seq))]


def list_periods(connection: Connection, ino: Ino, limit: int) -> list[Period]:
    """Return the names that an inode had, and when, newest first."""
    return [Period._make(row) for row in connection.all(_PERIODS, (ino, limit))]


def iter_changed_inodes(connection: Connection, after: Seq, upto: Seq) -> Iterator[Ino]:
    """Yield every inode that operations of a span changed, gave a name or took one from."""
    for (ino,) in connection.iterate(_CHANGED_INODES, (after, upto)):
        if ino is not None:
            yield ino


def whole_chunk_digest(connection: Connection, digest: Digest, size: int) -> Digest | None:
    """Return the digest if the chunk has exactly this length: then it names a whole file."""
    row = connection.one("SELECT 1 FROM chunk WHERE digest = ? AND length = ?", (digest, size))
    return None if row is None else digest
