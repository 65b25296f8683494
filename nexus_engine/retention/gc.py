"""Giving space back: packs of which most is dead are emptied and removed, while files are in use.

::

    mark       the pack is retiring: nobody stores a file by relying on what is in it
    wait       until every process has said that its open sessions do not either
    look       which of its chunks does some version of some file name?
    copy       these into a pack of ours; sync
    move       the index points to the copies; the dead leave it
    secure     in a bucket, where the pack was in one
    remove     the object, and then the row

Each step can be repeated. A crash leaves a pack that is retiring, for the next run, or copies that
nothing names. As long as there may be an object there is a row: no pack is left over that nobody
knows of, and one that a process has just begun is never taken for such a one.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Concatenate, NamedTuple, ParamSpec

from nexus_engine import errors
from nexus_engine.cas.pack import pack_key
from nexus_engine.cas.store import Location
from nexus_engine.meta import gc_queries, lazy_queries, purge_queries
from nexus_engine.meta.connection import Connection
from nexus_engine.meta.gc_queries import Outgoing, PackUse
from nexus_engine.metadata_copy import KEEP, put_metadata
from nexus_engine.owners import describe, writers
from nexus_engine.recovery import recover
from nexus_engine.retention.turns import alone, pause
from nexus_engine.store import Store

log = logging.getLogger(__name__)

P = ParamSpec("P")
Progress = Callable[[int, int], None]
"""(packs done, of how many)."""

DEAD_SHARE = 0.5
"""A pack with at least this share of dead bytes is worth copying the rest."""
SMALL_BYTES = 8 << 20
SMALL_PACKS = 16
"""Where packs live in a bucket, so many that are smaller than that are made into larger ones: each
fsync leaves one."""
SMALL_ONLY = 2.0
"""As the share that must be dead: leave alone what is not small."""
OPEN_BYTES = 4 << 20
"""A pack that is being written is closed for this only if it is at least so large."""
WAIT_S = 30.0
_POLL_S = 0.05
_MARGIN_BYTES = 1 << 20
"""Room for rows, besides what is copied."""
_TOGETHER_BYTES = 1 << 30
"""So much is copied before packs in a bucket are removed."""
_BATCH_BYTES = 4 << 20
_BATCH_ROWS = 500


class Collected(NamedTuple):
    """What gc did."""

    packs: int
    freed_bytes: int
    """Of removed packs, without what had to be copied."""
    copied_bytes: int


def foresee(store: Store, connection: Connection, *, dead_share: float = DEAD_SHARE) -> int:
    """Return how many bytes a collection would give back. Changes nothing.

    Args:
        connection: One whose ``temp.live`` says what is named.
    """
    packs = gc_queries.pack_use(connection)
    sizes = _sizes(store, packs)
    return sum(
        sizes[pack.name] - pack.live_bytes
        for pack in packs
        if _is_worth_it(pack, sizes[pack.name], dead_share)
    )


def collect(
    store: Store,
    *,
    dead_share: float = DEAD_SHARE,
    progress: Progress | None = None,
    wait_s: float = 0.0,
) -> Collected:
    """Remove packs of which at least a share is dead, or that a purge retired. Takes long; blocks.

    Args:
        store: Opened for this alone: another process has the files.
        wait_s: For another process that collects or prunes.

    Raises:
        StoreBusy: A process does not answer, or another one is at it; nothing is lost, a later run
            goes on.
        NoSpace: No room for what has to be copied.
    """
    with alone(store, wait_s=wait_s):
        return _collect(store, dead_share, progress)


def _collect(store: Store, dead_share: float, progress: Progress | None) -> Collected:
    recover(store)
    connection = store.database.connection
    _change(store, lazy_queries.drop_unnamed)
    worth = [pack.number for pack in _worth_it(store, dead_share)]
    purging = purge_queries.pending(connection)
    worth += gc_queries.packs_holding(connection, purging)
    _change(store, gc_queries.retire, worth)
    numbers = gc_queries.retiring_numbers(connection)
    if not numbers:
        return Collected(0, 0, 0)
    _await_all(store)
    _sync_others(store)  # what open sessions had stored again: it is in no row, so it goes first
    gc_queries.find_live(connection)
    gc_queries.find_outgoing(connection)
    # A purge may have marked others since: about those nobody was asked, and what lives in them was
    # not looked for. Its own collection takes them.
    retiring = [pack for pack in gc_queries.retiring_packs(connection) if pack[0] in numbers]
    done = Collected(0, 0, 0)
    emptied = _Emptied(store, purges=bool(purging))
    for count, (number, name, live_bytes) in enumerate(retiring, start=1):
        if live_bytes + _MARGIN_BYTES > store.reserve.usable_bytes():
            log.error("pack %s stays: no room for the %d bytes in it that live", name, live_bytes)
            _change(store, gc_queries.keep, number)
            continue
        try:
            freed, copied = emptied.add(number, name)
        except (errors.CorruptChunk, errors.ObjectNotFound) as error:
            log.error("pack %s stays: %s", name, error)
            _change(store, gc_queries.keep, number)
            continue
        done = Collected(done.packs + 1, done.freed_bytes + freed, done.copied_bytes + copied)
        if progress is not None:
            progress(count, len(retiring))
    emptied.remove()
    if purging:
        _change(store, purge_queries.end_pending)
    return done


def _use(store: Store) -> list[PackUse]:
    gc_queries.find_live(store.database.connection)
    return gc_queries.pack_use(store.database.connection)


def _worth_it(store: Store, dead_share: float) -> list[PackUse]:
    """Return the packs to empty: much of them is dead, or they are many and small."""
    packs = _use(store)
    sizes = _sizes(store, packs)
    worth = [pack for pack in packs if _is_worth_it(pack, sizes[pack.name], dead_share)]
    if store.packs_url is not None:
        small = [p for p in packs if not p.is_open and 0 < sizes[p.name] < SMALL_BYTES]
        if len(small) >= SMALL_PACKS:
            worth = list({pack.number: pack for pack in [*worth, *small]}.values())
    return worth


def _sizes(store: Store, packs: list[PackUse]) -> dict[str, int]:
    """Return the size of each pack; 0 where nothing was written to it, or it is removed already."""
    if store.packs_url is None:
        return {pack.name: _size(store, pack.name) for pack in packs}
    # One list instead of a question for each.
    sizes = dict(store.objects.iter_sizes("packs/"))
    return {pack.name: sizes.get(pack_key(pack.name), 0) for pack in packs}


def _is_worth_it(pack: PackUse, size: int, dead_share: float) -> bool:
    if size < pack.live_bytes:
        return False  # fsck's to report
    if pack.is_open and size < OPEN_BYTES:
        return False
    return size - pack.live_bytes >= size * dead_share


def _size(store: Store, name: str) -> int:
    """Return the size of a pack; 0 where nothing was written to it, or it is removed already."""
    try:
        return store.objects.size(pack_key(name))
    except errors.ObjectNotFound:
        return 0


def _await_all(store: Store) -> None:
    """Wait until nobody's open session relies on packs that go."""
    connection = store.database.connection
    ours = [name for _, name in gc_queries.unseen_packs(connection, store.owner)]
    _change(store, gc_queries.note_seen, ours, store.owner)
    deadline_s = time.monotonic() + WAIT_S
    while True:
        # Who stores nothing, relies on nothing: a command that reads for hours is not asked.
        waiting = [o for o in writers(store.peers) if gc_queries.unseen_packs(connection, o)]
        waiting += gc_queries.writers_of_retiring(connection)
        if not waiting:
            return
        if time.monotonic() > deadline_s:
            raise errors.StoreBusy(
                f"{describe(waiting[0])} writes to the store and does not answer: end it, then try"
                " again"
            )
        recover(store)  # one that died answers no more, but what it began must be finished
        pause(store, _POLL_S)


