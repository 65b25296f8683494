"""The metadata as JSON lines, for other programs and other versions.

The first line is the header, the last one says that it is complete; between them, each row of each
table that cannot be told from the packs. docs/FORMAT.md describes it.
"""

from __future__ import annotations

import base64
import binascii
import os
import shutil
from collections.abc import Callable
from contextlib import closing
from pathlib import Path as FilePath
from typing import Any, BinaryIO, NamedTuple

import msgspec

from nexus_engine import __version__, errors
from nexus_engine.backends.local import LocalObjectStore
from nexus_engine.backup.index import Gap, fill_index
from nexus_engine.backup.layout import Progress, explained
from nexus_engine.backup.restoring import check_log, new_store, private
from nexus_engine.check.fsck import Problem, check
from nexus_engine.clock import SystemClock
from nexus_engine.meta import backup_queries
from nexus_engine.meta.backup_queries import INDEX_TABLES, Column
from nexus_engine.meta.connection import DATABASE_NAME, Connection, migrate
from nexus_engine.meta.database import Database
from nexus_engine.meta.reader import Reader
from nexus_engine.placing import move_out
from nexus_engine.store import Store

FORMAT = 1
LINE_MAX = 64 << 20
"""Bytes of one line that ``load`` takes."""
_BATCH = 1000
_TICK = 10_000

# What a column's values look like. Which one, the header says for each.
_INTEGER, _TEXT, _BYTES, _HEX, _ANY = "integer", "text", "bytes", "hex", "any"
_READABLE = ("name", "path", "path2", "target", "value")
"""Columns of bytes that mostly are text; digests and ids are shown in hex."""

_encode = msgspec.json.Encoder().encode

Kinds = dict[str, str]
"""Column → kind, in the order of the table."""


class Header(msgspec.Struct, frozen=True):
    """The first line."""

    nexus_dump: int
    nexus_version: str
    schema_version: int
    store_id: str
    head: int
    head_hash: str
    tables: dict[str, Kinds]


class Loaded(NamedTuple):
    """What a load made."""

    header: Header
    rows: int
    packs: int
    chunks: int
    gaps: list[Gap]
    problems: list[Problem]


def dump(store: FilePath, write: Callable[[bytes], object], progress: Progress) -> int:
    """Write the rows of a store's database, as of one moment, as lines.

    Returns:
        How many rows.
    """
    with closing(Connection(str(store / DATABASE_NAME))) as connection:
        connection.run("BEGIN")
        header = _describe(connection)
        write(_encode(header) + b"\n")
        rows = 0
        for table, kinds in header.tables.items():
            encoders = [(name, _ENCODERS[kind]) for name, kind in kinds.items()]
            for row in backup_queries.iter_table(connection, table):
                line: dict[str, Any] = {"table": table}
                for (name, shown), value in zip(encoders, row, strict=True):
                    line[name] = None if value is None else shown(value)
                write(_encode(line) + b"\n")
                rows += 1
                if rows % _TICK == 0:
                    progress("writing rows", rows, None)
        write(_encode({"end": rows}) + b"\n")
    return rows


def _describe(connection: Connection) -> Header:
    head, head_hash = backup_queries.head_record(connection)
    return Header(
        nexus_dump=FORMAT,
        nexus_version=__version__,
        schema_version=backup_queries.version(connection),
        store_id=str(Reader(connection).store_value("store_id")),
        head=head,
        head_hash=head_hash.hex(),
        tables={
            name: _kinds(backup_queries.columns(connection, name))
            for name in sorted(backup_queries.table_names(connection))
            if name not in INDEX_TABLES
        },
    )


def load(lines: BinaryIO, path: FilePath, *, packs: FilePath | None, progress: Progress) -> Loaded:
    """Make a store of a dump and the packs that belong to it, and check it.

    Args:
        path: A new or empty directory, or one that holds nothing but ``packs``.
        packs: Where to copy packs from; ``None``: they are in the directory, or there are none.

    Raises:
        StoreExists: There is something else in the directory.
        CorruptMetadata: No dump, or not all of it; nothing was made.
        StoreVersion, NoSpace, StoreInaccessible, ObjectStoreFailed.
    """
    reader = _Lines(lines)
    header = _read_header(reader)
    with new_store(path, allow_packs=True) as database:
        if packs is not None:
            _copy_packs(packs, path / "packs", progress)
        with closing(Connection(str(database), create=True, alone=True)) as connection:
            connection.run("BEGIN")
            backup_queries.make_tables(connection, header.schema_version)
            rows = _add_rows(connection, header, reader, progress)
            connection.run("COMMIT")
            migrate(connection)
            connection.run("BEGIN")
            move_out(Database(connection, SystemClock()))
            index = fill_index(connection, LocalObjectStore(path), progress)
            connection.run("COMMIT")
            problems = check_log(connection, header.head, header.head_hash, progress)
    progress("checking the store", 0, None)
    store = Store.open(path)
    try:
        problems += check(store)
    finally:
        store.close()
    return Loaded(header, rows, index.packs, index.chunks, index.gaps, problems)


