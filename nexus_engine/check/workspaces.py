"""Invariants of workspaces: what nobody looked at can still be had."""

from __future__ import annotations

from collections.abc import Iterator

from nexus_engine.check.naming import inode_name
from nexus_engine.check.problems import REPAIR, Invariant, Problem
from nexus_engine.meta import workspace_queries
from nexus_engine.store import Store


def shadows_belong_to_workspaces(store: Store) -> Iterator[Problem]:
    connection = store.database.connection
    for ino in workspace_queries.lost_shadows(connection):
        message = f"is of a workspace that nobody knows: {REPAIR}, as far as it can"
        yield Problem("shadow-orphan", inode_name(connection, ino), message)


def pending_directories_have_no_rows(store: Store) -> Iterator[Problem]:
    connection = store.database.connection
    for ino in workspace_queries.contradicting_shadows(connection):
        message = f"has entries, and is said to have those that its workspace began with: {REPAIR}"
        yield Problem("shadow-entries", inode_name(connection, ino), message)


def bases_are_kept(store: Store) -> Iterator[Problem]:
    for name, seq in workspace_queries.unkept_moments(store.database.connection):
        message = f"began at op-{seq}, which is not among the moments that are kept: {REPAIR}"
        yield Problem("workspace-kept", f"workspace {name}", message)


INVARIANTS = (
    Invariant("workspaces", shadows_belong_to_workspaces),
    Invariant("entries of workspaces", pending_directories_have_no_rows),
    Invariant("moments that workspaces began at", bases_are_kept),
)
