"""SQL that finds rows of the tree, now and then, which break an invariant: none on a sound store.

Joins and window functions follow the tables' own order, so that a store of any size is checked
without being held in memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from nexus_engine.meta.check_log_queries import log_end
from nexus_engine.meta.connection import Connection
from nexus_engine.meta.reader import name_hash

_DIR, _FILE, _LINK = 0o040000, 0o100000, 0o120000
_TYPE = 0o170000


class Interval(NamedTuple):
    """A table and its past, and what may be true only once at a time."""

    table: str
    key: tuple[str, ...]


INTERVALS = (
    Interval("inode", ("ino",)),
    Interval("dentry", ("parent", "hash", "name")),
    Interval("extent", ("ino", "start")),
    Interval("xattr", ("ino", "name")),
)


# -- the tree --


def dangling_dentries(connection: Connection) -> Iterator[tuple[int, bytes, int, int, int | None]]:
    """Yield (parent, name, ino, kind, mode) of names of nothing, or of another type."""
    return connection.iterate(
        "SELECT d.parent, d.name, d.ino, d.kind, i.mode FROM dentry d LEFT JOIN inode i"
        f" ON i.ino = d.ino WHERE i.ino IS NULL OR d.kind <> (i.mode & {_TYPE})"
    )


def homeless_dentries(connection: Connection) -> Iterator[tuple[int, bytes]]:
    """Yield (parent, name) of names in what is no directory."""
    return connection.iterate(
        "SELECT d.parent, d.name FROM dentry d LEFT JOIN inode p ON p.ino = d.parent"
        f" WHERE p.ino IS NULL OR (p.mode & {_TYPE}) <> {_DIR}"
    )


def misplaced_dentries(connection: Connection) -> Iterator[tuple[str, int, int, bytes]]:
    """Yield (table, parent, hash, name) of names that no lookup finds, or that cannot be names."""
    for table in ("dentry", "dentry_past"):
        for parent, digest, name in connection.iterate(f"SELECT parent, hash, name FROM {table}"):
            if not is_name(name) or digest != name_hash(name):
                yield table, parent, digest, name


def is_name(name: bytes) -> bool:
    """Tell whether bytes can be a name."""
    bad = not 0 < len(name) <= 255 or b"/" in name or b"\0" in name
    return not bad and name not in (b".", b"..")


def wrong_file_links(connection: Connection) -> Iterator[tuple[int, int, int]]:
    """Yield (ino, nlink, names) where the two differ; directories left out."""
    return connection.iterate(
        "SELECT * FROM (SELECT i.ino, i.nlink,"
        " (SELECT count(*) FROM dentry d WHERE d.ino = i.ino) AS names"
        f" FROM inode i WHERE (i.mode & {_TYPE}) <> {_DIR}) WHERE nlink <> names"
    )


def wrong_directory_links(connection: Connection) -> Iterator[tuple[int, int, int, int]]:
    """Yield (ino, nlink, names, subdirectories) of directories where these do not fit.

    One whose entries are no rows yet has those of what it began as, and counts these.
    """
    return connection.iterate(
        "SELECT * FROM (SELECT i.ino, i.nlink,"
        " (SELECT count(*) FROM dentry d WHERE d.ino = i.ino) AS names,"
        f" (SELECT count(*) FROM dentry d WHERE d.parent = i.ino AND d.kind = {_DIR}) AS below"
        f" FROM inode i WHERE (i.mode & {_TYPE}) = {_DIR}"
        "  AND NOT EXISTS (SELECT 1 FROM shadow s WHERE s.ino = i.ino AND s.pending = 1))"
        " WHERE nlink <> 2 + below OR names <> (CASE ino WHEN 1 THEN 0 ELSE 1 END)"
    )


def unreachable_directories(connection: Connection) -> Iterator[tuple[int]]:
    """Yield directories that no way from the root leads to."""
    return connection.iterate(
        "WITH RECURSIVE tree (ino) AS (SELECT 1 UNION"
        f" SELECT d.ino FROM tree CROSS JOIN dentry d ON d.parent = tree.ino AND d.kind = {_DIR})"
        f" SELECT ino FROM inode WHERE (mode & {_TYPE}) = {_DIR}"
        " AND ino NOT IN (SELECT ino FROM tree)"
    )


class WrongInode(NamedTuple):
    """A version of an inode that contradicts itself."""

    ino: int
    to_seq: int | None
    """``None``: the current version."""
    mode: int
    size: int
    nlink: int
    target: bytes | None


_SENSELESS = (
    "size < 0 OR nlink < 0"
    f" OR (mode & {_TYPE}) NOT IN (4096, 8192, {_DIR}, 24576, {_FILE}, {_LINK}, 49152)"
    f" OR ((mode & {_TYPE}) = {_LINK}) <> (target IS NOT NULL)"
    " OR (target IS NOT NULL AND length(target) <> size)"
)


def wrong_inodes(connection: Connection) -> Iterator[WrongInode]:
    for table, to_seq in (("inode", "NULL"), ("inode_past", "to_seq")):
        for row in connection.iterate(
            f"SELECT ino, {to_seq}, mode, size, nlink, target FROM {table} WHERE {_SENSELESS}"
        ):
            yield WrongInode._make(row)


def garbage(connection: Connection, ino: int | None) -> Iterator[tuple[str, int]]:
    """Yield (table, ino) of rows that hold what no row of ours can hold.

    Args:
        ino: Look at this inode, at what it holds, and at the inodes in it; ``None``: at all.
    """
    for interval in INTERVALS:
        for table in (interval.table, f"{interval.table}_past"):
            key = interval.key[0]
            wrong = _mistyped(connection, table)
            if interval.table == "inode":
                wrong += f" OR {_SENSELESS}"
            rows = f"SELECT '{table}', {key} FROM {table} WHERE ({wrong})"
            if ino is None:
                yield from connection.iterate(rows)
                continue
            yield from connection.iterate(f"{rows} AND {key} = ?", (ino,))
            if interval.table == "inode":
                inside = "SELECT ino FROM dentry WHERE parent = ?1"
                inside += " UNION SELECT ino FROM dentry_past WHERE parent = ?1"
                yield from connection.iterate(f"{rows} AND {key} IN ({inside})", (ino,))


def log_garbage(connection: Connection) -> Iterator[tuple[str, int]]:
    """Yield (table, key) of records and actors that hold what none of ours can hold."""
    for table, key in (("oplog", "seq"), ("actor", "id")):
        wrong = _mistyped(connection, table)
        yield from connection.iterate(f"SELECT '{table}', {key} FROM {table} WHERE {wrong}")


def _mistyped(connection: Connection, table: str) -> str:
    """Return the condition that a column holds another type than it has."""
    conditions = []
    for _, name, kind, not_null, *_ in connection.all(f"PRAGMA table_info({table})"):
        types = [kind.lower()] + ["null"] * (not not_null)
        conditions.append(f"typeof({name}) NOT IN ({', '.join(map(repr, types))})")
    return " OR ".join(conditions)


def acls(connection: Connection, name: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Yield (ino, mode, value) of every inode that has this ACL."""
    return connection.iterate(
        "SELECT i.ino, i.mode, x.value FROM xattr x JOIN inode i ON i.ino = x.ino"
        " WHERE x.name = ? AND i.nlink > 0",
        (name,),
    )


