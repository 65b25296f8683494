"""SQL that lets go of the past: rows that no kept moment sees.

A row that was true in ``[from_seq, to_seq)`` goes if it ended before every moment that is whole,
and no kept moment lies in it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from nexus_engine.meta.connection import Connection
from nexus_engine.types import Ino, Seq

TAG_KEEP = b"user.nexus.tag.keep"
"""Content of an inode that has this tag is kept."""

_GONE = "{table}.to_seq <= ?3 AND NOT EXISTS (SELECT 1 FROM kept k WHERE k.seq >= {table}.from_seq"
_GONE += " AND k.seq < {table}.to_seq AND k.pinned >= ?4)"
_TAGGED = "EXISTS (SELECT 1 FROM xattr t WHERE t.ino = {table}.ino AND t.name = ?5)"
# The rows of an inode that is gone stay in the current tables; they were true until it went.
_DEATH = "coalesce((SELECT max(p.to_seq) FROM inode_past p WHERE p.ino = {table}.ino), 0)"
_DEAD = (
    "NOT EXISTS (SELECT 1 FROM inode i WHERE i.ino = {table}.ino) AND " + _DEATH + " <= ?3"
    " AND NOT EXISTS (SELECT 1 FROM kept k WHERE k.seq >= {table}.from_seq AND k.seq < "
    + _DEATH + " AND k.pinned >= ?4)"
)  # fmt: skip


def _conditions() -> list[tuple[str, str]]:
    """Return (table, condition) in the order in which rows are to go."""
    found = [
        (table, f"{table}.ino BETWEEN ?1 AND ?2 AND {_DEAD} AND NOT {_TAGGED}".format(table=table))
        for table in ("extent", "xattr")
    ]
    found += [
        (table, f"{table}.ino BETWEEN ?1 AND ?2 AND {_GONE} AND NOT {_TAGGED}".format(table=table))
        for table in ("extent_past", "xattr_past", "inode_past")
    ]
    gone = _GONE.format(table="dentry_past")
    return [*found, ("dentry_past", f"dentry_past.parent BETWEEN ?1 AND ?2 AND {gone}")]


CONDITIONS = _conditions()

# Of the changes of a directory's entries, the last before each kept moment tells its times then.
_DROP_CHILD_CHANGES = (
    "DELETE FROM child_change WHERE parent BETWEEN ?1 AND ?2 AND seq <= ?3"
    " AND NOT EXISTS (SELECT 1 FROM kept k WHERE k.seq >= child_change.seq AND k.seq <"
    "  coalesce((SELECT min(n.seq) FROM child_change n"
    "   WHERE n.parent = child_change.parent AND n.seq > child_change.seq), ?3 + 1))"
    " AND EXISTS (SELECT 1 FROM child_change n"
    "  WHERE n.parent = child_change.parent AND n.seq > child_change.seq AND n.seq <= ?3)"
)
_DROP_HASHES = (
    "DELETE FROM content_hash WHERE ino BETWEEN ?1 AND ?2"
    " AND NOT EXISTS (SELECT 1 FROM inode i WHERE i.ino = content_hash.ino"
    "  AND i.content_seq = content_hash.content_seq)"
    " AND NOT EXISTS (SELECT 1 FROM inode_past p WHERE p.ino = content_hash.ino"
    "  AND p.content_seq = content_hash.content_seq)"
)


class Horizon(NamedTuple):
    """Which rows may go: see the module."""

    pruned_to: Seq
    only_pinned: bool = False
    """Moments that no snapshot pins are not looked at: for what a class keeps less of."""


def last_ino(connection: Connection) -> Ino:
    row = connection.one("SELECT value FROM store WHERE key = 'next_ino'")
    return Ino(row[0] if row else 0)


def drop_rows(
    connection: Connection,
    first: Ino,
    last: Ino,
    horizon: Horizon,
    *,
    inside_only: bool = False,
) -> int:
    """Drop what may go of a range of inodes and directories; in a transaction of the caller.

    Args:
        inside_only: Attributes stay.

    Returns:
        How many rows went.
    """
    arguments = (first, last, horizon.pruned_to, int(horizon.only_pinned), TAG_KEEP)
    dropped = 0
    for table, condition in CONDITIONS:
        if inside_only and table not in _INSIDE:
            continue
        used = arguments if "?5" in condition else arguments[:4]
        connection.run(f"DELETE FROM {table} WHERE {condition}", used)
        dropped += connection.changes()
    connection.run(_DROP_CHILD_CHANGES, (first, last, horizon.pruned_to))
    dropped += connection.changes()
    connection.run(_DROP_HASHES, (first, last))
    return dropped


def drop_rows_of(connection: Connection, inos: Iterable[Ino], horizon: Horizon) -> int:
    """Drop what may go of some inodes; likewise."""
    return sum(drop_rows(connection, ino, ino, horizon) for ino in inos)


def count_rows(connection: Connection, horizon: Horizon) -> dict[str, int]:
    """Return how many rows of each table would go."""
    arguments = (0, last_ino(connection), horizon.pruned_to, int(horizon.only_pinned), TAG_KEEP)
    counts = {}
    for table, condition in CONDITIONS:
        used = arguments if "?5" in condition else arguments[:4]
        row = connection.one(f"SELECT count(*) FROM {table} WHERE {condition}", used)
        counts[table] = row[0] if row else 0
    return counts


def suppose_kept(connection: Connection, moments: Iterable[tuple[Seq, bool]]) -> None:
    """Have this connection, and no other, take these moments for those that are kept."""
    connection.run("CREATE TEMP TABLE kept (seq INTEGER PRIMARY KEY, pinned INTEGER NOT NULL)")
    rows = [(seq, int(pinned)) for seq, pinned in moments]
    connection.run_many("INSERT INTO temp.kept (seq, pinned) VALUES (?, ?)", rows)


def unreachable_bytes(connection: Connection, horizon: Horizon) -> int:
    """Return how many stored bytes nothing would name once the rows that may go are gone."""
    arguments = (0, last_ino(connection), horizon.pruned_to, int(horizon.only_pinned), TAG_KEEP)
    connection.run("CREATE TEMP TABLE named (digest BLOB PRIMARY KEY) STRICT, WITHOUT ROWID")
    for table, condition in CONDITIONS:
        if table in ("extent", "extent_past"):
            stays = f"SELECT digest FROM {table} WHERE NOT ({condition})"
            connection.run(f"INSERT OR IGNORE INTO temp.named {stays}", arguments)
    row = connection.one(
        "SELECT coalesce(sum(stored_length), 0) FROM chunk c"
        " WHERE NOT EXISTS (SELECT 1 FROM temp.named n WHERE n.digest = c.digest)"
    )
    return row[0] if row else 0


# -- what is kept --


def kept_moments(connection: Connection) -> list[Seq]:
    """Return the moments before ``pruned_to`` that are whole, ascending."""
    return [row[0] for row in connection.all("SELECT seq FROM kept ORDER BY seq")]


def pinned_moments(connection: Connection) -> list[Seq]:
    """Return the moments of snapshots, ascending."""
    return [row[0] for row in connection.all("SELECT DISTINCT seq FROM snapshot ORDER BY seq")]


def set_kept(connection: Connection, whole_from: Seq, moments: Iterable[tuple[Seq, bool]]) -> None:
    """Say what is kept, from the end of this transaction on."""
    connection.run("DELETE FROM kept")
    connection.run_many(
        "INSERT INTO kept (seq, pinned) VALUES (?, ?)", [(s, int(p)) for s, p in moments]
    )
    connection.run(
        "INSERT OR REPLACE INTO store (key, value) VALUES ('pruned_to', ?)", (whole_from,)
    )


def nearest_kept(connection: Connection, seq: Seq) -> Seq | None:
    """Return the newest moment at or before ``seq`` that is whole."""
    if seq >= pruned_to(connection):
        return seq
    row = connection.one("SELECT max(seq) FROM kept WHERE seq <= ?", (seq,))
    return None if row is None else row[0]


def pruned_to(connection: Connection) -> Seq:
    """Return the operation from which on every moment is whole."""
    row = connection.one("SELECT value FROM store WHERE key = 'pruned_to'")
    return Seq(row[0] if row else 0)


# -- classes --

_BELOW = (
    "WITH RECURSIVE member (ino) AS (SELECT ?1"
    " UNION SELECT d.ino FROM member m JOIN dentry d ON d.parent = m.ino"
    " UNION SELECT d.ino FROM member m JOIN dentry_past d ON d.parent = m.ino)"
    " SELECT ino FROM member"
)
# What lies in it goes; that there is such a file or directory, and its attributes, stay.
_INSIDE = ("extent", "extent_past", "dentry_past")


def inodes_called(connection: Connection, pattern: str) -> list[Ino]:
    """Return every inode that has or had a name like this (GLOB of SQLite)."""
    rows = connection.all(
        "SELECT ino FROM dentry WHERE CAST(name AS TEXT) GLOB ?1"
        " UNION SELECT ino FROM dentry_past WHERE CAST(name AS TEXT) GLOB ?1",
        (pattern,),
    )
    return [row[0] for row in rows]


def expire(connection: Connection, roots: Iterable[Ino], until: Seq) -> None:
    """Note that of these and what lies below nothing is left before an operation."""
    connection.run_many(
        "INSERT INTO expired (ino, until_seq) VALUES (?, ?) ON CONFLICT (ino) DO UPDATE"
        " SET until_seq = max(until_seq, excluded.until_seq)",
        [(ino, until) for ino in roots],
    )


def expired_roots(connection: Connection) -> list[tuple[Ino, Seq]]:
    """Return (inode, operation before which nothing is left) of what a class keeps less of."""
    return connection.all("SELECT ino, until_seq FROM expired")


def inodes_below(connection: Connection, root: Ino) -> list[Ino]:
    """Return every inode that is or was below a directory, without itself."""
    return [row[0] for row in connection.all(_BELOW, (root,)) if row[0] != root]
