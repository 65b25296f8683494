"""Pruning: say what is kept, then drop the rest, a bounded number of rows at a time.

First one transaction names the kept moments and leaves a ``prune`` record: from then on nobody is
shown the others. Dropping rows comes after; a crash in between leaves rows that the next run drops.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from nexus_engine import errors
from nexus_engine.config import Retention
from nexus_engine.meta import log_pruning_queries, retention_queries, retention_rules
from nexus_engine.meta.connection import Connection
from nexus_engine.meta.database import Database
from nexus_engine.meta.transaction import Transaction
from nexus_engine.records import Change
from nexus_engine.recovery import recover
from nexus_engine.reserve import frees_space
from nexus_engine.retention import gc
from nexus_engine.retention.planning import Plan, find_rules, kept_now, plan, suppose
from nexus_engine.retention.turns import Batches, alone, pause
from nexus_engine.store import Store
from nexus_engine.types import ROOT_INO, Actor, Ino, Path, Seq

Progress = Callable[[int, int], None]
"""(inodes done, of how many)."""

_BATCH = 500
"""Inodes or records of the first transaction."""
_SEALING_S = 10.0
_POLL_S = 0.05
FREE_SHARE = 16
"""One in so many pages of the database stays free: operations to come take them at once."""


class Pruned(NamedTuple):
    """What a pruning did."""

    rows: int
    records: int
    excess_bytes: int
    """How far history is above its limit all the same."""


class Foreseen(NamedTuple):
    """What a pruning would do."""

    rows: int
    records: int
    unnamed_bytes: int
    """Of content that nothing would name any more."""
    freed_bytes: int
    """Of these, what gc would give back at once: of the packs that are worth emptying."""


def prune(
    store: Store,
    policy: Retention,
    actor: Actor,
    progress: Progress | None = None,
    *,
    compact: bool = False,
) -> Pruned:
    """Let go of what the policy does not keep. Safe to be interrupted and run again.

    Args:
        compact: Write the database anew; nobody else can write meanwhile.

    Raises:
        StoreBusy: Another process is at it.
    """
    with alone(store):
        recover(store)
        planned = plan(store, policy)
        planned = _close_packs(store, planned)
        find_rules(store.database.connection, policy, planned.kept.pruned_to, store.clock.time_ns())
        store.transact(_announce, actor, planned)
        rows = _drop_rows(store, planned, progress)
        records = _drop_records(store, planned.log_upto)
        store.database.forget_cached()
        if compact:
            store.upkeep(store.database.connection.rewrite)
        shrink(store)
        return Pruned(rows, records, planned.excess_bytes)


def foresee(store: Store, policy: Retention) -> tuple[Plan, Foreseen]:
    """Work out what a pruning would do now, and gc after it. Changes nothing."""
    planned = plan(store, policy)

    def count(database: Database) -> Foreseen:
        connection, whole_from = database.connection, planned.kept.pruned_to
        suppose(connection, policy, planned, store.clock.time_ns())
        retention_queries.find_named(connection, whole_from)
        return Foreseen(
            retention_queries.count_rows(connection, whole_from),
            log_pruning_queries.count_records(connection, planned.log_upto),
            retention_queries.unnamed_bytes(connection),
            gc.foresee(store, connection),
        )

    return planned, store.with_reader(count)


def _close_packs(store: Store, planned: Plan) -> Plan:
    """Wait until no pack may hold work that only a record which goes shows to be finished.

    Whoever takes over from a process that died asks the log which sessions in its packs are done.
    """
    connection = store.database.connection
    done, _ = log_pruning_queries.log_pruned(connection)
    if planned.log_upto == done:
        return planned
    upto = planned.log_upto
    deadline_s = time.monotonic() + _SEALING_S
    while True:
        first = log_pruning_queries.first_open(connection)
        if first is None or first >= upto:
            return planned
        if time.monotonic() > deadline_s:
            return planned._replace(log_upto=max(done, first))
        store.upkeep(log_pruning_queries.close_packs, connection, upto)
        recover(store)
        pause(store, _POLL_S)


@frees_space
def _announce(tx: Transaction, planned: Plan) -> None:
    connection = tx.connection
    if kept_now(connection) != planned.before:
        raise errors.StoreBusy("another process is pruning")
    # A snapshot made meanwhile pins its moment: it was whole when it was named.
    pinned = planned.pinned.union(retention_queries.pinned_moments(connection))
    moments = sorted({*planned.kept.moments, *pinned})
    whole_from = planned.kept.pruned_to
    retention_queries.set_kept(connection, whole_from, [(m, m in pinned) for m in moments])
    expired_to = max(
        retention_queries.expired_to(connection), retention_rules.last_gone(connection)
    )
    retention_queries.set_value(connection, "expired_to", min(expired_to, tx.head_seq))
    details: dict[str, object] = {"pruned_to": whole_from, "kept": len(moments)}
    if planned.log_upto:
        details |= _set_log_pruned(connection, planned.log_upto)
    tx.commit(Change("prune", ROOT_INO, Path(b""), details=details))


def _set_log_pruned(connection: Connection, upto: Seq) -> dict[str, object]:
    done, anchor = log_pruning_queries.log_pruned(connection)
    if upto > done:
        found = log_pruning_queries.find_hash(connection, upto)
        if found is None:
            raise errors.CorruptMetadata(f"op-{upto} is not in the log: run nexus-ctl fsck")
        anchor = found
        retention_queries.set_value(connection, log_pruning_queries.LOG_PRUNED, upto)
        retention_queries.set_value(connection, log_pruning_queries.LOG_PRUNED_HASH, anchor)
    # In the chain as well: the beginning of a log cannot be cut off by editing two values.
    return {"log_pruned": upto, "log_pruned_hash": anchor.hex()}


def _drop_rows(store: Store, planned: Plan, progress: Progress | None) -> int:
    """Drop the rows that no kept moment sees; return how many went."""
    last = retention_queries.last_ino(store.database.connection)
    batches = Batches(store, _BATCH)
    dropped, first = 0, Ino(0)
    while first <= last:
        end = Ino(min(first + batches.size - 1, last))

        def drop(connection: Connection, first: Ino = first, end: Ino = end) -> int:
            if planned.log_upto:
                log_pruning_queries.note_times(connection, first, end, planned.log_upto)
            return retention_queries.drop_rows(connection, first, end, planned.kept.pruned_to)

        dropped += batches.run(drop)
        first = Ino(end + 1)
        if progress is not None:
            progress(first, last)
    return dropped


def _drop_records(store: Store, upto: Seq) -> int:
    """Drop the records up to an operation, and what belongs to them; return how many went."""
    batches = Batches(store, _BATCH)
    dropped = 0
    while True:
        count = batches.run(lambda c: log_pruning_queries.drop_records(c, upto, batches.size))
        dropped += count
        if count == 0:
            break
    if not dropped:
        return 0
    last, first = log_pruning_queries.last_actor(store.database.connection), 0
    while first <= last:
        end = first + batches.size

        def drop(connection: Connection, first: int = first, end: int = end) -> None:
            log_pruning_queries.drop_actors(connection, first, end)

        batches.run(drop)
        first = end + 1
    return dropped


def shrink(store: Store, *, share: int = FREE_SHARE) -> None:
    """Give free pages of the database back to the disk, but for some."""
    connection = store.database.connection
    batches = Batches(store, _BATCH)
    while True:
        pages, free = connection.pages()
        spare = pages // share if share else 0
        if free <= spare or not connection.shrinks:
            break
        batches.run(partial(Connection.free_pages, count=min(batches.size, free - spare)))
        store.checkpoint()
    store.chunks.sync()
    store.database.checkpoint(restart=True)
