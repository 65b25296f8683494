"""SQL of gc: which chunks are named, which packs go, and who knows of it.

The live set is a temporary table of the connection: one pass over all extents, however many.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from nexus_engine.meta.connection import Connection
from nexus_engine.meta.lazy_queries import ADD_FETCHED
from nexus_engine.types import Digest

_LIVE = (
    "DROP TABLE IF EXISTS temp.live",
    "CREATE TEMP TABLE live (digest BLOB PRIMARY KEY) STRICT, WITHOUT ROWID",
    "INSERT OR IGNORE INTO live SELECT digest FROM extent",
    "INSERT OR IGNORE INTO live SELECT digest FROM extent_past",
    ADD_FETCHED,
)
_USE = (
    "SELECT p.id, p.name, coalesce(sum(c.stored_length), 0), p.owner IS NOT NULL"
    " FROM pack p LEFT JOIN"
    " (chunk c JOIN temp.live l ON l.digest = c.digest) ON c.pack = p.id"
    " GROUP BY p.id"
)
_OUTGOING = (
    "DROP TABLE IF EXISTS temp.outgoing",
    "CREATE TEMP TABLE outgoing (pack INTEGER, live INTEGER, digest BLOB, name TEXT,"
    " offset INTEGER, stored_length INTEGER, length INTEGER, codec INTEGER,"
    " PRIMARY KEY (pack, live, offset)) STRICT, WITHOUT ROWID",
    "INSERT INTO outgoing SELECT c.pack, l.digest IS NOT NULL, c.digest, p.name, c.offset,"
    " c.stored_length, c.length, c.codec FROM chunk c JOIN pack p ON p.id = c.pack AND p.retiring"
    " LEFT JOIN temp.live l ON l.digest = c.digest",
)


class PackUse(NamedTuple):
    """How much of a pack is live."""

    number: int
    name: str
    live_bytes: int
    """Records that some version of some file names."""
    is_open: bool
    """A process may append to it."""


class Outgoing(NamedTuple):
    """A chunk in a pack that goes."""

    digest: Digest
    location: tuple[Any, ...]
    """(pack name, offset, stored length, length, codec)."""


def find_live(connection: Connection) -> None:
    """Collect the digest of every chunk that some version of some file names."""
    for sql in _LIVE:
        connection.run(sql)


def is_live(connection: Connection, digest: Digest) -> bool:
    """Tell whether some version of some file names a chunk; after ``find_live``."""
    return connection.one("SELECT 1 FROM temp.live WHERE digest = ?", (digest,)) is not None


def all_packs(connection: Connection) -> list[tuple[int, str]]:
    """Return (number, name) of every pack, also of those that are being written."""
    return connection.all("SELECT id, name FROM pack ORDER BY id")


def count_sealed(connection: Connection) -> int:
    """Return how many packs nobody appends to any more."""
    (count,) = connection.one("SELECT count(*) FROM pack WHERE owner IS NULL") or (0,)
    return int(count)


def pack_use(connection: Connection) -> list[PackUse]:
    """Return every pack; after ``find_live``, or whatever else filled ``temp.live``."""
    return [PackUse._make(row) for row in connection.all(_USE)]


def retire(connection: Connection, numbers: Iterable[int]) -> None:
    """Let nobody rely on what is in these packs, unless a row names it already."""
    connection.run_many("UPDATE pack SET retiring = 1 WHERE id = ?", [(n,) for n in numbers])


def keep(connection: Connection, number: int) -> None:
    """Change one's mind about a pack."""
    connection.run("UPDATE pack SET retiring = 0 WHERE id = ?", (number,))
    connection.run("DELETE FROM pack_seen WHERE pack = ?", (number,))


def retiring_packs(connection: Connection) -> list[tuple[int, str, int]]:
    """Return (number, name, live bytes) of the packs that go; after ``find_outgoing``.

    Those of which least is live come first: on a full disk they make room for the others.
    """
    return connection.all(
        "SELECT p.id, p.name, coalesce(sum(o.stored_length), 0) AS live_bytes FROM pack p"
        " LEFT JOIN temp.outgoing o ON o.pack = p.id AND o.live"
        " WHERE p.retiring GROUP BY p.id ORDER BY live_bytes"
    )


def retiring_numbers(connection: Connection) -> list[int]:
    """Return the packs that go."""
    return [row[0] for row in connection.all("SELECT id FROM pack WHERE retiring")]


def packs_holding(connection: Connection, digests: Iterable[Digest]) -> list[int]:
    """Return the packs that hold any of these chunks."""
    packs = (connection.one("SELECT pack FROM chunk WHERE digest = ?", (d,)) for d in digests)
    return sorted({row[0] for row in packs if row is not None})


def writers_of_retiring(connection: Connection) -> list[str]:
    """Return the owners of packs that go and may still be appended to."""
    rows = connection.all("SELECT owner FROM pack WHERE retiring AND owner IS NOT NULL")
    return [row[0] for row in rows]


def unseen_packs(connection: Connection, owner: str) -> list[tuple[int, str]]:
    """Return (number, name) of packs that go, and of which an owner has not said that it knows."""
    return connection.all(
        "SELECT id, name FROM pack WHERE retiring AND NOT EXISTS"
        " (SELECT 1 FROM pack_seen s WHERE s.pack = pack.id AND s.owner = ?)",
        (owner,),
    )


def note_seen(connection: Connection, names: Iterable[str], owner: str) -> None:
    """Say that an owner relies on none of these packs but through rows.

    One that is gone by now is passed over: the next pack may have its number.
    """
    connection.run_many(
        "INSERT OR IGNORE INTO pack_seen (pack, owner)"
        " SELECT id, ?2 FROM pack WHERE name = ?1 AND retiring",
        [(name, owner) for name in names],
    )


def find_outgoing(connection: Connection) -> None:
    """Collect what is in the packs that go; after ``find_live``."""
    for sql in _OUTGOING:
        connection.run(sql)


def outgoing(connection: Connection, number: int, *, live: bool) -> Iterator[Outgoing]:
    """Yield what is in a pack that goes, in its order; after ``find_outgoing``."""
    rows = connection.iterate(
        "SELECT digest, name, offset, stored_length, length, codec FROM temp.outgoing"
        " WHERE pack = ? AND live = ? ORDER BY offset",
        (number, int(live)),
    )
    for row in rows:
        yield Outgoing(row[0], row[1:])


def move_chunks(
    connection: Connection, number: int, moved: Iterable[tuple[Digest, str, int]]
) -> None:
    """Enter the new place (pack name, offset) of chunks that are in a pack that goes."""
    connection.run_many(
        "UPDATE chunk SET pack = (SELECT id FROM pack WHERE name = ?2), offset = ?3"
        " WHERE digest = ?1 AND pack = ?4",
        [(digest, name, offset, number) for digest, name, offset in moved],
    )


def drop_chunks(connection: Connection, number: int, digests: Iterable[Digest]) -> None:
    """Take chunks that nothing names out of the index."""
    connection.run_many(
        "DELETE FROM chunk WHERE digest = ? AND pack = ?", [(d, number) for d in digests]
    )


def drop_pack(connection: Connection, number: int) -> None:
    """Forget a pack; nothing in the index may point to it any more, and its object is gone."""
    connection.run("DELETE FROM pack_seen WHERE pack = ?", (number,))
    connection.run("DELETE FROM pack WHERE id = ?", (number,))
