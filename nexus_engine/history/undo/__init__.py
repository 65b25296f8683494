"""Undo and redo: take back what operations did, as one more operation.

A redo is the undo of an undo: ``select_redo`` picks, the rest is the same.
"""

from __future__ import annotations

from collections.abc import Collection, Container, Sequence
from typing import Any, NamedTuple

from nexus_engine import errors
from nexus_engine.history.undo.apply import Progress, write_plan
from nexus_engine.history.undo.plan import Conflict, Item, UndoPlan, plan_undo
from nexus_engine.meta.transaction import Transaction
from nexus_engine.reserve import frees_space
from nexus_engine.store import Store
from nexus_engine.types import Actor, Ino, Seq

__all__ = ["Conflict", "Item", "Progress", "UndoPlan", "UndoResult", "apply_undo", "plan_undo"]


class UndoResult(NamedTuple):
    """What an undo did."""

    seq: Seq
    """The operation that it is."""
    plan: UndoPlan


def apply_undo(
    store: Store,
    wanted: Sequence[Seq] | UndoPlan,
    *,
    actor: Actor,
    force: bool = False,
    groups: Collection[int] = (),
    selector: dict[str, Any] | None = None,
    keep: Container[Ino] = (),
    progress: Progress | None = None,
) -> UndoResult:
    """Undo operations: all that the plan says in one transaction, or nothing.

    Blocks while another process writes. Programs that hold what changes open see it once the
    caches above the store have caught up with the operation.

    Args:
        wanted: Operations, or the plan of an earlier ``plan_undo``; it is made again if the log
            has grown since.
        selector: What was asked for, to be kept in the record.
        keep: Inodes that stay usable without a name, because they are open.
        progress: Told how many of how many changes are made.

    Raises:
        NothingToUndo: No operations, or everything is in conflict.
        InvalidSelector: There is no such operation.
    """
    if isinstance(wanted, UndoPlan):
        plan = wanted
    else:
        plan = plan_undo(store, wanted, actor=actor, force=force, groups=groups)

    @frees_space
    def undo(tx: Transaction) -> UndoResult:
        current = plan
        if tx.head_seq != plan.head:
            current = plan_undo(store, plan.operations, actor=actor, force=force, groups=groups)
        require_something(current)
        return UndoResult(write_plan(tx, current, selector or {}, keep, progress), current)

    # Refused before it waits for the right to write.
    require_something(plan)
    return store.transact(undo, actor)


def require_something(plan: UndoPlan) -> None:
    """Refuse a plan that does nothing.

    An operation that changed nothing counts as undone, so that the next one gets its turn.

    Raises:
        NothingToUndo: No operations, or everything is in conflict.
    """
    if not plan.operations:
        raise errors.NothingToUndo("no operation matches")
    if plan.reverted or plan.items:
        return
    if plan.conflicts:
        raise errors.NothingToUndo(
            f"all of it is in conflict with later changes ({len(plan.conflicts)});"
            " force would undo those too"
        )
    raise errors.NothingToUndo("nothing is left of it: others took it back already")
