"""Verbs that change the tree, or what is known of it: undo, redo, restore, snapshots, tags."""

from __future__ import annotations

from nexus_engine import errors
from nexus_engine.commands import Progress, Reply
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
from nexus_engine.commands.reading import TAG_PREFIX
from nexus_engine.commands.walking import find, moment, require, require_keeper
from nexus_engine.fs import attributes
from nexus_engine.history import restore as restoring
from nexus_engine.history import snapshots
from nexus_engine.permissions.modes import WRITE
from nexus_engine.store import Store
from nexus_engine.types import Actor, Inode, Path

CHANGES_SHOWN = 10_000
"""Changed paths that a reply names; it always has their number."""


def undo(store: Store, args: SelectionArguments, actor: Actor, progress: Progress) -> Reply:
    """Take operations back, or only say what that would change."""
    raise errors.NotSupported("undo")


def redo(store: Store, args: RedoArguments, actor: Actor, progress: Progress) -> Reply:
    """Take undos back."""
    raise errors.NotSupported("redo")


def restore(store: Store, args: RestoreArguments, actor: Actor, progress: Progress) -> Reply:
    """Bring a subtree back as it was."""
    require_keeper(store, actor)
    path, seq = to_path(args.path), moment(store, args.moment)
    to = None if args.to is None else to_path(args.to)
    done = restoring.restore(
        store,
        path,
        seq,
        actor,
        to=to,
        exact=args.exact,
        progress=lambda count: progress("restoring", count, None),
    )
    return {
        "path": args.path,
        "to": args.to,
        "as_of": seq,
        "seq": store.reader.head() if done else None,
        "change_count": len(done),
        "changes": [
            {"action": change.action, "path": to_text(change.path)}
            for change in done[:CHANGES_SHOWN]
        ],
    }


def create_snapshot(
    store: Store, args: SnapshotArguments, actor: Actor, progress: Progress
) -> Reply:
    """Name the present."""
    return {"name": args.name, "seq": snapshots.create(store, args.name, actor)}


def delete_snapshot(
    store: Store, args: SnapshotArguments, actor: Actor, progress: Progress
) -> Reply:
    """Drop a snapshot's name."""
    require_keeper(store, actor)
    snapshots.drop(store, args.name, actor)
    return {"name": args.name}


def set_tag(store: Store, args: TagArguments, actor: Actor, progress: Progress) -> Reply:
    """Set a tag: an extended attribute."""
    path, inode = _find_taggable(store, args.path, actor)
    name, value = _attribute_name(args.key), to_bytes(args.value)
    store.transact(attributes.set_xattr, actor, inode.ino, name, value)
    return {"path": to_text(path), "key": args.key, "value": args.value}


def remove_tag(store: Store, args: TagKeyArguments, actor: Actor, progress: Progress) -> Reply:
    """Remove a tag."""
    path, inode = _find_taggable(store, args.path, actor)
    name = _attribute_name(args.key)
    if store.reader.find_xattr(inode.ino, name) is None:
        raise errors.NoXattr(f"/{args.path} has no tag {args.key}")
    store.transact(attributes.remove_xattr, actor, inode.ino, name)
    return {"path": to_text(path), "key": args.key}


def _find_taggable(store: Store, text: str, actor: Actor) -> tuple[Path, Inode]:
    """Return what is at a path, if the actor may change its ``user.`` attributes.

    Source: xattr(7).
    """
    path, inode = find(store, text, actor)
    if not (inode.is_file or inode.is_dir):
        raise errors.OperationNotPermitted(f"only files and directories have tags: /{text}")
    require(inode, WRITE, path, actor)
    return path, inode


def _attribute_name(key: str) -> bytes:
    if not key or "\0" in key:
        raise errors.InvalidArgument("a tag needs a key")
    return TAG_PREFIX + to_bytes(key)
