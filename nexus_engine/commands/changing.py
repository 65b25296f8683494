"""Verbs that change the tree, or what is known of it: undo, redo, restore, snapshots, tags."""

from __future__ import annotations

from typing import Any

from nexus_engine import errors
from nexus_engine.commands import Reply, Work
from nexus_engine.commands.arguments import (
    RedoArguments,
    RestoreArguments,
    SelectionArguments,
    SnapshotArguments,
    TagArguments,
    TagKeyArguments,
    to_bytes,
    to_path,
    to_text,
)
from nexus_engine.commands.reading import TAG_PREFIX, iso_time
from nexus_engine.commands.walking import find, groups_of, may_list, moment, require, require_keeper
from nexus_engine.fs import attributes
from nexus_engine.history import restore as restoring
from nexus_engine.history import snapshots
from nexus_engine.history.select import Selector, select, select_redo
from nexus_engine.history.undo import Conflict, Item, apply_undo, plan_undo
from nexus_engine.history.undo.plan import REMOVE
from nexus_engine.permissions.modes import WRITE
from nexus_engine.store import Store
from nexus_engine.types import Actor, Inode, Path, Seq

_ACTOR_FIELDS = ("uid", "pid", "command", "agent", "principal")
HIDDEN = "(hidden)"
"""Stands for a path in a directory that whoever asks may not list."""
CHANGES_SHOWN = 10_000
"""Changed paths that a reply names; it always has their number."""


def undo(work: Work, args: SelectionArguments) -> Reply:
    """Take operations back, or only say what that would change."""
    selector = Selector(
        ops=tuple(map(Seq, args.operations)),
        last=args.last,
        since_seq=None if args.since is None else moment(work.store, args.since),
        until_seq=None if args.until is None else moment(work.store, args.until),
        path=None if args.path is None else to_path(args.path),
        pid=args.pid,
        session=args.session,
        agent=args.agent,
    )
    found = select(work.store.database, selector)
    return _undo(work, found, selector, force=args.force, dry_run=args.dry_run)


def redo(work: Work, args: RedoArguments) -> Reply:
    """Take undos back."""
    selector = Selector(ops=tuple(map(Seq, args.operations)), last=args.last)
    found = select_redo(work.store.database, selector)
    reply = _undo(work, found, selector, force=args.force, dry_run=args.dry_run)
    return reply | {"redo": True}


def _undo(work: Work, seqs: list[Seq], selector: Selector, *, force: bool, dry_run: bool) -> Reply:
    if not seqs:
        raise errors.NothingToUndo("no operation matches that is not undone already")
    groups = groups_of(work.actor)
    plan = plan_undo(work.store, seqs, actor=work.actor, force=force, groups=groups)
    seq = None
    if not dry_run:
        result = apply_undo(
            work.store,
            plan,
            actor=work.actor,
            force=force,
            groups=groups,
            selector=selector.summary(),
            keep=work.keep,
            progress=lambda done, total: work.progress("undoing", done, total),
        )
        seq, plan = result.seq, result.plan
    # What goes comes first: that is what somebody who looks before wants to know.
    items = sorted(plan.items, key=lambda item: item.action != REMOVE)
    return {
        "redo": False,
        "dry_run": dry_run,
        "seq": seq,
        "operations": len(plan.operations),
        "reverted": len(plan.reverted),
        "change_count": len(items),
        "changes": [_change(item) for item in (items if dry_run else items[:CHANGES_SHOWN])],
        "conflicts": [
            _conflict(conflict, shown=may_list(work.store, conflict.path, work.actor))
            for conflict in plan.conflicts
        ],
    }


def _change(item: Item) -> dict[str, Any]:
    return {
        "action": item.action,
        "path": to_text(item.path),
        "path2": None if item.path2 is None else to_text(item.path2),
        "detail": item.detail,
    }


def _conflict(conflict: Conflict, *, shown: bool) -> dict[str, Any]:
    """Return what was left alone; ``by`` is who is in the way, and since when.

    Args:
        shown: Whoever asks may know of the path.
    """
    by = conflict.by
    return {
        "seq": conflict.seq,
        "path": to_text(conflict.path) if shown else HIDDEN,
        "what": conflict.what,
        "reason": conflict.reason,
        "by": None
        if by is None
        else {
            "seq": by.seq,
            "kind": by.kind,
            "time_ns": by.time_ns,
            "time": iso_time(by.time_ns),
            "actor": {field: getattr(by, field) for field in _ACTOR_FIELDS},
        },
    }


def restore(work: Work, args: RestoreArguments) -> Reply:
    """Bring a subtree back as it was."""
    require_keeper(work.store, work.actor)
    path, seq = to_path(args.path), moment(work.store, args.moment)
    to = None if args.to is None else to_path(args.to)
    done = restoring.restore(
        work.store,
        path,
        seq,
        work.actor,
        to=to,
        exact=args.exact,
        keep=work.keep,
        progress=lambda count: work.progress("restoring", count, None),
    )
    return {
        "path": args.path,
        "to": args.to,
        "as_of": seq,
        "seq": work.store.reader.head() if done else None,
        "change_count": len(done),
        "changes": [
            {"action": change.action, "path": to_text(change.path)}
            for change in done[:CHANGES_SHOWN]
        ],
    }


def create_snapshot(work: Work, args: SnapshotArguments) -> Reply:
    """Name the present."""
    return {"name": args.name, "seq": snapshots.create(work.store, args.name, work.actor)}


def delete_snapshot(work: Work, args: SnapshotArguments) -> Reply:
    """Drop a snapshot's name."""
    snapshots.drop(work.store, args.name, work.actor)
    return {"name": args.name}


def set_tag(work: Work, args: TagArguments) -> Reply:
    """Set a tag: an extended attribute."""
    path, inode = _find_taggable(work.store, args.path, work.actor)
    name, value = _attribute_name(args.key), to_bytes(args.value)
    work.store.transact(attributes.set_xattr, work.actor, inode.ino, name, value)
    return {"path": to_text(path), "key": args.key, "value": args.value}


def remove_tag(work: Work, args: TagKeyArguments) -> Reply:
    """Remove a tag."""
    path, inode = _find_taggable(work.store, args.path, work.actor)
    name = _attribute_name(args.key)
    if work.store.reader.find_xattr(inode.ino, name) is None:
        raise errors.NoXattr(f"/{args.path} has no tag {args.key}")
    work.store.transact(attributes.remove_xattr, work.actor, inode.ino, name)
    return {"path": to_text(path), "key": args.key}


def _find_taggable(store: Store, text: str, actor: Actor) -> tuple[Path, Inode]:
    """Return what is at a path, if the actor may change its ``user.`` attributes.

    Source: xattr(7).
    """
    path, inode = find(store, text, actor)
    if not (inode.is_file or inode.is_dir):
        raise errors.OperationNotPermitted(f"only files and directories have tags: /{text}")
    require(store.reader, inode, WRITE, path, actor)
    return path, inode


def _attribute_name(key: str) -> bytes:
    if not key or "\0" in key:
        raise errors.InvalidArgument("a tag needs a key")
    return TAG_PREFIX + to_bytes(key)
