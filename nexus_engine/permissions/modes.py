"""Who may do what with an inode: permission bits and access ACLs.

On a mount the kernel checks the same bits itself (``default_permissions``); these functions serve
callers that do not come through the kernel, undo above all.

Source: path_resolution(7), inode(7), acl(5).
"""

from __future__ import annotations

import stat
from collections.abc import Callable, Collection

from nexus_engine.meta.reader import View
from nexus_engine.permissions.acl import ACCESS, Acl
from nexus_engine.types import Actor, Inode

READ, WRITE, SEARCH = 4, 2, 1
SET_IDS = stat.S_ISUID | stat.S_ISGID


def allows(view: View, inode: Inode, want: int, uid: int, gids: Collection[int]) -> bool:
    """Return whether every access in ``want`` (READ, WRITE, SEARCH or-ed) is granted.

    Args:
        view: Where the inode's ACL is found.
    """
    if uid == 0:
        # Root may do all but execute what nobody may execute.
        return not want & SEARCH or inode.is_dir or bool(inode.mode & 0o111)
    stored = view.find_xattr(inode.ino, ACCESS) if uid != inode.uid else None
    if stored is not None:
        return Acl.parse(stored).allows(want, uid, gids, (inode.uid, inode.gid))
    if uid == inode.uid:
        bits = inode.mode >> 6
    elif inode.gid in gids:
        bits = inode.mode >> 3
    else:
        bits = inode.mode
    return bits & want == want


def set_ids_lost(
    inode: Inode, actor: Actor, groups: Callable[[], Collection[int]], *, chown: bool = False
) -> int:
    """Return the mode bits that a file loses when somebody changes its content or owner.

    Args:
        groups: Returns further groups of the actor; asked only where there are such bits.
        chown: The owner or group changes: that is root's as well, and not of files alone.

    Source: inode(7); ``setattr_should_drop_suidgid`` of Linux.
    """
    if not inode.mode & SET_IDS or inode.is_dir:
        return 0
    if not chown and (actor.uid == 0 or not inode.is_file):
        return 0
    lost = inode.mode & stat.S_ISUID
    belongs = actor.uid == 0 or inode.gid in {actor.gid, *groups()}
    if inode.mode & stat.S_IXGRP or not belongs:
        lost |= inode.mode & stat.S_ISGID
    return lost


def may_remove(view: View, directory: Inode, child: Inode, uid: int, gids: Collection[int]) -> bool:
    """Return whether a name may be removed from a directory, the sticky bit included."""
    if not allows(view, directory, WRITE | SEARCH, uid, gids):
        return False
    sticky = directory.mode & stat.S_ISVTX
    return uid == 0 or not sticky or uid in (child.uid, directory.uid)
