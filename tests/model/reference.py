"""The filesystem that the others are compared with: a few dicts.

Every operation either returns what POSIX promises or raises ``OSError`` with
the errno that Linux gives, in the order in which Linux looks at things. The
tmpfs and ext4 runs of the machine test this file; the others trust it.

The caller is root (or owns everything): permission checks are not modelled.
A path is relative to the root, ``b""`` being the root itself. It is resolved
as the kernel does it, through relative symlinks.

Source: open(2), rename(2), link(2), unlink(2), rmdir(2), truncate(2),
chown(2), path_resolution(7), xattr(7), symlink(7); fs/namei.c for the order.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat as stat_bits
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import NoReturn

from .tree import Entry, Kind, Stat, Tree, hard_link_groups, joined

NAME_MAX = 255
TARGET_MAX = 4095
XATTR_NAME_MAX = 255
SYMLINKS_MAX = 40
SIZE_MAX = 16 << 20
"""A file longer than this is not modelled: holes are stored here as zeros."""

RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2
KEEP = -1
"""chown(2): leave this id as it is."""


class Unmodelled(Exception):
    """What this operation should do is not known here: skip it. Nothing was changed."""


@dataclass(slots=True)
class Node:
    """An inode. ``data`` is immutable so that a saved state can share it."""

    ino: int
    kind: Kind
    mode: int
    uid: int
    gid: int
    nlink: int = 0
    data: bytes = b""
    children: dict[bytes, int] = field(default_factory=dict)
    parent: int = 0
    xattrs: dict[bytes, bytes] = field(default_factory=dict)
    mtime_ns: int | None = None
    fresh: bool = True
    opens: int = 0
    digest: bytes | None = None

    @property
    def is_dir(self) -> bool:
        return self.kind is Kind.DIRECTORY

    def modified(self) -> None:
        self.mtime_ns, self.fresh = None, True

    def perhaps_modified(self) -> None:
        """Filesystems differ in whether this moves the mtime: it is unknown from here on."""
        self.mtime_ns, self.fresh = None, False

    def put_data(self, data: bytes) -> None:
        self.data, self.digest = data, None
        self.modified()

    def content(self) -> bytes | None:
        if self.kind is Kind.SYMLINK:
            return self.data
        if self.kind is not Kind.FILE:
            return None
        if self.digest is None:
            self.digest = hashlib.sha256(self.data).digest()
        return self.digest


@dataclass(frozen=True, slots=True)
class OpenFile:
    ino: int
    readable: bool
    writable: bool
    append: bool


@dataclass(frozen=True, slots=True)
class _Found:
    """Where a path leads; ``parent`` is None for the root and for ``..`` at its end."""

    parent: Node | None
    name: bytes
    node: Node | None


class ReferenceFs:
    def __init__(
        self,
        *,
        uid: int = 0,
        gid: int = 0,
        umask: int = 0,
        root_mode: int = 0o755,
        follow_symlinks: bool = True,
    ) -> None:
        """Make an empty filesystem.

        Args:
            uid, gid: Who calls; owns what is created.
            follow_symlinks: False for a driver that cannot: a path that needs
                it is then Unmodelled.
        """
        self._uid, self._gid, self._umask = uid, gid, umask
        self._follow_symlinks = follow_symlinks
        self._root = Node(1, Kind.DIRECTORY, root_mode, uid, gid, fresh=False)
        self._nodes = {1: self._root}
        self._next_ino = 2
        self._open: dict[int, OpenFile] = {}
        self._next_fh = 1

    # Namespace

    def mkdir(self, path: bytes, mode: int) -> None:
        parent, name = self._absent(path)
        # mkdir(2): only the permission bits and the sticky bit are taken.
        node = self._new_node(parent, Kind.DIRECTORY, mode & 0o1777)
        node.parent = parent.ino
        self._add(parent, name, node)

    def mkfifo(self, path: bytes, mode: int) -> None:
        parent, name = self._absent(path)
        self._add(parent, name, self._new_node(parent, Kind.FIFO, mode))

    def symlink(self, target: bytes, path: bytes) -> None:
        if not target:
            _fail(errno.ENOENT)
        if len(target) > TARGET_MAX:
            _fail(errno.ENAMETOOLONG)
        parent, name = self._absent(path)
        node = self._new_node(parent, Kind.SYMLINK, 0o777)
        node.mode, node.data = 0o777, target
        self._add(parent, name, node)

    def link(self, existing: bytes, path: bytes) -> None:
        node = self._node(existing)
        parent, name = self._absent(path)
        if node.is_dir:
            _fail(errno.EPERM)
        self._add(parent, name, node)

    def unlink(self, path: bytes) -> None:
        parent, name = self._parent(path)
        node = self._child(parent, name)
        if node.is_dir:
            _fail(errno.EISDIR)
        self._remove(parent, name)

    def rmdir(self, path: bytes) -> None:
        parent, name = self._parent(path)
        node = self._child(parent, name)
        if not node.is_dir:
            _fail(errno.ENOTDIR)
        if node.children:
            _fail(errno.ENOTEMPTY)
        self._remove(parent, name)

    def rename(self, old: bytes, new: bytes, flags: int) -> None:
        if flags not in (0, RENAME_NOREPLACE, RENAME_EXCHANGE):
            _fail(errno.EINVAL)
        old_parent, old_name = self._parent(old)
        new_parent, new_name = self._parent(new)
        source = self._child(old_parent, old_name)
        target = self._find_child(new_parent, new_name)
        if flags == RENAME_NOREPLACE and target is not None:
            _fail(errno.EEXIST)
        if flags == RENAME_EXCHANGE and target is None:
            _fail(errno.ENOENT)
        if self._is_within(new_parent, source):
            _fail(errno.EINVAL)
        if target is not None and self._is_within(old_parent, target):
            _fail(errno.EINVAL if flags == RENAME_EXCHANGE else errno.ENOTEMPTY)
        if source is target:
            return
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
            _fail(errno.EINVAL)
        return node.data

    def readdir(self, path: bytes) -> list[bytes]:
        """Return the names, ascending, without ``.`` and ``..``."""
        node = self._node(path)
        if node.kind is Kind.SYMLINK:
            raise Unmodelled("a listing through a symlink")
        if not node.is_dir:
            _fail(errno.ENOTDIR)
        return sorted(node.children)

    # Attributes

    def stat(self, path: bytes) -> Stat:
        """lstat(2)."""
        return self._stat(self._node(path))

    def fstat(self, fh: int) -> Stat:
        return self._stat(self._nodes[self._open[fh].ino])

    def chmod(self, path: bytes, mode: int) -> None:
        """chmod(2), which follows a symlink."""
        self._node(path, follow=True).mode = mode & 0o7777

    def chown(self, path: bytes, uid: int, gid: int) -> None:
        """lchown(2) by root; ``KEEP`` leaves an id as it is."""
        node = self._node(path)
        node.uid = node.uid if uid == KEEP else uid
        node.gid = node.gid if gid == KEEP else gid
        if not node.is_dir:
            # Linux does this for root too, and even where no id changes. A
            # set-gid bit without group execution is no privilege: it stays.
            drop_gid = stat_bits.S_ISGID if node.mode & stat_bits.S_IXGRP else 0
            node.mode &= ~(stat_bits.S_ISUID | drop_gid)

    def utimens(self, path: bytes, atime_ns: int, mtime_ns: int) -> None:
        """utimensat(2), not following a symlink."""
        node = self._node(path)
        node.mtime_ns, node.fresh = mtime_ns, False

    # Extended attributes (user.*), not following symlinks

    def setxattr(self, path: bytes, name: bytes, value: bytes, flags: int) -> None:
        node = self._xattr_node(path, name, errno.EPERM)
        if flags == os.XATTR_CREATE and name in node.xattrs:
            _fail(errno.EEXIST)
        if flags == os.XATTR_REPLACE and name not in node.xattrs:
            _fail(errno.ENODATA)
        node.xattrs[name] = value

    def getxattr(self, path: bytes, name: bytes) -> bytes:
        node = self._xattr_node(path, name, errno.ENODATA)
        if name not in node.xattrs:
            _fail(errno.ENODATA)
        return node.xattrs[name]

    def removexattr(self, path: bytes, name: bytes) -> None:
        node = self._xattr_node(path, name, errno.EPERM)
        if name not in node.xattrs:
            _fail(errno.ENODATA)
        del node.xattrs[name]

    def listxattr(self, path: bytes) -> list[bytes]:
        return sorted(self._node(path).xattrs)

    # Files

    def open(self, path: bytes, flags: int, mode: int) -> int:
        creat, excl = bool(flags & os.O_CREAT), bool(flags & os.O_EXCL)
        access = flags & os.O_ACCMODE
        follow = not flags & os.O_NOFOLLOW and not (creat and excl)
        found = self._walk(path, follow=follow)
        node = found.node
        if node is None:
            if not creat or found.parent is None:
                _fail(errno.ENOENT)
            node = self._new_node(found.parent, Kind.FILE, mode)
            self._add(found.parent, found.name, node)
        else:
            if creat and excl:
                _fail(errno.EEXIST)
            self._require_openable(node, flags)
            if flags & os.O_TRUNC:
                self._resize(node, 0)
        opened = OpenFile(
            node.ino,
            readable=access != os.O_WRONLY,
            writable=access != os.O_RDONLY,
            append=bool(flags & os.O_APPEND),
        )
        node.opens += 1
        fh, self._next_fh = self._next_fh, self._next_fh + 1
        self._open[fh] = opened
        return fh

    def close(self, fh: int) -> None:
        node = self._nodes[self._open.pop(fh).ino]
        node.opens -= 1
        self._drop_if_unused(node)

    def pread(self, fh: int, length: int, offset: int) -> bytes:
        opened = self._open[fh]
        if not opened.readable:
            _fail(errno.EBADF)
        return self._nodes[opened.ino].data[offset : offset + length]

    def pwrite(self, fh: int, data: bytes, offset: int) -> int:
        """pwrite(2); on a descriptor that appends, Linux ignores the offset."""
        opened = self._open[fh]
        if not opened.writable:
            _fail(errno.EBADF)
        node = self._nodes[opened.ino]
        start = len(node.data) if opened.append else offset
        if start + len(data) > SIZE_MAX:
            raise Unmodelled("file too long")
        if data:
            node.put_data(_spliced(node.data, data, start))
        return len(data)

    def truncate(self, path: bytes, size: int) -> None:
        if size < 0:
            _fail(errno.EINVAL)
        node = self._node(path, follow=True)
        if node.is_dir:
            _fail(errno.EISDIR)
        if node.kind is not Kind.FILE:
            _fail(errno.EINVAL)
        self._resize(node, size)

    def ftruncate(self, fh: int, size: int) -> None:
        opened = self._open[fh]
        if size < 0 or not opened.writable:
            _fail(errno.EINVAL)
        self._resize(self._nodes[opened.ino], size)

    def fsync(self, fh: int, *, datasync: bool) -> None:
        """Change nothing that a model without crashes could see."""

    def opened(self, fh: int) -> OpenFile:
        return self._open[fh]

    # The whole

    def tree(self) -> Tree:
        """Return every path that can be reached, the root as ``b""``."""
        nodes = dict(self._iter_paths())
        links = hard_link_groups((path, node.ino) for path, node in nodes.items())
        return {
            path: Entry(
                stat=self._stat(node),
                content=node.content(),
                xattrs=tuple(sorted(node.xattrs.items())),
                links=links[node.ino],
            )
            for path, node in nodes.items()
        }

    def paths(self, *kinds: Kind) -> list[bytes]:
        """Return the paths of the given kinds (of all when none is given), ascending."""
        return sorted(path for path, node in self._iter_paths() if not kinds or node.kind in kinds)

    def saved(self) -> ReferenceFs:
        """Return a copy of the tree; handles, and files that live by them only, stay behind."""
        copy = ReferenceFs(
            uid=self._uid,
            gid=self._gid,
            umask=self._umask,
            follow_symlinks=self._follow_symlinks,
        )
        copy._nodes = {
            node.ino: replace(node, children=dict(node.children), xattrs=dict(node.xattrs), opens=0)
            for _, node in self._iter_paths()
        }
        copy._root = copy._nodes[self._root.ino]
        copy._next_ino, copy._next_fh = self._next_ino, self._next_fh
        return copy

    def check(self) -> list[str]:
        """Return what is inconsistent in the reference itself."""
        problems = []
        found: dict[int, int] = {}
        for path, node in self._iter_paths():
            found[node.ino] = found.get(node.ino, 0) + 1
            for name, ino in node.children.items():
                child = self._nodes[ino]
                if child.is_dir and child.parent != node.ino:
                    problems.append(f"{path!r}/{name!r}: its parent is inode {child.parent}")
        for ino, node in self._nodes.items():
            names = found.get(ino, 0)
            if node is not self._root and names != node.nlink:
                problems.append(f"inode {ino}: {names} names, nlink {node.nlink}")
            if node.is_dir and names != 1:
                problems.append(f"inode {ino}: a directory with {names} names")
            if not names and not node.opens:
                problems.append(f"inode {ino}: neither a name nor a handle")
            if node.opens != sum(opened.ino == ino for opened in self._open.values()):
                problems.append(f"inode {ino}: counts {node.opens} handles")
            if node.children and not node.is_dir:
                problems.append(f"inode {ino}: a {node.kind.value} with children")
            if node.data and node.kind not in (Kind.FILE, Kind.SYMLINK):
                problems.append(f"inode {ino}: a {node.kind.value} with bytes")
        return problems

    # Inside

    def _walk(self, path: bytes, *, follow: bool) -> _Found:
        parts = deque(path.split(b"/"))
        here, followed = self._root, 0
        while parts:
            name = parts.popleft()
            if not here.is_dir:
                _fail(errno.ENOTDIR)
            if name in (b"", b"."):
                continue
            if name == b"..":
                if here is self._root:
                    raise Unmodelled("a path that leaves the root")
                here = self._nodes[here.parent]
                continue
            child = self._find_child(here, name)
            if child is None:
                if parts:
                    _fail(errno.ENOENT)
                return _Found(here, name, None)
            if child.kind is Kind.SYMLINK and (parts or follow):
                if child.data.startswith(b"/") or not self._follow_symlinks:
                    raise Unmodelled("a symlink that cannot be followed here")
                followed += 1
                if followed > SYMLINKS_MAX:
                    _fail(errno.ELOOP)
                parts.extendleft(reversed(child.data.split(b"/")))
                continue
            if not parts:
                return _Found(here, name, child)
            here = child
        return _Found(None, b"", here)

    def _node(self, path: bytes, *, follow: bool = False) -> Node:
        node = self._walk(path, follow=follow).node
        if node is None:
            _fail(errno.ENOENT)
        return node

    def _parent(self, path: bytes) -> tuple[Node, bytes]:
        directory, _, name = path.rpartition(b"/")
        if not name:
            raise Unmodelled("the root has no name")
        parent = self._node(directory, follow=True)
        if not parent.is_dir:
            _fail(errno.ENOTDIR)
        return parent, name

    def _find_child(self, parent: Node, name: bytes) -> Node | None:
        if len(name) > NAME_MAX:
            _fail(errno.ENAMETOOLONG)
        ino = parent.children.get(name)
        return None if ino is None else self._nodes[ino]

    def _child(self, parent: Node, name: bytes) -> Node:
        node = self._find_child(parent, name)
        if node is None:
            _fail(errno.ENOENT)
        return node

    def _absent(self, path: bytes) -> tuple[Node, bytes]:
        if not path:
            _fail(errno.EEXIST)
        parent, name = self._parent(path)
        if self._find_child(parent, name) is not None:
            _fail(errno.EEXIST)
        return parent, name

    def _new_node(self, parent: Node, kind: Kind, mode: int) -> Node:
        mode &= 0o7777 & ~self._umask
        gid = self._gid
        if parent.mode & stat_bits.S_ISGID:
            gid = parent.gid
            mode |= stat_bits.S_ISGID if kind is Kind.DIRECTORY else 0
        node = Node(self._next_ino, kind, mode, self._uid, gid)
        self._next_ino += 1
        self._nodes[node.ino] = node
        return node

    def _add(self, parent: Node, name: bytes, node: Node) -> None:
        parent.children[name] = node.ino
        parent.modified()
        node.nlink += 1

    def _remove(self, parent: Node, name: bytes) -> None:
        node = self._nodes[parent.children.pop(name)]
        parent.modified()
        node.nlink -= 1
        self._drop_if_unused(node)

    def _drop_if_unused(self, node: Node) -> None:
        if not node.nlink and not node.opens:
            del self._nodes[node.ino]

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

    def _require_replaceable(self, source: Node, target: Node) -> None:
        if source.is_dir and not target.is_dir:
            _fail(errno.ENOTDIR)
        if target.is_dir and not source.is_dir:
            _fail(errno.EISDIR)
        if target.children:
            _fail(errno.ENOTEMPTY)

    def _require_openable(self, node: Node, flags: int) -> None:
        if node.kind is Kind.SYMLINK:
            _fail(errno.ELOOP)
        if node.is_dir:
            if flags & (os.O_ACCMODE | os.O_CREAT | os.O_TRUNC):
                _fail(errno.EISDIR)
            raise Unmodelled("a handle on a directory")
        if node.kind is Kind.FIFO:
            raise Unmodelled("a handle on a fifo")

    def _xattr_node(self, path: bytes, name: bytes, code: int) -> Node:
        if len(name) > XATTR_NAME_MAX:
            _fail(errno.ERANGE)
        node = self._node(path)
        if node.kind not in (Kind.FILE, Kind.DIRECTORY):
            _fail(code)
        return node

    def _is_within(self, node: Node, ancestor: Node) -> bool:
        while node is not ancestor:
            if node is self._root:
                return False
            node = self._nodes[node.parent]
        return True

    def _resize(self, node: Node, size: int) -> None:
        if size > SIZE_MAX:
            raise Unmodelled("file too long")
        if size == len(node.data):
            node.perhaps_modified()
        else:
            node.put_data(node.data[:size].ljust(size, b"\0"))

    def _stat(self, node: Node) -> Stat:
        subdirectories = sum(self._nodes[ino].is_dir for ino in node.children.values())
        has_size = node.kind in (Kind.FILE, Kind.SYMLINK)
        return Stat(
            ino=node.ino,
            kind=node.kind,
            mode=node.mode,
            uid=node.uid,
            gid=node.gid,
            nlink=2 + subdirectories if node.is_dir else node.nlink,
            size=len(node.data) if has_size else None,
            mtime_ns=node.mtime_ns,
            fresh=node.fresh,
        )

    def _iter_paths(self) -> Iterator[tuple[bytes, Node]]:
        pending = [(b"", self._root)]
        while pending:
            path, node = pending.pop()
            yield path, node
            for name, ino in node.children.items():
                pending.append((joined(path, name), self._nodes[ino]))


def _spliced(old: bytes, data: bytes, offset: int) -> bytes:
    return b"".join((old[:offset].ljust(offset, b"\0"), data, old[offset + len(data) :]))


def _fail(code: int) -> NoReturn:
    raise OSError(code, os.strerror(code))
