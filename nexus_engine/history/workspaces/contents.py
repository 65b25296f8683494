"""What an inode is made of, part by part: of each, who changed it is asked by itself."""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterator
from typing import NamedTuple

from nexus_engine.history.subtrees import xattrs_of
from nexus_engine.history.workspaces.sides import Sides
from nexus_engine.meta.reader import View
from nexus_engine.permissions.modes import SET_IDS
from nexus_engine.types import Ino, Inode, Path

CONTENT = "content"
MODE = "mode"
OWNER = "owner"
XATTR = "xattr"


def _content(view: View, inode: Inode) -> object:
    if inode.is_file:
        return inode.size, view.extents(inode.ino, 0, inode.size) if inode.size else []
    return inode.target, inode.rdev


def _mode(view: View, inode: Inode) -> object:
    return stat.S_IMODE(inode.mode)


def _owner(view: View, inode: Inode) -> object:
    return inode.uid, inode.gid


def _xattrs(view: View, inode: Inode) -> object:
    return xattrs_of(view, inode.ino)


PARTS: dict[str, Callable[[View, Inode], object]] = {
    CONTENT: _content,
    MODE: _mode,
    OWNER: _owner,
    XATTR: _xattrs,
}
"""Of each part, what is the same where nothing changed."""


def are_same(first: tuple[View, Inode], second: tuple[View, Inode]) -> bool:
    """Tell whether two inodes are the same in all parts, and of one type."""
    if (first[1].mode ^ second[1].mode) & 0o170000:
        return False
    return all(part(*first) == part(*second) for part in PARTS.values())


class InodeChange(NamedTuple):
    """Something of the base is to become what it is in the workspace, in some parts."""

    source: Ino
    """In the workspace."""
    ino: Ino
    """In the base."""
    path: Path
    """In the workspace."""
    parts: tuple[str, ...]
    conflicts: tuple[str, ...]
    """Parts that were changed in the base as well, to something else."""


def compare(sides: Sides, source: Inode, base: Inode, path: Path) -> InodeChange | None:
    """Return in what an inode of the workspace changed, ``None`` where it did not."""
    parts, conflicts = [], []
    for name, part in PARTS.items():
        mine, theirs = part(sides.now, source), part(sides.now, base)
        if mine == theirs or (name == MODE and _lacks_set_ids(sides, source, base)):
            continue
        known = [part(*old) for old in iter_agreed(sides, base.ino, name)]
        if theirs in known:
            parts.append(name)
        elif mine not in known:
            conflicts.append(name)
    if not parts and not conflicts:
        return None
    return InodeChange(source.ino, base.ino, path, tuple(parts), tuple(conflicts))


def _lacks_set_ids(sides: Sides, source: Inode, base: Inode) -> bool:
    """Tell whether a mode differs in what a workspace never had, and in nothing else."""
    made = sides.then.find_inode(source.ino)
    return made is not None and made.mode == source.mode == base.mode & ~SET_IDS


def is_expected(sides: Sides, base: Inode) -> bool:
    """Tell whether nobody else changed something of the base."""
    return all(
        any(part(sides.now, base) == part(*old) for old in iter_agreed(sides, base.ino, name))
        for name, part in PARTS.items()
    )


def iter_agreed(sides: Sides, ino: Ino, name: str) -> Iterator[tuple[View, Inode]]:
    """Yield what something of the base was when it and the workspace agreed in a part of it.

    Newest first. An apply may have carried over one part, where another one had been changed by
    somebody else: of that the workspace knows nothing.
    """
    part = PARTS[name]
    for view, inode, sources in sides.iter_moments(ino):
        then = part(view, inode)
        if sources is None or any(part(view, source) == then for source in sources):
            yield view, inode
