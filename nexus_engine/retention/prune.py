"""Pruning: say what is kept, then drop the rest, a bounded number of rows at a time.

First one transaction names the kept moments and leaves a ``prune`` record: from then on nobody is
shown the others. Dropping rows comes after; a crash in between leaves rows that the next run drops.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from nexus_engine import errors
from nexus_engine.config import ClassRule, Retention, seconds
from nexus_engine.meta import log_queries, retention_queries
from nexus_engine.meta.connection import Connection
from nexus_engine.meta.database import Database
from nexus_engine.meta.retention_queries import Horizon
from nexus_engine.meta.transaction import Transaction
from nexus_engine.records import Change
from nexus_engine.reserve import frees_space
from nexus_engine.retention.policy import Kept, choose
from nexus_engine.store import Store
from nexus_engine.types import ROOT_INO, Actor, Ino, Path, Seq

Progress = Callable[[int, int], None]
"""(inodes done, of how many)."""

_INODES = 2000
"""A transaction drops the rows of so many inodes: other writers wait no longer than that."""
_MEMBERS = 200
"""Likewise of so many members of a class, one by one."""
_SECOND_NS = 10**9


class Plan(NamedTuple):
    """What a pruning keeps."""

    before: Kept
    kept: Kept
    pinned: frozenset[Seq]
    classes: list[tuple[Ino, Seq]]
    """(where a class begins, operation before which nothing is kept of it)."""

    @property
    def horizon(self) -> Horizon:
        return Horizon(self.kept.pruned_to)


def plan(store: Store, policy: Retention) -> Plan:
    """Work out what a pruning would keep now. Changes nothing."""
    connection = store.database.connection
    now_ns = store.clock.time_ns()
    pinned = retention_queries.pinned_moments(connection)
    before = _kept_now(connection)

    def seq_at(time_ns: int) -> Seq | None:
        return log_queries.find_seq_at(connection, time_ns)

    classes = [
        (ino, until)
        for rule in policy.classes
        for until in [seq_at(now_ns - seconds(rule.keep) * _SECOND_NS)]
        if until is not None
        for ino in _class_roots(store, rule)
    ]
    kept = choose(policy, before, pinned, seq_at, now_ns)
    return Plan(before, kept, frozenset(pinned), classes)


def _kept_now(connection: Connection) -> Kept:
    return Kept(retention_queries.pruned_to(connection), retention_queries.kept_moments(connection))


def _class_roots(store: Store, rule: ClassRule) -> Iterator[Ino]:
    for pattern in rule.names:
        yield from retention_queries.inodes_called(store.database.connection, pattern)
    for path in rule.paths:
        inode = store.reader.resolve(Path(path.strip("/").encode()))
        if inode is not None:
            yield inode.ino


def prune(store: Store, policy: Retention, actor: Actor, progress: Progress | None = None) -> int:
    """Let go of what the policy does not keep. Safe to be interrupted and run again.

    Returns:
        How many rows went.
    """
    planned = plan(store, policy)
    store.transact(_announce, actor, planned)
    return drop(store, planned.horizon, progress)


@frees_space
def _announce(tx: Transaction, planned: Plan) -> None:
    connection = tx.connection
    if _kept_now(connection) != planned.before:
        raise errors.StoreBusy("another process is pruning")
    kept = planned.kept
    # A snapshot made meanwhile pins its moment: it was whole when it was named.
    pinned = planned.pinned.union(retention_queries.pinned_moments(connection))
    moments = sorted({*kept.moments, *pinned})
    retention_queries.set_kept(connection, kept.pruned_to, [(m, m in pinned) for m in moments])
    for ino, until in planned.classes:
        retention_queries.expire(connection, [ino], until)
    details = {"pruned_to": kept.pruned_to, "kept": len(moments), "classes": len(planned.classes)}
    tx.commit(Change("prune", ROOT_INO, Path(b""), details=details))


def foresee(store: Store, planned: Plan) -> tuple[int, int]:
    """Return how many rows a pruning would drop, and how many bytes nothing would name then.

    Without what classes let go of.
    """

    def count(database: Database) -> tuple[int, int]:
        connection = database.connection
        moments = {*planned.kept.moments, *planned.pinned}
        retention_queries.suppose_kept(connection, [(m, m in planned.pinned) for m in moments])
        rows = retention_queries.count_rows(connection, planned.horizon)
        return sum(rows.values()), retention_queries.unreachable_bytes(connection, planned.horizon)

    return store.with_reader(count)


def drop(store: Store, horizon: Horizon, progress: Progress | None = None) -> int:
    """Drop the rows that no kept moment sees.

    Returns:
        How many went.
    """
    connection = store.database.connection
    dropped = 0
    last = retention_queries.last_ino(connection)
    for first in range(0, last, _INODES):
        dropped += _in_transaction(
            store, retention_queries.drop_rows, Ino(first), Ino(first + _INODES - 1), horizon
        )
        if progress is not None:
            progress(min(first + _INODES, last), last)
    for root, until in retention_queries.expired_roots(connection):
        dropped += _drop_class(store, root, Horizon(until, only_pinned=True))
    return dropped


def _drop_class(store: Store, root: Ino, horizon: Horizon) -> int:
    dropped = _in_transaction(
        store, retention_queries.drop_rows, root, root, horizon, inside_only=True
    )
    below = sorted(retention_queries.inodes_below(store.database.connection, root))
    for at in range(0, len(below), _MEMBERS):
        members = below[at : at + _MEMBERS]
        dropped += _in_transaction(store, retention_queries.drop_rows_of, members, horizon)
    return dropped


def _in_transaction(
    store: Store, action: Callable[..., int], *args: object, **kwargs: object
) -> int:
    def run(connection: Connection) -> int:
        return action(connection, *args, **kwargs)

    return store.upkeep(store.database.in_transaction, run)
