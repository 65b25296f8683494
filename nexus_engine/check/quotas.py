"""Invariants of quotas: the counters say what is there."""

from __future__ import annotations

from collections.abc import Iterator

from nexus_engine.check.problems import Invariant, Problem
from nexus_engine.meta import quotas
from nexus_engine.store import Store


def counters_are_right(store: Store) -> Iterator[Problem]:
    connection = store.database.connection
    for quota in quotas.all_quotas(connection):
        found = quotas.count(connection, quota.ino)
        if found != quota.used:
            yield Problem(
                "quota-usage",
                f"directory {quota.ino}",
                f"its quota counts {quota.used.bytes} bytes and {quota.used.inodes} inodes, there"
                f" are {found.bytes} and {found.inodes}: set the quota again, which counts anew",
            )


INVARIANTS = (Invariant("quotas", counters_are_right),)
