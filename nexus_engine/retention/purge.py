"""Purging: content that must be nowhere any more, in no version, no snapshot and no pack.

Extended attributes go with the content. Names, times and the records of the log stay, with a
``purge`` record that says what went. What the log says of a ``write`` includes a hash of its bytes,
which stays as well.
"""

from __future__ import annotations

import time
from contextlib import closing
from typing import NamedTuple

from nexus_engine import errors
from nexus_engine.meta import gc_queries, history_queries, purge_queries, retention_queries
from nexus_engine.meta.connection import Connection
from nexus_engine.meta.transaction import Transaction
from nexus_engine.records import Change
from nexus_engine.reserve import frees_space
from nexus_engine.retention import gc
from nexus_engine.retention.traces import find_traces
from nexus_engine.store import Store
from nexus_engine.types import ROOT_INO, Actor, Digest, Ino, Name, Path

OVERWRITING = "purge_overwriting"
"""In ``store``: 1 while pages of the database may hold what was purged."""


class Purged(NamedTuple):
    """What a purge did."""

    files: int
    chunks: int
    """Destroyed."""
    shared: list[Path]
    """Other files that hold some of the same content: what they share stays."""
    freed_bytes: int


def purge_path(
    store: Store, path: Path, actor: Actor, progress: gc.Progress | None = None
) -> Purged:
    """Destroy all content that files under a path ever had; they are empty then, also in the past.

    Raises:
        NotFound: There never was a file of this name in this directory.
        InUse: One of them is in an attachment.
    """
    directory, _, name = path.rpartition(b"/")
    parent = store.reader.resolve(Path(directory))
    inos = (
        []
        if parent is None
        else history_queries.inodes_of_name(store.database.connection, parent.ino, Name(name))
    )
    if not inos:
        raise errors.NotFound(f"there never was a file /{path.decode(errors='backslashreplace')}")
    return _purge(store, inos, None, path, actor, progress)


def purge_digest(
    store: Store, digest: Digest, actor: Actor, progress: gc.Progress | None = None
) -> Purged:
    """Destroy a chunk; every file that holds it reads zeros in its place, also in the past.

    Raises:
        NotFound: Nothing is stored under this digest.
    """
    inos = purge_queries.inodes_with(store.database.connection, digest)
    if not inos and store.reader.find_chunk(digest) is None:
        raise errors.NotFound(f"nothing is stored under {digest.hex()}")
    return _purge(store, inos, digest, Path(b""), actor, progress)


def _purge(
    store: Store,
    inos: list[Ino],
    only: Digest | None,
    path: Path,
    actor: Actor,
    progress: gc.Progress | None,
) -> Purged:
    connection = store.database.connection
    digests = [only] if only is not None else purge_queries.digests_of(connection, inos)
    store.transact(_forget, actor, inos, only, path, digests)
    if store.reader.store_value(OVERWRITING):
        _overwrite_metadata(store)
    holders = purge_queries.holders_of_pending(connection)
    # Also what an earlier purge was to destroy, should it have been cut short.
    gone = purge_queries.pending(connection)
    traces = find_traces(store, gone, inos if only is None else (), progress)
    store.upkeep(gc_queries.retire, connection, traces)
    collected = gc.collect(store, progress=progress, wait_s=gc.WAIT_S)
    left = {number for number, _ in gc_queries.all_packs(connection)}.intersection(traces)
    if left:
        raise errors.StoreBusy(
            f"{len(left)} packs with some of it could not be rewritten: make room, see fsck --deep,"
            " then purge again"
        )
    paths = [found for ino in holders if (found := store.reader.find_path(ino)) is not None]
    return Purged(len(inos), len(gone), paths, collected.freed_bytes)


def _overwrite_metadata(store: Store) -> None:
    """Leave nothing of rows that are gone in any page of the database or its log."""
    with closing(Connection(store.database.connection.path)) as connection:
        store.upkeep(connection.rewrite)
    deadline_s = time.monotonic() + gc.WAIT_S
    while store.database.connection.wal_bytes():
        store.chunks.sync()
        store.database.checkpoint(restart=True)
        if time.monotonic() > deadline_s:
            raise errors.StoreBusy(
                "what was purged is still in the write-ahead log: somebody has been reading the"
                " store for long; purge again when they are done"
            )
    store.upkeep(retention_queries.set_value, store.database.connection, OVERWRITING, 0)


@frees_space
def _forget(
    tx: Transaction, inos: list[Ino], only: Digest | None, path: Path, digests: list[Digest]
) -> None:
    if any(tx.attached.around(ino) for ino in inos):
        raise errors.InUse("it is in an attachment: remove it there, or the attachment, first")
    purge_queries.add_pending(tx.connection, digests)
    attributes = 0 if only is not None else purge_queries.drop_attributes(tx.connection, inos)
    if attributes:
        retention_queries.set_value(tx.connection, OVERWRITING, 1)
    for ino in inos:
        tx.touch(ino)
        if only is None:
            purge_queries.empty(tx.connection, ino)
        else:
            purge_queries.punch(tx.connection, ino, only)
        tx.add_touched(ino)
    details = {"files": len(inos), "chunks": len(digests), "attributes": attributes}
    with tx.by_source():
        tx.commit(Change("purge", inos[0] if inos else ROOT_INO, path, details=details))
