"""What a workspace changed of its base, and what of that can be applied."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Container, Iterator
from itertools import zip_longest
from typing import NamedTuple

from nexus_engine import errors
from nexus_engine.history.workspaces.contents import (
    CONTENT,
    MODE,
    OWNER,
    XATTR,
    InodeChange,
    are_same,
    compare,
)
from nexus_engine.history.workspaces.names import CHANGED, GONE, NameChange, NameChanges
from nexus_engine.history.workspaces.sides import Sides
from nexus_engine.history.workspaces.units import Units
from nexus_engine.meta.connection import Connection
from nexus_engine.meta.reader import AsOfReader, Reader
from nexus_engine.meta.workspace_queries import Workspace
from nexus_engine.types import NO_INO, Ino, Path, Seq

REMOVED = "removed"
ADDED = "added"
RENAMED = "renamed"
MODIFIED = "modified"
MERGED = "merged"

_KINDS = {CONTENT: MODIFIED, MODE: MODE, OWNER: OWNER, XATTR: XATTR}


class Item(NamedTuple):
    """One thing that is different in a workspace. A path may have several."""

    kind: str
    """removed, added, renamed, modified, mode, owner, xattr."""
    path: Path
    """In the workspace; before, where it was renamed."""
    path2: Path | None
    """After."""
    ino: Ino
    """In the base; negative: in the workspace, the base has nothing for it."""
    source: Ino
    """In the workspace; 0: removed."""
    conflict: str
    """Why it cannot be applied, if it cannot."""


class Plan(NamedTuple):
    """What an apply would do."""

    sides: Sides
    names: list[NameChange]
    inodes: list[InodeChange]
    taken_for: dict[Ino, Ino]
    """Something of the base → what is new in the workspace in its place."""
    items: list[Item]
    """What goes comes first."""
    merged: Container[Ino] = ()
    """Files of the workspace whose content becomes one that was made of both sides."""


def resolved(plan: Plan, merged: Collection[Ino]) -> Plan:
    """Return a plan with content that could be merged no longer in conflict."""

    def settle(change: InodeChange) -> InodeChange:
        if change.source not in merged or CONTENT not in change.conflicts:
            return change
        conflicts = tuple(part for part in change.conflicts if part != CONTENT)
        return change._replace(parts=(*change.parts, CONTENT), conflicts=conflicts)

    items = [
        item._replace(kind=MERGED, conflict="")
        if item.kind == MODIFIED and item.conflict and item.source in merged
        else item
        for item in plan.items
    ]
    inodes = [settle(change) for change in plan.inodes]
    return plan._replace(inodes=inodes, items=items, merged=merged)


def plan_apply(
    reader: Reader,
    connection: Connection,
    as_of: Callable[[Seq], AsOfReader],
    workspace: Workspace,
    paths: Collection[Path] = (),
) -> Plan:
    """Compare a workspace with its base. Changes nothing but what has to appear.

    Args:
        paths: In the workspace: these, what is below them and what that needs; none: all.

    Raises:
        NotFound: The base is gone.
    """
    sides = Sides(reader, connection, as_of, workspace)
    if sides.live(workspace.base_ino) is None:
        raise errors.NotFound(f"what workspace {workspace.name} began as is gone: an undo helps")
    names = NameChanges(sides)
    names.collect()
    units = Units(sides, names.changes.values())

    def is_chosen(path: Path) -> bool:
        return not paths or any(
            not chosen or path == chosen or path.startswith(chosen + b"/") for chosen in paths
        )

    chosen = units.choose(is_chosen)
    inodes = [change for change in _inode_changes(sides, names.replaced) if is_chosen(change.path)]
    items = [*_name_items(sides, chosen), *_inode_items(sides, inodes)]
    items.sort(key=lambda item: (item.kind != REMOVED, item.path, item.kind))
    return Plan(sides, chosen, inodes, names.replaced, items)


def _inode_changes(sides: Sides, replaced: dict[Ino, Ino]) -> Iterator[InodeChange]:
    seen: set[Ino] = set()
    for source in [*sides.changed_inodes(), *replaced.values()]:
        path, inode, ino = sides.any_path(source), sides.live(source), sides.base(source)
        if path is None or inode is None or ino < 0:
            continue
        base = sides.live(ino)
        if base is None:
            before = sides.then.find_inode(source)
            if before is None or not are_same((sides.then, before), (sides.now, inode)):
                yield InodeChange(source, ino, path, (), (CONTENT,))
            continue
        change = compare(sides, inode, base, path)
        if change is None:
            continue
        if ino in seen:
            change = change._replace(parts=(), conflicts=(*change.parts, *change.conflicts))
        seen.add(ino)
        yield change


# -- for people --


def _name_items(sides: Sides, chosen: list[NameChange]) -> Iterator[Item]:
    gained: dict[Ino, list[NameChange]] = defaultdict(list)
    lost: dict[Ino, list[NameChange]] = defaultdict(list)
    moved = {change.after for change in chosen}
    for change in chosen:
        if change.now and change.now not in moved and _is_another(sides, change):
            yield Item(MODIFIED, change.path, None, change.now, change.source, change.conflict)
            continue
        if change.after:
            gained[change.after].append(change)
        # What somebody else put there is not the workspace's to remove.
        if change.now and (
            not change.after or sides.expects(change.parent, change.name, change.now)
        ):
            lost[change.now].append(change)
    for ino in gained.keys() | lost.keys():
        for old, new in zip_longest(lost.get(ino, ()), gained.get(ino, ())):
            if old is None:
                yield Item(ADDED, new.path, None, ino, new.source, new.conflict)
            elif new is None:
                yield Item(REMOVED, old.path, None, ino, NO_INO, old.conflict)
            else:
                conflict = old.conflict or new.conflict
                yield Item(RENAMED, old.path, new.path, ino, new.source, conflict)


def _is_another(sides: Sides, change: NameChange) -> bool:
    """Tell whether something is replaced by something new of its type: a symlink, for instance."""
    old, new = sides.live(change.now), sides.live(change.source)
    if change.after >= 0 or old is None or new is None or old.is_dir:
        return False
    if not sides.expects(change.parent, change.name, change.now):
        return False
    return not (old.mode ^ new.mode) & 0o170000


def _inode_items(sides: Sides, changes: list[InodeChange]) -> Iterator[Item]:
    for change in changes:
        reason = GONE if sides.live(change.ino) is None else CHANGED
        for part in change.parts:
            yield Item(_KINDS[part], change.path, None, change.ino, change.source, "")
        for part in change.conflicts:
            yield Item(_KINDS[part], change.path, None, change.ino, change.source, reason)