class _Emptied:
    """Packs of which everything that is live was copied, and that are still there.

    Where packs live in a bucket, several go together: the copies of what was live in many small
    packs share one that is sent. Elsewhere each goes at once: on a full disk its room is wanted.
    """

    def __init__(self, store: Store, *, purges: bool) -> None:
        self._store = store
        self._purges = purges
        self._limit_bytes = 0 if store.packs_url is None else _TOGETHER_BYTES
        self._packs: list[tuple[int, str]] = []
        self._copied_bytes = 0

    def add(self, number: int, name: str) -> tuple[int, int]:
        """Move what is live out of a pack, and remove it soon; return (freed, copied bytes)."""
        size = _size(self._store, name)
        copied = _empty(self._store, number)
        self._packs.append((number, name))
        self._copied_bytes += copied
        if self._copied_bytes >= self._limit_bytes:
            self.remove()
        return size - copied, copied

    def remove(self) -> None:
        """Remove them."""
        if not self._packs:
            return
        # On the disk first: rows that name a pack which is gone would be lost files. The row of the
        # pack last: a file that no row knows would stay for ever, with what was purged from it.
        _sync_others(self._store)
        self._store.sync()
        # What was in the bucket must not be on this disk alone now, whatever fsync promises.
        self._store.secure(name for name, _ in self._store.database.open_packs())
        # Nor may the copy of the metadata there name what goes. After a purge, none may.
        put_metadata(self._store, keep=1 if self._purges else KEEP, always=True)
        for number, name in self._packs:
            self._store.objects.delete(pack_key(name))
            _change(self._store, gc_queries.drop_pack, number)
        self._packs.clear()
        self._copied_bytes = 0


def _empty(store: Store, number: int) -> int:
    """Move what is live out of a pack; return how many bytes that was."""
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
    return copied


def _sync_others(store: Store) -> None:
    """Have the packs that others write on the disk.

    What somebody stored anew because this pack goes is in one of them, and the index points there,
    also for files that were synced long ago.
    """
    for name, _ in store.database.open_packs():
        with suppress(errors.ObjectNotFound):
            store.objects.sync(pack_key(name))


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
