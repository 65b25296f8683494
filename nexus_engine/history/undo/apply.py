"""Write down what a plan says: one transaction, one record."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable
from typing import Any, Protocol

from nexus_engine.history.undo.changes import InodeChange
from nexus_engine.history.undo.plan import UndoPlan
from nexus_engine.meta.transaction import Transaction
from nexus_engine.records import Change
from nexus_engine.types import ROOT_INO, SIZE_MAX, Ino, Path, Seq

_PROGRESS_EVERY = 256


class Progress(Protocol):
    """Told now and then how far it is."""

    def __call__(self, done: int, total: int, /) -> None: ...


def write_plan(
    tx: Transaction,
    plan: UndoPlan,
    selector: dict[str, Any],
    keep: Container[Ino],
    progress: Progress | None,
) -> Seq:
    """Rule: make every change of the plan, as one ``undo`` operation."""
    total = len(plan.inodes) + len(plan.names)
    step = _stepper(progress, total)
    _write_names(tx, plan, step)
    for change in plan.inodes:
        _write_inode(tx, change, keep)
        step()
    tx.forget_paths()
    for seq in plan.reverted:
        tx.add_reversal(seq)
    if progress is not None:
        progress(total, total)
    return tx.commit(_record(plan, selector))


def _write_names(tx: Transaction, plan: UndoPlan, step: Callable[[], None]) -> None:
    # All that goes first, so that what comes finds its place free.
    for (parent, name), (now, _) in plan.names.items():
        if now:
            tx.remove_dentry(parent, name)
            tx.add_touched(now, parent, name)
    inodes = {change.ino: change.after or change.before for change in plan.inodes}
    for (parent, name), (_, after) in plan.names.items():
        if after:
            inode = inodes[after]
            assert inode is not None
            tx.add_dentry(parent, name, inode)
            tx.add_touched(after, parent, name)
        step()


def _write_inode(tx: Transaction, change: InodeChange, keep: Container[Ino]) -> None:
    ino, after = change.ino, change.after
    tx.add_touched(ino)
    if after is None:
        before = change.before
        if before is not None and not before.is_dir and ino in keep:
            tx.put_inode(before._replace(nlink=0, ctime_ns=tx.now_ns, from_seq=tx.seq))
        else:
            tx.remove_inode(ino)
        return
    if change.content_from is not None:
        _write_content(tx, ino, change.content_from)
    for name, value in change.xattrs:
        if value is None:
            tx.remove_xattr(ino, name)
        else:
            tx.put_xattr(ino, name, value)
    content_seq = tx.seq if change.new_content else after.content_seq
    tx.put_inode(after._replace(ctime_ns=tx.now_ns, from_seq=tx.seq, content_seq=content_seq))


def _write_content(tx: Transaction, ino: Ino, seq: Seq) -> None:
    """Make the extents what they were; those that are the same are left as they are."""
    then = tx.as_of(seq).extents(ino, 0, SIZE_MAX)
    now = tx.extents(ino, 0, SIZE_MAX)
    wanted, there = set(then), set(now)
    for extent in now:
        if extent not in wanted:
            tx.clear_extents(ino, extent.start, extent.end)
    tx.put_extents(ino, [extent for extent in then if extent not in there])


def _record(plan: UndoPlan, selector: dict[str, Any]) -> Change:
    details: dict[str, Any] = {"operations": len(plan.operations), **plan.counts()}
    if plan.redo:
        details["redo"] = True
    if selector:
        details["selector"] = selector
    undoes = plan.operations[0] if len(plan.operations) == 1 else None
    ino = plan.inodes[0].ino if plan.inodes else ROOT_INO
    paths = [path for item in plan.items for path in (item.path, item.path2) if path is not None]
    return Change("undo", ino, _common_path(paths), details=details, undoes=undoes)


def _common_path(paths: Iterable[Path]) -> Path:
    """Return the path that all are, or lie below."""
    ordered = sorted(path.split(b"/") for path in paths)
    if not ordered:
        return Path(b"")
    first, last = ordered[0], ordered[-1]
    common = []
    for ours, theirs in zip(first, last, strict=False):
        if ours != theirs:
            break
        common.append(ours)
    return Path(b"/".join(common))


def _stepper(progress: Progress | None, total: int) -> Callable[[], None]:
    done = 0

    def step() -> None:
        nonlocal done
        done += 1
        if progress is not None and done % _PROGRESS_EVERY == 0:
            progress(done, total)

    return step
