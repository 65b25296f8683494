"""What the end of the log names: for recovery, which cannot be sure that all of it is there."""

from __future__ import annotations

from collections.abc import Iterator

from nexus_engine.meta.connection import Connection
from nexus_engine.types import Digest, Ino, Seq

# Records say which inode; those of an undo or a restore have no room for all, `touched` has.
_EXTENTS_SINCE = " UNION ".join(
    f"SELECT s.seq, e.ino, e.digest FROM {source} s JOIN {table} e"
    " ON e.ino = s.ino AND e.from_seq = s.seq WHERE s.seq > ?1"
    for source in ("oplog", "touched")
    for table in ("extent", "extent_past")
)


def iter_extents_since(connection: Connection, seq: Seq) -> Iterator[tuple[Seq, Ino, Digest]]:
    """Yield (operation, inode, chunk) of what operations after ``seq`` put into files."""
    return connection.iterate(f"{_EXTENTS_SINCE} ORDER BY 1", (seq,))


def past_extents(connection: Connection, ino: Ino, seq: Seq) -> list[tuple[Seq, Seq, Digest]]:
    """Return (from, until, chunk) of what an inode showed once, from an operation or later on."""
    return connection.all(
        "SELECT from_seq, to_seq, digest FROM extent_past WHERE ino = ? AND from_seq >= ?",
        (ino, seq),
    )
