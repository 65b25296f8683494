"""POSIX access control lists, decided without touching anything.

A list is an extended attribute in the kernel's form. The access ACL of a file and its permission
bits are two sights of one thing: the owner's and others' bits are entries of the list, and the
group's bits are its mask (or the group's entry, where there is no mask). A list that says no more
than the bits is not stored.

Source: acl(5), setfacl(1); ``posix_acl_xattr.h`` of Linux for the form.
"""

from __future__ import annotations

import struct
from collections.abc import Collection
from typing import NamedTuple

from nexus_engine import errors

ACCESS = b"system.posix_acl_access"
DEFAULT = b"system.posix_acl_default"
"""Of directories only: what new entries get."""
NAMES = (ACCESS, DEFAULT)

USER_OBJ, USER, GROUP_OBJ, GROUP, MASK, OTHER = 1, 2, 4, 8, 16, 32

_VERSION = 2
_HEADER = struct.Struct("<I")
_ENTRY = struct.Struct("<HHI")
_NO_ID = 0xFFFFFFFF


class AclEntry(NamedTuple):
    """One line of a list; ``id`` only means something for named users and groups."""

    tag: int
    perm: int
    id: int


class Acl(NamedTuple):
    """A valid list: owner, named users, group, named groups, mask, others; each kind by id."""

    entries: tuple[AclEntry, ...]

    @classmethod
    def decode(cls, value: bytes) -> Acl | None:
        """Return the list in an attribute's value; ``None`` for the empty one, which removes.

        Raises:
            InvalidArgument: Not a list, or one that contradicts itself.
        """
        if len(value) < _HEADER.size or (len(value) - _HEADER.size) % _ENTRY.size:
            raise errors.InvalidArgument(f"an ACL cannot be {len(value)} bytes long")
        if _HEADER.unpack_from(value)[0] != _VERSION:
            raise errors.InvalidArgument("an ACL of an unknown version")
        acl = cls(tuple(AclEntry._make(e) for e in _ENTRY.iter_unpack(value[_HEADER.size :])))
        if not acl.entries:
            return None
        acl._require_valid()
        return acl

    @classmethod
    def parse(cls, stored: bytes) -> Acl:
        """Return the list in a value that was stored: never the empty one."""
        acl = cls.decode(stored)
        if acl is None:
            raise errors.CorruptMetadata("an empty ACL is stored: run nexus-ctl fsck")
        return acl

    @classmethod
    def find_valid(cls, stored: bytes) -> Acl | None:
        """Return the list in a value that was stored, ``None`` if it is none."""
        try:
            return cls.decode(stored)
        except errors.InvalidArgument:
            return None

    def encode(self) -> bytes:
        """Return the attribute's value."""
        return _HEADER.pack(_VERSION) + b"".join(_ENTRY.pack(*entry) for entry in self.entries)

    def _require_valid(self) -> None:
        tags = [entry.tag for entry in self.entries]
        named = [(entry.tag, entry.id) for entry in self.entries if entry.tag in (USER, GROUP)]
        valid = (
            tags == sorted(tags)
            and all(tags.count(tag) == 1 for tag in (USER_OBJ, GROUP_OBJ, OTHER))
            and tags.count(MASK) <= 1
            and set(tags) <= {USER_OBJ, USER, GROUP_OBJ, GROUP, MASK, OTHER}
            and (MASK in tags or not named)
            and len(set(named)) == len(named)
            and all(identity != _NO_ID for _, identity in named)
            and all(entry.perm <= 7 for entry in self.entries)
        )
        if not valid:
            raise errors.InvalidArgument("an ACL that contradicts itself")

    @property
    def permission_bits(self) -> int:
        """The nine bits that a file with this access ACL shows."""
        perm = {entry.tag: entry.perm for entry in self.entries}
        return perm[USER_OBJ] << 6 | perm.get(MASK, perm[GROUP_OBJ]) << 3 | perm[OTHER]

    @property
    def is_minimal(self) -> bool:
        """Whether it says no more than the permission bits."""
        return len(self.entries) == 3

    def with_bits(self, mode: int) -> Acl:
        """Return the list after chmod(2)."""
        group = MASK if any(entry.tag == MASK for entry in self.entries) else GROUP_OBJ
        bits = {USER_OBJ: mode >> 6 & 7, group: mode >> 3 & 7, OTHER: mode & 7}
        return Acl(tuple(e._replace(perm=bits.get(e.tag, e.perm)) for e in self.entries))

    def inherited(self, mode: int) -> tuple[int, Acl]:
        """Return mode and access ACL of what is made in a directory with this default ACL.

        Args:
            mode: As the program asked for it; the umask has no say.
        """
        acl = self.with_bits(mode & self.permission_bits)
        return mode & ~0o777 | acl.permission_bits, acl

    def allows(self, want: int, uid: int, gids: Collection[int], owner: tuple[int, int]) -> bool:
        """Return whether the list grants every access in ``want`` to who is not root.

        Args:
            owner: User and group of the file.

        Source: acl(5), "ACCESS CHECK ALGORITHM".
        """
        perm = {entry.tag: entry.perm for entry in self.entries}
        if uid == owner[0]:
            return perm[USER_OBJ] & want == want
        mask = perm.get(MASK, 7)
        for entry in self.entries:
            if entry.tag == USER and entry.id == uid:
                return entry.perm & mask & want == want
        groups = [
            entry.perm
            for entry in self.entries
            if (entry.tag == GROUP_OBJ and owner[1] in gids)
            or (entry.tag == GROUP and entry.id in gids)
        ]
        if groups:
            return any(granted & mask & want == want for granted in groups)
        return perm[OTHER] & want == want
