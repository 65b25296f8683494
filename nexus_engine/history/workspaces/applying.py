"""Apply: carry what changed in a workspace over into its base, as one operation.

No bytes are copied: the base refers to the same chunks. What is in conflict is left alone.
"""

from __future__ import annotations

import stat
from collections import Counter
from collections.abc import Callable, Collection, Container, Mapping
from typing import NamedTuple

from nexus_engine.fs.files import Locate, enter_chunks
from nexus_engine.fs.namespace import drop_link
from nexus_engine.history.subtrees import put_content, put_xattrs, xattrs_of
from nexus_engine.history.undo.rights import Rights
from nexus_engine.history.workspaces.changes import Item, Plan, plan_apply, resolved
from nexus_engine.history.workspaces.contents import CONTENT, MODE, OWNER, XATTR, InodeChange
from nexus_engine.history.workspaces.merging import Stored
from nexus_engine.history.workspaces.names import NameChange
from nexus_engine.history.workspaces.rights import require_applicable
from nexus_engine.meta import workspace_queries
from nexus_engine.meta.transaction import Transaction
from nexus_engine.meta.workspace_queries import Workspace
from nexus_engine.permissions.modes import SET_IDS
from nexus_engine.records import Change
from nexus_engine.types import Ino, Inode, Path, Seq

_PROGRESS_EVERY = 256

Progress = Callable[[int, int], None]
"""(changes done, of how many)."""


class Applied(NamedTuple):
    """What an apply did."""

    seq: Seq | None
    """``None``: there was nothing to do."""
    items: list[Item]
    """With those in conflict, which were left alone."""


def apply_workspace(
    tx: Transaction,
    workspace: Workspace,
    paths: Collection[Path] = (),
    *,
    groups: Collection[int] = (),
    merged: Mapping[Ino, Stored] | None = None,
    locate: Locate | None = None,
    keep: Container[Ino] = (),
    progress: Progress | None = None,
) -> Applied:
    """Rule: make the base what the workspace is, as far as it was changed there.

    Args:
        paths: In the workspace: these, what is below them and what that needs; none: all.
        groups: Further groups of the actor.
        merged: What was made of content in conflict: it becomes that of both sides, if these
            are still what it was made from.
        locate: Where chunks are that no operation named yet.
        keep: Inodes that stay usable without a name, because they are open.

    Raises:
        NotFound: The base is gone, or there is no such workspace.
        PermissionDenied: The actor could not do a part of it by hand; nothing is done.
    """
    plan = plan_apply(tx, tx.connection, tx.as_of, workspace, paths)
    usable = _usable(plan, merged or {})
    plan = resolved(plan, usable)
    rights = Rights(tx.actor, groups, tx)
    require_applicable(plan, rights, tx)
    work = _Application(tx, plan, rights, keep, progress)
    changed = work.run()
    for source, stored in usable.items():
        work.put_merged(source, stored, locate)
    if not changed:
        return Applied(None, plan.items)
    workspace_queries.add_applied(tx.connection, workspace, tx.seq)
    conflicts = sum(bool(item.conflict) for item in plan.items)
    details = {"name": workspace.name, "changed": changed, "conflicts": conflicts}
    path = tx.directory_path(workspace.base_ino)
    change = Change(
        "apply", workspace.base_ino, path, tx.any_path_of(workspace.ino), details=details
    )
    return Applied(tx.commit(change), plan.items)


def _usable(plan: Plan, merged: Mapping[Ino, Stored]) -> dict[Ino, Stored]:
    """Return what was merged from what both sides still are."""
    sides, usable = plan.sides, {}
    for change in plan.inodes:
        stored = merged.get(change.source)
        mine, theirs = sides.live(change.source), sides.live(change.ino)
        if stored is None or mine is None or theirs is None or CONTENT not in change.conflicts:
            continue
        if (mine.content_seq, theirs.content_seq) == (stored.merged.mine, stored.merged.theirs):
            usable[change.source] = stored
    return usable


