"""SQL that mends rows. In a transaction of the caller, who leaves a record of it.

Where the past itself is damaged it is changed in place: what it says is wrong, and no version.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import apsw

from nexus_engine import errors
from nexus_engine.meta.check_queries import Interval
from nexus_engine.meta.connection import Connection, translate
from nexus_engine.meta.reader import name_hash
from nexus_engine.types import Extent, Ino, Inode, Seq

_DIR = 0o040000


# -- schema --


def reindex(connection: Connection) -> None:
    """Make every index anew from its table.

    Raises:
        CorruptMetadata: A table is damaged.
    """
    try:
        connection.execute("REINDEX")
    except apsw.ConstraintError as error:
        raise errors.CorruptMetadata(f"a row is there twice ({error})") from error
    except apsw.Error as error:
        raise translate(error) from error


def make_anew(connection: Connection, type_: str, name: str, sql: str) -> bool:
    """Make a table, index or view as the schema has it; return whether that could be done.

    A table that is there keeps its rows, and stays as it is.
    """
    if type_ == "table":
        if connection.one("SELECT 1 FROM sqlite_schema WHERE name = ?", (name,)):
            return False
    else:
        connection.run(f"DROP {type_} IF EXISTS {name}")
    connection.run(sql)
    return True


# -- the log and what refers to it --


def add_lost_actor(connection: Connection, number: int) -> None:
    """Put somebody unknown in place of an actor that is gone: his records can be read again."""
    connection.run(
        "INSERT INTO actor (id, uid, gid, pid, start_ticks, command, session, agent, principal)"
        " VALUES (?, 65534, 65534, 0, ?, 'lost', 0, '', '')",
        (number, number),
    )


def drop_references(connection: Connection, table: str, column: str, head: int) -> None:
    first = 0 if (table, column) == ("snapshot", "seq") else 1
    condition = f"{column} NOT BETWEEN {first} AND ?"
    if (table, column) == ("snapshot", "created_seq"):
        connection.run(f"UPDATE snapshot SET created_seq = seq WHERE {condition}", (head,))
    else:
        connection.run(f"DELETE FROM {table} WHERE {condition}", (head,))


def keep_snapshot(connection: Connection, seq: int) -> None:
    connection.run(
        "INSERT OR REPLACE INTO kept (seq, pinned, time_ns) VALUES (?1, 1, coalesce("
        " (SELECT time_ns FROM kept WHERE seq = ?1),"
        " (SELECT time_ns FROM oplog WHERE seq <= ?1 ORDER BY seq DESC LIMIT 1), 0))",
        (seq,),
    )


def drop_row(connection: Connection, table: str, column: str, value: Any) -> None:
    connection.run(f"DELETE FROM {table} WHERE {column} = ?", (value,))


def put_fact(connection: Connection, key: str, value: Any) -> None:
    connection.run("INSERT OR REPLACE INTO store (key, value) VALUES (?, ?)", (key, value))


def first_time_ns(connection: Connection) -> int:
    row = connection.one("SELECT time_ns FROM oplog ORDER BY seq LIMIT 1")
    return row[0] if row else 0


def add_child_change(connection: Connection, parent: int, seq: int) -> None:
    connection.run("INSERT OR IGNORE INTO child_change (parent, seq) VALUES (?, ?)", (parent, seq))


TEXTS = (
    ("oplog", "seq", ("kind", "details", "undo_state")),
    ("actor", "id", ("command", "agent", "principal")),
    ("pack", "id", ("name", "owner")),
)


def iter_texts(
    connection: Connection, table: str, key: str, column: str
) -> Iterator[tuple[int, bytes]]:
    """Yield (key, text as it is stored) of every row that has one."""
    return connection.iterate(
        f"SELECT {key}, CAST({column} AS BLOB) FROM {table} WHERE {column} IS NOT NULL"
    )


def put_text(
    connection: Connection, table: str, key: str, column: str, row: int, text: str
) -> None:
    connection.run(f"UPDATE {table} SET {column} = ? WHERE {key} = ?", (text, row))


# -- intervals --


class Line(NamedTuple):
    """When the rows of one key were true."""

    past: list[tuple[int, int]]
    """(from_seq, to_seq) of each past row, by its end."""
    current: int | None
    """The from_seq of the current row."""


def timeline(connection: Connection, interval: Interval, key: tuple[Any, ...]) -> Line:
    where = " AND ".join(f"{column} = ?" for column in interval.key)
    past = connection.all(
        f"SELECT from_seq, to_seq FROM {interval.table}_past WHERE {where} ORDER BY to_seq", key
    )
    row = connection.one(f"SELECT from_seq FROM {interval.table} WHERE {where}", key)
    return Line([(row[0], row[1]) for row in past], None if row is None else row[0])


def move_past(
    connection: Connection,
    interval: Interval,
    key: tuple[Any, ...],
    to_seq: int,
    new: tuple[int, int] | None,
) -> None:
    """Give the past row that ends at ``to_seq`` another interval, or none: then it goes."""
    where = " AND ".join(f"{column} = ?" for column in interval.key) + " AND to_seq = ?"
    if new is None:
        connection.run(f"DELETE FROM {interval.table}_past WHERE {where}", (*key, to_seq))
    else:
        connection.run(
            f"UPDATE {interval.table}_past SET from_seq = ?, to_seq = ? WHERE {where}",
            (*new, *key, to_seq),
        )


def move_current(
    connection: Connection, interval: Interval, key: tuple[Any, ...], from_seq: int
) -> None:
    where = " AND ".join(f"{column} = ?" for column in interval.key)
    connection.run(f"UPDATE {interval.table} SET from_seq = ? WHERE {where}", (from_seq, *key))


def name_periods(connection: Connection, ino: int, end: int) -> list[tuple[int, int]]:
    """Return when an inode had a name: (from, to), to ``end`` where it still has."""
    return sorted(
        (row[0], row[1])
        for row in connection.all(
            "SELECT from_seq, to_seq FROM dentry_past WHERE ino = ?1"
            " UNION ALL SELECT from_seq, ?2 FROM dentry WHERE ino = ?1",
            (ino, end),
        )
    )


# -- inodes --

_COLUMNS = (
    "ino, from_seq, mode, uid, gid, nlink, rdev, size, atime_ns, mtime_ns, ctime_ns, btime_ns,"
    " content_seq, target"
)


def last_version(connection: Connection, ino: int) -> tuple[Inode, Seq] | None:
    """Return the last past version of an inode, and where it ended."""
    row = connection.one(
        f"SELECT {_COLUMNS}, to_seq FROM inode_past WHERE ino = ? ORDER BY to_seq DESC LIMIT 1",
        (ino,),
    )
    return None if row is None else (Inode._make(row[:-1]), row[-1])


class Origin(NamedTuple):
    """What the log says of an inode's making."""

    mode: int
    time_ns: int
    uid: int
    gid: int


