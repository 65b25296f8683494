"""Verbs about workspaces: make, list, review, apply, discard."""

from __future__ import annotations

from typing import Any

from nexus_engine import errors
from nexus_engine.commands import Reply, Work, outside
from nexus_engine.commands.arguments import (
    ApplyArguments,
    MakeWorkspaceArguments,
    NoArguments,
    PatchArguments,
    ReviewArguments,
    WorkspaceArguments,
    to_path,
    to_text,
)
from nexus_engine.commands.changing import HIDDEN
from nexus_engine.commands.walking import find, groups_of, is_keeper, may_list, reach, require
from nexus_engine.history.subtrees import join
from nexus_engine.history.workspaces.applying import apply_workspace
from nexus_engine.history.workspaces.changes import Item, Plan, plan_apply, resolved
from nexus_engine.history.workspaces.lifecycle import (
    check_workspace_name,
    discard_workspace,
    make_workspace,
)
from nexus_engine.history.workspaces.merging import Merged, merge_conflicts, store_merged
from nexus_engine.history.workspaces.reviewing import patch_of
from nexus_engine.meta import workspace_queries
from nexus_engine.meta.workspace_queries import Workspace
from nexus_engine.permissions.modes import READ, SEARCH, WRITE
from nexus_engine.types import ROOT_INO, Ino, Name, Path

PATCH_BYTES = 8 << 20
"""Of text in one reply to ``diff``, about; who wants more asks again."""
PATCHES_MAX = 10_000
_NOTHING_DONE = {"seq": None, "dry_run": True}


def create(work: Work, args: MakeWorkspaceArguments) -> Reply:
    """Let a new directory begin as another one is now."""
    at = to_path(args.at if args.at is not None else f"{outside.DIRECTORY}/{args.name}")
    check_workspace_name(args.name)
    _require_place(work, at)
    if args.url is None:
        return _create(work, args, args.over, at)
    with outside.base_at(work, args.url) as over:
        return _create(work, args, over, at)


def _create(work: Work, args: MakeWorkspaceArguments, over: str, at: Path) -> Reply:
    path, base = find(work.store, over, work.actor)
    require(work.store.reader, base, READ | SEARCH, path, work.actor)
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
    own = workspace.uid == work.actor.uid
    return path is not None and (own or may_list(work.store, path, work.actor))


def status(work: Work, args: ReviewArguments) -> Reply:
    """Return what is different in a workspace: what an apply would do, and conflicts."""
    found = named(work, args.name)
    plan = _plan(work, found, args)
    return _facts(work, found) | _items(_Shown(work, found), plan.items)


def diff(work: Work, args: PatchArguments) -> Reply:
    """Return changes with the text that goes and comes, as many as fit in a reply.

    ``next`` is what to skip for those that come after, ``None`` where these are the last.
    """
    found = named(work, args.name)
    plan = _plan(work, found, args)
    shown = _Shown(work, found)
    changes: list[dict[str, Any]] = []
    size = 0
    for item in plan.items[args.skip :]:
        text = patch_of(work.store, plan, item) if shown.may_read(item) else ""
        changes.append(shown.fields(item) | {"patch": text})
        size += len(text)
        if size > PATCH_BYTES or len(changes) >= PATCHES_MAX:
            break
    end = args.skip + len(changes)
    more = end if end < len(plan.items) else None
    return {"name": found.name, "changes": changes, "next": more}


def apply(work: Work, args: ApplyArguments) -> Reply:
    """Carry what changed in a workspace over into the base; conflicts are left alone."""
    found = named(work, args.name)
    source = outside.attachment_of(work, found)
    if source is not None:
        outside.refresh(work, source)
    merged: dict[Ino, Merged] = {}
    if args.dry_run or args.merge:
        plan = _plan(work, found, args)
        if args.merge:
            merged = merge_conflicts(work.store, plan)
        if args.dry_run:
            items = resolved(plan, merged.keys()).items
            return _facts(work, found) | _items(_Shown(work, found), items) | _NOTHING_DONE
    stored = store_merged(work.store, merged)
    done = work.store.transact(
        apply_workspace,
        work.actor,
        found,
        _paths(args),
        groups=groups_of(work.actor),
        merged=stored,
        locate=work.store.locate,
        keep=work.keep,
        progress=lambda done, total: work.progress("applying", done, total),
    )
    digests = [extent.digest for each in stored.values() for extent in each.extents]
    work.store.chunks.forget_pending(digests)
    reply = _facts(work, found) | _items(_Shown(work, found), done.items)
    if source is not None and done.seq is not None:
        reply["source"] = outside.push(work, source)
    return reply | {"seq": done.seq, "dry_run": False}