class _Lines:
    """Lines of a dump, each a JSON object."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._decode = msgspec.json.Decoder(dict[str, Any]).decode
        self.number = 0

    def next(self) -> dict[str, Any] | None:
        """Return the next line's object, ``None`` at the end of the file."""
        text = self._file.readline(LINE_MAX)
        if not text:
            return None
        self.number += 1
        if not text.endswith(b"\n"):
            raise self.wrong("is cut off, or too long")
        try:
            return self._decode(text)
        except (msgspec.DecodeError, UnicodeError) as error:
            raise self.wrong(f"is no JSON object ({error})") from error

    def wrong(self, what: str) -> errors.CorruptMetadata:
        return errors.CorruptMetadata(f"line {self.number} of the dump {what}; nothing was made")


def _read_header(lines: _Lines) -> Header:
    line = lines.next() or {}
    if "nexus_dump" not in line:
        raise errors.CorruptMetadata("this is not a dump: its first line would be a header")
    if line["nexus_dump"] != FORMAT:
        raise errors.StoreVersion(
            f"the dump has format {line['nexus_dump']}, this Nexus knows {FORMAT}: upgrade"
        )
    try:
        return msgspec.convert(line, Header)
    except msgspec.ValidationError as error:
        raise lines.wrong(f"is no header ({error})") from error


def _add_rows(connection: Connection, header: Header, lines: _Lines, progress: Progress) -> int:
    """Insert every row of a dump; return how many."""
    for table, kinds in header.tables.items():
        if kinds != _kinds(backup_queries.columns(connection, table)):
            raise errors.CorruptMetadata(
                f"the dump's table {table} is not that of format {header.schema_version}"
            )
    rows = 0
    table = ""
    batch: list[tuple[Any, ...]] = []
    while (line := lines.next()) is not None and "end" not in line:
        wanted = line.pop("table", None)
        if not isinstance(wanted, str) or wanted not in header.tables:
            raise lines.wrong(f"is of no table that the header names: {wanted!r}")
        if wanted != table or len(batch) >= _BATCH:
            _insert(connection, table, batch, lines)
            table, batch = wanted, []
        batch.append(_row(line, header.tables[wanted], lines))
        rows += 1
        if rows % _TICK == 0:
            progress("reading rows", rows, None)
    _insert(connection, table, batch, lines)
    if line is None or line.get("end") != rows:
        raise errors.CorruptMetadata(f"the dump ends after {rows} rows, which is not all of it")
    if lines.next() is not None:
        raise lines.wrong("comes after the dump's end")
    return rows


def _insert(connection: Connection, table: str, rows: list[tuple[Any, ...]], lines: _Lines) -> None:
    try:
        backup_queries.add_rows(connection, table, rows)
    except errors.CorruptMetadata as error:
        raise lines.wrong(f"or one of the {len(rows)} before it is wrong: {error}") from error


def _row(line: dict[str, Any], kinds: Kinds, lines: _Lines) -> tuple[Any, ...]:
    if line.keys() != kinds.keys():
        raise lines.wrong("has other columns than its table")
    values = []
    for name, kind in kinds.items():
        value = line[name]
        try:
            values.append(None if value is None else _DECODERS[kind](value))
        except (TypeError, ValueError, binascii.Error) as error:
            raise lines.wrong(f"has a {name} that is no {kind} ({error})") from error
    return tuple(values)


def _kinds(columns: list[Column]) -> Kinds:
    return {column.name: _kind(column) for column in columns}


def _kind(column: Column) -> str:
    if column.type == "BLOB":
        return _BYTES if column.name in _READABLE else _HEX
    return {"INTEGER": _INTEGER, "TEXT": _TEXT}.get(column.type, _ANY)


def _show_bytes(value: bytes) -> str | dict[str, str]:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(value).decode()}


def _as_it_is(value: Any) -> Any:
    return value


def _read_integer(value: Any) -> int:
    if type(value) is not int or not -(1 << 63) <= value < 1 << 63:
        raise ValueError(f"{value!r}")
    return value


def _read_text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r}")
    return value


def _read_bytes(value: Any) -> bytes:
    match value:
        case str():
            return value.encode()
        case {"base64": str(text)} if len(value) == 1:
            return base64.b64decode(text, validate=True)
        case _:
            raise TypeError(f"{value!r}")


def _read_any(value: Any) -> int | str:
    return value if isinstance(value, str) else _read_integer(value)


_ENCODERS: dict[str, Callable[[Any], Any]] = {
    _INTEGER: _as_it_is,
    _TEXT: _as_it_is,
    _BYTES: _show_bytes,
    _HEX: bytes.hex,
    _ANY: _as_it_is,
}
_DECODERS: dict[str, Callable[[Any], Any]] = {
    _INTEGER: _read_integer,
    _TEXT: _read_text,
    _BYTES: _read_bytes,
    _HEX: bytes.fromhex,
    _ANY: _read_any,
}


def _copy_packs(source: FilePath, target: FilePath, progress: Progress) -> None:
    with explained(f"copy packs from {source}"):
        if source.samefile(target):
            return
        paths = sorted(source.glob("*.pack"))
        for number, path in enumerate(paths):
            progress("copying packs", number, len(paths))
            with path.open("rb") as file, open(target / path.name, "wb", opener=private) as copy:
                shutil.copyfileobj(file, copy, 1 << 20)
                copy.flush()
                os.fsync(copy.fileno())
