"""Verbs about workspaces: make, list, review, apply, discard."""

from __future__ import annotations

from typing import Any

from nexus_engine import errors
from nexus_engine.commands import Reply, Work
from nexus_engine.commands.arguments import (
    MakeWorkspaceArguments,
    NoArguments,
    WorkspaceArguments,
    to_path,
    to_text,
)
from nexus_engine.commands.walking import find, may_list, require
from nexus_engine.history.workspaces.lifecycle import discard_workspace, make_workspace
from nexus_engine.meta import workspace_queries
from nexus_engine.meta.workspace_queries import Workspace
from nexus_engine.permissions.modes import READ, SEARCH, WRITE
from nexus_engine.types import ROOT_INO, Name, Path

DIRECTORY = "workspaces"
"""Where a workspace is that nobody chose a place for."""


def create(work: Work, args: MakeWorkspaceArguments) -> Reply:
    """Let a new directory begin as another one is now."""
    path, base = find(work.store, args.over, work.actor)
    require(work.store.reader, base, READ | SEARCH, path, work.actor)
    at = to_path(args.at if args.at is not None else f"{DIRECTORY}/{args.name}")
    _require_place(work, at)
    made = work.store.transact(make_workspace, work.actor, args.name, base.ino, at)
    return _facts(work, made)


def _require_place(work: Work, at: Path) -> None:
    """Refuse who may not make something at a path: in the last directory there is on the way."""
    reader = work.store.reader
    directory = reader.get_inode(ROOT_INO)
    for part in at.split(b"/")[:-1]:
        require(reader, directory, SEARCH, at, work.actor)
        child = reader.find_child(directory.ino, Name(part)) if directory.is_dir else None
        if child is None:
            break
        directory = child
    require(reader, directory, WRITE | SEARCH, at, work.actor)


def list_all(work: Work, args: NoArguments) -> Reply:
    """Return every workspace whose directory whoever asks may know of, oldest first."""
    found = workspace_queries.living_workspaces(work.store.database.connection)
    return {"workspaces": [_facts(work, each) for each in found if _may_know(work, each)]}


def _may_know(work: Work, workspace: Workspace) -> bool:
    path = work.store.reader.find_path(workspace.ino)
    return path is not None and may_list(work.store, path, work.actor)


def discard(work: Work, args: WorkspaceArguments) -> Reply:
    """Remove a workspace, with what was not applied of it."""
    found = named(work, args.name)
    reply = _facts(work, found)
    seq = work.store.transact(discard_workspace, work.actor, found, keep=work.keep)
    return reply | {"seq": seq}


def named(work: Work, name: str) -> Workspace:
    """Return the workspace of a name; of several, which an undo may bring about, the newest.

    Raises:
        NotFound: There is none.
    """
    found = workspace_queries.workspaces_called(work.store.database.connection, name)
    if not found:
        raise errors.NotFound(f"there is no workspace {name}; nexus-ctl workspace list shows all")
    return max(found, key=lambda workspace: workspace.made_seq)


def _facts(work: Work, workspace: Workspace) -> dict[str, Any]:
    reader = work.store.reader
    path, base = reader.find_path(workspace.ino), reader.find_path(workspace.base_ino)
    return {
        "name": workspace.name,
        "path": to_text(path or b""),
        "over": None if base is None else to_text(base),
        "as_of": workspace.base_seq,
        "uid": workspace.uid,
    }
