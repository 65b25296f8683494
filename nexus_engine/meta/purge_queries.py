"""SQL that takes content out of every version of a file. The past changes: purging is for that."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from nexus_engine.meta.connection import Connection
from nexus_engine.types import Digest, Ino

_TABLES = ("extent", "extent_past")
_NAMED = (
    # Of what was fetched from a source, extents name another digest.
    "SELECT digest FROM extent UNION SELECT digest FROM extent_past"
    " UNION SELECT l.content FROM lazy_chunk l WHERE l.content IS NOT NULL"
    "  AND (EXISTS (SELECT 1 FROM extent e WHERE e.digest = l.digest)"
    "   OR EXISTS (SELECT 1 FROM extent_past e WHERE e.digest = l.digest))"
)
_NAMES_OF = "(SELECT {0} UNION SELECT digest FROM lazy_chunk WHERE content = {0})"


def digests_of(connection: Connection, inos: Iterable[Ino]) -> list[Digest]:
    """Return every chunk that some version of these files holds."""
    wanted = (msgspec.json.encode(list(inos)).decode(),)
    sql = " UNION ".join(
        f"SELECT digest FROM {table} WHERE ino IN (SELECT value FROM json_each(?1))"
        for table in _TABLES
    )
    sql = (
        f"WITH named (digest) AS ({sql}) SELECT digest FROM named UNION SELECT l.content"
        " FROM named JOIN lazy_chunk l ON l.digest = named.digest WHERE l.content IS NOT NULL"
    )
    return [row[0] for row in connection.all(sql, wanted)]


def inodes_with(connection: Connection, digest: Digest) -> list[Ino]:
    """Return every file of which some version holds a chunk. Reads all extents."""
    names = _NAMES_OF.format("?1")
    sql = " UNION ".join(f"SELECT ino FROM {table} WHERE digest IN {names}" for table in _TABLES)
    return [row[0] for row in connection.all(sql, (digest,))]


def add_pending(connection: Connection, digests: Iterable[Digest]) -> None:
    """Note that these chunks are to be destroyed."""
    connection.run_many("INSERT OR IGNORE INTO purging VALUES (?)", [(d,) for d in digests])


def pending(connection: Connection) -> list[Digest]:
    """Return the chunks that are to be destroyed and that no version of any file holds."""
    return [
        row[0]
        for row in connection.all(f"SELECT digest FROM purging EXCEPT SELECT * FROM ({_NAMED})")
    ]


def holders_of_pending(connection: Connection) -> list[Ino]:
    """Return every file of which some version holds a chunk that was to be destroyed."""
    sql = " UNION ".join(
        f"SELECT ino FROM {table} WHERE digest IN (SELECT digest FROM purging"
        " UNION SELECT l.digest FROM purging p JOIN lazy_chunk l ON l.content = p.digest)"
        for table in _TABLES
    )
    return [row[0] for row in connection.all(sql)]


def end_pending(connection: Connection) -> None:
    """Forget the chunks that are destroyed, and those that other files hold."""
    connection.run(
        "DELETE FROM purging WHERE NOT EXISTS"
        " (SELECT 1 FROM chunk c WHERE c.digest = purging.digest)"
        f" OR digest IN ({_NAMED})"
    )


def empty(connection: Connection, ino: Ino) -> None:
    """Have a file be empty, now and in every version."""
    for table in _TABLES:
        connection.run(f"DELETE FROM {table} WHERE ino = ?", (ino,))
    for table in ("inode", "inode_past"):
        connection.run(f"UPDATE {table} SET size = 0 WHERE ino = ?", (ino,))
    connection.run("DELETE FROM content_hash WHERE ino = ?", (ino,))


def drop_attributes(connection: Connection, inos: Iterable[Ino]) -> int:
    """Drop the extended attributes of files, now and in every version, but for their ACLs.

    Returns:
        How many rows went.
    """
    wanted = (msgspec.json.encode(list(inos)).decode(),)
    dropped = 0
    for table in ("xattr", "xattr_past"):
        connection.run(
            f"DELETE FROM {table} WHERE ino IN (SELECT value FROM json_each(?1))"
            " AND CAST(name AS TEXT) NOT LIKE 'system.posix_acl_%'",
            wanted,
        )
        dropped += connection.changes()
    return dropped


def punch(connection: Connection, ino: Ino, digest: Digest) -> None:
    """Have a file be a hole wherever it holds a chunk, now and in every version."""
    for table in _TABLES:
        names = _NAMES_OF.format("?2")
        connection.run(f"DELETE FROM {table} WHERE ino = ?1 AND digest IN {names}", (ino, digest))
    connection.run("DELETE FROM content_hash WHERE ino = ?", (ino,))
