"""The reference's inodes and names: how a path is walked, and what the whole looks like.

Source: path_resolution(7), symlink(7), inode(7); fs/namei.c of Linux for the order of checks.
"""

from __future__ import annotations

import errno
import hashlib
import stat as stat_bits
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from .permissions import (
    ACCESS,
    DEFAULT,
    ROOT,
    SEARCH,
    Acl,
    Caller,
    fail,
    new_mode,
    require,
    require_followed,
)
from .tree import Entry, Kind, Stat, Tree, hard_link_groups, joined

NAME_MAX = 255
SYMLINKS_MAX = 40


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
    rdev: int = 0
    nlink: int = 0
    data: bytes = b""
    children: dict[bytes, int] = field(default_factory=dict)
    parent: int = 0
    xattrs: dict[bytes, bytes] = field(default_factory=dict)
    access: Acl | None = None
    default: Acl | None = None
    mtime_ns: int | None = None
    fresh: bool = True
    opens: int = 0
    digest: bytes | None = None

    @property
    def is_dir(self) -> bool:
        return self.kind is Kind.DIRECTORY

    @property
    def is_file(self) -> bool:
        return self.kind is Kind.FILE

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

    def all_xattrs(self) -> dict[bytes, bytes]:
        """Return the extended attributes, lists of access rights included."""
        lists = {ACCESS: self.access, DEFAULT: self.default}
        return self.xattrs | {name: acl.encode() for name, acl in lists.items() if acl is not None}


@dataclass(frozen=True, slots=True)
class OpenFile:
    ino: int
    readable: bool
    writable: bool
    append: bool
    opener: Caller
    mode: int
    """Of the file, then."""


@dataclass(frozen=True, slots=True)
class Found:
    """Where a path leads; ``parent`` is None for the root and for ``..`` at its end."""

    parent: Node | None
    name: bytes
    node: Node | None