def origin(connection: Connection, ino: int) -> Origin | None:
    """Return how an inode was made. Reads all of the log."""
    row = connection.one(
        "SELECT o.details ->> 'mode', o.time_ns, a.uid, a.gid FROM oplog o"
        " JOIN actor a ON a.id = o.actor WHERE o.ino = ?"
        " AND o.kind IN ('create', 'mkdir', 'mknod', 'symlink') AND json_valid(o.details)"
        " ORDER BY o.seq LIMIT 1",
        (ino,),
    )
    return None if row is None or row[0] is None else Origin._make(row)


def logged_size(connection: Connection, ino: int) -> int | None:
    """Return the size that the last record of a file's content says. Reads all of the log."""
    row = connection.one(
        "SELECT details ->> 'size' FROM oplog WHERE ino = ? AND kind IN ('write', 'create')"
        " AND json_valid(details) ORDER BY seq DESC LIMIT 1",
        (ino,),
    )
    return None if row is None else row[0]


def known_kind(connection: Connection, ino: int) -> int | None:
    """Return the type that a name of an inode says it has or had."""
    row = connection.one(
        "SELECT kind FROM dentry WHERE ino = ?1 UNION ALL"
        " SELECT kind FROM dentry_past WHERE ino = ?1 LIMIT 1",
        (ino,),
    )
    return None if row is None else stat.S_IFMT(row[0]) or None


def known_target(connection: Connection, ino: int) -> bytes | None:
    row = connection.one(
        "SELECT target FROM inode WHERE ino = ?1 AND target IS NOT NULL UNION ALL"
        " SELECT target FROM inode_past WHERE ino = ?1 AND target IS NOT NULL LIMIT 1",
        (ino,),
    )
    return None if row is None else row[0]


def has_children(connection: Connection, ino: int) -> bool:
    row = connection.one(
        "SELECT 1 FROM dentry WHERE parent = ?1 UNION ALL"
        " SELECT 1 FROM dentry_past WHERE parent = ?1 LIMIT 1",
        (ino,),
    )
    return row is not None


def content_end(connection: Connection, ino: int) -> int:
    """Return where the current content of a file ends, by its extents."""
    row = connection.one("SELECT max(start + length) FROM extent WHERE ino = ?", (ino,))
    return (row[0] if row else 0) or 0


def add_inode(connection: Connection, inode: Inode, to_seq: Seq | None = None) -> None:
    """Write a row as it is; into the past, where it ended."""
    if to_seq is None:
        marks = ", ".join("?" * len(inode))
        connection.run(f"INSERT OR REPLACE INTO inode ({_COLUMNS}) VALUES ({marks})", inode)
    else:
        marks = ", ".join("?" * (len(inode) + 1))
        sql = f"INSERT OR REPLACE INTO inode_past ({_COLUMNS}, to_seq) VALUES ({marks})"
        connection.run(sql, (*inode, to_seq))


def set_fields(
    connection: Connection, ino: int, to_seq: int | None, fields: dict[str, Any]
) -> None:
    """Change columns of a version of an inode in place; ``None``: of the current one."""
    changes = ", ".join(f"{column} = ?" for column in fields)
    if to_seq is None:
        connection.run(f"UPDATE inode SET {changes} WHERE ino = ?", (*fields.values(), ino))
    else:
        connection.run(
            f"UPDATE inode_past SET {changes} WHERE ino = ? AND to_seq = ?",
            (*fields.values(), ino, to_seq),
        )


