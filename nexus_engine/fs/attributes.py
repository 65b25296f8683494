"""Rules that change an inode's attributes and its extended attributes."""

from __future__ import annotations

import stat
from collections.abc import Collection
from typing import Any, NamedTuple

from nexus_engine import errors
from nexus_engine.meta.transaction import Transaction
from nexus_engine.permissions.acl import ACCESS, Acl
from nexus_engine.permissions.acl import NAMES as ACLS
from nexus_engine.records import Change
from nexus_engine.reserve import frees_space
from nexus_engine.types import NAME_MAX, SIZE_MAX, XATTR_LIST_MAX, XATTR_VALUE_MAX, Ino, Inode

XATTR_CREATE = 1
XATTR_REPLACE = 2

_NAMESPACES = (b"user.", b"trusted.", b"security.")


class NewAttributes(NamedTuple):
    """What setattr is to change; ``None`` leaves a field alone."""

    mode: int | None = None
    """Permission bits; the type cannot change."""
    uid: int | None = None
    gid: int | None = None
    size: int | None = None
    atime_ns: int | None = None
    mtime_ns: int | None = None


@frees_space
def set_attributes(tx: Transaction, ino: Ino, new: NewAttributes) -> Inode:
    """Change mode, owner, times, size.

    Source: chmod(2), chown(2), utimensat(2), truncate(2).
    """
    before = tx.get_inode(ino)
    changes: dict[str, Any] = {"ctime_ns": tx.now_ns, "from_seq": tx.seq}
    if new.mode is not None:
        changes["mode"] = stat.S_IFMT(before.mode) | stat.S_IMODE(new.mode)
        acl = tx.find_xattr(ino, ACCESS)
        if acl is not None:
            _put_acl(tx, ino, ACCESS, Acl.parse(acl).with_bits(new.mode))
    if new.size is not None:
        check_size(new.size)
        if before.is_dir:
            raise errors.IsADirectory("a directory has no size to set")
        if new.size < before.size:
            tx.truncate_extents(ino, new.size)
        changes |= {"size": new.size, "content_seq": tx.seq, "mtime_ns": tx.now_ns}
    for field in ("uid", "gid", "atime_ns", "mtime_ns"):
        value = getattr(new, field)
        if value is not None:
            changes[field] = value
    after = before._replace(**changes)
    tx.put_inode(after)
    named = {key: value for key, value in new._asdict().items() if value is not None}
    was = {key: getattr(before, key) for key in named}
    tx.commit(Change("setattr", ino, tx.any_path_of(ino), details=named, undo_state=was))
    return after


def check_size(size: int) -> None:
    if not 0 <= size <= SIZE_MAX:
        raise errors.FileTooBig(f"{size} bytes; at most {SIZE_MAX}")


def set_xattr(tx: Transaction, ino: Ino, name: bytes, value: bytes, flags: int = 0) -> None:
    """Set an extended attribute that means nothing to us.

    Args:
        flags: XATTR_CREATE or XATTR_REPLACE.

    Source: setxattr(2), xattr(7).
    """
    if len(value) > XATTR_VALUE_MAX:
        raise errors.XattrTooBig(f"attribute of {len(value)} bytes; at most {XATTR_VALUE_MAX}")
    inode = tx.get_inode(ino)
    before = tx.find_xattr(ino, name)
    if flags & XATTR_CREATE and before is not None:
        raise errors.AlreadyExists(name.decode(errors="backslashreplace"))
    if flags & XATTR_REPLACE and before is None:
        raise errors.NoXattr(name.decode(errors="backslashreplace"))
    if before is None:
        _require_listable(tx, ino, name)
    tx.put_xattr(ino, name, value)
    _touch(tx, inode)
    tx.commit(_xattr_change("setxattr", tx, ino, name, len(value)))


def _require_listable(tx: Transaction, ino: Ino, name: bytes) -> None:
    """Refuse one name too many for listxattr(2), which has room for 64 KiB of them."""
    listed = sum(len(known) + 1 for known in (*tx.xattr_names(ino), name))
    if listed > XATTR_LIST_MAX:
        raise errors.TooManyXattrs(f"the names of all attributes take {listed} bytes")


@frees_space
def remove_xattr(tx: Transaction, ino: Ino, name: bytes) -> None:
    """Remove an extended attribute that means nothing to us.

    Source: removexattr(2).
    """
    inode = tx.get_inode(ino)
    if tx.find_xattr(ino, name) is None:
        raise errors.NoXattr(name.decode(errors="backslashreplace"))
    tx.remove_xattr(ino, name)
    _touch(tx, inode)
    tx.commit(_xattr_change("removexattr", tx, ino, name, None))


def set_acl(
    tx: Transaction, ino: Ino, name: bytes, value: bytes | None, groups: Collection[int]
) -> None:
    """Set or remove an ACL. One that says no more than permission bits becomes those bits.

    Args:
        name: ``acl.ACCESS`` or ``acl.DEFAULT``.
        value: As the kernel has it; ``None`` removes, also what is not there.
        groups: Further groups of the actor.

    Raises:
        InvalidArgument: Not a valid list.
        PermissionDenied: A default ACL for what is no directory.

    Source: acl(5), setfacl(1); the set-group-ID bit as in chmod(2).
    """
    inode = tx.get_inode(ino)
    acl = None if value is None else Acl.decode(value)
    if name != ACCESS and acl is not None and not inode.is_dir:
        raise errors.PermissionDenied("only directories have a default ACL")
    if acl is None and tx.find_xattr(ino, name) is None:
        return
    if name == ACCESS and acl is not None:
        mode = inode.mode & ~0o777 | acl.permission_bits
        actor = tx.actor
        if actor.uid != 0 and inode.gid != actor.gid and inode.gid not in groups:
            mode &= ~stat.S_ISGID
        inode = inode._replace(mode=mode)
    _put_acl(tx, ino, name, acl)
    _touch(tx, inode)
    if acl is None:
        tx.commit(_xattr_change("removexattr", tx, ino, name, None))
    else:
        tx.commit(_xattr_change("setxattr", tx, ino, name, len(acl.encode())))


def _put_acl(tx: Transaction, ino: Ino, name: bytes, acl: Acl | None) -> None:
    if acl is not None and not (name == ACCESS and acl.is_minimal):
        tx.put_xattr(ino, name, acl.encode())
    elif tx.find_xattr(ino, name) is not None:
        tx.remove_xattr(ino, name)


def check_xattr_name(name: bytes) -> None:
    """Refuse what cannot name an attribute.

    Raises:
        NameTooLong: Also for the empty name, as xattr(7) has it.
        NotSupported: No known namespace; or one of ``system.`` that nobody would enforce.
        InvalidArgument: A namespace, and no name in it.
    """
    if not name or len(name) > NAME_MAX:
        raise errors.NameTooLong(f"attribute name of {len(name)} bytes")
    if name in ACLS:
        return
    if not name.startswith(_NAMESPACES):
        raise errors.NotSupported(name.decode(errors="backslashreplace"))
    if name in _NAMESPACES:
        raise errors.InvalidArgument(name.decode())


def _touch(tx: Transaction, inode: Inode) -> None:
    tx.put_inode(inode._replace(ctime_ns=tx.now_ns, from_seq=tx.seq))


def _xattr_change(kind: str, tx: Transaction, ino: Ino, name: bytes, size: int | None) -> Change:
    details: dict[str, Any] = {"name": name.decode(errors="backslashreplace")}
    if size is not None:
        details["size"] = size
    return Change(kind, ino, tx.any_path_of(ino), details=details)
