"""After a power loss: the log may name chunks that did not reach the disk.

A commit is in the kernel's memory at once and on the disk some seconds later, and so is a chunk,
each in its own time. What was fsynced is there, chunks before their names. Of the rest, a file
whose bytes are lost goes back to the content that it had before, as on any disk, and a ``recover``
record says so. It never reads EIO.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Container
from contextlib import suppress
from functools import partial
from typing import Any

from nexus_engine import errors
from nexus_engine.cas.pack import KIND_CHUNK, PACK_HEADER_SIZE
from nexus_engine.meta import gc_queries, lazy_queries, tail_queries
from nexus_engine.meta.connection import Connection
from nexus_engine.meta.transaction import Transaction
from nexus_engine.records import Change
from nexus_engine.reserve import frees_space
from nexus_engine.store import Store
from nexus_engine.types import SIZE_MAX, Actor, Digest, Ino, Seq

log = logging.getLogger(__name__)

_NOBODY = Actor(0, 0, command="recovery")


def take_back_lost_content(store: Store, packs: Collection[str], synced: Seq) -> None:
    """Find chunks that are named and not there; give their files the content from before.

    Args:
        packs: Those that processes which died were appending to.
        synced: Up to this operation everything was on the disk.
    """
    if not packs:
        return
    _take_back_files(store, packs, synced)
    # What was fetched from a source is fetched again.
    fetched = lazy_queries.fetched_in(store.database.connection, packs)
    lost = [digest for digest in fetched if not _is_there(store, packs, digest)]
    if lost:
        store.upkeep(store.database.in_transaction, partial(_forget_chunks, digests=lost))


def _take_back_files(store: Store, packs: Collection[str], synced: Seq) -> None:
    seen: set[Digest] = set()
    lost: dict[Digest, list[tuple[Seq, Ino]]] = {}
    for seq, ino, digest in tail_queries.iter_extents_since(store.database.connection, synced):
        if digest not in seen:
            seen.add(digest)
            if not _is_there(store, packs, digest):
                lost[digest] = []
        if digest in lost:
            lost[digest].append((seq, ino))
    if not lost:
        return
    copies = _find_copies(store, lost)
    first: dict[Ino, Seq] = {}
    for seq, ino in sorted(name for d, names in lost.items() if d not in copies for name in names):
        first.setdefault(ino, seq)
    store.transact(_take_back, _NOBODY, set(lost), copies, first)
    if first:
        log.warning(
            "%d chunks did not reach the disk before the machine stopped: %d files have, now or in"
            " the past, the content from before; nexus-ctl log shows which (kind recover)",
            len(lost) - len(copies), len(first),
        )  # fmt: skip


def _forget_chunks(connection: Connection, digests: Collection[Digest]) -> None:
    for digest in digests:
        lazy_queries.drop_chunk(connection, digest)


def _find_copies(store: Store, lost: Container[Digest]) -> dict[Digest, tuple[Any, ...]]:
    """Return where else lost chunks are: in packs that gc has begun to empty.

    What was stored anew because such a pack goes is all that the index names, for older files too.
    The pack itself goes only when that is on the disk.
    """
    found: dict[Digest, tuple[Any, ...]] = {}
    connection = store.database.connection
    going = set(gc_queries.retiring_numbers(connection))
    for number, name in gc_queries.all_packs(connection):
        if number not in going:
            continue
        with suppress(errors.ObjectNotFound):
            for record in store.chunks.scan(name, PACK_HEADER_SIZE):
                if record.kind == KIND_CHUNK and record.digest in lost:
                    place = (name, record.offset, record.stored_length, record.length, record.codec)
                    found[record.digest] = place
    return found


def _is_there(store: Store, packs: Container[str], digest: Digest) -> bool:
    location = store.reader.find_chunk(digest)
    if location is None:
        return True  # rows come with their chunks: that the index lacks one is no power loss
    if location[0] not in packs:
        return True  # sealed, and synced before that; or of a process that lives
    try:
        store.chunks.read(digest, 0, 1)
    except (errors.MissingChunk, errors.CorruptChunk):
        return False
    return True


@frees_space
def _take_back(
    tx: Transaction,
    lost: set[Digest],
    copies: dict[Digest, tuple[Any, ...]],
    first: dict[Ino, Seq],
) -> None:
    for digest in lost:
        tx.remove_chunk(digest)  # or the next file of this content would rely on it
    for digest, location in copies.items():
        tx.add_chunk(digest, location)
    lost = lost.difference(copies)
    for ino, seq in first.items():
        if not lost.isdisjoint(e.digest for e in tx.extents(ino, 0, SIZE_MAX)):
            _take_back_file(tx, ino, seq)
        else:
            _take_back_versions(tx, ino, seq, lost)


def _take_back_file(tx: Transaction, ino: Ino, seq: Seq) -> None:
    size, content_seq = _content_before(tx, ino, seq)
    tx.rewind_extents(ino, seq)
    tx.rewind_content(ino, seq, size, content_seq)
    now = tx.find_inode(ino)
    if now is not None:
        tx.put_inode(now._replace(ctime_ns=tx.now_ns))
    tx.add_touched(ino)
    details = {"lost": seq, "content_seq": content_seq, "size": size}
    tx.commit(Change("recover", ino, tx.any_path_of(ino), details=details))


def _take_back_versions(tx: Transaction, ino: Ino, seq: Seq, lost: Container[Digest]) -> None:
    """What was lost had been written over already: the file is whole, some of its past is not."""
    rows = tail_queries.past_extents(tx.connection, ino, seq)
    spans = [(begin, end) for begin, end, digest in rows if digest in lost]
    if not spans:
        return
    begin, end = min(spans)[0], max(end for _, end in spans)
    size, content_seq = _content_before(tx, ino, begin)
    tx.replace_past_extents(ino, begin, end)
    tx.rewind_content(ino, begin, size, content_seq, end)
    tx.add_touched(ino)
    details = {"lost": begin, "until": end, "content_seq": content_seq, "size": size}
    tx.commit(Change("recover", ino, tx.any_path_of(ino), details=details))


def _content_before(tx: Transaction, ino: Ino, seq: Seq) -> tuple[int, Seq]:
    """Return size and number of the content that a file had before an operation."""
    then = tx.as_of(Seq(seq - 1)).find_inode(ino)
    if then is None:
        return 0, tx.first_seq(ino) or seq
    return then.size, then.content_seq
