"""What a change of a workspace does to the text of a file."""

from __future__ import annotations

from nexus_engine.history.diff import patch, read_text
from nexus_engine.history.workspaces.changes import ADDED, MODIFIED, REMOVED, Item, Plan
from nexus_engine.history.workspaces.contents import CONTENT, iter_agreed
from nexus_engine.meta.reader import View
from nexus_engine.store import Store
from nexus_engine.types import Ino, Inode

Side = tuple[View, Inode]


def patch_of(store: Store, plan: Plan, item: Item) -> str:
    """Return the unified diff from the base to the workspace of one item; "" where none matters.

    Of a conflict: from what the base was before both changed it.
    """
    old, new = _sides(plan, item)
    if not any(side is not None and not side[1].is_dir for side in (old, new)):
        return ""
    path = (item.path2 or item.path).decode(errors="backslashreplace")
    old_name = None if old is None else f"base/{path}"
    new_name = None if new is None else f"{plan.sides.workspace.name}/{path}"
    before, after = ("" if side is None else read_text(store, *side) for side in (old, new))
    return "".join(patch(before, after, old_name, new_name))


def _sides(plan: Plan, item: Item) -> tuple[Side | None, Side | None]:
    sides = plan.sides
    if item.kind == REMOVED:
        return _live(plan, item.ino), None
    if item.kind == ADDED and item.ino < 0:
        return None, _live(plan, item.source)
    if item.kind != MODIFIED:
        return None, None
    expected = next(iter_agreed(sides, item.ino, CONTENT), None) if item.conflict else None
    return expected or _live(plan, item.ino), _live(plan, item.source)


def _live(plan: Plan, ino: Ino) -> Side | None:
    inode = plan.sides.live(ino)
    return None if inode is None else (plan.sides.now, inode)
