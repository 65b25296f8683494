"""Who may do what: the permission rules of the reference, apart from everything else.

The tmpfs runs of the machine test them, as they test the rest of the reference.

Source: path_resolution(7), inode(7), acl(5), capabilities(7), proc_sys_fs(5); fs/namei.c,
fs/attr.c and fs/posix_acl.c of Linux for what those leave open.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn, Protocol

READ, WRITE, SEARCH = 4, 2, 1

ACCESS, DEFAULT = b"system.posix_acl_access", b"system.posix_acl_default"
USER_OBJ, USER, GROUP_OBJ, GROUP, MASK, OTHER = 1, 2, 4, 8, 16, 32
NO_ID = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class Caller:
    """Who does something. Root has every capability, others have none."""

    uid: int = 0
    gid: int = 0
    groups: tuple[int, ...] = ()

    @property
    def privileged(self) -> bool:
        return self.uid == 0

    def is_in(self, gid: int) -> bool:
        return gid == self.gid or gid in self.groups

    def owns(self, inode: Inode) -> bool:
        """Also true of who may act as the owner."""
        return self.privileged or self.uid == inode.uid


ROOT = Caller()


class Inode(Protocol):
    """What permissions depend on."""

    mode: int
    uid: int
    gid: int
    access: Acl | None

    @property
    def is_dir(self) -> bool: ...

    @property
    def is_file(self) -> bool: ...


@dataclass(frozen=True, slots=True)
class AclEntry:
    tag: int
    perm: int
    id: int = NO_ID


@dataclass(frozen=True, slots=True)
class Acl:
    """Entries in the order in which they were set, which is that of their tags."""

    entries: tuple[AclEntry, ...]

    @classmethod
    def decode(cls, value: bytes) -> Acl | None:
        """Return the list in an attribute's value; ``None`` for one that removes.

        Source: posix_acl_from_xattr() and posix_acl_valid() in fs/posix_acl.c.
        """
        if not value:
            return None
        if len(value) < 4 or len(value) % 8 != 4:
            fail(errno.EINVAL)
        if struct.unpack_from("<I", value)[0] != 2:
            fail(errno.EOPNOTSUPP)
        entries = tuple(AclEntry(*entry) for entry in struct.iter_unpack("<HHI", value[4:]))
        if not entries:
            return None
        tags = [entry.tag for entry in entries]
        named = USER in tags or GROUP in tags
        if (
            tags != sorted(tags)
            or not {USER_OBJ, GROUP_OBJ, OTHER} <= set(tags)
            or any(tags.count(tag) > 1 for tag in (USER_OBJ, GROUP_OBJ, MASK, OTHER))
            or (named and MASK not in tags)
            or any(entry.perm > 7 for entry in entries)
        ):
            fail(errno.EINVAL)
        return cls(entries)

    def encode(self) -> bytes:
        packed = [
            struct.pack("<HHI", entry.tag, entry.perm, entry.id if _is_named(entry) else NO_ID)
            for entry in self.entries
        ]
        return struct.pack("<I", 2) + b"".join(packed)

    def perm(self, tag: int) -> int | None:
        return next((entry.perm for entry in self.entries if entry.tag == tag), None)

    @property
    def is_minimal(self) -> bool:
        return all(entry.tag in (USER_OBJ, GROUP_OBJ, OTHER) for entry in self.entries)

    @property
    def bits(self) -> int:
        """The permission bits of a file with this access ACL."""
        mask = self.perm(MASK)
        group = self.perm(GROUP_OBJ) if mask is None else mask
        return (self.perm(USER_OBJ) or 0) << 6 | (group or 0) << 3 | (self.perm(OTHER) or 0)

    def with_bits(self, mode: int) -> Acl:
        group = GROUP_OBJ if self.perm(MASK) is None else MASK
        perms = {USER_OBJ: mode >> 6 & 7, group: mode >> 3 & 7, OTHER: mode & 7}
        return Acl(
            tuple(replace(entry, perm=perms.get(entry.tag, entry.perm)) for entry in self.entries)
        )

    def grants(self, caller: Caller, owner: Inode, want: int) -> bool:
        mask = self.perm(MASK)
        mask = 7 if mask is None else mask
        if caller.uid == owner.uid:
            return _covers(self.perm(USER_OBJ) or 0, want)
        for entry in self.entries:
            if entry.tag == USER and entry.id == caller.uid:
                return _covers(entry.perm & mask, want)
        groups = [
            entry.perm
            for entry in self.entries
            if (entry.tag == GROUP_OBJ and caller.is_in(owner.gid))
            or (entry.tag == GROUP and caller.is_in(entry.id))
        ]
        if groups:
            return any(_covers(perm & mask, want) for perm in groups)
        return _covers(self.perm(OTHER) or 0, want)


def _is_named(entry: AclEntry) -> bool:
    return entry.tag in (USER, GROUP)


def _covers(perm: int, want: int) -> bool:
    return perm & want == want


# Access


def allows(inode: Inode, caller: Caller, want: int) -> bool:
    """Tell whether every access in ``want`` is granted; nothing is ever executed here."""
    if caller.privileged:
        return True
    # Linux looks at the list only if the group's bits, its mask, are not all off.
    if inode.access is not None and caller.uid != inode.uid and inode.mode & 0o070:
        return inode.access.grants(caller, inode, want)
    if caller.uid == inode.uid:
        return _covers(inode.mode >> 6, want)
    return _covers(inode.mode >> 3 if caller.is_in(inode.gid) else inode.mode, want)


def require(inode: Inode, caller: Caller, want: int) -> None:
    if not allows(inode, caller, want):
        fail(errno.EACCES)


def require_owner(inode: Inode, caller: Caller) -> None:
    if not caller.owns(inode):
        fail(errno.EPERM)


def require_removable(directory: Inode, inode: Inode, caller: Caller) -> None:
    """A name may be removed by who may write the directory; in a sticky one, by owners."""
    require(directory, caller, WRITE | SEARCH)
    sticky = directory.mode & stat.S_ISVTX
    if sticky and not caller.owns(inode) and not caller.owns(directory):
        fail(errno.EPERM)


def require_linkable(inode: Inode, caller: Caller) -> None:
    """Source: fs.protected_hardlinks in proc_sys_fs(5)."""
    privileged_if_run = inode.mode & stat.S_ISUID or inode.mode & 0o2010 == 0o2010
    safe = inode.is_file and not privileged_if_run and allows(inode, caller, READ | WRITE)
    if _protected("hardlinks") and not safe and not caller.owns(inode):
        fail(errno.EPERM)


def require_followed(directory: Inode, link: Inode, caller: Caller) -> None:
    """Source: fs.protected_symlinks in proc_sys_fs(5)."""
    shared = directory.mode & 0o1002 == 0o1002
    if _protected("symlinks") and shared and caller.uid != link.uid and directory.uid != link.uid:
        fail(errno.EACCES)


def require_created_anew(directory: Inode, inode: Inode, caller: Caller) -> None:
    """open(2) with O_CREAT of what exists. Source: fs.protected_regular in proc_sys_fs(5)."""
    level = _protected("regular")
    shared = directory.mode & 0o1000 and (
        directory.mode & 0o002 or (level >= 2 and directory.mode & 0o020)
    )
    if level and shared and inode.uid not in (directory.uid, caller.uid):
        fail(errno.EACCES)


def _protected(what: str) -> int:
    return int(Path(f"/proc/sys/fs/protected_{what}").read_text())


# What changes with the change


def mode_after_chmod(inode: Inode, caller: Caller, mode: int) -> int:
    """Who is not in the group cannot give its rights away."""
    may = caller.privileged or caller.is_in(inode.gid)
    return mode & 0o7777 if may else mode & 0o5777


def mode_after_chown(inode: Inode, caller: Caller) -> int:
    """chown(2) drops the set-id bits, also where no id changes, and for root too."""
    return inode.mode if inode.is_dir else inode.mode & ~_set_id_bits(inode, caller)


def mode_after_write(inode: Inode, caller: Caller) -> int:
    """So does a write or truncate by who is not root."""
    return inode.mode if caller.privileged else inode.mode & ~_set_id_bits(inode, caller)


def _set_id_bits(inode: Inode, caller: Caller) -> int:
    # Without group execution the set-group-ID bit is no privilege: group members keep it.
    keeps = not inode.mode & stat.S_IXGRP and (caller.privileged or caller.is_in(inode.gid))
    return stat.S_ISUID | (0 if keeps else inode.mode & stat.S_ISGID)


def new_mode(directory: Inode, caller: Caller, mode: int, *, is_dir: bool) -> int:
    """Return the mode of what is made in a directory, before umask or default ACL.

    Source: inode(7) on set-group-ID directories; mode_strip_sgid() in fs/inode.c.
    """
    if not directory.mode & stat.S_ISGID:
        return mode
    if is_dir:
        return mode | stat.S_ISGID
    may = caller.privileged or caller.is_in(directory.gid)
    return mode if may or mode & 0o2010 != 0o2010 else mode & ~stat.S_ISGID


def may_chown(inode: Inode, caller: Caller, uid: int | None, gid: int | None) -> bool:
    """Only root gives away; the owner may choose among the groups that they are in."""
    if caller.privileged:
        return True
    mine = caller.uid == inode.uid
    if uid is not None and not (mine and uid == inode.uid):
        return False
    return gid is None or (mine and (gid == inode.gid or caller.is_in(gid)))


def fail(code: int) -> NoReturn:
    raise OSError(code, os.strerror(code))
