"""Rows of a damaged database file, as far as they can be read, in a new one."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import apsw

from nexus_engine import errors
from nexus_engine.meta import schema
from nexus_engine.meta.connection import Connection
from nexus_engine.meta.pages import PageFile, Row


class _Table(NamedTuple):
    """How a table's rows lie in its pages."""

    name: str
    columns: list[str]
    """In the order in which they are stored: of a table without rowid, those of its key first."""
    types: list[str]
    rowid: int | None
    """Which column is the rowid, and is not stored; -1: none is. ``None``: there is no rowid."""


def salvage_rows(damaged: Path, new: Path) -> dict[str, int]:
    """Make a database of this version with every row that can still be read.

    Args:
        damaged: Nobody uses it. A write-ahead log is moved into it, if it can be.

    Returns:
        Table → rows.

    Raises:
        CorruptMetadata: Nothing can be made of it.
    """
    with contextlib.suppress(errors.EngineError):
        Connection(str(damaged)).close()
    new.unlink(missing_ok=True)
    connection = Connection(str(new), create=True, alone=True)
    try:
        for script in schema.MIGRATIONS:
            connection.run(script)
        connection.run(f"PRAGMA application_id = {schema.APPLICATION_ID}")
        connection.run(f"PRAGMA user_version = {schema.VERSION}")
        connection.run("BEGIN")
        counts = _copy_all(PageFile(damaged), connection)
        connection.run("COMMIT")
    finally:
        connection.close()
    if not counts.get("oplog") or not counts.get("inode"):
        new.unlink()
        raise errors.CorruptMetadata("meta.db is damaged beyond salvage: restore a backup")
    return counts


def _copy_all(pages: PageFile, connection: Connection) -> dict[str, int]:
    tables = {table.name: table for table in _tables(connection)}
    counts = dict.fromkeys(tables, 0)
    whole, found = True, set[str]()
    for _, name, root in pages.schema():
        tree = pages.tree(root)
        if name in tables:
            found.add(name)
            whole = whole and tree.whole
            counts[name] += _insert(connection, tables[name], tree.rows)
    if whole and found == tables.keys():
        return counts
    # Where a page that led to others is lost, these are known by what is in them.
    for is_table, rows in pages.orphans():
        table = _owner(tables.values(), rows[0][1], is_table=is_table)
        if table is not None:
            counts[table.name] += _insert(connection, table, rows)
    return counts


def _tables(connection: Connection) -> list[_Table]:
    tables = []
    names = "SELECT name, sql FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite%'"
    for name, sql in connection.all(names):
        info = connection.all(
            "SELECT name, type, pk FROM pragma_table_info(?) ORDER BY cid", (name,)
        )
        if "WITHOUT ROWID" in sql:
            key = sorted((row for row in info if row[2]), key=lambda row: int(row[2]))
            info = key + [row for row in info if not row[2]]
            rowid = None
        else:
            keys = [i for i, row in enumerate(info) if row[2] and row[1] == "INTEGER"]
            rowid = keys[0] if keys else -1
        tables.append(_Table(name, [row[0] for row in info], [row[1] for row in info], rowid))
    return tables


def _insert(connection: Connection, table: _Table, rows: Iterable[tuple[int | None, Row]]) -> int:
    marks = ", ".join("?" * len(table.columns))
    sql = f"INSERT OR IGNORE INTO {table.name} ({', '.join(table.columns)}) VALUES ({marks})"
    count = 0
    for rowid, stored in rows:
        values = list(stored)
        # Columns that came later are not in rows from before: they have their default.
        if len(values) > len(table.columns):
            continue
        values += [0] * (len(table.columns) - len(values))
        if table.rowid is not None and table.rowid >= 0:
            values[table.rowid] = rowid
        try:
            connection.execute(sql, tuple(values))
        except (apsw.ConstraintError, OverflowError):
            continue  # a value of a type that the column does not take
        count += connection.changes()
    return count


def _owner(tables: Iterable[_Table], row: Row, *, is_table: bool) -> _Table | None:
    """Return the only table that a row can be of."""
    fitting = [
        table
        for table in tables
        if (table.rowid is not None) == is_table
        and len(row) == len(table.columns)
        and all(
            value is None or type_ == "ANY" or isinstance(value, _PYTHON[type_])
            for value, type_ in zip(row, table.types, strict=True)
        )
    ]
    return fitting[0] if len(fitting) == 1 else None


_PYTHON = {"INTEGER": int, "TEXT": str, "BLOB": bytes}