def _plan(work: Work, workspace: Workspace, args: ReviewArguments) -> Plan:
    database = work.store.database
    return plan_apply(database.reader, database.connection, database.as_of, workspace, _paths(args))


def _paths(args: ReviewArguments) -> list[Path]:
    return [to_path(path.strip("/")) for path in args.paths]


def _items(shown: _Shown, items: list[Item]) -> dict[str, Any]:
    return {
        "change_count": sum(not item.conflict for item in items),
        "changes": [shown.fields(item) for item in items if not item.conflict],
        "conflicts": [shown.fields(item) for item in items if item.conflict],
    }


class _Shown:
    """What whoever asks may know of a workspace: names in directories that he may list."""

    def __init__(self, work: Work, workspace: Workspace) -> None:
        self._work = work
        self._all = is_keeper(work.store, work.actor)
        reader = work.store.reader
        tops = (reader.find_path(ino) for ino in (workspace.ino, workspace.base_ino))
        self._tops = [top for top in tops if top is not None]
        self._known: dict[Path, bool] = {}

    def fields(self, item: Item) -> dict[str, Any]:
        return {
            "change": item.kind,
            "path": self._text(item.path),
            "path2": None if item.path2 is None else self._text(item.path2),
            "conflict": item.conflict or None,
        }

    def _text(self, path: Path) -> str:
        return to_text(path) if self._all or self._may_list(path) else HIDDEN

    def _may_list(self, path: Path) -> bool:
        directory = Path(path.rpartition(b"/")[0])
        known = self._known.get(directory)
        if known is None:
            store, actor = self._work.store, self._work.actor
            places = [join(top, path) if top else path for top in self._tops]
            known = any(may_list(store, place, actor) for place in places)
            self._known[directory] = known
        return known

    def may_read(self, item: Item) -> bool:
        """Tell whether text of an item may be shown: where both sides can be read today."""
        if self._all:
            return True
        store, actor = self._work.store, self._work.actor
        found = False
        for top in self._tops:
            for path in {item.path, item.path2 or item.path}:
                place = join(top, path) if top else path
                try:
                    require(store.reader, reach(store.reader, place, actor), READ, place, actor)
                except errors.NotFound:
                    continue
                except errors.PermissionDenied:
                    return False
                found = True
        return found


def discard(work: Work, args: WorkspaceArguments) -> Reply:
    """Remove a workspace, with what was not applied of it."""
    found = named(work, args.name)
    reply = _facts(work, found)
    attached = outside.unneeded(work, found)
    seq = work.store.transact(
        discard_workspace, work.actor, found, keep=work.keep, attached=attached
    )
    return reply | {"seq": seq, "detached": attached is not None}


def named(work: Work, name: str) -> Workspace:
    """Return the workspace of a name; of several, which an undo may bring about, the newest.

    Raises:
        NotFound: There is none that whoever asks may know of.
    """
    called = workspace_queries.workspaces_called(work.store.database.connection, name)
    found = [each for each in called if _may_know(work, each)]
    if not found:
        raise errors.NotFound(f"there is no workspace {name}; nexus-ctl workspace list shows all")
    return max(found, key=lambda workspace: workspace.made_seq)


def _facts(work: Work, workspace: Workspace) -> dict[str, Any]:
    reader = work.store.reader
    path, base = reader.find_path(workspace.ino), reader.find_path(workspace.base_ino)
    over = None if base is None else _shown_to(work, base)
    return {
        "name": workspace.name,
        "path": to_text(path or b""),
        "over": over,
        "url": None if over in (None, HIDDEN) else outside.url_of(work, workspace),
        "as_of": workspace.base_seq,
        "uid": workspace.uid,
    }


def _shown_to(work: Work, path: Path) -> str:
    return to_text(path) if may_list(work.store, path, work.actor) else HIDDEN
