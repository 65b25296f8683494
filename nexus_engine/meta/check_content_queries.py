"""SQL that finds rows of content, chunks and packs which break an invariant."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from nexus_engine.meta.connection import Connection
from nexus_engine.meta.reader import EXTENT_MAX_BYTES
from nexus_engine.types import Digest, Extent, Ino, Seq

_FILE = 0o100000
_TYPE = 0o170000


# -- extents --


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
        "SELECT e.ino, max(e.start + e.length), i.size FROM extent e JOIN inode i ON i.ino = e.ino"
        " WHERE e.start + e.length > i.size GROUP BY e.ino"
    )


def short_chunks(connection: Connection) -> Iterator[tuple[str, int, int, Digest]]:
    """Yield (table, ino, start, digest) of extents that reach beyond the end of their chunk."""
    for table in ("extent", "extent_past"):
        for ino, start, digest in connection.iterate(
            f"SELECT e.ino, e.start, e.digest FROM {table} e JOIN chunk c ON c.digest = e.digest"
            " WHERE e.chunk_offset + e.length > c.length"
        ):
            yield table, ino, start, digest


def unindexed_digests(connection: Connection) -> Iterator[Digest]:
    """Yield what extents refer to and the index does not have, some more than once.

    What is to be had from a source is not lost.
    """
    for table in ("extent", "extent_past"):
        for (digest,) in connection.iterate(
            f"SELECT e.digest FROM {table} e"
            " WHERE NOT EXISTS (SELECT 1 FROM chunk c WHERE c.digest = e.digest)"
            " AND NOT EXISTS (SELECT 1 FROM lazy_chunk l JOIN source_version v"
            "  ON v.number = l.version JOIN attachment a ON a.number = v.attachment"
            "  WHERE l.digest = e.digest)"
        ):
            yield digest


class LostRange(NamedTuple):
    """Bytes of a version of a file that are in a lost chunk."""

    ino: Ino
    to_seq: Seq | None
    """The content was the file's up to here; ``None``: it is."""
    start: int
    length: int


@contextmanager
def lost_ranges(connection: Connection, digests: Iterable[Digest]) -> Iterator[Iterator[LostRange]]:
    """Give every range of a file, now and then, whose bytes are in one of these chunks."""
    connection.run("CREATE TEMP TABLE gone (digest BLOB PRIMARY KEY) WITHOUT ROWID")
    connection.run_many("INSERT OR IGNORE INTO temp.gone VALUES (?)", [(d,) for d in digests])
    connection.run(
        "INSERT OR IGNORE INTO temp.gone SELECT l.digest FROM lazy_chunk l"
        " JOIN temp.gone g ON g.digest = l.content"
    )
    try:
        rows = connection.iterate(
            "SELECT * FROM (SELECT e.ino AS ino, CASE WHEN i.nlink > 0 THEN NULL ELSE coalesce("
            "  (SELECT max(p.to_seq) FROM inode_past p WHERE p.ino = e.ino), e.from_seq + 1) END,"
            " e.start, e.length FROM extent e JOIN temp.gone g ON g.digest = e.digest"
            " LEFT JOIN inode i ON i.ino = e.ino"
            " UNION ALL SELECT e.ino, e.to_seq, e.start, e.length FROM extent_past e"
            " JOIN temp.gone g ON g.digest = e.digest) ORDER BY 1, 2, 3"
        )
        yield map(LostRange._make, rows)
    finally:
        connection.run("DROP TABLE temp.gone")


def contents_of(connection: Connection, ino: Ino, limit: int) -> list[Seq]:
    """Return the operations after which a file had another content than now, newest first."""
    rows = connection.all(
        "SELECT max(to_seq) - 1 FROM inode_past WHERE ino = ?1 AND size > 0 AND content_seq <>"
        " (SELECT content_seq FROM inode WHERE ino = ?1) GROUP BY content_seq"
        " ORDER BY 1 DESC LIMIT ?2",
        (ino, limit),
    )
    return [Seq(row[0]) for row in rows]


def wrong_sizes(connection: Connection) -> Iterator[tuple[str, Ino, Seq, int, int]]:
    """Yield (table, ino, content_seq, size, what the log says) where a record says otherwise.

    What a purge or a recovery took back from a file is not the log's to tell.
    """
    for table in ("inode", "inode_past"):
        for row in connection.iterate(
            "SELECT v.ino, v.content_seq, v.size, CASE WHEN json_valid(o.details)"
            f" THEN o.details ->> 'size' END AS logged FROM {table} v"
            " JOIN oplog o ON o.seq = v.content_seq AND o.kind IN ('write', 'create')"
            " AND o.ino = v.ino"
            " WHERE logged <> v.size AND v.ino NOT IN (SELECT t.ino FROM oplog p"
            "  JOIN touched t ON t.seq = p.seq WHERE p.kind IN ('purge', 'recover'))"
        ):
            yield table, *row


class Written(NamedTuple):
    """What one operation laid down in a file and is still there, and what the log says of it."""

    ino: Ino
    seq: Seq
    extents: list[Extent]
    expected: int
    """How many extents the log counts."""
    sha256: str
    place: str | None
    """Of a single extent: start and length, as JSON; records of old have none."""


