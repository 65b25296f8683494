"""Mending what is known of workspaces."""

from __future__ import annotations

from nexus_engine.meta import repair_queries, workspace_queries
from nexus_engine.repair.mending import Mending, Step


def shadows(mending: Mending) -> None:
    """What is there stays. What nobody looked at before is in the directory that it began as."""
    connection = mending.connection
    for ino in workspace_queries.lost_shadows(connection):
        workspace_queries.drop_shadow(connection, ino)
        mending.inode("shadow-orphan", ino, "is a file or directory like others")
    for ino in workspace_queries.contradicting_shadows(connection):
        workspace_queries.settle_shadow(connection, ino)
        mending.inode("shadow-entries", ino, "has the entries that it has")


def kept(mending: Mending) -> None:
    for name, seq in workspace_queries.unkept_moments(mending.connection):
        repair_queries.keep_snapshot(mending.connection, seq)
        mending.say("workspace-kept", f"workspace {name}", f"op-{seq} is kept from now on")


STEPS = (
    Step(frozenset({"shadow-orphan", "shadow-entries"}), shadows),
    Step(frozenset({"workspace-kept"}), kept),
)
