"""Mending the counters of quotas."""

from __future__ import annotations

from nexus_engine.meta import quotas
from nexus_engine.repair.mending import Mending, Step


def counters(mending: Mending) -> None:
    """Count anew what is there."""
    for quota in quotas.all_quotas(mending.connection):
        if quotas.count(mending.connection, quota.ino) != quota.used:
            mending.tx.put_quota(quota.ino, quota.max_bytes, quota.max_inodes)
            mending.inode("quota-usage", quota.ino, "what is in its quota is counted anew")


STEPS = (Step(frozenset({"quota-usage"}), counters),)
