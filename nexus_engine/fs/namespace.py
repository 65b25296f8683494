"""Rules that change names: create, link, unlink, rename and their kin.

Each runs inside a transaction: read, refuse, change, commit.
"""

from __future__ import annotations

import stat
from collections.abc import Callable, Container
from typing import Any

from nexus_engine import errors
from nexus_engine.meta.reader import PATH_DEPTH_MAX
from nexus_engine.meta.transaction import Transaction
from nexus_engine.permissions import acl
from nexus_engine.records import Change
from nexus_engine.reserve import frees_space
from nexus_engine.types import NAME_MAX, ROOT_INO, SYMLINK_MAX, Ino, Inode, Name

RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2
LINK_MAX = 2**31 - 1

_KINDS = {stat.S_IFREG: "create", stat.S_IFDIR: "mkdir", stat.S_IFLNK: "symlink"}


def check_name(name: bytes) -> None:
    """Refuse what cannot be a new name."""
    if len(name) > NAME_MAX:
        raise errors.NameTooLong(f"name of {len(name)} bytes; at most {NAME_MAX}")
    if name in (b".", b".."):
        raise errors.AlreadyExists("the dots are taken")
    if not name or b"/" in name or b"\0" in name:
        raise errors.InvalidName(f"not a file name: {name!r}")


def make(
    tx: Transaction,
    parent: Ino,
    name: Name,
    mode: int,
    *,
    rdev: int = 0,
    target: bytes | None = None,
    before_umask: Callable[[], int] | None = None,
) -> Inode:
    """Make an inode of any type under a new name.

    Args:
        mode: Type and permission bits; the caller's umask is already applied.
        before_umask: Returns ``mode`` without that, for directories that have a default ACL,
            which takes the umask's place.
        rdev: Device number, for device nodes.
        target: For symlinks, 1 to 4095 bytes.

    Raises:
        AlreadyExists, NameTooLong, NotFound (the directory was removed), NotADirectory.

    Source: open(2), mkdir(2), mknod(2), symlink(2); group inheritance in inode(7), ACLs in acl(5).
    """
    check_name(name)
    directory = get_directory(tx, parent)
    if tx.find_dentry(parent, name) is not None:
        raise errors.AlreadyExists(_show(name))
    if target is not None and not 0 < len(target) <= SYMLINK_MAX:
        raise errors.NameTooLong(f"link target of {len(target)} bytes; at most {SYMLINK_MAX}")

    default = None if target is not None else tx.find_xattr(parent, acl.DEFAULT)
    if default is not None and before_umask is not None:
        mode = mode & ~0o777 | before_umask() & 0o777
    inode = add_inode(tx, directory, default, name, mode, rdev=rdev, target=target)
    tx.touch_directory(parent, subdirectories=1 if inode.is_dir else 0)
    kind = _KINDS.get(stat.S_IFMT(mode), "mknod")
    details = {"mode": inode.mode}
    tx.commit(Change(kind, inode.ino, tx.path_of(parent, name), details=details))
    return inode


def add_inode(
    tx: Transaction,
    directory: Inode,
    default: bytes | None,
    name: Name,
    mode: int,
    *,
    rdev: int = 0,
    target: bytes | None = None,
    size: int = 0,
    mtime_ns: int | None = None,
) -> Inode:
    """Make an inode with the group, mode and ACLs that its directory gives it; reads nothing.

    Args:
        default: The directory's default ACL.
        name: Free. That the directory changed, and the record, are left to the caller.
        size: Of a file that comes with its content.
        mtime_ns: When that was written, if not now.
    """
    actor, now = tx.actor, tx.now_ns
    gid = actor.gid
    is_dir = stat.S_ISDIR(mode)
    if directory.mode & stat.S_ISGID:
        gid = directory.gid
        if is_dir:
            mode |= stat.S_ISGID
    access = None
    if default is not None:
        mode, access = acl.Acl.parse(default).inherited(mode)
    inode = Inode(
        ino=tx.new_ino(),
        from_seq=tx.seq,
        mode=mode,
        uid=actor.uid,
        gid=gid,
        nlink=2 if is_dir else 1,
        rdev=rdev,
        size=len(target) if target is not None else size,
        atime_ns=now,
        mtime_ns=now if mtime_ns is None else mtime_ns,
        ctime_ns=now,
        btime_ns=now,
        content_seq=tx.seq,
        target=target,
    )
    tx.add_inode(inode)
    if default is not None and is_dir:
        tx.put_xattr(inode.ino, acl.DEFAULT, default)
    if access is not None and not access.is_minimal:
        tx.put_xattr(inode.ino, acl.ACCESS, access.encode())
    tx.add_dentry(directory.ino, name, inode)
    return inode


