"""Tell damage from a bug: after something went wrong, look at the rows that it was about.

The hot path takes rows for what they are. One that holds what no row of ours can hold makes our own
code trip (``GARBAGE``), and whoever answers requests then asks here what it was.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress

from nexus_engine import errors
from nexus_engine.check.naming import inode_name
from nexus_engine.meta import check_queries
from nexus_engine.meta.connection import GARBAGE, Connection
from nexus_engine.meta.database import Database
from nexus_engine.types import Ino


def find_garbage(
    database: Database, inos: Iterable[Ino] | None = None, *, log: bool = True
) -> errors.CorruptMetadata | None:
    """Return the error for a damaged row; ``None`` if there is none: then it was a bug.

    Args:
        inos: Inodes to look at, with their names, content and past, and what is in them as
            directories. Without, all; takes as long as reading the database.
        log: Look at the whole log as well.
    """
    try:
        found = next(_rows(database.connection, inos, log=log), None)
    except errors.IntegrityError as error:
        return errors.CorruptMetadata(str(error))
    if found is None:
        return None
    table, key = found
    return errors.CorruptMetadata(
        f"{_name(database.connection, table, key)}: a row of table {table} holds garbage;"
        " nexus-ctl fsck --repair mends it"
    )


def _rows(
    connection: Connection, inos: Iterable[Ino] | None, *, log: bool
) -> Iterator[tuple[str, int]]:
    for ino in [None] if inos is None else dict.fromkeys(inos):
        yield from check_queries.garbage(connection, ino)
    if log:
        yield from check_queries.log_garbage(connection)


def _name(connection: Connection, table: str, key: int) -> str:
    if table == "oplog":
        return f"op-{key}"
    if table == "actor":
        return f"actor {key}"
    with suppress(errors.EngineError, *GARBAGE):
        return inode_name(connection, key)
    return f"inode {key!r}"
