"""Invariants of the past: every row was true in one interval, and the log says when it ended."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from nexus_engine.check.problems import RESTORE_BACKUP, Invariant, Problem, show
from nexus_engine.meta import check_queries
from nexus_engine.meta.check_queries import INTERVALS, Interval
from nexus_engine.oplog.verify import verify_log
from nexus_engine.store import Store


def intervals_are_possible(interval: Interval, store: Store) -> Iterator[Problem]:
    connection = store.database.connection
    for row in check_queries.impossible_intervals(connection, interval):
        message = f"was true from op-{row[-2]} to op-{row[-1]}, which cannot be: {RESTORE_BACKUP}"
        yield Problem(f"{interval.table}-interval", _where(interval, row), message)
    for row in check_queries.unlogged_rows(connection, interval):
        message = f"is true since op-{row[-1]}, which is not in the log: {RESTORE_BACKUP}"
        yield Problem(f"{interval.table}-unlogged", _where(interval, row), message)


def intervals_are_disjoint(interval: Interval, store: Store) -> Iterator[Problem]:
    connection = store.database.connection
    for row in check_queries.overlapping_intervals(connection, interval):
        message = f"had two values after op-{row[-2]}, until op-{row[-1]}: {RESTORE_BACKUP}"
        yield Problem(f"{interval.table}-overlap", _where(interval, row), message)
    for row in check_queries.outlived_rows(connection, interval):
        message = (
            f"has its current value since op-{row[-2]}, but another one until op-{row[-1]}:"
            f" {RESTORE_BACKUP}"
        )
        yield Problem(f"{interval.table}-overlap", _where(interval, row), message)


def past_names_led_to_inodes(store: Store) -> Iterator[Problem]:
    connection = store.database.connection
    for parent, name, ino, seq in check_queries.past_dentries_of_nothing(connection):
        message = f"led to inode {ino} after op-{seq}, which did not exist: {RESTORE_BACKUP}"
        yield Problem("dentry-past-dangling", f"name {show(name)} in directory {parent}", message)


def log_is_what_was_written(store: Store) -> Iterator[Problem]:
    report = verify_log(store.database)
    if report.first_broken_seq is not None:
        message = f"{report.reason}: {RESTORE_BACKUP}, or keep it as evidence"
        yield Problem("log-chain", f"op-{report.first_broken_seq}", message)


def references_are_in_the_log(store: Store) -> Iterator[Problem]:
    connection = store.database.connection
    for table, what, seq in check_queries.broken_references(connection):
        message = f"refers to op-{seq}, which is not in the log"
        todo = f": delete the snapshot {what}" if table == "snapshot" else f": {RESTORE_BACKUP}"
        yield Problem(f"{table}-reference", f"{table} {what}", message + todo)


def _where(interval: Interval, row: tuple[Any, ...]) -> str:
    values = row[: len(interval.shown)]
    shown = (show(value) if isinstance(value, bytes) else value for value in values)
    return " ".join(
        f"{column} {value}" for column, value in zip(interval.shown, shown, strict=True)
    )


INVARIANTS = (
    *(
        Invariant(f"past of {interval.table}: {what}", partial(find, interval))
        for interval in INTERVALS
        for what, find in (
            ("intervals", intervals_are_possible),
            ("one value at a time", intervals_are_disjoint),
        )
    ),
    Invariant("former names", past_names_led_to_inodes),
    Invariant("chain of the log", log_is_what_was_written),
    Invariant("references to the log", references_are_in_the_log),
)
