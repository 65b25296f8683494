"""Who may undo what: root all, others what they could have changed themselves.

Source: unlink(2), rename(2), chmod(2), chown(2), utimensat(2), xattr(7).
"""

from __future__ import annotations

from collections.abc import Collection

from nexus_engine.meta.reader import Reader
from nexus_engine.permissions.acl import NAMES as ACLS
from nexus_engine.permissions.modes import READ, SEARCH, WRITE, allows, may_remove
from nexus_engine.types import Actor, Inode

REFUSED = "no permission"


class Rights:
    """What an actor may do, whatever a plan would like."""

    def __init__(self, actor: Actor, groups: Collection[int], reader: Reader) -> None:
        self.is_root = actor.uid == 0
        self._uid = actor.uid
        self._groups = frozenset((actor.gid, *groups))
        self._reader = reader

    def may_change_name(self, directory: Inode, now: Inode | None) -> bool:
        """Tell whether a name may come, go (``now`` is what it means) or change its meaning."""
        if now is not None:
            return may_remove(self._reader, directory, now, self._uid, self._groups)
        return allows(self._reader, directory, WRITE | SEARCH, self._uid, self._groups)

    def may_read(self, inode: Inode) -> bool:
        return allows(self._reader, inode, READ, self._uid, self._groups)

    def may_search(self, directory: Inode) -> bool:
        return allows(self._reader, directory, SEARCH, self._uid, self._groups)

    def may_write(self, inode: Inode) -> bool:
        """Tell whether content and times may change."""
        return self.owns(inode) or allows(self._reader, inode, WRITE, self._uid, self._groups)

    def may_set_xattr(self, inode: Inode, name: bytes) -> bool:
        if name.startswith(b"user."):
            return self.may_write(inode)
        return self.is_root or (name in ACLS and self.owns(inode))

    def owns(self, inode: Inode) -> bool:
        return self.is_root or self._uid == inode.uid

    def may_give(self, before: Inode, owner: tuple[int, int]) -> bool:
        """Tell whether user and group may become ``owner``."""
        if self.is_root or owner == (before.uid, before.gid):
            return True
        return self._uid == before.uid == owner[0] and owner[1] in self._groups
