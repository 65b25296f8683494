"""What somebody may apply: what he could carry over by hand, reading here and writing there."""

from __future__ import annotations

import stat

from nexus_engine import errors
from nexus_engine.history.subtrees import xattrs_of
from nexus_engine.history.undo.rights import Rights
from nexus_engine.history.workspaces.changes import Plan
from nexus_engine.history.workspaces.contents import CONTENT, MODE, OWNER, XATTR, InodeChange
from nexus_engine.history.workspaces.names import NameChange
from nexus_engine.meta.reader import Reader
from nexus_engine.types import ROOT_INO, Ino, Inode, Path


def require_applicable(plan: Plan, rights: Rights, reader: Reader) -> None:
    """Refuse an actor who may not do all of a plan.

    Raises:
        PermissionDenied: Names the first path that he may not apply.
    """
    if rights.is_root:
        return
    check = _Check(plan, rights, reader)
    for name in plan.names:
        if not name.conflict and not check.may_change_name(name):
            raise _refused(name.path)
    for change in plan.inodes:
        if change.parts and not check.may_change(change):
            raise _refused(change.path)


def _refused(path: Path) -> errors.PermissionDenied:
    shown = path.decode(errors="backslashreplace")
    return errors.PermissionDenied(f"no permission to apply {shown}; nothing was applied")


class _Check:
    def __init__(self, plan: Plan, rights: Rights, reader: Reader) -> None:
        self._sides = plan.sides
        self._merged = plan.merged
        self._rights = rights
        self._reader = reader
        self._reached: dict[Ino, bool] = {}

    def may_change_name(self, change: NameChange) -> bool:
        directory = self._sides.live(change.parent)
        now = self._sides.live(change.now) if change.now else None
        if directory is not None and not (
            self._reaches(directory.ino) and self._rights.may_change_name(directory, now)
        ):
            return False
        if change.after >= 0:
            return True
        source = self._reader.get_inode(change.source)
        return not _is_device(source) and self._may_read(source)

    def may_change(self, change: InodeChange) -> bool:
        rights = self._rights
        source, base = self._reader.get_inode(change.source), self._reader.get_inode(change.ino)
        if CONTENT in change.parts and not (self._may_read(source) and rights.may_write(base)):
            return False
        if change.source in self._merged and not rights.may_write(source):
            return False
        if MODE in change.parts and not rights.owns(base):
            return False
        if OWNER in change.parts and not rights.may_give(base, (source.uid, source.gid)):
            return False
        if XATTR in change.parts:
            mine, theirs = (xattrs_of(self._reader, inode.ino) for inode in (source, base))
            differing = {name for name, _ in mine.items() ^ theirs.items()}
            if any(not rights.may_set_xattr(base, name) for name in differing):
                return False
        return any(self._reaches(d.parent) for d in self._reader.dentries_of(base.ino))

    def _may_read(self, source: Inode) -> bool:
        if not source.is_symlink and not self._rights.may_read(source):
            return False
        return any(self._reaches(d.parent) for d in self._reader.dentries_of(source.ino))

    def _reaches(self, directory: Ino) -> bool:
        """Tell whether the actor may search a directory and all above it."""
        known = self._reached.get(directory)
        if known is None:
            inode = self._reader.get_inode(directory)
            known = self._rights.may_search(inode) and (
                directory == ROOT_INO or self._reaches(self._reader.parent_of(directory))
            )
            self._reached[directory] = known
        return known


def _is_device(inode: Inode) -> bool:
    return stat.S_ISCHR(inode.mode) or stat.S_ISBLK(inode.mode)
