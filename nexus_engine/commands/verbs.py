"""The verbs: which arguments each takes, and the function that carries it out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from nexus_engine import errors
from nexus_engine.check.garbage import find_garbage
from nexus_engine.commands import (
    Reply,
    Request,
    Work,
    arguments,
    attaching,
    changing,
    checking,
    limiting,
    reading,
    retaining,
    workspaces,
)
from nexus_engine.commands.arguments import Arguments, parse_arguments
from nexus_engine.meta.connection import GARBAGE

# Each takes its own kind of arguments, which a table of all of them cannot say.
Verb = Callable[[Work, Any], Reply]


class Entry(NamedTuple):
    arguments: type[Arguments]
    run: Verb
    changes: bool = False
    """Whether it can change the store."""


VERBS = {
    "status": Entry(arguments.NoArguments, reading.status),
    "stats": Entry(arguments.NoArguments, reading.stats),
    "log": Entry(arguments.LogArguments, reading.log),
    "history": Entry(arguments.HistoryArguments, reading.history),
    "versions": Entry(arguments.PathArguments, reading.versions),
    "diff": Entry(arguments.DiffArguments, reading.diff),
    "undo": Entry(arguments.SelectionArguments, changing.undo, changes=True),
    "redo": Entry(arguments.RedoArguments, changing.redo, changes=True),
    "restore": Entry(arguments.RestoreArguments, changing.restore, changes=True),
    "snapshot-create": Entry(arguments.SnapshotArguments, changing.create_snapshot, changes=True),
    "snapshot-list": Entry(arguments.NoArguments, reading.list_snapshots),
    "snapshot-delete": Entry(arguments.SnapshotArguments, changing.delete_snapshot, changes=True),
    "tag-set": Entry(arguments.TagArguments, changing.set_tag, changes=True),
    "tag-list": Entry(arguments.PathArguments, reading.list_tags),
    "tag-remove": Entry(arguments.TagKeyArguments, changing.remove_tag, changes=True),
    "quota-set": Entry(arguments.QuotaArguments, limiting.set_limits, changes=True),
    "quota-list": Entry(arguments.NoArguments, limiting.list_limits),
    "quota-remove": Entry(arguments.PathArguments, limiting.remove_limits, changes=True),
    "workspace-create": Entry(arguments.MakeWorkspaceArguments, workspaces.create, changes=True),
    "workspace-list": Entry(arguments.NoArguments, workspaces.list_all),
    "workspace-status": Entry(arguments.ReviewArguments, workspaces.status),
    "workspace-diff": Entry(arguments.PatchArguments, workspaces.diff),
    "workspace-apply": Entry(arguments.ApplyArguments, workspaces.apply, changes=True),
    "workspace-discard": Entry(arguments.WorkspaceArguments, workspaces.discard, changes=True),
    "mounts-add": Entry(arguments.MountsAddArguments, attaching.add, changes=True),
    "mounts-list": Entry(arguments.NoArguments, attaching.list_all),
    "mounts-info": Entry(arguments.PathArguments, attaching.info),
    "mounts-refresh": Entry(arguments.PathArguments, attaching.refresh, changes=True),
    "mounts-remove": Entry(arguments.MountsRemoveArguments, attaching.remove, changes=True),
    "verify-log": Entry(arguments.NoArguments, checking.verify_log),
    "fsck": Entry(arguments.FsckArguments, checking.fsck),
    "repair": Entry(arguments.FsckArguments, checking.repair, changes=True),
    "prune": Entry(arguments.PruneArguments, retaining.prune, changes=True),
    "purge": Entry(arguments.PurgeArguments, retaining.purge, changes=True),
    "gc": Entry(arguments.NoArguments, retaining.collect, changes=True),
}


def carry_out(work: Work, request: Request) -> Reply:
    """Check the arguments of a request, and do what it asks.

    Raises:
        InvalidCommand: No such verb, or arguments that do not fit it.
        CorruptMetadata: A row holds what no row can hold.
        EngineError: As the verb has it.
    """
    entry = VERBS.get(request.verb)
    if entry is None:
        raise errors.InvalidCommand(f"no such command: {request.verb!r}; there are {_names()}")
    arguments = parse_arguments(request, entry.arguments)
    try:
        return entry.run(work, arguments)
    except GARBAGE as error:
        damage = find_garbage(work.store.database)
        if damage is None:
            raise
        raise damage from error


def _names() -> str:
    return ", ".join(VERBS)
