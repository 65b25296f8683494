"""Rules that change an inode's attributes and its extended attributes."""

from __future__ import annotations

import stat
from typing import Any, NamedTuple

from nexus_engine import errors
from nexus_engine.meta.transaction import Transaction
from nexus_engine.records import Change
from nexus_engine.types import NAME_MAX, SIZE_MAX, XATTR_VALUE_MAX, Ino, Inode

XATTR_CREATE = 1
XATTR_REPLACE = 2


class NewAttributes(NamedTuple):
    """What setattr is to change; ``None`` leaves a field alone."""

    mode: int | None = None
    """Permission bits; the type cannot change."""
    uid: int | None = None
    gid: int | None = None
    size: int | None = None
    atime_ns: int | None = None
    mtime_ns: int | None = None


def set_attributes(tx: Transaction, ino: Ino, new: NewAttributes) -> Inode:
    """Change mode, owner, times, size.

    Source: chmod(2), chown(2), utimensat(2), truncate(2).
    """
    before = tx.get_inode(ino)
    changes: dict[str, Any] = {"ctime_ns": tx.now_ns, "from_seq": tx.seq}
    if new.mode is not None:
        changes["mode"] = stat.S_IFMT(before.mode) | stat.S_IMODE(new.mode)
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
    """Set an extended attribute.

    Args:
        flags: XATTR_CREATE or XATTR_REPLACE.

    Source: setxattr(2), xattr(7).
    """
    check_xattr_name(name)
    if len(value) > XATTR_VALUE_MAX:
        raise errors.XattrTooBig(f"attribute of {len(value)} bytes; at most {XATTR_VALUE_MAX}")
    inode = tx.get_inode(ino)
    before = tx.find_xattr(ino, name)
    if flags & XATTR_CREATE and before is not None:
        raise errors.AlreadyExists(name.decode(errors="backslashreplace"))
    if flags & XATTR_REPLACE and before is None:
        raise errors.NoXattr(name.decode(errors="backslashreplace"))
    tx.put_xattr(ino, name, value)
    _touch(tx, inode)
    tx.commit(_xattr_change("setxattr", tx, ino, name, len(value)))


def remove_xattr(tx: Transaction, ino: Ino, name: bytes) -> None:
    """Remove an extended attribute.

    Source: removexattr(2).
    """
    check_xattr_name(name)
    inode = tx.get_inode(ino)
    if tx.find_xattr(ino, name) is None:
        raise errors.NoXattr(name.decode(errors="backslashreplace"))
    tx.remove_xattr(ino, name)
    _touch(tx, inode)
    tx.commit(_xattr_change("removexattr", tx, ino, name, None))


def check_xattr_name(name: bytes) -> None:
    """Refuse what cannot name an attribute."""
    if not name or len(name) > NAME_MAX:
        raise errors.NameTooLong(f"attribute name of {len(name)} bytes")
    if name.startswith(b"system."):
        # POSIX ACLs: a value that is stored but enforced by nobody would be a lie, and programs
        # that are told so fall back to permission bits.
        raise errors.NotSupported(name.decode(errors="backslashreplace"))


def _touch(tx: Transaction, inode: Inode) -> None:
    tx.put_inode(inode._replace(ctime_ns=tx.now_ns, from_seq=tx.seq))


def _xattr_change(kind: str, tx: Transaction, ino: Ino, name: bytes, size: int | None) -> Change:
    details: dict[str, Any] = {"name": name.decode(errors="backslashreplace")}
    if size is not None:
        details["size"] = size
    return Change(kind, ino, tx.any_path_of(ino), details=details)
