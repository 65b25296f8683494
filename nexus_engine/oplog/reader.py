"""Read the log: who did what, and whether it still stands."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from nexus_engine import errors
from nexus_engine.meta import log_pruning_queries, log_queries
from nexus_engine.meta.connection import Connection
from nexus_engine.meta.database import Database
from nexus_engine.meta.log_queries import Found, LogQuery
from nexus_engine.records import Record
from nexus_engine.types import Seq

__all__ = ["LogEntry", "LogQuery", "entries", "follow", "get_entry", "is_undone"]

_FOLLOW_PAGE = 1000
_CHAIN_MAX = 100_000


class LogEntry(NamedTuple):
    """A record, and whether an undo has reversed it."""

    record: Record
    undone: bool


def entries(database: Database, query: LogQuery) -> Iterator[LogEntry]:
    """Yield the records that a query asks for, in its order.

    A cursor stays open meanwhile: take what is needed, then let go of the iterator.
    """
    for found in log_queries.iter_records(database.connection, query):
        yield _entry(database.connection, found)


def get_entry(database: Database, seq: Seq) -> LogEntry:
    """Return one record.

    Raises:
        InvalidMoment: There is no such operation.
        HistoryExpired: Retention took it out of the log.
    """
    found = log_queries.find_record(database.connection, seq)
    pruned, _ = log_pruning_queries.log_pruned(database.connection)
    if found is None and 1 <= seq <= pruned:
        raise errors.HistoryExpired(
            f"op-{seq} is not in the log any more, which begins with op-{pruned + 1}"
        )
    if found is None:
        raise errors.InvalidMoment(
            f"there is no operation op-{seq}; the last one is op-{database.reader.head()}"
        )
    return _entry(database.connection, found)


def follow(database: Database, after_seq: Seq) -> Iterator[LogEntry]:
    """Yield what was committed after an operation, oldest first, up to now.

    Holds no cursor between pages, so a slow reader is in nobody's way.
    """
    while True:
        page = list(
            log_queries.iter_records(
                database.connection,
                LogQuery(since_seq=Seq(after_seq + 1), limit=_FOLLOW_PAGE, newest_first=False),
            )
        )
        for found in page:
            yield _entry(database.connection, found)
            after_seq = found.record.seq
        if len(page) < _FOLLOW_PAGE:
            return


def is_undone(database: Database, seq: Seq) -> bool:
    """Tell whether an operation is reversed, by an undo that is not itself reversed."""
    reversed_by = log_queries.find_reversal(database.connection, seq)
    return _stands(database.connection, reversed_by)


def _entry(connection: Connection, found: Found) -> LogEntry:
    return LogEntry(found.record, _stands(connection, found.reversed_by))


def _stands(connection: Connection, reversal: Seq | None) -> bool:
    """Tell whether the newest reversal of something holds: each further one turns it around."""
    depth = 0
    while reversal is not None and depth < _CHAIN_MAX:
        depth += 1
        reversal = log_queries.find_reversal(connection, reversal)
    return depth % 2 == 1
