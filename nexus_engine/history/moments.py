"""Moments: what people type for a point in time, and the operation that it stands for.

A moment is the state after the last operation at or before it.
"""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime, timedelta, timezone
from typing import NamedTuple

from nexus_engine import errors
from nexus_engine.meta import (
    history_queries,
    log_pruning_queries,
    log_queries,
    retention_queries,
)
from nexus_engine.meta.connection import Connection
from nexus_engine.meta.database import Database
from nexus_engine.meta.log_queries import LogQuery
from nexus_engine.meta.reader import PATH_DEPTH_MAX
from nexus_engine.times import parse_age
from nexus_engine.types import NO_INO, ROOT_INO, Ino, Path, Seq

FORMS = (
    "a moment is an age (90s, 15m, 2h, 3d, 1w, 1h30m), now, today, yesterday, a time"
    " (2026, 2026-11-22, 2026-11-22T05:40:10, with Z or +02:00 where it is not local time),"
    " an operation (op-1234: after it, before-op-1234) or a snapshot's name"
)

_SECOND = 1_000_000_000
_OPERATION = re.compile(r"(before-)?op-(\d{1,18})", re.ASCII)
_TIME = re.compile(
    r"(\d{4})(?:-(\d{2})(?:-(\d{2})(?:[T ](\d{2})(?::(\d{2})(?::(\d{2})(?:[.,](\d{1,9}))?)?)?"
    r"(Z|[+-]\d{2}(?::?\d{2})?)?)?)?)?",
    re.ASCII | re.IGNORECASE,
)
_LIKE_TIME = re.compile(
    r"\d{4}(-\d{1,2}(-\d{1,2}([T ]\d.*)?)?)?", re.ASCII | re.IGNORECASE | re.DOTALL
)
_WORDS = ("now", "today", "yesterday")

_PERIODS_MAX = 32
"""So many former paths of a directory are looked through for its latest moments."""


def is_reserved(text: str) -> bool:
    """Tell whether a text has a form of its own, so that no snapshot can be called that."""
    return (
        text in _WORDS
        or parse_age(text) is not None
        or _OPERATION.fullmatch(text) is not None
        or _LIKE_TIME.fullmatch(text) is not None
    )


def resolve_moment(database: Database, text: str, now_ns: int) -> Seq:
    """Return the last operation at or before a moment.

    A time in the future is the log's end. A time of less precision is the beginning of that
    year, month, day, hour or minute.

    Args:
        text: As ``FORMS`` says; operations and times win over snapshots.
        now_ns: What ages count from.

    Where the past is thinned out, a time stands for the last moment before it that is kept.

    Raises:
        InvalidMoment: Not a moment, or before the store's beginning.
        HistoryExpired: An operation whose moment is not kept; or nothing is, of so long ago.
    """
    operation = _OPERATION.fullmatch(text)
    if operation is not None:
        number = int(operation[2])
        return _resolve_operation(database, text, number, before=operation[1] is not None)
    if is_reserved(text):
        return _resolve_time(database, text, parse_time(text, now_ns))
    seq = _find_snapshot(database, text)
    if seq is None:
        raise errors.InvalidMoment(f"{_show(text)} is no moment and no snapshot; {FORMS}")
    return seq


