"""Giving space back: packs of which most is dead are emptied and removed, while files are in use.

::

    mark       the pack is retiring: nobody stores a file by relying on what is in it
    wait       until every process has said that its open sessions do not either
    look       which of its chunks does some version of some file name?
    copy       these into a pack of ours; sync
    move       the index points to the copies; the dead leave it
    remove     the row, and then the object

Each step can be repeated. A crash leaves a pack that is retiring, for the next run, or copies that
nothing names.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Concatenate, NamedTuple, ParamSpec

from nexus_engine import errors
from nexus_engine.cas.pack import pack_key
from nexus_engine.cas.store import Location
from nexus_engine.meta import gc_queries
from nexus_engine.meta.connection import Connection
from nexus_engine.meta.gc_queries import Outgoing, PackUse
from nexus_engine.owners import owners
from nexus_engine.recovery import recover
from nexus_engine.store import Store
from nexus_engine.types import Digest

log = logging.getLogger(__name__)

P = ParamSpec("P")
Progress = Callable[[int, int], None]
"""(packs done, of how many)."""

DEAD_SHARE = 0.5
"""A pack with at least this share of dead bytes is worth copying the rest."""
WAIT_S = 30.0
_POLL_S = 0.05
_MARGIN_BYTES = 1 << 20
"""Room for rows, besides what is copied."""
_BATCH_BYTES = 4 << 20
_BATCH_ROWS = 500


class Collected(NamedTuple):
    """What gc did."""

    packs: int
    freed_bytes: int
    """Of removed packs, without what had to be copied."""
    copied_bytes: int


def estimate(store: Store) -> tuple[int, int]:
    """Return (bytes of sealed packs, those of them that are dead). Changes nothing."""
    use = _use(store)
    total = sum(_size(store, pack.name) for pack in use)
    return total, total - sum(pack.live_bytes for pack in use)


def collect(
    store: Store,
    *,
    dead_share: float = DEAD_SHARE,
    holding: Sequence[Digest] = (),
    progress: Progress | None = None,
) -> Collected:
    """Remove packs of which at least a share is dead. Takes long; blocks.

    Args:
        store: Opened for this alone: another process has the files.
        holding: Packs that hold these go in any case, also those that are being written.

    Raises:
        StoreBusy: A process does not answer; nothing is lost, a later run goes on.
        NoSpace: No room for what has to be copied.
    """
    recover(store)
    use = _use(store)
    worth = [pack.number for pack in use if _dead_share(store, pack) >= dead_share]
    worth += gc_queries.packs_holding(store.database.connection, holding)
    _change(store, gc_queries.retire, worth)
    live = {pack.number: pack.live_bytes for pack in use}
    # On a full disk what one pack gives back has room for what the next has to keep.
    retiring = sorted(
        gc_queries.retiring_packs(store.database.connection), key=lambda pack: live.get(pack[0], 0)
    )
    if not retiring:
        return Collected(0, 0, 0)
    _await_all(store, [number for number, _ in retiring])
    gc_queries.find_live(store.database.connection)
    gc_queries.find_outgoing(store.database.connection)
    done = Collected(0, 0, 0)
    for count, (number, name) in enumerate(retiring, start=1):
        if live.get(number, 0) + _MARGIN_BYTES > store.reserve.usable_bytes():
            log.error("pack %s stays: no room for the %d bytes in it that live", name, live[number])
            _change(store, gc_queries.keep, number)
            continue
        try:
            freed, copied = _empty(store, number, name)
        except (errors.CorruptChunk, errors.ObjectNotFound) as error:
            log.error("pack %s stays: %s", name, error)
            _change(store, gc_queries.keep, number)
            continue
        done = Collected(done.packs + 1, done.freed_bytes + freed, done.copied_bytes + copied)
        if progress is not None:
            progress(count, len(retiring))
    return done


def _use(store: Store) -> list[PackUse]:
    gc_queries.find_live(store.database.connection)
    return gc_queries.pack_use(store.database.connection)


def _dead_share(store: Store, pack: PackUse) -> float:
    size = _size(store, pack.name)
    if not size and pack.live_bytes:
        return 0.0  # lost: fsck's to report
    return 1 - pack.live_bytes / size if size else 1.0


def _await_all(store: Store, numbers: list[int]) -> None:
    """Wait until nobody's open session relies on these packs."""
    connection = store.database.connection
    _change(store, gc_queries.note_seen, numbers, store.owner)
    deadline_s = time.monotonic() + WAIT_S
    while True:
        waiting = [o for o in owners(store.peers) if gc_queries.unseen_packs(connection, o)]
        waiting += gc_queries.writers_of_retiring(connection)
        if not waiting:
            return
        if time.monotonic() > deadline_s:
            raise errors.StoreBusy(
                f"process {waiting[0].split('-')[0]} has the store open and does not answer gc"
            )
        recover(store)  # one that died answers no more, but what it began must be finished
        time.sleep(_POLL_S)


def _empty(store: Store, number: int, name: str) -> tuple[int, int]:
    """Move what is live out of a pack and remove it; return (freed bytes, copied bytes)."""
    connection = store.database.connection
    copied = 0
    for batch in _batches(gc_queries.outgoing(connection, number, live=True)):
        places = [(chunk.digest, Location._make(chunk.location)) for chunk in batch]
        moved = store.with_reserve(store.chunks.copy, places)
        copied += sum(place.stored_length for place in moved)
        store.chunks.sync()
        entries = [(c.digest, to.pack, to.offset) for c, to in zip(batch, moved, strict=True)]
        _change(store, gc_queries.move_chunks, number, entries)
    for batch in _batches(gc_queries.outgoing(connection, number, live=False)):
        digests = [chunk.digest for chunk in batch]
        _change(store, gc_queries.drop_chunks, number, digests)
    size = _size(store, name)
    # On the disk first: rows that name a pack which is gone would be lost files. The row of the
    # pack last: a file that no row knows would stay for ever, with what was purged from it.
    _sync_others(store)
    store.sync()
    store.objects.delete(pack_key(name))
    _change(store, gc_queries.drop_pack, number)
    return size - copied, copied


def _sync_others(store: Store) -> None:
    """Have the packs that others write on the disk.

    What somebody stored anew because this pack goes is in one of them, and the index points there,
    also for files that were synced long ago.
    """
    for name, _ in store.database.open_packs():
        with suppress(errors.ObjectNotFound):
            store.objects.sync(pack_key(name))


def _size(store: Store, name: str) -> int:
    """Return how long a pack is; 0 where its process died before it wrote, or gc was cut short."""
    try:
        return store.objects.size(pack_key(name))
    except errors.ObjectNotFound:
        return 0


def _batches(chunks: Iterator[Outgoing]) -> Iterator[list[Outgoing]]:
    batch: list[Outgoing] = []
    size = 0
    for chunk in list(chunks):
        batch.append(chunk)
        size += chunk.location[2]
        if size >= _BATCH_BYTES or len(batch) >= _BATCH_ROWS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _change(
    store: Store,
    action: Callable[Concatenate[Connection, P], None],
    /,
    *args: P.args,
    **kwargs: P.kwargs,
) -> None:
    store.upkeep(store.database.in_transaction, lambda c: action(c, *args, **kwargs))
