"""Invariants of content: extents of files, the chunks they refer to."""

from __future__ import annotations

from collections.abc import Iterator

from nexus_engine.check.problems import RESTORE_BACKUP, USE_HISTORY, Invariant, Problem, show
from nexus_engine.meta import check_queries
from nexus_engine.store import Store


def extents_make_sense(store: Store) -> Iterator[Problem]:
    for table, ino, start in check_queries.wrong_extents(store.database.connection):
        message = f"is impossible in {table}, or belongs to no file: {RESTORE_BACKUP}"
        yield Problem("extent-fields", _at(ino, start), message)


def extents_are_disjoint(store: Store) -> Iterator[Problem]:
    connection = store.database.connection
    for ino, start in check_queries.overlapping_extents(connection):
        message = f"overlaps the extent before it; {USE_HISTORY}"
        yield Problem("extent-range-overlap", _at(ino, start), message)
    for ino, start, seq in check_queries.overlapping_past_extents(connection):
        message = f"overlapped another extent after op-{seq}: {RESTORE_BACKUP}"
        yield Problem("extent-past-range-overlap", _at(ino, start), message)


def extents_end_with_the_file(store: Store) -> Iterator[Problem]:
    for ino, end, size in check_queries.oversized_extents(store.database.connection):
        message = f"has content up to byte {end} but a size of {size}; {USE_HISTORY}"
        yield Problem("extent-size", f"inode {ino}", message)


def extents_have_bytes(store: Store) -> Iterator[Problem]:
    connection = store.database.connection
    for table, ino, start, digest, indexed in check_queries.extents_without_bytes(connection):
        what = "is shorter than the extent" if indexed else "is in no index"
        message = f"the chunk {digest.hex()} of an {table} row {what}; {USE_HISTORY}"
        yield Problem("extent-chunk", _at(ino, start), message)


def contents_are_logged(store: Store) -> Iterator[Problem]:
    for ino, seq in check_queries.unlogged_contents(store.database.connection):
        message = f"has content of op-{seq}, which is not in the log: {RESTORE_BACKUP}"
        yield Problem("content-unlogged", f"inode {ino}", message)


def xattrs_belong_to_inodes(store: Store) -> Iterator[Problem]:
    for ino, name in check_queries.orphan_xattrs(store.database.connection):
        message = f"belongs to inode {ino}, which never existed: {RESTORE_BACKUP}"
        yield Problem("xattr-orphan", f"attribute {show(name)}", message)


def _at(ino: int, start: int) -> str:
    return f"inode {ino} at byte {start}"


INVARIANTS = (
    Invariant("extents", extents_make_sense),
    Invariant("extents side by side", extents_are_disjoint),
    Invariant("extents and sizes", extents_end_with_the_file),
    Invariant("extents and chunks", extents_have_bytes),
    Invariant("contents and log", contents_are_logged),
    Invariant("attributes", xattrs_belong_to_inodes),
)