def link(tx: Transaction, ino: Ino, parent: Ino, name: Name) -> Inode:
    """Give an inode one more name.

    Source: link(2).
    """
    check_name(name)
    get_directory(tx, parent)
    inode = tx.get_inode(ino)
    if inode.is_dir:
        raise errors.OperationNotPermitted("directories have one name")
    if inode.nlink == 0:
        raise errors.NotFound("the file was removed")
    if inode.nlink >= LINK_MAX:
        raise errors.TooManyLinks(f"{inode.nlink} links")
    if tx.find_dentry(parent, name) is not None:
        raise errors.AlreadyExists(_show(name))

    path = tx.any_path_of(ino)
    inode = inode._replace(nlink=inode.nlink + 1, ctime_ns=tx.now_ns, from_seq=tx.seq)
    tx.put_inode(inode)
    tx.add_dentry(parent, name, inode)
    tx.touch_directory(parent)
    tx.commit(Change("link", ino, path, tx.path_of(parent, name)))
    return inode


@frees_space
def unlink(tx: Transaction, parent: Ino, name: Name, keep: Container[Ino] = ()) -> Inode:
    """Remove a name of something that is not a directory.

    Args:
        keep: Inodes that stay usable without a name, because they are open.

    Returns:
        The inode as it is now.

    Source: unlink(2).
    """
    inode = get_child(tx, parent, name)
    if inode.is_dir:
        raise errors.IsADirectory(_show(name))
    path = tx.path_of(parent, name)
    tx.remove_dentry(parent, name)
    inode = drop_link(tx, inode, keep)
    tx.touch_directory(parent)
    tx.commit(Change("unlink", inode.ino, path, undo_state=_summary(inode)))
    return inode


@frees_space
def rmdir(tx: Transaction, parent: Ino, name: Name) -> Inode:
    """Remove an empty directory.

    Source: rmdir(2).
    """
    inode = get_child(tx, parent, name)
    if not inode.is_dir:
        raise errors.NotADirectory(_show(name))
    if not tx.is_empty(inode.ino):
        raise errors.DirectoryNotEmpty(_show(name))
    path = tx.path_of(parent, name)
    tx.remove_dentry(parent, name)
    tx.remove_inode(inode.ino)
    tx.touch_directory(parent, subdirectories=-1)
    tx.commit(Change("rmdir", inode.ino, path, undo_state=_summary(inode)))
    return inode


@frees_space
def rename(
    tx: Transaction,
    parent: Ino,
    name: Name,
    new_parent: Ino,
    new_name: Name,
    flags: int = 0,
    keep: Container[Ino] = (),
) -> tuple[Inode, Inode | None]:
    """Move a name, replace what is there, or exchange two names.

    Args:
        flags: RENAME_NOREPLACE or RENAME_EXCHANGE.
        keep: As in ``unlink``, for what is replaced.

    Returns:
        What was moved; what was replaced or exchanged, if anything.

    Source: rename(2).
    """
    if flags not in (0, RENAME_NOREPLACE, RENAME_EXCHANGE):
        raise errors.InvalidArgument(f"rename flags {flags:#x}")
    check_name(new_name)
    moved = get_child(tx, parent, name)
    get_directory(tx, new_parent)
    other = tx.find_child(new_parent, new_name)
    if flags == RENAME_EXCHANGE:
        if other is None:
            raise errors.NotFound(_show(new_name))
        return _exchange(tx, parent, name, moved, new_parent, new_name, other)
    if other is not None:
        if flags == RENAME_NOREPLACE:
            raise errors.AlreadyExists(_show(new_name))
        if other.ino == moved.ino:
            return moved, None  # two names of one file: POSIX wants nothing done
    _require_no_loop(tx, moved, new_parent)
    if moved.is_dir:
        tx.attached.require_side_by_side(moved.ino, new_parent)
    if other is not None:
        _require_replaceable(tx, moved, other, new_name)

    path, new_path = tx.path_of(parent, name), tx.path_of(new_parent, new_name)
    details: dict[str, Any] | None = None
    lost_directory = 0
    if other is not None:
        details = {"replaced": other.ino}
        tx.remove_dentry(new_parent, new_name)
        if other.is_dir:
            tx.remove_inode(other.ino)
            lost_directory = 1
        else:
            other = drop_link(tx, other, keep)
    tx.remove_dentry(parent, name)
    moved = moved._replace(ctime_ns=tx.now_ns, from_seq=tx.seq)
    tx.put_inode(moved)
    tx.add_dentry(new_parent, new_name, moved)
    _touch_both(tx, parent, new_parent, int(moved.is_dir), lost_directory)
    if moved.is_dir:
        tx.forget_paths()
    tx.commit(Change("rename", moved.ino, path, new_path, details))
    return moved, other


