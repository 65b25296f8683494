"""The filesystem that the others are compared with: a few dicts.

Every operation either returns what POSIX promises or raises ``OSError`` with
the errno that Linux gives, in the order in which Linux looks at things. The
tmpfs and ext4 runs of the machine test this file; the others trust it.

A path is relative to the root, ``b""`` being the root itself. It is resolved
as the kernel does it, through relative symlinks.

Source: rename(2), link(2), unlink(2), rmdir(2), mknod(2), chmod(2), chown(2),
utimensat(2), xattr(7), acl(5); fs/namei.c and fs/attr.c for the order.
"""

from __future__ import annotations

import errno
import os
from dataclasses import replace

from .permissions import (
    ACCESS,
    DEFAULT,
    READ,
    SEARCH,
    WRITE,
    Acl,
    allows,
    fail,
    may_chown,
    mode_after_chmod,
    mode_after_chown,
    require,
    require_linkable,
    require_owner,
    require_removable,
)
from .reference_content import ReferenceContent
from .reference_tree import Node, Unmodelled
from .tree import Kind, Stat

TARGET_MAX = 4095
XATTR_NAME_MAX = 255
XATTR_VALUE_MAX = 65536

RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2
KEEP = -1
"""chown(2): leave this id as it is."""


class ReferenceFs(ReferenceContent):
    # Names

    def mkdir(self, path: bytes, mode: int) -> None:
        parent, name = self._creatable(path)
        # mkdir(2): only the permission bits and the sticky bit are taken.
        node = self._new_node(parent, Kind.DIRECTORY, mode & 0o1777)
        node.parent = parent.ino
        self._add(parent, name, node)

    def mknod(self, path: bytes, kind: Kind, mode: int, rdev: int) -> None:
        """Make a device node, fifo, socket or empty file. ``rdev`` is not 0 for a device."""
        parent, name = self._creatable(path)
        if kind.is_device and not self.caller.privileged:
            fail(errno.EPERM)
        node = self._new_node(parent, kind, mode, rdev=rdev if kind.is_device else 0)
        self._add(parent, name, node)

    def symlink(self, target: bytes, path: bytes) -> None:
        if not target:
            fail(errno.ENOENT)
        if len(target) > TARGET_MAX:
            fail(errno.ENAMETOOLONG)
        parent, name = self._creatable(path)
        node = self._new_node(parent, Kind.SYMLINK, 0o777)
        node.mode, node.data = 0o777, target
        self._add(parent, name, node)

    def link(self, existing: bytes, path: bytes) -> None:
        node = self._node(existing)
        parent, name = self._absent(path)
        require_linkable(node, self.caller)
        require(parent, self.caller, WRITE | SEARCH)
        if node.is_dir:
            fail(errno.EPERM)
        self._add(parent, name, node)

    def unlink(self, path: bytes) -> None:
        parent, name = self._parent(path)
        node = self._child(parent, name)
        require_removable(parent, node, self.caller)
        if node.is_dir:
            fail(errno.EISDIR)
        self._remove(parent, name)

    def rmdir(self, path: bytes) -> None:
        parent, name = self._parent(path)
        node = self._child(parent, name)
        require_removable(parent, node, self.caller)
        if not node.is_dir:
            fail(errno.ENOTDIR)
        if node.children:
            fail(errno.ENOTEMPTY)
        self._remove(parent, name)

    def rename(self, old: bytes, new: bytes, flags: int) -> None:
        if flags not in (0, RENAME_NOREPLACE, RENAME_EXCHANGE):
            fail(errno.EINVAL)
        old_parent, old_name = self._parent(old)
        new_parent, new_name = self._parent(new)
        source = self._child(old_parent, old_name)
        target = self._find_child(new_parent, new_name)
        if flags == RENAME_NOREPLACE and target is not None:
            fail(errno.EEXIST)
        if flags == RENAME_EXCHANGE and target is None:
            fail(errno.ENOENT)
        if self._is_within(new_parent, source):
            fail(errno.EINVAL)
        if target is not None and self._is_within(old_parent, target):
            fail(errno.EINVAL if flags == RENAME_EXCHANGE else errno.ENOTEMPTY)
        if source is target:
            return
        self._require_movable(old_parent, source, new_parent, target, flags)
        if target is not None and flags == RENAME_EXCHANGE:
            self._exchange(old_parent, old_name, new_parent, new_name)
            return
        if target is not None:
            self._require_replaceable(source, target)
            self._remove(new_parent, new_name)
        self._move(source, old_parent, old_name, new_parent, new_name)

    def readlink(self, path: bytes) -> bytes:
        node = self._node(path)
        if node.kind is not Kind.SYMLINK:
            fail(errno.EINVAL)
        return node.data

    def readdir(self, path: bytes) -> list[bytes]:
        """Return the names, ascending, without ``.`` and ``..``."""
        node = self._node(path)
        if node.kind is Kind.SYMLINK:
            raise Unmodelled("a listing through a symlink")
        if not node.is_dir:
            fail(errno.ENOTDIR)
        require(node, self.caller, READ)
        return sorted(node.children)

    # Attributes, of a path or of an open file

    def stat(self, path: bytes) -> Stat:
        """lstat(2)."""
        return self.stat_of(self._node(path))

    def chmod(self, path: bytes, mode: int) -> None:
        """chmod(2), which follows a symlink."""
        self._chmod(self._node(path, follow=True), mode)

    def fchmod(self, fh: int, mode: int) -> None:
        self._chmod(self._opened_node(fh), mode)

    def chown(self, path: bytes, uid: int, gid: int) -> None:
        """lchown(2); ``KEEP`` leaves an id as it is."""
        self._chown(self._node(path), uid, gid)

    def fchown(self, fh: int, uid: int, gid: int) -> None:
        self._chown(self._opened_node(fh), uid, gid)

    def utimens(self, path: bytes, atime_ns: int, mtime_ns: int) -> None:
        """utimensat(2), not following a symlink."""
        self._utimens(self._node(path), mtime_ns)

    def futimens(self, fh: int, atime_ns: int, mtime_ns: int) -> None:
        self._utimens(self._opened_node(fh), mtime_ns)

    def touch(self, path: bytes) -> None:
        """utimensat(2) with the present time, not following a symlink."""
        node = self._node(path)
        if not self.caller.owns(node) and not allows(node, self.caller, WRITE):
            fail(errno.EACCES)
        node.modified()

    # Extended attributes, not following symlinks

    def setxattr(self, path: bytes, name: bytes, value: bytes, flags: int) -> None:
        _check_xattr(name, value)
        self._setxattr(self._node(path), name, value, flags)

    def fsetxattr(self, fh: int, name: bytes, value: bytes, flags: int) -> None:
        _check_xattr(name, value)
        self._setxattr(self._opened_node(fh), name, value, flags)

    def getxattr(self, path: bytes, name: bytes) -> bytes:
        _check_xattr(name)
        return self._getxattr(self._node(path), name)

    def fgetxattr(self, fh: int, name: bytes) -> bytes:
        _check_xattr(name)
        return self._getxattr(self._opened_node(fh), name)

    def removexattr(self, path: bytes, name: bytes) -> None:
        _check_xattr(name)
        self._removexattr(self._node(path), name)

    def fremovexattr(self, fh: int, name: bytes) -> None:
        _check_xattr(name)
        self._removexattr(self._opened_node(fh), name)

    def listxattr(self, path: bytes) -> list[bytes]:
        return self._listxattr(self._node(path))

    def flistxattr(self, fh: int) -> list[bytes]:
        return self._listxattr(self._opened_node(fh))

    # The whole

    def saved(self) -> ReferenceFs:
        """Return a copy of the tree, without handles."""
        copy = ReferenceFs(
            caller=self.caller,
            umask=self._umask,
            follow_symlinks=self._follow_symlinks,
            knows_who_writes=self._knows_who_writes,
        )
        self.copy_into(copy)
        return copy

    def with_handles_of(self, other: ReferenceFs) -> ReferenceFs:
        """Return a copy of the tree in which what is open in another goes on."""
        copy = self.saved()
        copy._next_ino, copy._next_fh = other._next_ino, other._next_fh
        for fh, opened in other._open.items():
            if opened.ino not in copy._nodes:
                copy._nodes[opened.ino] = replace(other._nodes[opened.ino], nlink=0, opens=0)
            copy._nodes[opened.ino].opens += 1
            copy._open[fh] = opened
        return copy

    # Inside: names

    def _creatable(self, path: bytes) -> tuple[Node, bytes]:
        parent, name = self._absent(path)
        require(parent, self.caller, WRITE | SEARCH)
        return parent, name

    def _require_movable(
        self, old_parent: Node, source: Node, new_parent: Node, target: Node | None, flags: int
    ) -> None:
        require_removable(old_parent, source, self.caller)
        if target is None:
            require(new_parent, self.caller, WRITE | SEARCH)
        else:
            require_removable(new_parent, target, self.caller)
            if flags != RENAME_EXCHANGE and source.is_dir != target.is_dir:
                fail(errno.ENOTDIR if source.is_dir else errno.EISDIR)
        if old_parent is not new_parent:
            # What moves has another ``..`` then.
            if source.is_dir:
                require(source, self.caller, WRITE)
            if target is not None and target.is_dir and flags == RENAME_EXCHANGE:
                require(target, self.caller, WRITE)

    def _require_replaceable(self, source: Node, target: Node) -> None:
        if target.children:
            fail(errno.ENOTEMPTY)

    def _move(
        self, node: Node, old_parent: Node, old_name: bytes, new_parent: Node, new_name: bytes
    ) -> None:
        del old_parent.children[old_name]
        new_parent.children[new_name] = node.ino
        if node.is_dir:
            node.parent = new_parent.ino
        old_parent.modified()
        new_parent.modified()

    def _exchange(
        self, one_parent: Node, one_name: bytes, two_parent: Node, two_name: bytes
    ) -> None:
        one, two = one_parent.children[one_name], two_parent.children[two_name]
        one_parent.children[one_name], two_parent.children[two_name] = two, one
        for ino, parent in ((one, two_parent), (two, one_parent)):
            if self._nodes[ino].is_dir:
                self._nodes[ino].parent = parent.ino
            parent.modified()

    # Inside: attributes

    def _opened_node(self, fh: int) -> Node:
        return self._nodes[self._open[fh].ino]

    def _chmod(self, node: Node, mode: int) -> None:
        require_owner(node, self.caller)
        node.mode = mode_after_chmod(node, self.caller, mode)
        if node.access is not None:
            node.access = node.access.with_bits(mode)

    def _chown(self, node: Node, uid: int, gid: int) -> None:
        mode = mode_after_chown(node, self.caller)
        if mode != node.mode:
            require_owner(node, self.caller)
        ids = [None if new == KEEP else new for new in (uid, gid)]
        if not may_chown(node, self.caller, *ids):
            fail(errno.EPERM)
        node.uid = node.uid if uid == KEEP else uid
        node.gid = node.gid if gid == KEEP else gid
        node.mode = mode

    def _utimens(self, node: Node, mtime_ns: int) -> None:
        require_owner(node, self.caller)
        node.mtime_ns, node.fresh = mtime_ns, False

    def _setxattr(self, node: Node, name: bytes, value: bytes, flags: int) -> None:
        if name in (ACCESS, DEFAULT):
            self._set_acl(node, name, Acl.decode(value))
            return
        self._require_xattr(node, name, WRITE)
        if flags == os.XATTR_CREATE and name in node.xattrs:
            fail(errno.EEXIST)
        if flags == os.XATTR_REPLACE and name not in node.xattrs:
            fail(errno.ENODATA)
        node.xattrs[name] = value

    def _getxattr(self, node: Node, name: bytes) -> bytes:
        if name in (ACCESS, DEFAULT):
            if node.kind is Kind.SYMLINK:
                fail(errno.EOPNOTSUPP)
        else:
            self._require_xattr(node, name, READ)
        value = node.all_xattrs().get(name)
        if value is None:
            fail(errno.ENODATA)
        return value

    def _removexattr(self, node: Node, name: bytes) -> None:
        if name in (ACCESS, DEFAULT):
            self._set_acl(node, name, None)
            return
        self._require_xattr(node, name, WRITE)
        if name not in node.xattrs:
            fail(errno.ENODATA)
        del node.xattrs[name]

    def _listxattr(self, node: Node) -> list[bytes]:
        hidden = () if self.caller.privileged else (b"trusted.",)
        return sorted(name for name in node.all_xattrs() if not name.startswith(hidden or (b"\0",)))

    def _require_xattr(self, node: Node, name: bytes, want: int) -> None:
        """Source: xattr(7); xattr_permission() in fs/xattr.c."""
        refusal = errno.EPERM if want & WRITE else errno.ENODATA
        if name.startswith(b"trusted."):
            if not self.caller.privileged:
                fail(refusal)
            return
        if node.kind not in (Kind.FILE, Kind.DIRECTORY):
            fail(refusal)
        if node.is_dir and node.mode & 0o1000 and want & WRITE:
            require_owner(node, self.caller)
        require(node, self.caller, want)

    def _set_acl(self, node: Node, name: bytes, acl: Acl | None) -> None:
        """Source: set_posix_acl() and posix_acl_update_mode() in fs/posix_acl.c."""
        if node.kind is Kind.SYMLINK:
            fail(errno.EOPNOTSUPP)
        if name == DEFAULT and not node.is_dir:
            if acl is not None:
                fail(errno.EACCES)
            return
        require_owner(node, self.caller)
        if name == DEFAULT:
            node.default = acl
            return
        if acl is not None:
            node.mode = mode_after_chmod(node, self.caller, node.mode & ~0o777 | acl.bits)
        node.access = None if acl is None or acl.is_minimal else acl


def _check_xattr(name: bytes, value: bytes = b"") -> None:
    if len(name) > XATTR_NAME_MAX:
        fail(errno.ERANGE)
    if len(value) > XATTR_VALUE_MAX:
        fail(errno.E2BIG)
