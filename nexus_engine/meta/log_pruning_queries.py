"""SQL that takes the oldest records out of the log.

What is asked of a record later is noted first: the hash of the last one that goes, which the chain
begins with from then on, and the times that directories had.
"""

from __future__ import annotations

from nexus_engine.meta.connection import Connection, detail
from nexus_engine.records import GENESIS_HASH
from nexus_engine.types import Ino, Seq

LOG_PRUNED, LOG_PRUNED_HASH = "log_pruned", "log_pruned_hash"

UNLOGGED = (
    "({seq} > coalesce((SELECT value FROM store WHERE key = '" + LOG_PRUNED + "'), 0)"
    " AND NOT EXISTS (SELECT 1 FROM oplog o WHERE o.seq = {seq}) OR {seq} < 1)"
)
"""A condition: there never was such an operation."""


def log_pruned(connection: Connection) -> tuple[Seq, bytes]:
    """Return (last operation that left the log, the hash of its record)."""
    rows = dict(
        connection.all(
            "SELECT key, value FROM store WHERE key IN (?, ?)", (LOG_PRUNED, LOG_PRUNED_HASH)
        )
    )
    return Seq(rows.get(LOG_PRUNED, 0)), rows.get(LOG_PRUNED_HASH, GENESIS_HASH)


def anchor_of(connection: Connection) -> tuple[Seq, Seq, str] | None:
    """Return (operation, last pruned one, its hash in hex) of the newest record that prunes."""
    return connection.one(
        f"SELECT seq, {detail('log_pruned')}, {detail('log_pruned_hash')} FROM oplog"
        f" WHERE kind = 'prune' AND {detail('log_pruned')} IS NOT NULL ORDER BY seq DESC LIMIT 1"
    )


def find_hash(connection: Connection, seq: Seq) -> bytes | None:
    row = connection.one("SELECT hash FROM oplog WHERE seq = ?", (seq,))
    return None if row is None else row[0]


def count_records(connection: Connection, upto: Seq) -> int:
    row = connection.one("SELECT count(*) FROM oplog WHERE seq <= ?", (upto,))
    return row[0] if row else 0


def close_packs(connection: Connection, upto: Seq) -> None:
    """Have packs that were begun before an operation get no more sessions."""
    connection.run("UPDATE pack SET closing = 1 WHERE owner IS NOT NULL AND begun_seq < ?", (upto,))


def first_open(connection: Connection) -> Seq | None:
    """Return the operation after which the oldest pack was begun that may hold unfinished work."""
    row = connection.one("SELECT min(begun_seq) FROM pack WHERE owner IS NOT NULL")
    return None if row is None else row[0]


def closing_packs(connection: Connection, owner: str) -> list[str]:
    """Return the packs of an owner that it is to finish."""
    rows = connection.all("SELECT name FROM pack WHERE owner = ? AND closing", (owner,))
    return [row[0] for row in rows]


def note_times(connection: Connection, first: Ino, last: Ino, upto: Seq) -> None:
    """Keep the times at which directories of a range changed, of operations that are to go."""
    connection.run(
        "UPDATE child_change SET time_ns ="
        " (SELECT o.time_ns FROM oplog o WHERE o.seq = child_change.seq)"
        " WHERE parent BETWEEN ? AND ? AND seq <= ? AND time_ns IS NULL",
        (first, last, upto),
    )


def drop_records(connection: Connection, upto: Seq, most: int) -> int:
    """Drop the oldest records, and what belongs to them; in a transaction of the caller.

    Returns:
        How many went; 0 when none is left.
    """
    row = connection.one("SELECT min(seq) FROM oplog")
    first = row[0] if row else None
    if first is None or first > upto:
        return 0
    last = min(upto, first + most - 1)
    connection.run("DELETE FROM touched WHERE seq <= ?", (last,))
    connection.run("DELETE FROM reversal WHERE by_seq <= ?", (last,))
    connection.run("DELETE FROM oplog WHERE seq <= ?", (last,))
    return connection.changes()


def last_actor(connection: Connection) -> int:
    row = connection.one("SELECT coalesce(max(id), 0) FROM actor")
    return row[0] if row else 0


def drop_actors(connection: Connection, first: int, last: int) -> None:
    """Drop those of a range of actors who are in no record."""
    connection.run(
        "DELETE FROM actor WHERE id BETWEEN ? AND ?"
        " AND NOT EXISTS (SELECT 1 FROM oplog o WHERE o.actor = actor.id)",
        (first, last),
    )
