"""SQL of backups and dumps: which packs a copy needs, whole tables as rows, the index anew."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import apsw

from nexus_engine import errors
from nexus_engine.meta import log_pruning_queries, schema
from nexus_engine.meta.connection import Connection
from nexus_engine.types import Digest, Ino, Seq

INDEX_TABLES = ("chunk", "pack", "pack_seen")
"""What can be told from the packs themselves."""


class PackUse(NamedTuple):
    """A pack that chunks of the index lie in."""

    id: int
    name: str
    chunks: int
    end: int
    """Where the last of them ends."""


class Place(NamedTuple):
    """Where the index says that a chunk is."""

    digest: Digest
    offset: int
    stored_length: int
    length: int
    codec: int


class Column(NamedTuple):
    name: str
    type: str
    """As declared: INTEGER, TEXT, BLOB or ANY."""


# -- backup --


def head_record(connection: Connection) -> tuple[Seq, bytes]:
    """Return position and hash of the newest record."""
    row = connection.one("SELECT seq, hash FROM oplog ORDER BY seq DESC LIMIT 1")
    if row is None:
        raise errors.CorruptMetadata("the log is empty; run nexus-ctl fsck")
    return Seq(row[0]), row[1]


def continues(connection: Connection, seq: int, record_hash: str) -> bool:
    """Tell whether a log goes on from a record, given by its hash in hex.

    A record that retention took out of the log cannot be held against it.
    """
    pruned, pruned_hash = log_pruning_queries.log_pruned(connection)
    if seq <= pruned:
        return seq < pruned or record_hash == pruned_hash.hex()
    found = log_pruning_queries.find_hash(connection, Seq(seq))
    return found is not None and found.hex() == record_hash


def used_packs(connection: Connection) -> list[PackUse]:
    """Return every pack that a chunk lies in, in the order in which they were begun.

    A damaged index may have one that is not registered: its name is "".
    """
    # Added up here: SQLite would sort all chunks, in memory.
    uses: dict[int, list[int]] = {}
    for pack, end in connection.iterate("SELECT pack, offset + stored_length FROM chunk"):
        use = uses.setdefault(pack, [0, 0])
        use[0] += 1
        use[1] = max(use[1], end)
    names: dict[int, str] = dict(connection.iterate("SELECT id, name FROM pack"))
    return [PackUse(pack, names.get(pack, ""), *uses[pack]) for pack in sorted(uses)]


def detach(connection: Connection, used: Iterable[PackUse]) -> None:
    """Make a copy of the metadata nobody's: no process appends to its packs.

    A pack without chunks has nothing that the copy refers to. What else is in the packs of a
    process that lives belongs to operations which come after the copy.
    """
    connection.run("BEGIN")
    connection.run("CREATE TEMP TABLE used (id INTEGER PRIMARY KEY)")
    connection.run_many("INSERT INTO temp.used VALUES (?)", [(use.id,) for use in used])
    connection.run("DELETE FROM pack WHERE id NOT IN (SELECT id FROM temp.used)")
    connection.run("UPDATE pack SET owner = NULL WHERE owner IS NOT NULL")
    if "pack_seen" in table_names(connection):
        connection.run("DELETE FROM pack_seen")
    connection.run("DROP TABLE temp.used")
    connection.run("COMMIT")


def is_placed(connection: Connection, pack: int, place: Place) -> bool:
    """Tell whether the index has a chunk exactly there."""
    row = connection.one(
        "SELECT pack, digest, offset, stored_length, length, codec FROM chunk WHERE digest = ?",
        (place.digest,),
    )
    return row == (pack, *place)


def places_in(connection: Connection, pack: int, start: int) -> list[Place]:
    """Return the chunks of a pack from an offset on. Reads the whole index."""
    rows = connection.all(
        "SELECT digest, offset, stored_length, length, codec FROM chunk"
        " WHERE pack = ? AND offset >= ?",
        (pack, start),
    )
    return sorted(map(Place._make, rows), key=lambda place: place.offset)


def inodes_of_chunks(
    connection: Connection, digests: Iterable[Digest]
) -> Iterator[tuple[Ino, Seq | None]]:
    """Yield (inode, last moment) of each whose content, now or then, is in one of the chunks.

    The moment is ``None`` for one that is so now.
    """
    connection.run("CREATE TEMP TABLE lost (digest BLOB PRIMARY KEY)")
    connection.run_many("INSERT OR IGNORE INTO temp.lost VALUES (?)", [(d,) for d in digests])
    connection.run(
        "INSERT OR IGNORE INTO temp.lost SELECT c.digest FROM lazy_chunk c"
        " JOIN temp.lost l ON l.digest = c.content"
    )
    try:
        yield from connection.all(
            "SELECT ino, CASE WHEN max(live) THEN NULL ELSE max(seq) END FROM ("
            " SELECT e.ino AS ino, i.ino IS NOT NULL AS live, coalesce("
            "  (SELECT max(p.to_seq) - 1 FROM inode_past p WHERE p.ino = e.ino), 0) AS seq"
            " FROM extent e JOIN temp.lost l ON l.digest = e.digest"
            " LEFT JOIN inode i ON i.ino = e.ino AND i.nlink > 0"
            " UNION ALL SELECT e.ino, 0, e.to_seq - 1 FROM extent_past e"
            " JOIN temp.lost l ON l.digest = e.digest) GROUP BY ino ORDER BY ino"
        )
    finally:
        connection.run("DROP TABLE temp.lost")


# -- dump and load --


def table_names(connection: Connection) -> list[str]:
    """Return every table, those of the index included."""
    rows = connection.all(
        "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite%'"
    )
    return [row[0] for row in rows]


def version(connection: Connection) -> int:
    """Return the version of the schema."""
    row = connection.one("PRAGMA user_version")
    return row[0] if row else 0


def columns(connection: Connection, table: str) -> list[Column]:
    """Return the columns of a table, in its order."""
    rows = connection.all("SELECT name, type FROM pragma_table_info(?)", (table,))
    return [Column._make(row) for row in rows]


def iter_table(connection: Connection, table: str) -> Iterator[tuple[Any, ...]]:
    """Yield every row of a table, in its own order."""
    return connection.iterate(f"SELECT * FROM {table}")


def make_tables(connection: Connection, version: int) -> None:
    """Make the empty tables of a version of the schema.

    Raises:
        StoreVersion: No version that is known.
    """
    if not 1 <= version <= schema.VERSION:
        raise errors.StoreVersion(
            f"the dump has format {version}, this Nexus knows up to {schema.VERSION}: upgrade"
        )
    for script in schema.MIGRATIONS[:version]:
        connection.run(script)
    connection.run(f"PRAGMA application_id = {schema.APPLICATION_ID}")
    connection.run(f"PRAGMA user_version = {version}")


def add_rows(connection: Connection, table: str, rows: list[tuple[Any, ...]]) -> None:
    """Insert rows, values in the order of the columns.

    Raises:
        CorruptMetadata: The table does not take one: wrong type, missing, or twice.
    """
    if not rows:
        return
    places = ", ".join("?" * len(rows[0]))
    try:
        connection.run_many(f"INSERT INTO {table} VALUES ({places})", rows)
    except (apsw.ConstraintError, apsw.MismatchError, OverflowError, UnicodeError) as error:
        raise errors.CorruptMetadata(f"table {table} does not take a row: {error}") from error


# -- the index from the packs --


def clear_index(connection: Connection) -> dict[str, str]:
    """Forget all packs and chunks.

    Returns:
        Pack → owner, of those that a process had not finished.
    """
    owners = dict(connection.all("SELECT name, owner FROM pack WHERE owner IS NOT NULL"))
    present = table_names(connection)
    for table in INDEX_TABLES:
        if table in present:
            connection.run(f"DELETE FROM {table}")
    return owners


def add_pack(connection: Connection, name: str, owner: str | None) -> int:
    """Register a pack; return its id."""
    row = connection.one("INSERT INTO pack (name, owner) VALUES (?, ?) RETURNING id", (name, owner))
    assert row is not None
    return int(row[0])


def add_places(connection: Connection, pack: int, places: list[Place]) -> None:
    """Enter chunks into the index; of one that is in several packs, the first stays."""
    connection.run_many(
        "INSERT OR IGNORE INTO chunk (pack, digest, offset, stored_length, length, codec)"
        " VALUES (?, ?, ?, ?, ?, ?)",
        [(pack, *place) for place in places],
    )


def count_chunks(connection: Connection) -> int:
    row = connection.one("SELECT count(*) FROM chunk")
    return row[0] if row else 0