def has_root(connection: Connection) -> bool:
    """Tell whether inode 1 is a directory."""
    return (
        connection.one(f"SELECT 1 FROM inode WHERE ino = 1 AND (mode & {_TYPE}) = {_DIR}")
        is not None
    )


# -- intervals --


def impossible_intervals(connection: Connection, interval: Interval) -> Iterator[tuple[Any, ...]]:
    """Yield (*key, from_seq, to_seq) of past rows that end before they begin, or beyond the log.

    Records that are missing within the log are the log's own problem.
    """
    return connection.iterate(
        f"SELECT {_key(interval)}, r.from_seq, r.to_seq FROM {interval.table}_past r"
        " WHERE r.from_seq >= r.to_seq OR r.from_seq < 1 OR r.to_seq > ?",
        (log_end(connection),),
    )


def unlogged_rows(connection: Connection, interval: Interval) -> Iterator[tuple[Any, ...]]:
    """Yield (*key, from_seq) of current rows made by an operation that is beyond the log."""
    return connection.iterate(
        f"SELECT {_key(interval)}, r.from_seq FROM {interval.table} r"
        " WHERE r.from_seq NOT BETWEEN 1 AND ?",
        (log_end(connection),),
    )


def overlapping_intervals(connection: Connection, interval: Interval) -> Iterator[tuple[Any, ...]]:
    """Yield (*key, from_seq, end of the one before) where two past rows were true at once."""
    key = ", ".join(interval.key)
    return connection.iterate(
        f"SELECT {_key(interval)}, r.from_seq, r.previous FROM (SELECT *, lag(to_seq) OVER"
        f" (PARTITION BY {key} ORDER BY to_seq) AS previous FROM {interval.table}_past) r"
        " WHERE r.previous > r.from_seq"
    )


