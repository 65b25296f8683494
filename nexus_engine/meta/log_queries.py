"""SQL over the log: records by position, by time, by path and by actor.

The indexes on ``path``, ``path2`` and ``actor`` find an operation among ten million; none of them
is in the order of the log. So where an index has few hits, as of a file, they are sorted. Otherwise
the newest (or oldest) records are tried one by one first, which is where most such questions are
answered, and only what lies beyond is looked up.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from nexus_engine.meta.connection import Connection
from nexus_engine.records import Record
from nexus_engine.types import Actor, Path, Seq

SCAN_RECORDS = 20_000
"""So many records are tried one by one before an index is asked."""
FEW_HITS = 1000
"""Fewer hits of an index than this are sorted before anything else is tried."""
SORT_MAX = 500_000
"""More hits of an index than this are not sorted: the whole log is read instead."""

_PLACE = re.compile(r":(\w+)")

_RECORD = (
    # Details may be damaged: text that is none would end a listing.
    "o.seq, o.id, o.time_ns, o.kind, o.ino, o.path, o.path2, CAST(o.details AS BLOB),"
    " CAST(o.undo_state AS BLOB), o.undoes, o.hash, a.uid, a.gid, a.pid, a.start_ticks,"
    " a.command, a.session, a.agent, a.principal,"
    " (SELECT max(by_seq) FROM reversal r WHERE r.target = o.seq)"
)
# CROSS JOIN keeps SQLite from starting at the actors.
_FROM = "FROM oplog o CROSS JOIN actor a ON a.id = o.actor"

# An undo of many operations has no path of its own: it belongs to the paths of what it reversed.
_BELOW = (
    "(+o.path = :path OR +o.path > :low AND +o.path < :high"
    " OR +o.path2 = :path OR +o.path2 > :low AND +o.path2 < :high"
    " OR EXISTS (WITH RECURSIVE undone (seq) AS ("
    "  SELECT target FROM reversal WHERE by_seq = o.seq"
    "  UNION SELECT r.target FROM undone CROSS JOIN reversal r ON r.by_seq = undone.seq)"
    "  SELECT 1 FROM undone CROSS JOIN oplog t ON t.seq = undone.seq"
    "  WHERE +t.path = :path OR +t.path > :low AND +t.path < :high"
    "   OR +t.path2 = :path OR +t.path2 > :low AND +t.path2 < :high))"
)
_RANGE = "seq BETWEEN :first AND :last"
# From the beginning: an undo in the range may be of an operation before it.
_PATH_HITS = (
    "SELECT seq FROM oplog INDEXED BY oplog_path WHERE path = :path AND seq <= :last UNION"
    " SELECT seq FROM oplog INDEXED BY oplog_path WHERE path > :low AND path < :high"
    " AND seq <= :last UNION"
    " SELECT seq FROM oplog INDEXED BY oplog_path2 WHERE path2 = :path AND seq <= :last UNION"
    " SELECT seq FROM oplog INDEXED BY oplog_path2 WHERE path2 > :low AND path2 < :high"
    " AND seq <= :last"
)
_PATH_COUNT = (
    "SELECT (SELECT count(*) FROM (SELECT 1 FROM oplog INDEXED BY oplog_path"
    "  WHERE path > :low AND path < :high LIMIT :most))"
    " + (SELECT count(*) FROM (SELECT 1 FROM oplog INDEXED BY oplog_path WHERE path = :path"
    "  LIMIT :most))"
    " + (SELECT count(*) FROM (SELECT 1 FROM oplog INDEXED BY oplog_path2"
    "  WHERE path2 > :low AND path2 < :high LIMIT :most))"
)


class LogQuery(NamedTuple):
    """Which records; ``None`` leaves a field open."""

    path: Path | None = None
    """What happened to this path and everything below it, under either path of a record."""
    agent: str | None = None
    pid: int | None = None
    session: int | None = None
    uid: int | None = None
    kind: str | None = None
    since_seq: Seq | None = None
    """The first one, included."""
    until_seq: Seq | None = None
    """The last one, included."""
    limit: int | None = None
    newest_first: bool = True


class Found(NamedTuple):
    """A record, and the newest operation that reverses it."""

    record: Record
    reversed_by: Seq | None


def find_record(connection: Connection, seq: Seq) -> Found | None:
    """Return the record at a position, or ``None``."""
    row = connection.one(f"SELECT {_RECORD} {_FROM} WHERE o.seq = ?", (seq,))
    return None if row is None else _found(row)


def find_reversal(connection: Connection, seq: Seq) -> Seq | None:
    """Return the newest operation that reverses an operation, or ``None``."""
    row = connection.one("SELECT max(by_seq) FROM reversal WHERE target = ?", (seq,))
    return None if row is None else row[0]


def first_record(connection: Connection) -> tuple[Seq, int] | None:
    """Return position and time of the oldest record, ``None`` in an empty log."""
    row = connection.one("SELECT seq, time_ns FROM oplog ORDER BY seq LIMIT 1")
    return None if row is None else (row[0], row[1])


def find_seq_at(connection: Connection, time_ns: int) -> Seq | None:
    """Return the last operation at or before a time, ``None`` if there is none.

    Bisects: times in the log never decrease. Of what left the log, the kept moments are known.
    """
    row = connection.one("SELECT (SELECT min(seq) FROM oplog), (SELECT max(seq) FROM oplog)")
    low, high = row or (None, None)
    if low is None or high is None:
        return None
    if time_ns < 0:
        return None  # perhaps beyond what SQLite takes
    if _time_of(connection, low) > time_ns:
        row = connection.one("SELECT max(seq) FROM main.kept WHERE time_ns <= ?", (time_ns,))
        return None if row is None else row[0]
    while low < high:
        middle = (low + high + 1) // 2
        if _time_of(connection, middle) <= time_ns:
            low = middle
        else:
            high = middle - 1
    # With records missing in between, ``low`` may be a gap after the one that counts.
    row = connection.one("SELECT max(seq) FROM oplog WHERE seq <= ?", (low,))
    return None if row is None else row[0]


def _time_of(connection: Connection, seq: int) -> int:
    row = connection.one(
        "SELECT time_ns FROM oplog WHERE seq <= ? ORDER BY seq DESC LIMIT 1", (seq,)
    )
    return row[0] if row is not None else 0


def iter_chain(
    connection: Connection, after: Seq, last: int = 2**63 - 1
) -> Iterator[tuple[Record, bool]]:
    """Yield every record after one, oldest first, and whether its actor is there.

    In one read transaction.
    """
    # LEFT: a record whose actor was removed must show, not vanish.
    sql = (
        f"SELECT {_RECORD}, a.id IS NOT NULL FROM oplog o LEFT JOIN actor a ON a.id = o.actor"
        " WHERE o.seq > ? AND o.seq <= ? ORDER BY o.seq"
    )
    for row in connection.iterate(sql, (after, last)):
        yield _found(row).record, bool(row[20])


def iter_records(connection: Connection, query: LogQuery) -> Iterator[Found]:
    """Yield the records that a query asks for, in its order."""
    found = _iter_found(connection, query)
    if query.limit is None:
        yield from found
        return
    left = query.limit
    while left > 0:
        entry = next(found, None)
        if entry is None:
            return
        yield entry
        left -= 1


def _iter_found(connection: Connection, query: LogQuery) -> Iterator[Found]:
    row = connection.one("SELECT (SELECT min(seq) FROM oplog), (SELECT max(seq) FROM oplog)")
    oldest, newest = row or (None, None)
    if oldest is None or newest is None:
        return
    first = max(oldest, query.since_seq or 0)
    last = newest if query.until_seq is None else min(newest, query.until_seq)
    few = _cheapest_index(connection, query, FEW_HITS)
    if few is not None:
        yield from _look_up(connection, query, few, (first, last))
        return
    if query.newest_first:
        near, rest = (max(first, last - SCAN_RECORDS + 1), last), (first, last - SCAN_RECORDS)
    else:
        near, rest = (first, min(last, first + SCAN_RECORDS - 1)), (first + SCAN_RECORDS, last)
    yield from _scan(connection, query, near)
    if rest[0] > rest[1]:
        return
    hits = _cheapest_index(connection, query, SORT_MAX)
    if hits is None:
        yield from _scan(connection, query, rest)
    else:
        yield from _look_up(connection, query, hits, rest)


def _scan(connection: Connection, query: LogQuery, span: tuple[int, int]) -> Iterator[Found]:
    conditions, arguments = _conditions(query)
    if query.path:
        conditions.append(_BELOW)
    arguments |= {"first": span[0], "last": span[1]}
    where = " AND ".join(["o.seq BETWEEN :first AND :last", *conditions])
    sql = f"SELECT {_RECORD} {_FROM} WHERE {where} ORDER BY o.seq {_direction(query)}"
    for row in connection.iterate(*_bind(sql, arguments)):
        yield _found(row)


def _look_up(
    connection: Connection, query: LogQuery, hits: str, span: tuple[int, int]
) -> Iterator[Found]:
    conditions, arguments = _conditions(query)
    if query.path and hits is not _PATH_HITS:
        conditions.append(_BELOW)
    one = f"SELECT {_RECORD} {_FROM} WHERE " + " AND ".join(["o.seq = :seq", *conditions])
    arguments |= {"first": span[0], "last": span[1]}
    if hits is _PATH_HITS:
        hits = (
            f"WITH RECURSIVE hit (seq) AS ({hits} UNION SELECT r.by_seq FROM hit"
            " CROSS JOIN reversal r ON r.target = hit.seq AND r.by_seq <= :last)"
            f" SELECT seq FROM hit WHERE {_RANGE}"
        )
    for (seq,) in connection.iterate(*_bind(f"{hits} ORDER BY seq {_direction(query)}", arguments)):
        row = connection.one(*_bind(one, arguments | {"seq": seq}))
        if row is not None:
            yield _found(row)


def _cheapest_index(connection: Connection, query: LogQuery, most: int) -> str | None:
    """Return the SQL that finds candidates fastest, ``None`` if each finds so many or more."""
    _, arguments = _conditions(query)
    arguments["most"] = most
    choices: list[tuple[int, str]] = []
    if query.path:
        (count,) = connection.one(*_bind(_PATH_COUNT, arguments)) or (0,)
        choices.append((count, _PATH_HITS))
    actors = _actor_conditions(query)
    if actors:
        hits = (
            "SELECT seq FROM oplog INDEXED BY oplog_actor WHERE actor IN"
            f" (SELECT id FROM actor a WHERE {' AND '.join(actors)}) AND {_RANGE}"
        )
        counted = (
            "SELECT count(*) FROM (SELECT 1 FROM oplog INDEXED BY oplog_actor WHERE actor IN"
            f" (SELECT id FROM actor a WHERE {' AND '.join(actors)}) LIMIT :most)"
        )
        (count,) = connection.one(*_bind(counted, arguments)) or (0,)
        choices.append((count, hits))
    if not choices:
        return None
    count, hits = min(choices)
    return hits if count < most else None


def _conditions(query: LogQuery) -> tuple[list[str], dict[str, Any]]:
    conditions = _actor_conditions(query)
    if query.kind is not None:
        conditions.append("o.kind = :kind")
    path = query.path or b""
    arguments: dict[str, Any] = {
        "path": path,
        # Everything below a directory sorts after "directory/" and before "directory0".
        "low": path + b"/",
        "high": path + b"0",
        "kind": query.kind,
        "agent": query.agent,
        "pid": query.pid,
        "session": query.session,
        "uid": query.uid,
    }
    return conditions, arguments


def _actor_conditions(query: LogQuery) -> list[str]:
    fields = ("agent", "pid", "session", "uid")
    return [f"a.{name} = :{name}" for name in fields if getattr(query, name) is not None]


def _bind(sql: str, values: dict[str, Any]) -> tuple[str, tuple[Any, ...]]:
    """Return the statement with its ``:names`` made positions, and the values in their order."""
    names = _PLACE.findall(sql)
    return _PLACE.sub("?", sql), tuple(values[name] for name in names)


def _direction(query: LogQuery) -> str:
    return "DESC" if query.newest_first else "ASC"


def _found(row: tuple[Any, ...]) -> Found:
    texts = (_text(row[7]) or "", _text(row[8]))
    return Found(
        Record._make((*row[:7], *texts, row[9], Actor._make(row[11:19]), row[10])), row[19]
    )


def _text(stored: bytes | None) -> str | None:
    return None if stored is None else stored.decode(errors="backslashreplace")