def _exchange(
    tx: Transaction,
    parent: Ino,
    name: Name,
    first: Inode,
    new_parent: Ino,
    new_name: Name,
    second: Inode,
) -> tuple[Inode, Inode]:
    if first.ino == second.ino:
        return first, second
    _require_no_loop(tx, first, new_parent)
    _require_no_loop(tx, second, parent)
    tx.attached.require_side_by_side(first.ino, new_parent)
    tx.attached.require_side_by_side(second.ino, parent)
    path, new_path = tx.path_of(parent, name), tx.path_of(new_parent, new_name)
    tx.remove_dentry(parent, name)
    tx.remove_dentry(new_parent, new_name)
    first = first._replace(ctime_ns=tx.now_ns, from_seq=tx.seq)
    second = second._replace(ctime_ns=tx.now_ns, from_seq=tx.seq)
    tx.put_inode(first)
    tx.put_inode(second)
    tx.add_dentry(new_parent, new_name, first)
    tx.add_dentry(parent, name, second)
    _touch_both(tx, parent, new_parent, int(first.is_dir) - int(second.is_dir))
    tx.forget_paths()
    details = {"exchanged": second.ino}
    tx.commit(Change("exchange", first.ino, path, new_path, details))
    return first, second


def _touch_both(tx: Transaction, parent: Ino, new_parent: Ino, moved: int, lost: int = 0) -> None:
    """Touch the directories of a move, which may be one.

    Args:
        moved: Subdirectories that went from the first to the second.
        lost: Subdirectories that were replaced in the second.
    """
    if parent != new_parent:
        tx.touch_directory(parent, subdirectories=-moved)
        tx.touch_directory(new_parent, subdirectories=moved - lost)
    else:
        tx.touch_directory(parent, subdirectories=-lost)


def get_directory(tx: Transaction, ino: Ino) -> Inode:
    """Return a directory that still has a name.

    Raises:
        NotFound: It was removed.
        NotADirectory: It is something else.
    """
    directory = tx.find_inode(ino)
    if directory is None:
        raise errors.NotFound("the directory was removed")
    if not directory.is_dir:
        raise errors.NotADirectory(f"inode {ino}")
    return directory


def get_child(tx: Transaction, parent: Ino, name: Name) -> Inode:
    """Return what a name means.

    Raises:
        NotFound: No such name.
    """
    if len(name) > NAME_MAX:
        raise errors.NameTooLong(f"name of {len(name)} bytes; at most {NAME_MAX}")
    get_directory(tx, parent)
    inode = tx.find_child(parent, name)
    if inode is None:
        raise errors.NotFound(_show(name))
    return inode


def drop_link(tx: Transaction, inode: Inode, keep: Container[Ino] = ()) -> Inode:
    """Count one name less; without names and handles the inode goes."""
    inode = inode._replace(nlink=inode.nlink - 1, ctime_ns=tx.now_ns, from_seq=tx.seq)
    if inode.nlink > 0 or inode.ino in keep:
        tx.put_inode(inode)
    else:
        tx.remove_inode(inode.ino)
    return inode


def _require_no_loop(tx: Transaction, moved: Inode, new_parent: Ino) -> None:
    """Refuse to move a directory below itself."""
    if not moved.is_dir:
        return
    current = new_parent
    for _ in range(PATH_DEPTH_MAX):
        if current == ROOT_INO:
            return
        if current == moved.ino:
            raise errors.InvalidArgument("a directory cannot move into itself")
        current = tx.parent_of(current)
    raise errors.CorruptMetadata("the directories go round in a circle; run nexus-ctl fsck")


def _require_replaceable(tx: Transaction, moved: Inode, other: Inode, name: Name) -> None:
    if moved.is_dir and not other.is_dir:
        raise errors.NotADirectory(_show(name))
    if other.is_dir and not moved.is_dir:
        raise errors.IsADirectory(_show(name))
    if other.is_dir and not tx.is_empty(other.ino):
        raise errors.DirectoryNotEmpty(_show(name))


def _summary(inode: Inode) -> dict[str, Any]:
    return {"ino": inode.ino, "mode": inode.mode, "size": inode.size}


def _show(name: bytes) -> str:
    return name.decode(errors="backslashreplace")