class _Application:
    """One apply, inside its transaction."""

    def __init__(
        self,
        tx: Transaction,
        plan: Plan,
        rights: Rights,
        keep: Container[Ino],
        progress: Progress | None,
    ) -> None:
        self._tx = tx
        self._plan = plan
        self._rights = rights
        self._keep = keep
        self._progress = progress
        self._names = [change for change in plan.names if not change.conflict]
        self._made: dict[Ino, Ino] = {}
        """New inodes of the workspace, as the plan numbers them → of the base."""
        self._done = 0

    def run(self) -> int:
        """Make all changes; return how many things changed."""
        inodes = [change for change in self._plan.inodes if change.parts]
        total = len(self._names) + len(inodes)
        for change in self._names:
            if change.now:
                self._remove_name(change)
        links = Counter(change.after for change in self._names)
        for change in self._names:
            if change.after < 0 and change.after not in self._made:
                self._make(change, links[change.after])
        for change in self._names:
            if change.after:
                self._add_name(change)
            self._count(total)
        self._settle_links(links)
        for inode_change in inodes:
            self._change(inode_change)
            self._count(total)
        self._finish_directories()
        self._remember()
        self._tx.forget_paths()
        return total

    def _count(self, total: int) -> None:
        self._done += 1
        if self._progress is not None and self._done % _PROGRESS_EVERY == 0:
            self._progress(self._done, total)

    # -- names --

    def _remove_name(self, change: NameChange) -> None:
        tx = self._tx
        is_dir = tx.get_inode(change.now).is_dir
        tx.remove_dentry(change.parent, change.name)
        tx.touch_directory(change.parent, subdirectories=-1 if is_dir else 0)
        tx.add_touched(change.now, change.parent, change.name)

    def _add_name(self, change: NameChange) -> None:
        tx = self._tx
        parent = self._made.get(change.parent, change.parent)
        inode = tx.get_inode(self._made.get(change.after, change.after))
        tx.add_dentry(parent, change.name, inode)
        tx.touch_directory(parent, subdirectories=1 if inode.is_dir else 0)
        tx.add_touched(inode.ino, parent, change.name)

    def _settle_links(self, gains: Counter[Ino]) -> None:
        """Count names; what has none any more goes."""
        tx = self._tx
        losses = Counter(change.now for change in self._names)
        for ino in losses.keys() | gains.keys():
            if ino <= 0:
                continue
            inode = tx.get_inode(ino)
            tx.add_touched(ino)
            if inode.is_dir and losses[ino] > gains[ino]:
                tx.remove_inode(ino)
            elif inode.is_dir:
                tx.put_inode(inode._replace(ctime_ns=tx.now_ns, from_seq=tx.seq))
            else:
                # As if all but one of the names that go had gone before.
                nlink = inode.nlink + gains[ino] - losses[ino] + 1
                drop_link(tx, inode._replace(nlink=nlink), self._keep)

    # -- what is new --

    def _make(self, change: NameChange, links: int) -> None:
        """Make an inode of the base that is what a new one of the workspace is."""
        tx = self._tx
        source = tx.get_inode(change.source)
        ino = self._made[change.after] = tx.new_ino()
        inode = self._owned(source)._replace(
            ino=ino, from_seq=tx.seq, content_seq=tx.seq, ctime_ns=tx.now_ns, btime_ns=tx.now_ns,
            nlink=2 if source.is_dir else links,
        )  # fmt: skip
        tx.add_inode(inode)
        if source.is_file and source.size:
            tx.add_extents(ino, tx.extents(source.ino, 0, source.size))
        for name, value in xattrs_of(tx, source.ino).items():
            if self._rights.may_set_xattr(inode, name):
                tx.put_xattr(ino, name, value)
        tx.add_touched(ino)

    def _owned(self, source: Inode) -> Inode:
        """Return an inode with the owner that the actor may give to what he makes."""
        actor = self._tx.actor
        own = source._replace(uid=actor.uid)
        if self._rights.may_give(own, (source.uid, source.gid)):
            return source
        return own._replace(gid=actor.gid, mode=source.mode & ~SET_IDS)

    def _finish_directories(self) -> None:
        """Put times on new directories once what is in them is in place: that set them."""
        tx = self._tx
        for source, ino in self._made.items():
            inode = tx.get_inode(ino)
            if inode.is_dir:
                mtime_ns = tx.get_inode(Ino(-source)).mtime_ns
                tx.put_inode(inode._replace(mtime_ns=mtime_ns, from_seq=tx.seq))

    def _remember(self) -> None:
        """Note what stands for what from now on."""
        tx, workspace = self._tx, self._plan.sides.workspace
        pairs = {Ino(-source): ino for source, ino in self._made.items()}
        pairs |= {source: ino for ino, source in self._plan.taken_for.items()}
        for source, ino in pairs.items():
            is_dir = tx.get_inode(source).is_dir
            workspace_queries.add_shadow(tx.connection, workspace, source, ino, is_dir=is_dir)

    # -- what changed --

    def put_merged(self, source: Ino, stored: Stored, locate: Locate | None) -> None:
        """Give both sides the content that was made of both."""
        tx = self._tx
        enter_chunks(tx, stored.extents, locate or (lambda _: None))
        for ino in (source, self._plan.sides.base(source)):
            put_content(tx, ino, stored.extents)
            inode = tx.get_inode(ino)._replace(
                size=len(stored.merged.content), mtime_ns=tx.now_ns, ctime_ns=tx.now_ns,
                content_seq=tx.seq, from_seq=tx.seq,
            )  # fmt: skip
            tx.put_inode(inode)
            tx.add_touched(ino)

    def _change(self, change: InodeChange) -> None:
        tx = self._tx
        source, inode = tx.get_inode(change.source), tx.get_inode(change.ino)
        if CONTENT in change.parts and change.source not in self._plan.merged:
            put_content(tx, inode.ino, tx.extents(source.ino, 0, source.size))
            inode = inode._replace(size=source.size, mtime_ns=source.mtime_ns, content_seq=tx.seq)
        if MODE in change.parts:
            inode = inode._replace(mode=stat.S_IFMT(inode.mode) | stat.S_IMODE(source.mode))
        if OWNER in change.parts:
            inode = inode._replace(uid=source.uid, gid=source.gid)
        if XATTR in change.parts:
            put_xattrs(tx, inode.ino, xattrs_of(tx, source.ino))
        tx.put_inode(inode._replace(ctime_ns=tx.now_ns, from_seq=tx.seq))
        tx.add_touched(inode.ino)
