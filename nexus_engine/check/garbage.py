"""Tell damage from a bug: after something went wrong, look at the rows that it was about.

The hot path takes rows for what they are. One that holds what no row of ours can hold makes our own
code trip (``GARBAGE``), and whoever answers requests then asks here what it was.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress

from nexus_engine import errors
from nexus_engine.check.naming import inode_name
from nexus_engine.meta import check_queries
from nexus_engine.meta.connection import GARBAGE
from nexus_engine.meta.database import Database
from nexus_engine.types import Ino


def find_garbage(
    database: Database, inos: Iterable[Ino] | None = None
) -> errors.CorruptMetadata | None:
    """Return the error for a damaged row; ``None`` if there is none: then it was a bug.

    Args:
        inos: Inodes to look at, with their names, content and past, and what is in them as
            directories. Without, all; takes as long as reading the database.
    """
    connection = database.connection
    for ino in [None] if inos is None else dict.fromkeys(inos):
        try:
            found = next(check_queries.garbage(connection, ino), None)
        except errors.IntegrityError as error:
            return errors.CorruptMetadata(str(error))
        if found is not None:
            table, concerned = found
            name = f"inode {concerned!r}"
            with suppress(errors.EngineError, *GARBAGE):
                name = inode_name(connection, concerned)
            return errors.CorruptMetadata(
                f"{name}: a row of table {table} holds garbage; nexus-ctl fsck --repair mends it"
            )
    return None