def outlived_rows(connection: Connection, interval: Interval) -> Iterator[tuple[Any, ...]]:
    """Yield (*key, from_seq, to_seq) of current rows that begin before a past one ends."""
    same = " AND ".join(f"p.{column} = r.{column}" for column in interval.key)
    # Of the past rows of a key the last one ends latest: one index search for each current row.
    return connection.iterate(
        f"SELECT * FROM (SELECT {_key(interval)}, r.from_seq AS begins,"
        f" (SELECT max(p.to_seq) FROM {interval.table}_past p WHERE {same}) AS ends"
        f" FROM {interval.table} r) WHERE ends > begins"
    )


def _key(interval: Interval) -> str:
    return ", ".join(f"r.{column}" for column in interval.key)


def horizon(connection: Connection) -> int:
    """Return the operation up to which retention may have let go of rows."""
    row = connection.one(
        "SELECT coalesce(max(value), 0) FROM store WHERE key IN ('pruned_to', 'expired_to')"
    )
    return row[0] if row else 0


def past_dentries_of_nothing(connection: Connection) -> Iterator[tuple[int, bytes, int, int]]:
    """Yield (parent, name, ino, from_seq) of names that led to nothing when they were given.

    Where retention was at work: that led to nothing all the time.
    """
    last = "CASE WHEN d.from_seq > ?1 THEN d.from_seq ELSE d.to_seq - 1 END"
    return connection.iterate(
        "SELECT d.parent, d.name, d.ino, d.from_seq FROM dentry_past d WHERE NOT EXISTS"
        f" (SELECT 1 FROM inode i WHERE i.ino = d.ino AND i.from_seq <= {last})"
        " AND NOT EXISTS (SELECT 1 FROM inode_past p"
        f"  WHERE p.ino = d.ino AND p.to_seq > d.from_seq AND p.from_seq <= {last})",
        (horizon(connection),),
    )


def inode_gaps(connection: Connection) -> Iterator[tuple[int, bytes, int]]:
    """Yield (parent, name, ino) of names that led to an inode which did not exist all the while.

    Versions of an inode follow each other without a gap for as long as it has a name.
    """
    return connection.iterate(
        "SELECT parent, name, ino FROM (SELECT d.parent, d.name, d.ino, d.ends - d.begins AS span,"
        " (SELECT coalesce(sum(min(p.to_seq, d.ends) - max(p.from_seq, d.begins)), 0)"
        "  FROM inode_past p WHERE p.ino = d.ino AND p.to_seq > d.begins AND p.from_seq < d.ends)"
        " + (SELECT coalesce(sum(max(0, d.ends - max(i.from_seq, d.begins))), 0)"
        "  FROM inode i WHERE i.ino = d.ino) AS covered"
        " FROM (SELECT parent, name, ino, max(from_seq, ?1 + 1) AS begins, to_seq AS ends"
        "  FROM dentry_past WHERE to_seq > ?1 + 1 UNION ALL"
        "  SELECT parent, name, ino, max(from_seq, ?1 + 1), ?2 FROM dentry WHERE from_seq < ?2) d)"
        " WHERE covered > 0 AND covered < span",
        (horizon(connection), log_end(connection) + 1),
    )


# -- what things are called, where the tree is damaged, too --


def a_name(connection: Connection, ino: int) -> tuple[int, bytes] | None:
    """Return (parent, name) of an inode: the oldest it has, else the last that it had."""
    for sql in (
        "SELECT parent, name FROM dentry WHERE ino = ? ORDER BY from_seq LIMIT 1",
        "SELECT parent, name FROM dentry_past WHERE ino = ? ORDER BY to_seq DESC LIMIT 1",
    ):
        row = connection.one(sql, (ino,))
        if row is not None:
            return row[0], row[1]
    return None


def logged_path(connection: Connection, ino: int) -> bytes | None:
    """Return what the log called an inode last. Reads all of the log."""
    row = connection.one(
        "SELECT coalesce(path2, path) FROM oplog WHERE ino = ? AND path <> x'' ORDER BY seq DESC"
        " LIMIT 1",
        (ino,),
    )
    return None if row is None else row[0]
