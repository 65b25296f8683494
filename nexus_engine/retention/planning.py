"""What a pruning would keep now: the policy, put to a store. Changes nothing."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import NamedTuple

import msgspec

from nexus_engine.config import ClassRule, Retention, bytes_of, seconds
from nexus_engine.meta import log_pruning_queries, log_queries, retention_queries, retention_rules
from nexus_engine.meta.connection import Connection
from nexus_engine.meta.database import Database
from nexus_engine.retention.policy import Kept, choose
from nexus_engine.store import Store
from nexus_engine.types import Ino, Path, Seq

_SECOND_NS = 10**9


class Plan(NamedTuple):
    """What a pruning keeps."""

    before: Kept
    kept: Kept
    pinned: frozenset[Seq]
    log_upto: Seq
    """The last operation whose record goes; 0: none does."""
    excess_bytes: int
    """How far history is above its limit all the same: the rest of it must stay."""

    @property
    def moments(self) -> list[Seq]:
        """Every moment before ``pruned_to`` that stays, ascending."""
        return sorted({*self.kept.moments, *self.pinned})


def plan(store: Store, policy: Retention) -> Plan:
    """Work out what a pruning would keep."""
    connection = store.database.connection
    now_ns = store.clock.time_ns()
    pinned = frozenset(retention_queries.pinned_moments(connection))
    before = kept_now(connection)

    def seq_at(time_ns: int) -> Seq | None:
        return log_queries.find_seq_at(connection, time_ns)

    kept = choose(policy, before, sorted(pinned), seq_at, now_ns)
    planned = Plan(before, kept, pinned, _log_upto(store, policy, kept.pruned_to, now_ns), 0)
    return planned if policy.max_history is None else _limit(store, policy, planned)


def kept_now(connection: Connection) -> Kept:
    return Kept(retention_queries.pruned_to(connection), retention_queries.kept_moments(connection))


def _log_upto(store: Store, policy: Retention, pruned_to: Seq, now_ns: int) -> Seq:
    """Return the last record that goes: none that some moment from ``pruned_to`` on needs."""
    connection = store.database.connection
    done, _ = log_pruning_queries.log_pruned(connection)
    if policy.keep_log is None:
        return done
    # A power loss is made good with the help of the records that are not on the disk yet.
    age_s = max(seconds(policy.keep_log), 2 * store.config.sync_interval_s)
    horizon = log_queries.find_seq_at(connection, now_ns - int(age_s * _SECOND_NS))
    return max(done, min(horizon or Seq(0), Seq(pruned_to - 1)))


def _limit(store: Store, policy: Retention, planned: Plan) -> Plan:
    """Give up the oldest moments until history takes no more than it may."""
    assert policy.max_history is not None
    disk = os.statvfs(store.path)
    limit = bytes_of(policy.max_history, disk.f_blocks * disk.f_frsize)

    def measure(database: Database) -> list[tuple[Seq, int]]:
        suppose(database.connection, policy, planned, store.clock.time_ns())
        return retention_queries.sizes_of_history(database.connection, planned.kept.pruned_to)

    sizes = store.with_reader(measure)
    total = sum(size for _, size in sizes)
    last = Seq(0)
    for moment, size in sizes:
        if total <= limit or moment == retention_queries.ALWAYS:
            break
        total -= size
        last = moment
    moments = [m for m in planned.kept.moments if m > last or m in planned.pinned]
    kept = planned.kept._replace(moments=moments)
    return planned._replace(kept=kept, excess_bytes=max(0, total - limit))


def suppose(connection: Connection, policy: Retention, planned: Plan, now_ns: int) -> None:
    """Have a connection see the rules of a policy, and the moments of a plan for those kept."""
    retention_queries.suppose_kept(connection, [(m, m in planned.pinned) for m in planned.moments])
    find_rules(connection, policy, planned.kept.pruned_to, now_ns)


def find_rules(connection: Connection, policy: Retention, whole_from: Seq, now_ns: int) -> None:
    """Find of which files and directories more is kept than of others, or less."""
    retention_rules.begin_rules(connection)
    retention_rules.keep_tagged(connection)
    versions: list[tuple[int, list[Ino]]] = []
    for rule in policy.classes:
        roots = list(_roots(connection, rule))
        if rule.max_versions is not None:
            versions.append((rule.max_versions, roots))
        if rule.keep is not None:
            until = log_queries.find_seq_at(connection, now_ns - seconds(rule.keep) * _SECOND_NS)
            for root in roots:
                retention_rules.keep_until(connection, root, until or Seq(0))
    for count, roots in versions:
        among = msgspec.json.encode(roots).decode()
        retention_rules.limit_versions(connection, count, retention_queries.ALWAYS, among)
    if policy.max_versions is not None:
        retention_rules.limit_versions(connection, policy.max_versions, whole_from)


def _roots(connection: Connection, rule: ClassRule) -> Iterator[Ino]:
    for pattern in rule.names:
        yield from retention_rules.inodes_called(connection, pattern)
    for path in rule.paths:
        ino = retention_rules.inode_at(connection, Path(path.strip("/").encode()))
        if ino is not None:
            yield ino
