"""SQL that lets go of the past: rows that no kept moment sees.

A row that was true in ``[from_seq, to_seq)`` goes if it ended before every moment that is whole,
and no kept moment lies in it. Of some files and directories more is kept, or less: these are in
``temp.rule``, a table of the connection that asks (``retention_rules``).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from nexus_engine.meta.connection import Connection
from nexus_engine.meta.lazy_queries import ADD_FETCHED
from nexus_engine.types import Ino, Seq

# ?1 and ?2 are the range of inodes, ?3 the operation from which on everything is kept.
_KEPT = "SELECT 1 FROM kept k WHERE k.seq >= {start} AND k.seq < {end}"
_GOES = (
    "({end} <= ?3"
    f" AND NOT EXISTS ({_KEPT})"
    " AND NOT EXISTS (SELECT 1 FROM temp.rule r WHERE r.ino = {key} AND {end} > r.stays_from)"
    " OR EXISTS (SELECT 1 FROM temp.rule r WHERE r.ino = {key} AND {end} <= r.gone_to{inside})"
    f" AND NOT EXISTS ({_KEPT} AND k.pinned))"
)
# The rows of an inode that is gone stay in the current tables; they were true until it went.
_DEATH = "coalesce((SELECT max(p.to_seq) FROM inode_past p WHERE p.ino = {table}.ino), 0)"
_DEAD = "NOT EXISTS (SELECT 1 FROM inode i WHERE i.ino = {table}.ino) AND "
# Of the changes of a directory's entries, the last before each kept moment tells its times then.
_NEXT_CHANGE = (
    "(SELECT min(n.seq) FROM child_change n"
    " WHERE n.parent = child_change.parent AND n.seq > child_change.seq)"
)
# What is kept for longer has kept its names as well, or nobody would find it.
_OF_OTHERS = (
    " AND NOT EXISTS (SELECT 1 FROM temp.rule r"
    " WHERE r.ino = dentry_past.ino AND dentry_past.to_seq > r.stays_from)"
)
# Where a rule begins, what lies inside goes; that there is such a file or directory, and its
# attributes, stay.
_INSIDE = ("extent", "extent_past", "dentry_past", "child_change")


class Condition(NamedTuple):
    """Which rows of a table go, among those of a range of inodes or directories."""

    table: str
    sql: str


def _goes(table: str, key: str, end: str) -> str:
    names = {
        "start": f"{table}.seq" if table == "child_change" else f"{table}.from_seq",
        "end": end.format(table=table),
        "key": f"{table}.{key}",
        "inside": "" if table in _INSIDE else " AND NOT r.inside",
    }
    return f"{table}.{key} BETWEEN ?1 AND ?2 AND {_GOES.format(**names)}"


def _conditions() -> list[Condition]:
    """Return the tables in the order in which rows are to go."""
    return [
        *(
            Condition(t, _DEAD.format(table=t) + _goes(t, "ino", _DEATH))
            for t in ("extent", "xattr")
        ),
        *(
            Condition(t, _goes(t, "ino", "{table}.to_seq"))
            for t in ("extent_past", "xattr_past", "inode_past")
        ),
        Condition("dentry_past", _goes("dentry_past", "parent", "{table}.to_seq") + _OF_OTHERS),
        Condition("child_change", _goes("child_change", "parent", _NEXT_CHANGE)),
    ]


CONDITIONS = _conditions()

_DROP_HASHES = (
    "DELETE FROM content_hash WHERE ino BETWEEN ?1 AND ?2"
    " AND NOT EXISTS (SELECT 1 FROM inode i WHERE i.ino = content_hash.ino"
    "  AND i.content_seq = content_hash.content_seq)"
    " AND NOT EXISTS (SELECT 1 FROM inode_past p WHERE p.ino = content_hash.ino"
    "  AND p.content_seq = content_hash.content_seq)"
)
# Content of what was removed and came back is kept for a moment in between, too: of no use without
# an inode.
_DROP_ORPHANS = [
    f"DELETE FROM {table} WHERE ino BETWEEN ?1 AND ?2"
    f" AND NOT EXISTS (SELECT 1 FROM inode i WHERE i.ino = {table}.ino)"
    f" AND NOT EXISTS (SELECT 1 FROM inode_past p WHERE p.ino = {table}.ino)"
    for table in ("extent", "extent_past", "xattr", "xattr_past")
]
# Noted together with what goes: nobody sees the one without the other.
_NOTE_EXPIRED = (
    "INSERT INTO expired (ino, until_seq) SELECT rule.ino, rule.gone_to FROM temp.rule rule"
    " WHERE rule.ino BETWEEN ?1 AND ?2 AND rule.gone_to > 0 AND ({any})"
    " ON CONFLICT (ino) DO UPDATE SET until_seq = max(until_seq, excluded.until_seq)"
).format(
    any=" OR ".join(
        f"EXISTS (SELECT 1 FROM {table} WHERE {table}.{key} = rule.ino"
        f" AND {end.format(table=table)} <= rule.gone_to)"
        for table, key, end in (
            ("extent_past", "ino", "{table}.to_seq"),
            ("inode_past", "ino", "{table}.to_seq"),
            ("xattr_past", "ino", "{table}.to_seq"),
            ("dentry_past", "parent", "{table}.to_seq"),
        )
    )
)
_FORGET_SHADOWS = (
    "DELETE FROM shadow WHERE ino BETWEEN ?1 AND ?2"
    " AND NOT EXISTS (SELECT 1 FROM inode i WHERE i.ino = shadow.ino)"
    " AND NOT EXISTS (SELECT 1 FROM inode_past p WHERE p.ino = shadow.ino)"
)
_FORGET_WORKSPACES = (
    "DELETE FROM applied"
    " WHERE NOT EXISTS (SELECT 1 FROM shadow s WHERE s.workspace = applied.workspace)",
    "DELETE FROM workspace"
    " WHERE NOT EXISTS (SELECT 1 FROM shadow s WHERE s.workspace = workspace.ino)",
)
_FORGET_EXPIRED = (
    "DELETE FROM expired WHERE ino BETWEEN ?1 AND ?2"
    " AND NOT EXISTS (SELECT 1 FROM inode i WHERE i.ino = expired.ino)"
    " AND NOT EXISTS (SELECT 1 FROM inode_past p WHERE p.ino = expired.ino)"
)


def last_ino(connection: Connection) -> Ino:
    row = connection.one("SELECT value FROM store WHERE key = 'next_ino'")
    return Ino(row[0] if row else 0)


def drop_rows(connection: Connection, first: Ino, last: Ino, whole_from: Seq) -> int:
    """Drop what may go of a range of inodes and directories; in a transaction of the caller.

    Returns:
        How many rows went.
    """
    connection.run(_NOTE_EXPIRED, (first, last))
    dropped = 0
    for table, condition in CONDITIONS:
        connection.run(f"DELETE FROM {table} WHERE {condition}", (first, last, whole_from))
        dropped += connection.changes()
    for orphans in _DROP_ORPHANS:
        connection.run(orphans, (first, last))
        dropped += connection.changes()
    connection.run(_DROP_HASHES, (first, last))
    connection.run(_FORGET_EXPIRED, (first, last))
    connection.run(_FORGET_SHADOWS, (first, last))
    for sql in _FORGET_WORKSPACES:
        connection.run(sql)
    return dropped


# -- what would go --


def count_rows(connection: Connection, whole_from: Seq) -> int:
    """Return how many rows would go."""
    arguments = (0, last_ino(connection), whole_from)
    counts = (
        connection.one(f"SELECT count(*) FROM {table} WHERE {condition}", arguments)
        for table, condition in CONDITIONS
    )
    return sum(row[0] for row in counts if row is not None)


def suppose_kept(connection: Connection, moments: Iterable[tuple[Seq, bool]]) -> None:
    """Have this connection, and no other, take these moments for those that are kept."""
    connection.run("DROP TABLE IF EXISTS temp.kept")
    connection.run("CREATE TEMP TABLE kept (seq INTEGER PRIMARY KEY, pinned INTEGER NOT NULL)")
    rows = [(seq, int(pinned)) for seq, pinned in moments]
    connection.run_many("INSERT INTO temp.kept (seq, pinned) VALUES (?, ?)", rows)


def find_named(connection: Connection, whole_from: Seq) -> None:
    """Collect in ``temp.live`` what rows would name once those that may go are gone."""
    connection.run("DROP TABLE IF EXISTS temp.live")
    connection.run("CREATE TEMP TABLE live (digest BLOB PRIMARY KEY) STRICT, WITHOUT ROWID")
    arguments = (0, last_ino(connection), whole_from)
    for table, condition in CONDITIONS:
        if table in ("extent", "extent_past"):
            stays = f"SELECT digest FROM {table} WHERE NOT ({condition})"
            connection.run(f"INSERT OR IGNORE INTO temp.live {stays}", arguments)
    connection.run(ADD_FETCHED)


def unnamed_bytes(connection: Connection) -> int:
    """Return how many stored bytes nothing names; after ``find_named``."""
    row = connection.one(
        "SELECT coalesce(sum(stored_length), 0) FROM chunk c"
        " WHERE NOT EXISTS (SELECT 1 FROM temp.live l WHERE l.digest = c.digest)"
    )
    return row[0] if row else 0


ALWAYS = Seq(2**62)
"""A moment after which content is needed whatever goes."""
_PRESENT = 2**62 + 1
_NEEDED_AT = (
    "CASE WHEN EXISTS (SELECT 1 FROM kept k WHERE k.pinned"
    "  AND k.seq >= {table}.from_seq AND k.seq < {end}) THEN {always}"
    " WHEN EXISTS (SELECT 1 FROM temp.rule r WHERE r.ino = {table}.ino AND {end} <= r.gone_to)"
    "  THEN 0"
    " WHEN {end} > ?1"
    "  OR EXISTS (SELECT 1 FROM temp.rule r WHERE r.ino = {table}.ino AND {end} > r.stays_from)"
    "  THEN {always}"
    " ELSE coalesce((SELECT max(k.seq) FROM kept k"
    "  WHERE k.seq >= {table}.from_seq AND k.seq < {end}), 0) END"
)
_NEED = (
    "DROP TABLE IF EXISTS temp.need",
    "CREATE TEMP TABLE need (digest BLOB PRIMARY KEY, seq INTEGER) STRICT, WITHOUT ROWID",
)
_ADD_NEED = (
    "INSERT INTO temp.need (digest, seq) {} ON CONFLICT DO UPDATE SET seq = max(seq, excluded.seq)"
)
_FETCHED = (
    "SELECT c.content, n.seq FROM temp.need n JOIN lazy_chunk c ON c.digest = n.digest"
    " WHERE c.content IS NOT NULL"
)


def sizes_of_history(connection: Connection, whole_from: Seq) -> list[tuple[Seq, int]]:
    """Return how much of what is stored is needed for the past only, and up to which moment.

    Returns:
        (the newest kept moment that needs it, ``ALWAYS`` for what stays whatever moments go;
        stored bytes), ascending.
    """
    for sql in _NEED:
        connection.run(sql)
    present = (
        f"SELECT e.digest, {_PRESENT} FROM extent e"
        " WHERE EXISTS (SELECT 1 FROM inode i WHERE i.ino = e.ino)"
    )
    connection.run(_ADD_NEED.format(present))
    for table, end in (("extent", _DEATH), ("extent_past", "{table}.to_seq")):
        needed = _NEEDED_AT.format(table=table, end=end.format(table=table), always=ALWAYS)
        dead = _DEAD.format(table=table).removesuffix(" AND ") if table == "extent" else "true"
        sql = f"SELECT digest, {needed} FROM {table} WHERE {dead}"
        connection.run(_ADD_NEED.format(sql), (whole_from,))
    connection.run(_ADD_NEED.format(_FETCHED))
    return connection.all(
        "SELECT n.seq, sum(c.stored_length) FROM temp.need n JOIN chunk c ON c.digest = n.digest"
        f" WHERE n.seq BETWEEN 1 AND {ALWAYS} GROUP BY n.seq ORDER BY n.seq"
    )


# -- what is kept --

# A workspace needs what it began as, and what it was when it was made or applied, for as long as
# there is something of it, an undo can bring it back, or somebody can look at it as it was: at a
# moment that is kept for something else than workspaces, which would keep each other for ever.
_PINNED = (
    "WITH own (seq) AS (SELECT base_seq FROM workspace UNION SELECT made_seq FROM workspace"
    "  UNION SELECT seq FROM applied),"
    " other (seq) AS (SELECT seq FROM snapshot"
    "  UNION SELECT seq FROM kept WHERE seq NOT IN (SELECT seq FROM own)),"
    " needed (ino) AS (SELECT w.ino FROM workspace w WHERE EXISTS (SELECT 1 FROM shadow s"
    "  JOIN inode i ON i.ino = s.ino WHERE s.workspace = w.ino)"
    "  OR EXISTS (SELECT 1 FROM shadow s JOIN inode_past p ON p.ino = s.ino"
    "   WHERE s.workspace = w.ino AND (p.to_seq >"
    "    coalesce((SELECT value FROM store WHERE key = 'pruned_to'), 0) OR EXISTS"
    "    (SELECT 1 FROM other k WHERE k.seq >= p.from_seq AND k.seq < p.to_seq))))"
    " SELECT seq FROM snapshot"
    " UNION SELECT base_seq FROM workspace WHERE ino IN (SELECT ino FROM needed)"
    " UNION SELECT made_seq FROM workspace WHERE ino IN (SELECT ino FROM needed)"
    " UNION SELECT seq FROM applied WHERE workspace IN (SELECT ino FROM needed) ORDER BY 1"
)


def kept_moments(connection: Connection) -> list[Seq]:
    """Return the moments before ``pruned_to`` that are whole, ascending."""
    return [row[0] for row in connection.all("SELECT seq FROM kept ORDER BY seq")]


def pinned_moments(connection: Connection) -> list[Seq]:
    """Return the moments of snapshots, and those that workspaces need, ascending."""
    return [row[0] for row in connection.all(_PINNED)]


def set_kept(connection: Connection, whole_from: Seq, moments: Iterable[tuple[Seq, bool]]) -> None:
    """Say what is kept, from the end of this transaction on."""
    times: dict[Seq, int] = dict(connection.all("SELECT seq, time_ns FROM kept"))
    connection.run("DELETE FROM kept")
    connection.run_many(
        "INSERT INTO kept (seq, pinned, time_ns)"
        " VALUES (?1, ?2, coalesce((SELECT time_ns FROM oplog WHERE seq = ?1), ?3))",
        [(seq, int(pinned), times.get(seq, 0)) for seq, pinned in moments],
    )
    set_value(connection, "pruned_to", whole_from)


def set_value(connection: Connection, key: str, value: int | bytes) -> None:
    connection.run("INSERT OR REPLACE INTO store (key, value) VALUES (?, ?)", (key, value))


def nearest_kept(connection: Connection, seq: Seq) -> Seq | None:
    """Return the newest moment at or before ``seq`` that is whole."""
    if seq >= pruned_to(connection):
        return seq
    row = connection.one("SELECT max(seq) FROM kept WHERE seq <= ?", (seq,))
    return None if row is None else row[0]


def pruned_to(connection: Connection) -> Seq:
    """Return the operation from which on every moment is whole."""
    return _value(connection, "pruned_to")


def expired_to(connection: Connection) -> Seq:
    """Return the operation from which on nothing is missing of any class."""
    return _value(connection, "expired_to")


def _value(connection: Connection, key: str) -> Seq:
    row = connection.one("SELECT value FROM store WHERE key = ?", (key,))
    return Seq(row[0] if row else 0)


def expired_until(connection: Connection, ino: Ino) -> Seq:
    """Return the operation before which nothing is left of what an inode held."""
    row = connection.one("SELECT until_seq FROM expired WHERE ino = ?", (ino,))
    return Seq(row[0] if row else 0)


def last_pinned(connection: Connection, first: Seq, end: Seq) -> Seq | None:
    """Return the newest moment in ``[first, end)`` that a snapshot pins."""
    row = connection.one(
        "SELECT max(seq) FROM kept WHERE seq >= ? AND seq < ? AND pinned", (first, end)
    )
    return None if row is None else row[0]
