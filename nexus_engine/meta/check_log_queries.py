"""SQL that finds what breaks an invariant of the log, of retention and of the schema itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import apsw

from nexus_engine.meta import log_pruning_queries, schema
from nexus_engine.meta.connection import Connection

STORE_KEYS = ("store_id", "tenant_id", "created_ns", "next_ino")

REFERENCES = (
    # (table, what names the row, the column that refers to the log)
    ("snapshot", "name", "seq"),
    ("snapshot", "name", "created_seq"),
    ("reversal", "target", "target"),
    ("reversal", "target", "by_seq"),
    ("touched", "ino", "seq"),
    ("child_change", "parent", "seq"),
    ("kept", "seq", "seq"),
    ("expired", "ino", "until_seq"),
    ("workspace", "name", "base_seq"),
    ("workspace", "name", "made_seq"),
    ("applied", "workspace", "seq"),
)


class SchemaFlaw(NamedTuple):
    """A table, index or view that is not as the schema has it."""

    type: str
    name: str
    missing: bool
    sql: str
    """What makes it."""


def integrity(connection: Connection, *, thorough: bool) -> Iterator[str]:
    """Yield what SQLite finds wrong with its own file."""
    pragma = "integrity_check" if thorough else "quick_check"
    for (line,) in connection.iterate(f"PRAGMA {pragma}"):
        if line != "ok":
            yield line


def schema_flaws(connection: Connection) -> Iterator[SchemaFlaw]:
    """Yield what is missing of the schema, or different."""
    wanted = apsw.Connection(":memory:")
    for script in schema.MIGRATIONS:
        wanted.execute(script)
    sql = "SELECT name, type, sql FROM sqlite_schema WHERE sql <> '' AND name NOT LIKE 'sqlite%'"
    present = {name: (type_, text) for name, type_, text in connection.iterate(sql)}
    for name, type_, text in wanted.execute(sql).fetchall():
        if present.get(name) != (type_, text):
            yield SchemaFlaw(str(type_), str(name), name not in present, str(text))
    wanted.close()


def broken_views(connection: Connection) -> Iterator[tuple[str, str]]:
    """Yield (view, message) of views that cannot be selected from."""
    for (view,) in connection.all("SELECT name FROM sqlite_schema WHERE type = 'view'"):
        try:
            connection.execute(f'SELECT 1 FROM (SELECT * FROM "{view}" LIMIT 1)').fetchall()
        except apsw.Error as error:
            yield view, str(error)


def broken_store_rows(connection: Connection) -> Iterator[str]:
    """Yield what is wrong with the facts about the store as a whole."""
    (version,) = connection.one("PRAGMA user_version") or (0,)
    if version != schema.VERSION:
        yield f"the schema has version {version}, not {schema.VERSION}"
    present = dict(connection.all("SELECT key, value FROM store"))
    for key in STORE_KEYS:
        if key not in present:
            yield f"{key} is missing"
    last, next_ino, head = last_ino(connection), present.get("next_ino"), log_end(connection)
    if next_ino is not None and not (isinstance(next_ino, int) and next_ino > last):
        yield f"next_ino is {next_ino}, but inode {last} exists"
    pruned_to = present.get("pruned_to", 0)
    if not (isinstance(pruned_to, int) and 0 <= pruned_to <= head):
        yield f"pruned_to is {pruned_to}, but the log ends with op-{head}"


def last_ino(connection: Connection) -> int:
    """Return the highest inode number that anything bears."""
    tables = ("inode", "inode_past", "extent", "extent_past")
    highest = (connection.one(f"SELECT coalesce(max(ino), 0) FROM {table}") for table in tables)
    return max(int(row[0]) for row in highest if row is not None)


def log_end(connection: Connection) -> int:
    """Return the last operation's number, 0 without any."""
    row = connection.one("SELECT coalesce(max(seq), 0) FROM oplog")
    return int(row[0]) if row else 0


def log_gaps(connection: Connection) -> Iterator[tuple[int, int]]:
    """Yield (first, last) of numbers in the log that no record has."""
    pruned, _ = log_pruning_queries.log_pruned(connection)
    expected = pruned + 1
    for (seq,) in connection.iterate("SELECT seq FROM oplog WHERE seq > ? ORDER BY seq", (pruned,)):
        if seq > expected:
            yield expected, seq - 1
        expected = seq + 1


def missing_actors(connection: Connection) -> Iterator[tuple[int, int, int]]:
    """Yield (actor, first operation, how many) of actors that records name and nobody knows."""
    return connection.iterate(
        "SELECT o.actor, min(o.seq), count(*) FROM oplog o"
        " WHERE NOT EXISTS (SELECT 1 FROM actor a WHERE a.id = o.actor) GROUP BY o.actor"
    )


def broken_details(connection: Connection) -> Iterator[int]:
    """Yield records whose details or state are no JSON."""
    for (seq,) in connection.iterate(
        "SELECT seq FROM oplog WHERE NOT json_valid(details)"
        " OR (undo_state IS NOT NULL AND NOT json_valid(undo_state))"
    ):
        yield seq


def broken_references(connection: Connection) -> Iterator[tuple[str, Any, int]]:
    """Yield (table, what, seq) of rows that refer to an operation which is beyond the log."""
    head = log_end(connection)
    for table, what, column in REFERENCES:
        first = 0 if (table, column) == ("snapshot", "seq") else 1
        for label, seq in connection.iterate(
            f"SELECT {what}, {column} FROM {table} WHERE {column} NOT BETWEEN {first} AND ?",
            (head,),
        ):
            yield table, label, seq


def missing_child_changes(connection: Connection, horizon: int) -> Iterator[tuple[int, bytes, int]]:
    """Yield (parent, name, seq) of entries whose coming or going the directory does not know of."""
    for table, column in (("dentry", "from_seq"), ("dentry_past", "from_seq"),
                          ("dentry_past", "to_seq")):  # fmt: skip
        yield from connection.iterate(
            f"SELECT d.parent, d.name, d.{column} FROM {table} d WHERE d.{column} > ?1"
            f" AND NOT EXISTS (SELECT 1 FROM child_change c"
            f"  WHERE c.parent = d.parent AND c.seq = d.{column})",
            (horizon,),
        )


def unkept_snapshots(connection: Connection) -> Iterator[tuple[str, int]]:
    """Yield (snapshot, seq) of moments that retention was to spare, and does not know of."""
    return connection.iterate(
        "SELECT s.name, s.seq FROM snapshot s WHERE s.seq <"
        " (SELECT coalesce(max(value), 0) FROM store WHERE key = 'pruned_to')"
        " AND NOT EXISTS (SELECT 1 FROM kept k WHERE k.seq = s.seq AND k.pinned = 1)"
    )


def needless_rows(connection: Connection) -> Iterator[tuple[str, Any]]:
    """Yield (table, what) of rows about retention or gc that are about nothing."""
    for table, what, condition in (
        ("expired", "ino", "NOT EXISTS (SELECT 1 FROM inode i WHERE i.ino = expired.ino)"
         " AND NOT EXISTS (SELECT 1 FROM inode_past p WHERE p.ino = expired.ino)"
         " AND expired.ino >= (SELECT value FROM store WHERE key = 'next_ino')"),
        ("pack_seen", "pack", "NOT EXISTS"
         " (SELECT 1 FROM pack p WHERE p.id = pack_seen.pack AND p.retiring)"),
    ):  # fmt: skip
        for (label,) in connection.iterate(f"SELECT {what} FROM {table} WHERE {condition}"):
            yield table, label
