"""Invariants of the past: every row was true in one interval, and the log says when it ended."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from nexus_engine.check.naming import entry_name, inode_name, show
from nexus_engine.check.problems import REPAIR, RESTORE_BACKUP, Invariant, Problem
from nexus_engine.meta import check_log_queries, check_queries
from nexus_engine.meta.check_queries import INTERVALS, Interval
from nexus_engine.oplog.verify import verify_log
from nexus_engine.store import Store


def intervals_are_possible(interval: Interval, store: Store) -> Iterator[Problem]:
    connection = store.database.connection
    for row in check_queries.impossible_intervals(connection, interval):
        message = f"was true from op-{row[-2]} to op-{row[-1]}, which cannot be: {REPAIR}"
        yield Problem(f"{interval.table}-interval", _where(store, interval, row), message)
    for row in check_queries.unlogged_rows(connection, interval):
        message = f"is true since op-{row[-1]}, which is not in the log: {REPAIR}"
        yield Problem(f"{interval.table}-unlogged", _where(store, interval, row), message)


def intervals_are_disjoint(interval: Interval, store: Store) -> Iterator[Problem]:
    connection = store.database.connection
    for row in check_queries.overlapping_intervals(connection, interval):
        message = f"had two values after op-{row[-2]}, until op-{row[-1]}: {REPAIR}"
        yield Problem(f"{interval.table}-overlap", _where(store, interval, row), message)
    for row in check_queries.outlived_rows(connection, interval):
        message = (
            f"has its current value since op-{row[-2]}, but another one until op-{row[-1]}:"
            f" {REPAIR}"
        )
        yield Problem(f"{interval.table}-overlap", _where(store, interval, row), message)


def past_names_led_to_inodes(store: Store) -> Iterator[Problem]:
    connection = store.database.connection
    for parent, name, ino, seq in check_queries.past_dentries_of_nothing(connection):
        message = f"led to inode {ino} after op-{seq}, which did not exist: {REPAIR}"
        yield Problem("dentry-past-dangling", entry_name(connection, parent, name), message)


def inodes_lived_as_long_as_their_names(store: Store) -> Iterator[Problem]:
    connection = store.database.connection
    for parent, name, ino in check_queries.inode_gaps(connection):
        message = f"leads to inode {ino}, of which nothing is known for some of the time: {REPAIR}"
        yield Problem("inode-gap", entry_name(connection, parent, name), message)


def directories_know_of_changes(store: Store) -> Iterator[Problem]:
    """Directories' times of the past are those of such changes."""
    connection = store.database.connection
    horizon = check_queries.horizon(connection)
    for parent, name, seq in check_log_queries.missing_child_changes(connection, horizon):
        message = f"came or went with op-{seq}, which its directory does not know of: {REPAIR}"
        yield Problem("child-change", entry_name(connection, parent, name), message)


def log_is_what_was_written(store: Store) -> Iterator[Problem]:
    report = verify_log(store.database)
    if report.first_broken_seq is not None:
        message = f"{report.reason}: {RESTORE_BACKUP}, or keep it as evidence"
        yield Problem("log-chain", f"op-{report.first_broken_seq}", message)


def log_is_complete(store: Store) -> Iterator[Problem]:
    connection = store.database.connection
    for first, last in check_log_queries.log_gaps(connection):
        where = f"op-{first}" if first == last else f"op-{first} to op-{last}"
        yield Problem("log-gap", where, f"not in the log: {RESTORE_BACKUP}, or keep it as evidence")
    for actor, seq, count in check_log_queries.missing_actors(connection):
        message = f"nobody knows actor {actor}, who did {count} operations from this one on"
        yield Problem("log-actor", f"op-{seq}", f"{message}: {REPAIR}, as far as it can")


def references_are_in_the_log(store: Store) -> Iterator[Problem]:
    connection = store.database.connection
    for table, what, seq in check_log_queries.broken_references(connection):
        message = f"refers to op-{seq}, which is not in the log: {REPAIR}"
        yield Problem(f"{table}-reference", f"{table} {what}", message)


def retention_knows_what_it_keeps(store: Store) -> Iterator[Problem]:
    connection = store.database.connection
    for name, seq in check_log_queries.unkept_snapshots(connection):
        message = f"stands for op-{seq}, which is not among the moments that are kept: {REPAIR}"
        yield Problem("snapshot-kept", f"snapshot {name}", message)
    for table, what in check_log_queries.needless_rows(connection):
        yield Problem(f"{table}-orphan", f"{table} {what}", f"is about nothing: {REPAIR}")


def _where(store: Store, interval: Interval, row: tuple[Any, ...]) -> str:
    connection = store.database.connection
    if interval.table == "dentry":
        return entry_name(connection, row[0], row[2])
    where = inode_name(connection, row[0])
    if interval.table == "extent":
        return f"{where} at byte {row[1]}"
    return where if interval.table == "inode" else f"{where} attribute {show(row[1])}"


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
    Invariant("names and versions of inodes", inodes_lived_as_long_as_their_names),
    Invariant("changes of directories", directories_know_of_changes),
    Invariant("chain of the log", log_is_what_was_written),
    Invariant("records of the log", log_is_complete),
    Invariant("references to the log", references_are_in_the_log),
    Invariant("retention", retention_knows_what_it_keeps),
)
