"""SQL that finds rows which break an invariant. Each yields the offenders, none on a sound store.

Joins and window functions follow the tables' own order, so that a store of any size is checked
without being held in memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import apsw

from nexus_engine.meta.connection import Connection
from nexus_engine.meta.log_pruning_queries import UNLOGGED
from nexus_engine.meta.reader import EXTENT_MAX_BYTES, name_hash
from nexus_engine.meta.schema import VERSION

VIEWS = ("live_path", "file_metadata", "operations", "tags")
STORE_KEYS = ("store_id", "tenant_id", "created_ns", "next_ino")

_DIR, _FILE, _LINK = 0o040000, 0o100000, 0o120000
_TYPE = 0o170000


class Interval(NamedTuple):
    """A table and its past, and what may be true only once at a time."""

    table: str
    key: tuple[str, ...]
    shown: tuple[str, ...]
    """The columns that name a row for a person."""


INTERVALS = (
    Interval("inode", ("ino",), ("ino",)),
    Interval("dentry", ("parent", "hash", "name"), ("parent", "name")),
    Interval("extent", ("ino", "start"), ("ino", "start")),
    Interval("xattr", ("ino", "name"), ("ino", "name")),
)


def integrity(connection: Connection, *, thorough: bool) -> Iterator[str]:
    """Yield what SQLite finds wrong with its own file."""
    pragma = "integrity_check" if thorough else "quick_check"
    for (line,) in connection.iterate(f"PRAGMA {pragma}"):
        if line != "ok":
            yield line


def broken_views(connection: Connection) -> Iterator[tuple[str, str]]:
    """Yield (view, message) of views that cannot be selected from."""
    for view in VIEWS:
        try:
            connection.execute(f"SELECT 1 FROM (SELECT * FROM {view} LIMIT 1)").fetchall()
        except apsw.Error as error:
            yield view, str(error)


def broken_store_rows(connection: Connection) -> Iterator[str]:
    """Yield what is wrong with the facts about the store as a whole."""
    (version,) = connection.one("PRAGMA user_version") or (0,)
    if version != VERSION:
        yield f"the schema has version {version}, not {VERSION}"
    present = {row[0] for row in connection.all("SELECT key FROM store")}
    for key in STORE_KEYS:
        if key not in present:
            yield f"{key} is missing"
    row = connection.one(
        "SELECT max(coalesce((SELECT max(ino) FROM inode), 0),"
        " coalesce((SELECT max(ino) FROM inode_past), 0)),"
        " (SELECT value FROM store WHERE key = 'next_ino')"
    )
    if row is not None and row[1] is not None and row[1] <= row[0]:
        yield f"next_ino is {row[1]}, but inode {row[0]} exists"


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


def misplaced_dentries(connection: Connection) -> Iterator[tuple[int, bytes]]:
    """Yield (parent, name) of names that no lookup finds, or that cannot be names."""
    for table in ("dentry", "dentry_past"):
        for parent, digest, name in connection.iterate(f"SELECT parent, hash, name FROM {table}"):
            bad = not 0 < len(name) <= 255 or b"/" in name or b"\0" in name
            if bad or name in (b".", b"..") or digest != name_hash(name):
                yield parent, name


def wrong_file_links(connection: Connection) -> Iterator[tuple[int, int, int]]:
    """Yield (ino, nlink, names) where the two differ; directories left out."""
    return connection.iterate(
        "SELECT * FROM (SELECT i.ino, i.nlink,"
        " (SELECT count(*) FROM dentry d WHERE d.ino = i.ino) AS names"
        f" FROM inode i WHERE (i.mode & {_TYPE}) <> {_DIR}) WHERE nlink <> names"
    )


def wrong_directory_links(connection: Connection) -> Iterator[tuple[int, int, int, int]]:
    """Yield (ino, nlink, names, subdirectories) of directories where these do not fit."""
    return connection.iterate(
        "SELECT * FROM (SELECT i.ino, i.nlink,"
        " (SELECT count(*) FROM dentry d WHERE d.ino = i.ino) AS names,"
        f" (SELECT count(*) FROM dentry d WHERE d.parent = i.ino AND d.kind = {_DIR}) AS below"
        f" FROM inode i WHERE (i.mode & {_TYPE}) = {_DIR})"
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


def wrong_inodes(connection: Connection) -> Iterator[tuple[str, int, str]]:
    """Yield (table, ino, what) of inode versions that contradict themselves."""
    for table in ("inode", "inode_past"):
        for ino, mode, size, target in connection.iterate(
            f"SELECT ino, mode, size, target FROM {table} WHERE size < 0 OR nlink < 0"
            f" OR (mode & {_TYPE}) NOT IN (4096, 8192, {_DIR}, 24576, {_FILE}, {_LINK}, 49152)"
            f" OR ((mode & {_TYPE}) = {_LINK}) <> (target IS NOT NULL)"
            " OR (target IS NOT NULL AND length(target) <> size)"
        ):
            yield table, ino, f"mode {mode:o}, size {size}, link target {target!r}"


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
    """Yield (*shown, from_seq, to_seq) of past rows that end before they begin, or are unlogged."""
    return connection.iterate(
        f"SELECT {_shown(interval)}, r.from_seq, r.to_seq FROM {interval.table}_past r"
        " WHERE r.from_seq >= r.to_seq"
        f" OR {UNLOGGED.format(seq='r.from_seq')} OR {UNLOGGED.format(seq='r.to_seq')}"
    )


def unlogged_rows(connection: Connection, interval: Interval) -> Iterator[tuple[Any, ...]]:
    """Yield (*shown, from_seq) of current rows made by an operation that is not in the log."""
    return connection.iterate(
        f"SELECT {_shown(interval)}, r.from_seq FROM {interval.table} r"
        f" WHERE {UNLOGGED.format(seq='r.from_seq')}"
    )


def overlapping_intervals(connection: Connection, interval: Interval) -> Iterator[tuple[Any, ...]]:
    """Yield (*shown, from_seq, end of the one before) where two past rows were true at once."""
    key = ", ".join(interval.key)
    return connection.iterate(
        f"SELECT {_shown(interval)}, r.from_seq, r.previous FROM (SELECT *, lag(to_seq) OVER"
        f" (PARTITION BY {key} ORDER BY to_seq) AS previous FROM {interval.table}_past) r"
        " WHERE r.previous > r.from_seq"
    )


def outlived_rows(connection: Connection, interval: Interval) -> Iterator[tuple[Any, ...]]:
    """Yield (*shown, from_seq, to_seq) of current rows that begin before a past one ends."""
    same = " AND ".join(f"p.{column} = r.{column}" for column in interval.key)
    # Of the past rows of a key the last one ends latest: one index search for each current row.
    return connection.iterate(
        f"SELECT * FROM (SELECT {_shown(interval)}, r.from_seq AS begins,"
        f" (SELECT max(p.to_seq) FROM {interval.table}_past p WHERE {same}) AS ends"
        f" FROM {interval.table} r) WHERE ends > begins"
    )


def _shown(interval: Interval) -> str:
    return ", ".join(f"r.{column}" for column in interval.shown)


def past_dentries_of_nothing(connection: Connection) -> Iterator[tuple[int, bytes, int, int]]:
    """Yield (parent, name, ino, from_seq) of names that led to nothing when they were given.

    Where retention was at work: that led to nothing all the time.
    """
    row = connection.one(
        "SELECT coalesce(max(value), 0) FROM store WHERE key IN ('pruned_to', 'expired_to')"
    )
    last = "CASE WHEN d.from_seq > ?1 THEN d.from_seq ELSE d.to_seq - 1 END"
    return connection.iterate(
        "SELECT d.parent, d.name, d.ino, d.from_seq FROM dentry_past d WHERE NOT EXISTS"
        f" (SELECT 1 FROM inode i WHERE i.ino = d.ino AND i.from_seq <= {last})"
        " AND NOT EXISTS (SELECT 1 FROM inode_past p"
        f"  WHERE p.ino = d.ino AND p.to_seq > d.from_seq AND p.from_seq <= {last})",
        row or (0,),
    )


# -- content --


def overlapping_extents(connection: Connection) -> Iterator[tuple[int, int]]:
    """Yield (ino, start) of extents that begin before the one before them ends."""
    return connection.iterate(
        "SELECT ino, start FROM (SELECT ino, start, lag(start + length) OVER"
        " (PARTITION BY ino ORDER BY start) AS previous FROM extent) WHERE previous > start"
    )


def overlapping_past_extents(connection: Connection) -> Iterator[tuple[int, int, int]]:
    """Yield (ino, start, from_seq) of past extents that another one overlapped at the time."""
    return connection.iterate(
        "SELECT q.ino, q.start, q.from_seq FROM extent_past p CROSS JOIN extent_past q"
        " ON q.ino = p.ino AND q.start > p.start AND q.start < p.start + p.length"
        " AND q.from_seq < p.to_seq AND p.from_seq < q.to_seq"
    )


def wrong_extents(connection: Connection) -> Iterator[tuple[str, int, int]]:
    """Yield (table, ino, start) of extents with impossible numbers, or of what is no file."""
    for table in ("extent", "extent_past"):
        for ino, start in connection.iterate(
            f"SELECT e.ino, e.start FROM {table} e WHERE e.start < 0 OR e.length <= 0"
            f" OR e.length > {EXTENT_MAX_BYTES} OR e.chunk_offset < 0 OR length(e.digest) <> 32"
            " OR (NOT EXISTS (SELECT 1 FROM inode i WHERE i.ino = e.ino"
            f"   AND (i.mode & {_TYPE}) = {_FILE})"
            "  AND NOT EXISTS (SELECT 1 FROM inode_past p WHERE p.ino = e.ino"
            f"   AND (p.mode & {_TYPE}) = {_FILE}))"
        ):
            yield table, ino, start


def oversized_extents(connection: Connection) -> Iterator[tuple[int, int, int]]:
    """Yield (ino, end, size) of files with an extent past their end."""
    return connection.iterate(
        "SELECT e.ino, e.start + e.length, i.size FROM extent e JOIN inode i ON i.ino = e.ino"
        " WHERE e.start + e.length > i.size"
    )


def extents_without_bytes(connection: Connection) -> Iterator[tuple[str, int, int, bytes, bool]]:
    """Yield (table, ino, start, digest, is in the index) of extents that no chunk covers."""
    for table in ("extent", "extent_past"):
        for ino, start, digest, indexed in connection.iterate(
            f"SELECT e.ino, e.start, e.digest, c.digest IS NOT NULL FROM {table} e"
            " LEFT JOIN chunk c ON c.digest = e.digest"
            " WHERE c.digest IS NULL OR e.chunk_offset + e.length > c.length"
        ):
            yield table, ino, start, digest, bool(indexed)


def unlogged_contents(connection: Connection) -> Iterator[tuple[int, int]]:
    """Yield (ino, content_seq) of contents that no operation made."""
    return connection.iterate(
        "SELECT v.ino, v.content_seq FROM"
        " (SELECT ino, content_seq FROM inode UNION ALL SELECT ino, content_seq FROM inode_past) v"
        f" WHERE {UNLOGGED.format(seq='v.content_seq')}"
    )


def orphan_xattrs(connection: Connection) -> Iterator[tuple[int, bytes]]:
    """Yield (ino, name) of attributes of what never existed."""
    for table in ("xattr", "xattr_past"):
        yield from connection.iterate(
            f"SELECT x.ino, x.name FROM {table} x WHERE NOT EXISTS"
            " (SELECT 1 FROM inode i WHERE i.ino = x.ino)"
            " AND NOT EXISTS (SELECT 1 FROM inode_past p WHERE p.ino = x.ino)"
        )


# -- chunks and packs --


class ChunkRow(NamedTuple):
    """A row of the chunk index; ``pack`` is ``None`` where the pack is not registered."""

    digest: bytes
    pack: str | None
    offset: int
    stored_length: int
    length: int
    codec: int


def iter_chunks(connection: Connection) -> Iterator[ChunkRow]:
    """Yield every chunk, pack by pack, in the order in which they lie."""
    for row in connection.iterate(
        "SELECT c.digest, p.name, c.offset, c.stored_length, c.length, c.codec FROM chunk c"
        " LEFT JOIN pack p ON p.id = c.pack ORDER BY c.pack, c.offset"
    ):
        yield ChunkRow._make(row)


def iter_packs(connection: Connection) -> Iterator[tuple[str, str | None, int]]:
    """Yield (name, owner, end of the last chunk) of every pack; the end is 0 without chunks."""
    return connection.iterate(
        "SELECT p.name, p.owner, coalesce(c.until, 0) FROM pack p LEFT JOIN"
        " (SELECT pack, max(offset + stored_length) AS until FROM chunk GROUP BY pack) c"
        " ON c.pack = p.id"
    )


def is_registered(connection: Connection, pack: str) -> bool:
    """Tell whether a pack is known."""
    return connection.one("SELECT 1 FROM pack WHERE name = ?", (pack,)) is not None


# -- the log --


def broken_references(connection: Connection) -> Iterator[tuple[str, Any, int]]:
    """Yield (table, what, seq) of rows that refer to an operation which is not in the log."""
    for table, what, column in (
        ("snapshot", "name", "seq"),
        ("snapshot", "name", "created_seq"),
        ("reversal", "target", "target"),
        ("reversal", "target", "by_seq"),
        ("touched", "ino", "seq"),
    ):
        for label, seq in connection.iterate(
            f"SELECT t.{what}, t.{column} FROM {table} t WHERE {UNLOGGED.format(seq=f't.{column}')}"
        ):
            yield table, label, seq
