"""SQL about chunks that files were made of without reading them: where each can be had."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import msgspec

from nexus_engine.meta.connection import Connection
from nexus_engine.meta.statements import ADD_CHUNK
from nexus_engine.types import Digest

_CHUNK = "c.digest, c.version, v.attachment, v.key, v.etag, c.offset, c.length, c.content"
_FROM = f"SELECT {_CHUNK} FROM lazy_chunk c JOIN source_version v ON v.number = c.version"
ADD_FETCHED = (
    "INSERT OR IGNORE INTO temp.live SELECT c.content FROM lazy_chunk c"
    " JOIN temp.live l ON l.digest = c.digest WHERE c.content IS NOT NULL"
)
"""Has what was fetched live while what extents call it does."""
_GONE = (
    "DELETE FROM lazy_chunk WHERE digest NOT IN (SELECT digest FROM extent)"
    " AND digest NOT IN (SELECT digest FROM extent_past)",
    "DELETE FROM source_version WHERE number NOT IN (SELECT version FROM lazy_chunk)",
)


class LazyChunk(NamedTuple):
    """A chunk by the name that extents have for it, and where its bytes are."""

    digest: Digest
    """No content has it."""
    version: int
    attachment: int
    key: bytes
    etag: str
    """The version of the object that is meant."""
    offset: int
    """In the object, bytes."""
    length: int
    content: Digest | None
    """The chunk that was fetched; ``None``: none yet."""

    @property
    def end(self) -> int:
        return self.offset + self.length


def find(connection: Connection, digest: Digest) -> LazyChunk | None:
    row = connection.one(f"{_FROM} WHERE c.digest = ?", (digest,))
    return None if row is None else LazyChunk._make(row)


def unfetched_from(
    connection: Connection, version: int, offset: int, limit: int
) -> list[LazyChunk]:
    """Return chunks of a version that are not here, from an offset on, in order."""
    sql = (
        f"{_FROM} WHERE c.version = ? AND c.offset >= ? AND c.content IS NULL"
        " ORDER BY c.offset LIMIT ?"
    )
    return [LazyChunk._make(row) for row in connection.all(sql, (version, offset, limit))]


def unfetched_of(connection: Connection, attachment: int, key: bytes, etag: str) -> list[LazyChunk]:
    """Return the chunks of a version of an object that are not here."""
    sql = (
        f"{_FROM} WHERE v.attachment = ? AND v.key = ? AND v.etag = ? AND c.content IS NULL"
        " ORDER BY c.offset"
    )
    return [LazyChunk._make(row) for row in connection.all(sql, (attachment, key, etag))]


def is_safe(connection: Connection, pack: str) -> bool:
    """Tell whether a pack is not on its way out."""
    return connection.one("SELECT 1 FROM pack WHERE name = ? AND NOT retiring", (pack,)) is not None


def names_of(connection: Connection, contents: Iterable[Digest]) -> set[Digest]:
    """Return what extents call some chunks that were fetched."""
    sql = "SELECT digest FROM lazy_chunk WHERE content = ?"
    return {row[0] for content in contents for row in connection.all(sql, (content,))}


def contents_of(connection: Connection, digests: Iterable[Digest]) -> set[Digest]:
    """Return the chunks that were fetched for some lazy ones."""
    sql = "SELECT content FROM lazy_chunk WHERE digest = ? AND content IS NOT NULL"
    return {row[0] for digest in digests for row in connection.all(sql, (digest,))}


def fetched_in(connection: Connection, packs: Iterable[str]) -> list[Digest]:
    """Return the chunks in some packs that were fetched for lazy ones. Reads all of these."""
    rows = connection.all(
        "SELECT DISTINCT l.content FROM lazy_chunk l JOIN chunk c ON c.digest = l.content"
        " JOIN pack p ON p.id = c.pack WHERE l.content IS NOT NULL"
        "  AND p.name IN (SELECT value FROM json_each(?))",
        (msgspec.json.encode(list(packs)).decode(),),
    )
    return [row[0] for row in rows]


# -- changes, in a transaction of the caller --


def add_version(connection: Connection, attachment: int, key: bytes, etag: str) -> int:
    """Return the number of a version of an object, a new one if need be."""
    row = connection.one(
        "SELECT number FROM source_version WHERE attachment = ? AND key = ? AND etag = ?",
        (attachment, key, etag),
    )
    if row is None:
        row = connection.one(
            "INSERT INTO source_version (attachment, key, etag) VALUES (?, ?, ?) RETURNING number",
            (attachment, key, etag),
        )
    assert row is not None
    return int(row[0])


def add_chunks(
    connection: Connection, version: int, chunks: Iterable[tuple[Digest, int, int]]
) -> None:
    """Add chunks (digest, offset, length) of a version; those that are known stay."""
    connection.change_many(
        "INSERT OR IGNORE INTO lazy_chunk (digest, version, offset, length) VALUES (?, ?, ?, ?)",
        [(digest, version, offset, length) for digest, offset, length in chunks],
    )


def enter_chunk(connection: Connection, content: Digest, location: tuple[Any, ...] | None) -> None:
    """Have the index know a chunk that was fetched; ``None``: it does."""
    if location is not None:
        connection.change(ADD_CHUNK, (content, *location))


def put_content(connection: Connection, digest: Digest, content: Digest | None) -> None:
    """Note which chunk was fetched for a lazy one; ``None``: it is not here any more."""
    connection.change("UPDATE lazy_chunk SET content = ? WHERE digest = ?", (content, digest))


def move_version(
    connection: Connection, attachment: int, old: tuple[bytes, str], new: tuple[bytes, str]
) -> None:
    """Note that a version (key, etag) of an object is now to be had as another one."""
    connection.change(
        "UPDATE OR IGNORE source_version SET key = ?, etag = ?"
        " WHERE attachment = ? AND key = ? AND etag = ?",
        (*new, attachment, *old),
    )


def drop_chunk(connection: Connection, content: Digest) -> None:
    """Take a chunk that is lost out of the index: it is fetched again when it is wanted."""
    connection.change("DELETE FROM chunk WHERE digest = ?", (content,))


def drop_unnamed(connection: Connection) -> None:
    """Forget the chunks that no version of any file names."""
    for sql in _GONE:
        connection.change(sql)