def date_contents(connection: Connection, head: int) -> None:
    """Have contents that no operation can have made be those of their version."""
    for table in ("inode", "inode_past"):
        connection.run(
            f"UPDATE {table} SET content_seq = from_seq WHERE content_seq NOT BETWEEN 1 AND ?",
            (head,),
        )


def set_sizes(connection: Connection, table: str, ino: int, content_seq: int, size: int) -> None:
    connection.run(
        f"UPDATE {table} SET size = ? WHERE ino = ? AND content_seq = ?", (size, ino, content_seq)
    )


# -- names --


def set_kind(connection: Connection, parent: int, name: bytes, kind: int) -> None:
    connection.run("UPDATE dentry SET kind = ? WHERE parent = ? AND name = ?", (kind, parent, name))


def refile(
    connection: Connection, table: str, parent: int, wrong_hash: int, name: bytes, new: bytes
) -> bool:
    """File a name where it is looked for; return whether there was room for it."""
    connection.run(
        f"UPDATE OR IGNORE {table} SET hash = ?, name = ?"
        " WHERE parent = ? AND hash = ? AND name = ?",
        (name_hash(new), new, parent, wrong_hash, name),
    )
    return connection.changes() > 0


def remove_name(
    connection: Connection, table: str, parent: int, wrong_hash: int, name: bytes
) -> Ino | None:
    """Take a name that was filed wrongly out of a table; return what it led to."""
    row = connection.one(
        f"DELETE FROM {table} WHERE parent = ? AND hash = ? AND name = ? RETURNING ino",
        (parent, wrong_hash, name),
    )
    return None if row is None else row[0]


# -- content --


class Slice(NamedTuple):
    """An extent, and when it was true."""

    extent: Extent
    from_seq: int
    to_seq: int | None


def slices(connection: Connection, ino: int, *, past: bool) -> list[Slice]:
    """Return the extents of a file as they are in the table."""
    to_seq, table = ("to_seq", "extent_past") if past else ("NULL", "extent")
    return [
        Slice(Extent._make(row[:4]), row[4], row[5])
        for row in connection.all(
            f"SELECT start, length, digest, chunk_offset, from_seq, {to_seq} FROM {table}"
            " WHERE ino = ? ORDER BY from_seq, start",
            (ino,),
        )
    ]


def put_slices(connection: Connection, ino: int, rows: Iterable[Slice], *, past: bool) -> None:
    """Have a file have exactly these extents in the table."""
    table = "extent_past" if past else "extent"
    connection.run(f"DELETE FROM {table} WHERE ino = ?", (ino,))
    marks = ", ".join("?" * (7 if past else 6))
    connection.run_many(
        f"INSERT OR IGNORE INTO {table} VALUES ({marks})",
        [(ino, *r.extent, r.from_seq, *((r.to_seq,) if past else ())) for r in rows],
    )


def give_content(connection: Connection, ino: int, new: int) -> None:
    """Have the extents of what is no file belong to another inode."""
    for table in ("extent", "extent_past"):
        connection.run(f"UPDATE {table} SET ino = ? WHERE ino = ?", (new, ino))


def chunk_length(connection: Connection, digest: bytes) -> int | None:
    row = connection.one("SELECT length FROM chunk WHERE digest = ?", (digest,))
    return None if row is None else row[0]


def drop_orphans(connection: Connection) -> None:
    """Drop attributes and kept hashes of what never was."""
    for table in ("xattr", "xattr_past"):
        connection.run(
            f"DELETE FROM {table} WHERE ino NOT IN (SELECT ino FROM inode)"
            " AND ino NOT IN (SELECT ino FROM inode_past)"
        )


def drop_hash(connection: Connection, ino: int, content_seq: int) -> None:
    connection.run("DELETE FROM content_hash WHERE ino = ? AND content_seq = ?", (ino, content_seq))


def place_chunk(
    connection: Connection, digest: bytes, pack: str, place: tuple[int, int, int, int]
) -> None:
    """Enter where a chunk is (offset, stored length, length, codec), whatever the index says."""
    connection.run("INSERT OR IGNORE INTO pack (name, owner) VALUES (?, NULL)", (pack,))
    connection.run(
        "INSERT OR REPLACE INTO chunk (digest, pack, offset, stored_length, length, codec)"
        " VALUES (?, (SELECT id FROM pack WHERE name = ?), ?, ?, ?, ?)",
        (digest, pack, *place),
    )


def concerns(connection: Connection, seq: int, ino: Ino) -> bool:
    """Tell whether the log says that an operation changed an inode."""
    said = (
        "SELECT 1 FROM oplog WHERE seq = ?1 AND ino = ?2"
        " UNION ALL SELECT 1 FROM touched WHERE seq = ?1 AND ino = ?2"
    )
    return connection.one(said, (seq, ino)) is not None
