"""The arithmetic of undo: one cell, the changes it went through, and which of them are to go.

A cell is the smallest thing that an operation changes: what a name means, the mode of an inode,
its owner, its content, one extended attribute. Everything here is pure.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from nexus_engine.types import Seq

V = TypeVar("V", bound=Hashable)

BASE = Seq(0)
"""In place of a change: the value from before all changes considered."""


@dataclass(frozen=True, slots=True)
class Outcome(Generic[V]):
    """What to make of a cell."""

    target: V
    """The value that it should have."""
    target_seq: Seq
    """The change that gave it that value, or ``BASE``."""
    reverted: list[Seq]
    """Selected changes that going back to the target takes away."""
    superseded: dict[Seq, Seq]
    """Selected changes that somebody else has taken back already → who."""
    conflicts: dict[Seq, Seq]
    """Selected changes on top of which somebody else changed the cell → who."""
    others: list[Seq]
    """Changes outside the selection that stay."""


def settle(
    base: V, changes: Sequence[tuple[Seq, V]], is_selected: Callable[[Seq], bool]
) -> Outcome[V]:
    """Decide what becomes of a cell when the selected changes are undone.

    The cell goes back to before the last run of selected changes. Changes of others that cancel
    out (an edit and its undo) don't count, whatever they were.

    Args:
        base: The value before the first change.
        changes: (operation, value after it), in the order of the log.
    """
    if not changes:
        return Outcome(base, BASE, [], {}, {}, [])
    stack = _without_detours(base, changes, is_selected)
    reverted: list[Seq] = []
    superseded: dict[Seq, Seq] = {}
    while True:
        while stack and stack[-1][2]:
            reverted.append(stack.pop()[0])
        left = any(selected for _, _, selected in stack)
        level = _level_with(base, stack) if left else None
        if level is None:
            break
        superseded |= _covered(stack[level:])
        del stack[level:]
    return Outcome(
        target=stack[-1][1] if stack else base,
        target_seq=stack[-1][0] if stack else BASE,
        reverted=reverted,
        superseded=superseded,
        conflicts=_covered(stack) if left else {},
        others=[seq for seq, _, selected in stack if not selected],
    )


def settle_by_force(
    base: V, changes: Sequence[tuple[Seq, V]], is_selected: Callable[[Seq], bool]
) -> Outcome[V]:
    """Decide likewise, but undo with a selected change whatever came on top of it."""
    outcome = settle(base, changes, is_selected)
    if not outcome.conflicts:
        return outcome
    earliest = min(outcome.conflicts)
    return settle(base, changes, lambda seq: seq >= earliest or is_selected(seq))


def _without_detours(
    base: V, changes: Sequence[tuple[Seq, V]], is_selected: Callable[[Seq], bool]
) -> list[tuple[Seq, V, bool]]:
    """Drop each run of unselected changes that ends with the value that it began with."""
    stack: list[tuple[Seq, V, bool]] = []
    # Where the current run of unselected changes had which value, the one it began with included.
    heights: dict[V, int] = {base: 0}
    for seq, value in changes:
        selected = is_selected(seq)
        if not selected and value in heights:
            height = heights[value]
            for _, gone, _ in stack[height:]:
                heights.pop(gone, None)
            heights[value] = height
            del stack[height:]
            continue
        stack.append((seq, value, selected))
        if selected:
            heights = {}
        heights[value] = len(stack)
    return stack


def _level_with(base: V, stack: list[tuple[Seq, V, bool]]) -> int | None:
    """Return the height at which the cell had the value that it has on top, if it had."""
    value = stack[-1][1]
    for height in range(len(stack) - 1, 0, -1):
        if stack[height - 1][1] == value:
            return height
    return 0 if base == value else None


def _covered(stack: list[tuple[Seq, V, bool]]) -> dict[Seq, Seq]:
    """Return each selected change with the next unselected one above it."""
    covered = {}
    above = None
    for seq, _, selected in reversed(stack):
        if not selected:
            above = seq
        elif above is not None:
            covered[seq] = above
    return covered
