"""Invariants of content: extents of files, the chunks they refer to, what the log says of them."""

from __future__ import annotations

from collections.abc import Iterator

from nexus_engine.check.damage import lost_content
from nexus_engine.check.naming import inode_name, show
from nexus_engine.check.problems import REPAIR, Invariant, Problem
from nexus_engine.fs.files import fingerprint
from nexus_engine.meta import check_content_queries, check_queries
from nexus_engine.meta.check_content_queries import Written
from nexus_engine.meta.connection import Connection
from nexus_engine.oplog.verify import is_genuine
from nexus_engine.store import Store
from nexus_engine.types import Digest


def extents_make_sense(store: Store) -> Iterator[Problem]:
    connection = store.database.connection
    for table, ino, start in check_content_queries.wrong_extents(connection):
        message = f"is impossible in {table}, or belongs to no file: {REPAIR}"
        yield Problem("extent-fields", _at(store, ino, start), message)


def extents_are_disjoint(store: Store) -> Iterator[Problem]:
    connection = store.database.connection
    for ino, start in check_content_queries.overlapping_extents(connection):
        message = f"overlaps the extent before it: {REPAIR}, the later one wins"
        yield Problem("extent-range-overlap", _at(store, ino, start), message)
    for ino, start, seq in check_content_queries.overlapping_past_extents(connection):
        message = f"overlapped another extent after op-{seq}: {REPAIR}, the later one wins"
        yield Problem("extent-past-range-overlap", _at(store, ino, start), message)


def extents_end_with_the_file(store: Store) -> Iterator[Problem]:
    connection = store.database.connection
    for ino, end, size in check_content_queries.oversized_extents(connection):
        message = f"has content up to byte {end} but a size of {size}: {REPAIR}"
        yield Problem("extent-size", inode_name(connection, ino), message)


def extents_fit_their_chunks(store: Store) -> Iterator[Problem]:
    connection = store.database.connection
    for table, ino, start, digest in check_content_queries.short_chunks(connection):
        message = f"the chunk {digest.hex()} is shorter than the {table} row: {REPAIR}"
        yield Problem("extent-chunk", _at(store, ino, start), message)


def contents_are_logged(store: Store) -> Iterator[Problem]:
    connection = store.database.connection
    for ino, seq in check_content_queries.unlogged_contents(connection):
        message = f"has content of op-{seq}, which is not in the log: {REPAIR}"
        yield Problem("content-unlogged", inode_name(connection, ino), message)
    for ino, seq in check_content_queries.orphan_hashes(connection):
        message = f"a SHA-256 is kept of content from op-{seq} that it never had: {REPAIR}"
        yield Problem("content-hash", inode_name(connection, ino), message)


def contents_are_what_was_written(store: Store) -> Iterator[Problem]:
    """The log is chained by hashes, and what it says of content binds size and extents."""
    connection = store.database.connection
    for _, ino, seq, size, logged in check_content_queries.wrong_sizes(connection):
        if not is_genuine(connection, seq):
            continue
        message = f"has a size of {size} by op-{seq}; the log says {logged}: {REPAIR}"
        yield Problem("content-size", inode_name(connection, ino), message)
    for written in changed_contents(connection):
        message = (
            f"what op-{written.seq} wrote is not what the log says: its bytes may be wrong;"
            f" {REPAIR} where the log knows the content"
        )
        yield Problem("content-changed", inode_name(connection, written.ino), message)


def changed_contents(connection: Connection) -> Iterator[Written]:
    """Yield what is not as the log says that it was written."""
    taken_back = check_content_queries.taken_back(connection)
    horizon = check_queries.horizon(connection)
    for written in check_content_queries.iter_written(connection):
        if written.seq <= horizon or written.ino in taken_back or _is_as_written(written):
            continue
        if is_genuine(connection, written.seq):
            yield written


def _is_as_written(written: Written) -> bool:
    extents = written.extents
    if written.place is not None:
        # Among remainders of what it cut in two; it is whole itself, also in the past.
        extents = [e for e in extents if f"[{e.start},{e.length}]" == written.place]
    if len(extents) > written.expected:
        return True  # remainders: the log does not tell which
    return len(extents) == written.expected and fingerprint(extents) == written.sha256


def xattrs_belong_to_inodes(store: Store) -> Iterator[Problem]:
    connection = store.database.connection
    for ino, name in check_content_queries.orphan_xattrs(connection):
        message = f"belongs to inode {ino}, which never existed: {REPAIR}"
        yield Problem("xattr-orphan", f"attribute {show(name)}", message)


def content_is_there(lost: set[Digest], store: Store) -> Iterator[Problem]:
    """Every chunk that a version of a file needs is stored, and as it was.

    Args:
        lost: Chunks that were found damaged; those that are in no index are added.
    """
    connection = store.database.connection
    lost.update(check_content_queries.unindexed_digests(connection))
    for damage in lost_content(store.database, lost):
        if damage.until is None:
            yield Problem("content-lost", damage.where, damage.message)
        else:
            yield Problem("content-lost-past", damage.where, damage.message)


def _at(store: Store, ino: int, start: int) -> str:
    return f"{inode_name(store.database.connection, ino)} at byte {start}"


INVARIANTS = (
    Invariant("extents", extents_make_sense),
    Invariant("extents side by side", extents_are_disjoint),
    Invariant("extents and sizes", extents_end_with_the_file),
    Invariant("extents and chunks", extents_fit_their_chunks),
    Invariant("contents and log", contents_are_logged),
    Invariant("contents and what was written", contents_are_what_was_written),
    Invariant("attributes", xattrs_belong_to_inodes),
)