def parse_time(text: str, now_ns: int) -> int:
    """Return the nanosecond that an age, a word or a time stands for.

    Raises:
        InvalidMoment: None of these, or a date that does not exist.
    """
    if text == "now":
        return now_ns
    if text in ("today", "yesterday"):
        local = time.localtime(now_ns // _SECOND)
        if text == "today":
            return _local_ns(text, (local.tm_year, local.tm_mon, local.tm_mday, 0, 0, 0), 0)
        clock = (local.tm_hour, local.tm_min, local.tm_sec)
        day = (local.tm_year, local.tm_mon, local.tm_mday - 1)
        return _local_ns(text, (*day, *clock), now_ns % _SECOND)
    age_s = parse_age(text)
    if age_s is not None:
        return now_ns - age_s * _SECOND
    match = _TIME.fullmatch(text)
    if match is None:
        raise errors.InvalidMoment(f"{_show(text)} is not a moment; {FORMS}")
    return _time_ns(text, match)


def latest_moments(database: Database, directory: Ino | Path, limit: int, now_ns: int) -> list[str]:
    """Return the latest moments at which something in or below a directory changed.

    Args:
        directory: By inode its former paths count as well; by path only what happened there.

    Returns:
        Newest first; each resolves to a state with that change and without the next. Whole
        seconds of local time, finer where a second had several changes, and ``op-1234`` where
        only that tells them apart.
    """
    changes = _latest_changes(database.connection, directory, limit)
    whole_from = retention_queries.pruned_to(database.connection)
    changes = [change for change in changes if change.seq >= whole_from]
    moments = []
    # A time that has not passed yet may still come to mean more than it does now.
    next_ns = now_ns
    for change in changes:
        moments.append(_moment_between(change.time_ns, next_ns) or f"op-{change.seq}")
        next_ns = change.time_ns
    return moments


class _ChangeTime(NamedTuple):
    seq: Seq
    time_ns: int


class _PathPeriod(NamedTuple):
    """A directory had this path in ``[first, last]``."""

    path: Path
    first: Seq
    last: Seq


def _find_snapshot(database: Database, text: str) -> Seq | None:
    try:
        text.encode()
    except UnicodeEncodeError:
        return None  # snapshots have UTF-8 names, so this is none
    return database.reader.find_snapshot(text)


def require_whole(database: Database, seq: Seq, text: str) -> Seq:
    """Return a moment of which every row is still there.

    Raises:
        HistoryExpired: Retention has let go of some.
    """
    nearest = retention_queries.nearest_kept(database.connection, seq)
    if nearest == seq:
        return seq
    hint = "nothing is kept of so long ago" if nearest is None else f"op-{nearest} is"
    raise errors.HistoryExpired(f"{_show(text)} is not kept any more; {hint}")


def _resolve_operation(database: Database, text: str, number: int, *, before: bool) -> Seq:
    head = database.reader.head()
    if not 1 <= number <= head:
        raise errors.InvalidMoment(f"there is no op-{number}; the last one is op-{head}")
    wanted = number - 1 if before else number
    if wanted < 1:
        raise _too_early(database, f"before-op-{number}" if before else f"op-{number}")
    return require_whole(database, Seq(wanted), text)


def _resolve_time(database: Database, text: str, time_ns: int) -> Seq:
    seq = log_queries.find_seq_at(database.connection, time_ns)
    pruned, _ = log_pruning_queries.log_pruned(database.connection)
    if seq is None and not pruned:
        raise _too_early(database, text)
    kept = None if seq is None else retention_queries.nearest_kept(database.connection, seq)
    if kept is None:
        raise errors.HistoryExpired(f"{_show(text)}: nothing is kept of so long ago")
    return kept


def _too_early(database: Database, text: str) -> errors.InvalidMoment:
    first = log_queries.first_record(database.connection)
    if first is None:
        return errors.InvalidMoment("the store has no operations yet")
    # Rounded up, so that the time in the message is itself a moment that resolves.
    begin = format_time(-(-first[1] // _SECOND) * _SECOND)
    return errors.InvalidMoment(
        f"{_show(text)} is before this store begins; the first moment is op-{first[0]}, {begin}"
    )


def _time_ns(text: str, match: re.Match[str]) -> int:
    year, month, day, hour, minute, second, fraction, zone = match.groups()
    fields = (
        int(year), int(month or 1), int(day or 1), int(hour or 0), int(minute or 0),
        int(second or 0),
    )  # fmt: skip
    nanoseconds = int((fraction or "").ljust(9, "0"))
    try:
        moment = datetime(*fields, tzinfo=UTC)  # refuses days that do not exist
        if zone is None:
            return _local_ns(text, fields, nanoseconds)
        seconds = moment.replace(tzinfo=_zone(zone)) - datetime(1970, 1, 1, tzinfo=UTC)
    except (ValueError, OverflowError) as error:
        raise errors.InvalidMoment(f"{_show(text)} is not a time: {error}") from error
    return (seconds.days * 86_400 + seconds.seconds) * _SECOND + nanoseconds


def _zone(text: str) -> timezone:
    if text.upper() == "Z":
        return UTC
    digits = text[1:].replace(":", "").ljust(4, "0")
    offset = timedelta(hours=int(digits[:2]), minutes=int(digits[2:]))
    return timezone(-offset if text[0] == "-" else offset)


def _local_ns(text: str, fields: tuple[int, int, int, int, int, int], nanoseconds: int) -> int:
    try:
        # -1: the system decides about summer time.
        return int(time.mktime((*fields, 0, 0, -1))) * _SECOND + nanoseconds
    except (ValueError, OverflowError) as error:
        raise errors.InvalidMoment(f"{_show(text)} is not a time: {error}") from error


def _latest_changes(connection: Connection, directory: Ino | Path, limit: int) -> list[_ChangeTime]:
    found: list[_ChangeTime] = []
    for period in _periods(connection, directory):
        query = LogQuery(path=period.path, since_seq=period.first, until_seq=period.last)
        for entry in log_queries.iter_records(connection, query):
            record = entry.record
            # The operation that ended one period began another.
            known = found and record.seq >= found[-1].seq
            if not known and record.kind not in ("snapshot", "drop-snapshot"):
                found.append(_ChangeTime(record.seq, record.time_ns))
            if len(found) >= limit:
                return found
    return found


def _periods(connection: Connection, directory: Ino | Path) -> list[_PathPeriod]:
    """Return the directory's paths, the latest first, at most ``_PERIODS_MAX``."""
    row = log_queries.first_record(connection)
    head = connection.one("SELECT max(seq) FROM oplog")
    if row is None or head is None:
        return []
    whole = (row[0], Seq(head[0]))
    if isinstance(directory, bytes):
        return [_PathPeriod(directory, *whole)]
    done: list[_PathPeriod] = []
    # (ino, path below it, first, last): climbed to the root, splitting where a name changed.
    climbing = [(directory, b"", *whole, 0)]
    while climbing and len(done) < _PERIODS_MAX:
        ino, below, first, last, depth = climbing.pop(0)
        if ino == ROOT_INO:
            done.append(_PathPeriod(Path(below), first, last))
            continue
        if ino == NO_INO or depth > PATH_DEPTH_MAX:
            continue
        # An operation that takes a name away still happened under that name.
        for period in reversed(history_queries.list_periods(connection, ino, _PERIODS_MAX)):
            begin = max(first, period.from_seq)
            end = last if period.to_seq is None else min(last, period.to_seq)
            if begin <= end:
                path = period.name + b"/" + below if below else period.name
                climbing.insert(0, (period.parent, path, Seq(begin), Seq(end), depth + 1))
    return sorted(done, key=lambda period: period.last, reverse=True)


def _moment_between(change_ns: int, next_ns: int) -> str | None:
    """Return the shortest time in ``[change_ns, next_ns)``, ``None`` if there is none to write."""
    for digits in (0, 3, 6, 9):
        step = 10 ** (9 - digits)
        candidate = -(-change_ns // step) * step
        if candidate < next_ns:
            text = format_time(candidate, digits)
            # In the hour that summer time repeats, a local time may mean the other one.
            if parse_time(text, next_ns) == candidate:
                return text
    return None


def format_time(time_ns: int, digits: int = 0) -> str:
    """Return local time in ISO 8601.

    Args:
        digits: Of the fraction of a second, 0 to 9.
    """
    local = time.localtime(time_ns // _SECOND)
    text = time.strftime("%Y-%m-%dT%H:%M:%S", local)
    return f"{text}.{time_ns % _SECOND:09d}"[: len(text) + 1 + digits] if digits else text


def _show(text: str) -> str:
    return text.encode(errors="backslashreplace").decode()
