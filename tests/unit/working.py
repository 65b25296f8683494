"""What tests of workspaces share."""

from __future__ import annotations

import stat
from typing import Any

from nexus_engine.history.workspaces.applying import Applied, apply_workspace
from nexus_engine.history.workspaces.changes import plan_apply
from nexus_engine.history.workspaces.lifecycle import discard_workspace, make_workspace
from nexus_engine.meta.workspace_queries import Workspace
from nexus_engine.types import Actor, Seq
from tests.unit.undoing import ROOT
from tests.unit.worlds import ALICE, World, to_path

_NLINK, _MTIME = 3, 5


def make(
    world: World, name: str, over: str, *, at: str | None = None, actor: Actor = ALICE
) -> Workspace:
    """Make a workspace, by default right below the root."""
    place = to_path(name.encode(errors="surrogateescape") if at is None else at)
    base = world.inode(over).ino
    return world.store.transact(make_workspace, actor, name, base, place)


def discard(world: World, workspace: Workspace, *, actor: Actor = ALICE) -> Seq:
    return world.store.transact(discard_workspace, actor, workspace)


def apparent(
    world: World, path: str, at: Seq | None = None, *, times: bool = True
) -> dict[bytes, tuple[Any, ...]]:
    """Return what a program sees of a tree but for link counts of files."""
    seen = {}
    for below, values in world.tree(path, at).items():
        links = values[_NLINK] if stat.S_ISDIR(values[0]) else None
        mtime = values[_MTIME] if times else None
        seen[below] = (*values[:_NLINK], links, values[_NLINK + 1], mtime, *values[_MTIME + 1 :])
    return seen


def rows(world: World) -> int:
    """Return how many inodes there are."""
    row = world.database.connection.one("SELECT count(*) FROM inode")
    assert row is not None
    return int(row[0])


def status(world: World, workspace: Workspace) -> list[tuple[str, bytes]]:
    """Return (kind, path) of what is different; a path in conflict begins with a ``!``."""
    planned = plan_apply(
        world.store.reader, world.database.connection, world.database.as_of, workspace
    )
    return [
        (item.kind, (b"!" if item.conflict else b"") + (item.path2 or item.path))
        for item in planned.items
    ]


def apply(world: World, workspace: Workspace, *paths: str, actor: Actor = ROOT) -> Applied:
    return world.store.transact(apply_workspace, actor, workspace, [to_path(p) for p in paths])