def iter_written(connection: Connection) -> Iterator[Written]:
    """Yield what operations that say so laid down or made the content of a file, file by file.

    Remainders of what an operation cut in two bear its number, too: then there are more.
    """
    rows = connection.iterate(
        "SELECT ino, from_seq, start, length, digest, chunk_offset FROM extent UNION ALL"
        " SELECT ino, from_seq, start, length, digest, chunk_offset FROM extent_past UNION ALL"
        " SELECT ino, content_seq, NULL, NULL, NULL, NULL FROM inode UNION ALL"
        " SELECT ino, content_seq, NULL, NULL, NULL, NULL FROM inode_past ORDER BY 1"
    )
    current, groups = Ino(0), dict[Seq, list[Extent]]()
    for ino, seq, start, *extent in rows:
        if ino != current:
            yield from _logged(connection, current, groups)
            current, groups = ino, {}
        group = groups.setdefault(seq, [])
        if start is not None:
            group.append(Extent(start, *extent))
    yield from _logged(connection, current, groups)


def _logged(connection: Connection, ino: Ino, groups: dict[Seq, list[Extent]]) -> Iterator[Written]:
    for seq, extents in groups.items():
        row = connection.one(
            "SELECT details ->> 'extents', details ->> 'sha256', details ->> 'range' FROM oplog"
            " WHERE seq = ? AND kind IN ('write', 'create') AND ino = ? AND json_valid(details)"
            " AND typeof(details ->> 'extents') = 'integer'"
            " AND typeof(details ->> 'sha256') = 'text'",
            (seq, ino),
        )
        if row is not None:
            yield Written(ino, seq, sorted(extents), *row)


def taken_back(connection: Connection) -> set[Ino]:
    """Return files of which a purge or a recovery took content that the log speaks of."""
    rows = connection.all(
        "SELECT DISTINCT t.ino FROM oplog p JOIN touched t ON t.seq = p.seq"
        " WHERE p.kind IN ('purge', 'recover')"
    )
    return {row[0] for row in rows}


def unlogged_contents(connection: Connection) -> Iterator[tuple[int, int]]:
    """Yield (ino, content_seq) of contents that no operation can have made."""
    return connection.iterate(
        "SELECT v.ino, v.content_seq FROM"
        " (SELECT ino, content_seq FROM inode UNION ALL SELECT ino, content_seq FROM inode_past) v"
        " WHERE v.content_seq NOT BETWEEN 1 AND (SELECT max(seq) FROM oplog)"
    )


def orphan_xattrs(connection: Connection) -> Iterator[tuple[int, bytes]]:
    """Yield (ino, name) of attributes of what never existed."""
    for table in ("xattr", "xattr_past"):
        yield from connection.iterate(
            f"SELECT x.ino, x.name FROM {table} x WHERE NOT EXISTS"
            " (SELECT 1 FROM inode i WHERE i.ino = x.ino)"
            " AND NOT EXISTS (SELECT 1 FROM inode_past p WHERE p.ino = x.ino)"
        )


def orphan_hashes(connection: Connection) -> Iterator[tuple[int, int]]:
    """Yield (ino, content_seq) of kept hashes of contents that are nobody's."""
    return connection.iterate(
        "SELECT h.ino, h.content_seq FROM content_hash h WHERE length(h.sha256) <> 32 OR NOT EXISTS"
        " (SELECT 1 FROM inode i WHERE i.ino = h.ino AND i.content_seq = h.content_seq)"
        " AND NOT EXISTS (SELECT 1 FROM inode_past p"
        "  WHERE p.ino = h.ino AND p.content_seq = h.content_seq)"
    )


# -- chunks and packs --


class ChunkRow(NamedTuple):
    """A row of the chunk index; ``pack`` is ``None`` where the pack is not registered."""

    digest: Digest
    pack: str | None
    offset: int
    stored_length: int
    length: int
    codec: int


_CHUNK = "c.digest, p.name, c.offset, c.stored_length, c.length, c.codec"


def iter_chunks(connection: Connection) -> Iterator[ChunkRow]:
    """Yield every chunk, pack by pack, in the order in which they lie."""
    for row in connection.iterate(
        f"SELECT {_CHUNK} FROM chunk c LEFT JOIN pack p ON p.id = c.pack ORDER BY c.pack, c.offset"
    ):
        yield ChunkRow._make(row)


def is_at(connection: Connection, chunk: ChunkRow) -> bool:
    """Tell whether the index still has a chunk at this place: gc may have moved it."""
    row = connection.one(
        f"SELECT {_CHUNK} FROM chunk c LEFT JOIN pack p ON p.id = c.pack WHERE c.digest = ?",
        (chunk.digest,),
    )
    return row == tuple(chunk)


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


# -- scrubbing --


def stored_bytes(connection: Connection) -> int:
    """Return the size of all chunks."""
    row = connection.one("SELECT coalesce(sum(stored_length), 0) FROM chunk")
    return row[0] if row else 0


def packs_from(connection: Connection, first: int, limit: int) -> list[int]:
    """Return the numbers of packs, in the order in which they were begun."""
    rows = connection.all("SELECT id FROM pack WHERE id >= ? ORDER BY id LIMIT ?", (first, limit))
    return [row[0] for row in rows]


def chunks_in(connection: Connection, first: int, last: int) -> list[tuple[int, ChunkRow]]:
    """Return (pack, chunk) of what is in a range of packs, as it lies there. Reads the index."""
    rows = connection.all(
        f"SELECT p.id, {_CHUNK} FROM chunk c JOIN pack p ON p.id = c.pack"
        " WHERE c.pack BETWEEN ? AND ? ORDER BY c.pack, c.offset",
        (first, last),
    )
    return [(row[0], ChunkRow._make(row[1:])) for row in rows]
