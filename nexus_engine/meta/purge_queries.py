"""SQL that takes content out of every version of a file. The past changes: purging is for that."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from nexus_engine.meta.connection import Connection
from nexus_engine.types import Digest, Ino

_TABLES = ("extent", "extent_past")


def digests_of(connection: Connection, inos: Iterable[Ino]) -> list[Digest]:
    """Return every chunk that some version of these files holds."""
    wanted = (msgspec.json.encode(list(inos)).decode(),)
    sql = " UNION ".join(
        f"SELECT digest FROM {table} WHERE ino IN (SELECT value FROM json_each(?1))"
        for table in _TABLES
    )
    return [row[0] for row in connection.all(sql, wanted)]


def inodes_with(connection: Connection, digest: Digest) -> list[Ino]:
    """Return every file of which some version holds a chunk. Reads all extents."""
    sql = " UNION ".join(f"SELECT ino FROM {table} WHERE digest = ?1" for table in _TABLES)
    return [row[0] for row in connection.all(sql, (digest,))]


def empty(connection: Connection, ino: Ino) -> None:
    """Have a file be empty, now and in every version."""
    for table in _TABLES:
        connection.run(f"DELETE FROM {table} WHERE ino = ?", (ino,))
    for table in ("inode", "inode_past"):
        connection.run(f"UPDATE {table} SET size = 0 WHERE ino = ?", (ino,))
    connection.run("DELETE FROM content_hash WHERE ino = ?", (ino,))


def punch(connection: Connection, ino: Ino, digest: Digest) -> None:
    """Have a file be a hole wherever it holds a chunk, now and in every version."""
    for table in _TABLES:
        connection.run(f"DELETE FROM {table} WHERE ino = ? AND digest = ?", (ino, digest))
    connection.run("DELETE FROM content_hash WHERE ino = ?", (ino,))