class ReferenceTree:
    """Inodes under names, and no operations yet."""

    def __init__(
        self,
        *,
        caller: Caller = ROOT,
        umask: int = 0,
        root_mode: int = 0o755,
        follow_symlinks: bool = True,
        knows_who_writes: bool = True,
    ) -> None:
        """Make an empty filesystem.

        Args:
            caller: Who owns the root, and does what comes; ``act_as`` changes that.
            follow_symlinks: False for a driver that cannot: a path that needs
                it is then Unmodelled.
            knows_who_writes: False for a driver that only knows who opened:
                where that would matter is then Unmodelled.
        """
        self.caller = caller
        self._umask = umask
        self._follow_symlinks = follow_symlinks
        self._knows_who_writes = knows_who_writes
        self._root = Node(1, Kind.DIRECTORY, root_mode, caller.uid, caller.gid, fresh=False)
        self._nodes = {1: self._root}
        self._next_ino = 2
        self._open: dict[int, OpenFile] = {}
        self._next_fh = 1

    def act_as(self, caller: Caller) -> None:
        self.caller = caller

    # The whole

    def tree(self) -> Tree:
        """Return every path there is, the root as ``b""``."""
        nodes = dict(self._iter_paths())
        links = hard_link_groups((path, node.ino) for path, node in nodes.items())
        return {
            path: Entry(
                stat=self.stat_of(node),
                content=node.content(),
                xattrs=tuple(sorted(node.all_xattrs().items())),
                links=links[node.ino],
            )
            for path, node in nodes.items()
        }

    def paths(self, *kinds: Kind) -> list[bytes]:
        """Return the paths of the given kinds (of all when none is given), ascending."""
        return sorted(path for path, node in self._iter_paths() if not kinds or node.kind in kinds)

    def paths_with_xattrs(self) -> list[bytes]:
        return sorted(path for path, node in self._iter_paths() if node.all_xattrs())

    def xattrs_of(self, path: bytes) -> dict[bytes, bytes]:
        """Return the extended attributes of what is at a path, if anything is."""
        found = dict(self._iter_paths()).get(path)
        return {} if found is None else found.all_xattrs()

    def find_path_of(self, fh: int) -> bytes | None:
        """Return a name of the file behind a handle, ``None`` if it has none."""
        ino = self._open[fh].ino
        return min((path for path, node in self._iter_paths() if node.ino == ino), default=None)

    def copy_into(self, copy: ReferenceTree) -> None:
        """Make another what this is; handles, and files that live by them only, stay behind."""
        copy._nodes = {
            node.ino: replace(node, children=dict(node.children), xattrs=dict(node.xattrs), opens=0)
            for _, node in self._iter_paths()
        }
        copy._root = copy._nodes[self._root.ino]
        copy._next_ino, copy._next_fh = self._next_ino, self._next_fh

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
            if node.access is not None and node.access.bits != node.mode & 0o777:
                problems.append(f"inode {ino}: its access ACL is not its mode")
        return problems

    def stat_of(self, node: Node) -> Stat:
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
            rdev=node.rdev,
        )

    def _iter_paths(self) -> Iterator[tuple[bytes, Node]]:
        pending = [(b"", self._root)]
        while pending:
            path, node = pending.pop()
            yield path, node
            for name, ino in node.children.items():
                pending.append((joined(path, name), self._nodes[ino]))

    # Walking

    def _walk(self, path: bytes, *, follow: bool) -> Found:
        """Return where a path leads. The root stands for any directory that is always reached."""
        parts = deque(path.split(b"/")) if path else deque()
        here, followed = self._root, 0
        while parts:
            name = parts.popleft()
            if not here.is_dir:
                fail(errno.ENOTDIR)
            require(here, self.caller, SEARCH)
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
                    fail(errno.ENOENT)
                return Found(here, name, None)
            if child.kind is Kind.SYMLINK and (parts or follow):
                if child.data.startswith(b"/") or not self._follow_symlinks:
                    raise Unmodelled("a symlink that cannot be followed here")
                followed += 1
                if followed > SYMLINKS_MAX:
                    fail(errno.ELOOP)
                if not parts:
                    require_followed(here, child, self.caller)
                parts.extendleft(reversed(child.data.split(b"/")))
                continue
            if not parts:
                return Found(here, name, child)
            here = child
        return Found(None, b"", here)

    def _node(self, path: bytes, *, follow: bool = False) -> Node:
        node = self._walk(path, follow=follow).node
        if node is None:
            fail(errno.ENOENT)
        return node

    def _parent(self, path: bytes) -> tuple[Node, bytes]:
        directory, _, name = path.rpartition(b"/")
        if not name:
            raise Unmodelled("the root has no name")
        parent = self._node(directory, follow=True)
        if not parent.is_dir:
            fail(errno.ENOTDIR)
        require(parent, self.caller, SEARCH)
        return parent, name

    def _find_child(self, parent: Node, name: bytes) -> Node | None:
        if len(name) > NAME_MAX:
            fail(errno.ENAMETOOLONG)
        ino = parent.children.get(name)
        return None if ino is None else self._nodes[ino]

    def _child(self, parent: Node, name: bytes) -> Node:
        node = self._find_child(parent, name)
        if node is None:
            fail(errno.ENOENT)
        return node

    def _absent(self, path: bytes) -> tuple[Node, bytes]:
        if not path:
            fail(errno.EEXIST)
        parent, name = self._parent(path)
        if self._find_child(parent, name) is not None:
            fail(errno.EEXIST)
        return parent, name

    def _is_within(self, node: Node, ancestor: Node) -> bool:
        while node is not ancestor:
            if node is self._root:
                return False
            node = self._nodes[node.parent]
        return True

    # Changing names

    def _new_node(self, parent: Node, kind: Kind, mode: int, *, rdev: int = 0) -> Node:
        """Return a new inode that has no name yet.

        Source: inode(7) on set-group-ID directories, acl(5) on default ACLs.
        """
        is_dir = kind is Kind.DIRECTORY
        mode = new_mode(parent, self.caller, mode, is_dir=is_dir)
        access = default = None
        if kind is Kind.SYMLINK or parent.default is None:
            mode &= ~self._umask
        else:
            access = parent.default.with_bits(parent.default.bits & mode)
            mode = mode & ~0o777 | access.bits
            access = None if access.is_minimal else access
            default = parent.default if is_dir else None
        gid = parent.gid if parent.mode & stat_bits.S_ISGID else self.caller.gid
        node = Node(self._next_ino, kind, mode, self.caller.uid, gid, rdev)
        node.access, node.default = access, default
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
