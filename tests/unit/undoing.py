"""What tests of undo share: a small tree, and undo as a person would ask for it."""

from __future__ import annotations

from nexus_engine.history.select import Selector, select, select_redo
from nexus_engine.history.undo import UndoPlan, UndoResult, apply_undo, plan_undo
from nexus_engine.types import Actor, Seq
from tests.unit.worlds import ALICE, BOB, World

ROOT = Actor(0, 0, 1, 1, "nexus-ctl", 1, "")


async def fill(world: World) -> None:
    """Make the tree that most tests start from."""
    await world.mkdir("docs")
    await world.mkdir("docs/old")
    await world.write("docs/a", b"first a")
    await world.write("docs/b", b"first b")
    await world.write("docs/old/c", b"first c")
    await world.link("docs/a", "docs/old/a2")
    await world.symlink("docs/s", b"a")
    await world.setxattr("docs/a", b"user.color", b"red")


def as_bob(world: World) -> None:
    world.actor = BOB


def as_alice(world: World) -> None:
    world.actor = ALICE


def plan(world: World, selector: Selector, *, force: bool = False) -> UndoPlan:
    return plan_undo(world.store, select(world.database, selector), actor=ROOT, force=force)


def undo(world: World, selector: Selector, *, force: bool = False) -> UndoResult:
    seqs = select(world.database, selector)
    return apply_undo(world.store, seqs, actor=ROOT, force=force)


def undo_since(world: World, seq: Seq, *, force: bool = False) -> UndoResult:
    return undo(world, Selector(since_seq=seq), force=force)


def undo_of(world: World, who: Actor, since: Seq, *, force: bool = False) -> UndoResult:
    return undo(world, Selector(agent=who.agent, since_seq=since), force=force)


def redo(world: World, last: int = 1) -> UndoResult:
    seqs = select_redo(world.database, Selector(last=last))
    return apply_undo(world.store, seqs, actor=ROOT)


def told(plan: UndoPlan) -> list[tuple[str, bytes]]:
    return [(item.action, item.path) for item in plan.items]


def conflicts(plan: UndoPlan) -> list[tuple[bytes, str, str]]:
    return [(c.path, c.what, c.by.agent if c.by is not None else "") for c in plan.conflicts]
