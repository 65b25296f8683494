"""Purging: content that must be nowhere any more, in no version, no snapshot and no pack.

Names, times and the records of the log stay, with a ``purge`` record that says what went. What the
log says of a ``write`` includes a hash of its bytes, which stays as well.
"""

from __future__ import annotations

from typing import NamedTuple

from nexus_engine import errors
from nexus_engine.meta import history_queries, purge_queries
from nexus_engine.meta.transaction import Transaction
from nexus_engine.records import Change
from nexus_engine.reserve import frees_space
from nexus_engine.retention import gc
from nexus_engine.store import Store
from nexus_engine.types import ROOT_INO, Actor, Digest, Ino, Name, Path


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
    store.transact(_forget, actor, inos, only, path, len(digests))
    shared = {d: purge_queries.inodes_with(connection, d) for d in digests}
    gone = [digest for digest, holders in shared.items() if not holders]
    collected = gc.collect(store, holding=gone, progress=progress, wait_s=gc.WAIT_S)
    left = [digest for digest in gone if store.reader.find_chunk(digest) is not None]
    if left:
        raise errors.StoreBusy(
            f"{len(left)} chunks are in packs that could not be rewritten: see fsck --deep, then"
            " purge again"
        )
    holders = {ino for found in shared.values() for ino in found}
    paths = [found for ino in sorted(holders) if (found := store.reader.find_path(ino)) is not None]
    return Purged(len(inos), len(gone), paths, collected.freed_bytes)


@frees_space
def _forget(tx: Transaction, inos: list[Ino], only: Digest | None, path: Path, chunks: int) -> None:
    for ino in inos:
        if only is None:
            purge_queries.empty(tx.connection, ino)
        else:
            purge_queries.punch(tx.connection, ino, only)
        tx.add_touched(ino)
    details = {"files": len(inos), "chunks": chunks}
    tx.commit(Change("purge", inos[0] if inos else ROOT_INO, path, details=details))
