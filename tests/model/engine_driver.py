"""The engine without a mount: what the kernel does for a mount is done here, in its order.

No user but root: the engine leaves permissions to the kernel.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import stat
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from anyio.from_thread import BlockingPortal, start_blocking_portal

from nexus_engine import commands, errors
from nexus_engine.commands import Reply, Request, ignore_progress
from nexus_engine.engine import Engine
from nexus_engine.fs.attributes import NewAttributes
from nexus_engine.fs.files import Handle
from nexus_engine.history.versions import Version, read_content, versions
from nexus_engine.meta.reader import View
from nexus_engine.store import Store
from nexus_engine.types import ROOT_INO, SYMLINK_MAX, Actor, Ino, Inode, Name, Seq
from nexusfuse.errno_map import ERRNO

from .drivers import READ_SIZE, Features, walk_tree
from .permissions import ACCESS, DEFAULT, ROOT, Acl, Caller, fail, mode_after_chown
from .reference import KEEP, RENAME_EXCHANGE, RENAME_NOREPLACE, XATTR_NAME_MAX, XATTR_VALUE_MAX
from .tree import Kind, Stat, Tree

R = TypeVar("R")

ACTOR = Actor(0, 0, 1, 1, "model", 1, "")


class EngineView:
    """A tree as of an operation."""

    def __init__(self, store: Store, view: View) -> None:
        self._store = store
        self._view = view

    def stat(self, path: bytes) -> Stat:
        return _stat(self._at(path))

    def readdir(self, path: bytes) -> list[bytes]:
        return sorted(self._iter_names(self._at(path).ino))

    def readlink(self, path: bytes) -> bytes:
        return self._at(path).target or b""

    def iter_content(self, path: bytes) -> Iterator[bytes]:
        inode = self._at(path)
        for offset in range(0, inode.size, READ_SIZE):
            yield read_content(self._store, self._view, inode, offset, READ_SIZE)

    def listxattr(self, path: bytes) -> list[bytes]:
        return self._view.xattr_names(self._at(path).ino)

    def getxattr(self, path: bytes, name: bytes) -> bytes:
        return self._view.find_xattr(self._at(path).ino, name) or b""

    def _iter_names(self, ino: Ino) -> Iterator[Name]:
        after = 0
        while entries := self._view.list_children(ino, after, 100):
            for entry in entries:
                yield entry.name
                after = entry.cookie

    def _at(self, path: bytes) -> Inode:
        inode = self._view.find_inode(ROOT_INO)
        for part in path.split(b"/") if path else []:
            inode = None if inode is None else self._view.find_child(inode.ino, Name(part))
        if inode is None:
            fail(errno.ENOENT)
        return inode


class EngineDriver:
    """An engine over a store of its own."""

    features: ClassVar[Features] = Features(
        acls=True,
        follows_symlinks=False,
        supports_history=True,
        history_of_open_files=True,
        supports_undo=True,
        supports_undo_last=True,
        supports_restore=True,
        supports_remount=True,
    )

    def __init__(self, directory: Path) -> None:
        """Make a store at a path where nothing is yet."""
        self._path = directory
        self._leaving = contextlib.ExitStack()
        self._portal: BlockingPortal = self._leaving.enter_context(start_blocking_portal("trio"))
        Store.create(directory, ACTOR).close()
        self._engine = self._portal.call(Engine.start, directory)
        self._handles: dict[int, tuple[Handle, int]] = {}
        self._next_fh = 1
        self._snapshots = 0
        # Whoever makes a store owns its root.
        self._setattr(ROOT_INO, mode=0o755)

    def now_ns(self) -> int:
        return time.time_ns()

    def act_as(self, caller: Caller) -> None:
        assert caller == ROOT

    # Names

    def mkdir(self, path: bytes, mode: int) -> None:
        self._make(path, stat.S_IFDIR | mode & 0o1777)

    def mknod(self, path: bytes, kind: Kind, mode: int, rdev: int) -> None:
        self._make(path, kind.type_bits | mode, rdev=rdev if kind.is_device else 0)

    def symlink(self, target: bytes, path: bytes) -> None:
        if not target:
            fail(errno.ENOENT)
        if len(target) > SYMLINK_MAX:
            fail(errno.ENAMETOOLONG)
        self._make(path, stat.S_IFLNK | 0o777, target=target)

    def link(self, existing: bytes, path: bytes) -> None:
        inode = self._at(existing)
        parent, name = self._absent(path)
        if inode.is_dir:
            fail(errno.EPERM)
        self._call(self._engine.link, inode.ino, parent, name, ACTOR)

    def unlink(self, path: bytes) -> None:
        self._call(self._engine.unlink, *self._existing(path), ACTOR)

    def rmdir(self, path: bytes) -> None:
        self._call(self._engine.rmdir, *self._existing(path), ACTOR)

    def rename(self, old: bytes, new: bytes, flags: int) -> None:
        if flags not in (0, RENAME_NOREPLACE, RENAME_EXCHANGE):
            fail(errno.EINVAL)
        places = (*self._place(old), *self._place(new))
        self._at(old)
        target = self._find(new)
        if flags in (0, RENAME_EXCHANGE) and target is not None and old.startswith(new + b"/"):
            # The kernel knows, before the engine is asked.
            fail(errno.EINVAL if flags else errno.ENOTEMPTY)
        self._call(self._engine.rename, *places, flags, ACTOR)

    def readlink(self, path: bytes) -> bytes:
        return self._call(self._engine.readlink, self._at(path).ino)

    def readdir(self, path: bytes) -> list[bytes]:
        inode = self._at(path)
        if not inode.is_dir:
            fail(errno.ENOTDIR)
        return self._live().readdir(path)

    # Attributes

    def stat(self, path: bytes) -> Stat:
        return _stat(self._at(path))

    def fstat(self, fh: int) -> Stat:
        return _stat(self._opened(fh))

    def chmod(self, path: bytes, mode: int) -> None:
        self._setattr(self._at(path).ino, mode=mode)

    def fchmod(self, fh: int, mode: int) -> None:
        self._setattr(self._opened(fh).ino, mode=mode)

    def chown(self, path: bytes, uid: int, gid: int) -> None:
        self._chown(self._at(path), uid, gid)

    def fchown(self, fh: int, uid: int, gid: int) -> None:
        self._chown(self._opened(fh), uid, gid)

    def utimens(self, path: bytes, atime_ns: int, mtime_ns: int) -> None:
        self._setattr(self._at(path).ino, atime_ns=atime_ns, mtime_ns=mtime_ns)

    def futimens(self, fh: int, atime_ns: int, mtime_ns: int) -> None:
        self._setattr(self._opened(fh).ino, atime_ns=atime_ns, mtime_ns=mtime_ns)

    def touch(self, path: bytes) -> None:
        now = time.time_ns()
        self.utimens(path, now, now)

    # Extended attributes

    def setxattr(self, path: bytes, name: bytes, value: bytes, flags: int) -> None:
        self._setxattr(lambda: self._at(path), name, value, flags)

    def fsetxattr(self, fh: int, name: bytes, value: bytes, flags: int) -> None:
        self._setxattr(lambda: self._opened(fh), name, value, flags)

    def getxattr(self, path: bytes, name: bytes) -> bytes:
        return self._getxattr(lambda: self._at(path), name)

    def fgetxattr(self, fh: int, name: bytes) -> bytes:
        return self._getxattr(lambda: self._opened(fh), name)

    def removexattr(self, path: bytes, name: bytes) -> None:
        self._removexattr(lambda: self._at(path), name)

    def fremovexattr(self, fh: int, name: bytes) -> None:
        self._removexattr(lambda: self._opened(fh), name)

    def listxattr(self, path: bytes) -> list[bytes]:
        return sorted(self._call(self._engine.listxattr, self._at(path).ino))

    def flistxattr(self, fh: int) -> list[bytes]:
        return sorted(self._call(self._engine.listxattr, self._opened(fh).ino))

    # Files

    def open(self, path: bytes, flags: int, mode: int) -> int:
        inode = self._find(path)
        if inode is None:
            if not flags & os.O_CREAT:
                fail(errno.ENOENT)
            handle, _ = self._call(self._engine.create, *self._absent(path), mode & 0o7777, ACTOR)
            return self._add(handle, flags)
        if flags & os.O_CREAT and flags & os.O_EXCL:
            fail(errno.EEXIST)
        if inode.is_symlink:
            fail(errno.ELOOP)
        if inode.is_dir:
            fail(errno.EISDIR)
        return self._add(self._call(self._engine.open, inode.ino, flags, ACTOR), flags)

    def open_again(self, fh: int, flags: int) -> int:
        handle = self._call(self._engine.open, self._opened(fh).ino, flags, ACTOR)
        return self._add(handle, flags)

    def close(self, fh: int) -> None:
        handle, _ = self._handles.pop(fh)
        self._call(self._engine.flush, handle)
        self._call(self._engine.release, handle)

    def pread(self, fh: int, length: int, offset: int) -> bytes:
        handle, flags = self._handles[fh]
        if flags & os.O_ACCMODE == os.O_WRONLY:
            fail(errno.EBADF)
        return self._call(self._engine.read, handle, offset, length)

    def pwrite(self, fh: int, data: bytes, offset: int) -> int:
        handle, flags = self._handles[fh]
        if flags & os.O_ACCMODE == os.O_RDONLY:
            fail(errno.EBADF)
        if not data:
            return 0
        start = self._opened(fh).size if flags & os.O_APPEND else offset
        return self._call(self._engine.write, handle, start, data)

    def copy_range(self, source: int, sink: int, length: int, start: int, to: int) -> int:
        reads, writes = self._handles[source][1], self._handles[sink][1]
        if (
            reads & os.O_ACCMODE == os.O_WRONLY
            or writes & os.O_ACCMODE == os.O_RDONLY
            or writes & os.O_APPEND
        ):
            fail(errno.EBADF)
        data = self.pread(source, length, start)
        same = self._opened(source).ino == self._opened(sink).ino
        if same and start < to + len(data) and to < start + len(data):
            fail(errno.EINVAL)
        return self.pwrite(sink, data, to)

    def mapped_read(self, fh: int, length: int, offset: int) -> bytes:
        self._require_mappable(fh, os.O_RDONLY, os.O_RDWR)
        return self.pread(fh, length, offset)

    def mapped_write(self, fh: int, data: bytes, offset: int) -> None:
        self._require_mappable(fh, os.O_RDWR)
        self._call(self._engine.write, self._handles[fh][0], offset, data)

    def truncate(self, path: bytes, size: int) -> None:
        if size < 0:
            fail(errno.EINVAL)
        inode = self._at(path)
        if not inode.is_file:
            fail(errno.EISDIR if inode.is_dir else errno.EINVAL)
        self._setattr(inode.ino, size=size)

    def ftruncate(self, fh: int, size: int) -> None:
        if size < 0 or self._handles[fh][1] & os.O_ACCMODE == os.O_RDONLY:
            fail(errno.EINVAL)
        self._setattr(self._opened(fh).ino, size=size)

    def fsync(self, fh: int, *, datasync: bool) -> None:
        self._call(self._engine.fsync, self._handles[fh][0])

    # The whole, and time

    def tree(self) -> Tree:
        return walk_tree(_Live(self), xattrs=True)

    def moment(self) -> str:
        self._snapshots += 1
        return str(self._ask("snapshot-create", name=f"s{self._snapshots}")["seq"])

    def operation(self) -> str:
        return str(self._call(self._engine.settle))

    def tree_at(self, moment: str) -> Tree:
        view = self._engine.as_of(Seq(int(moment)))
        return walk_tree(EngineView(self._engine.store, view), xattrs=True)

    def versions(self, path: bytes) -> list[bytes]:
        self._call(self._engine.settle)
        store = self._engine.store
        return [self._content(one) for one in versions(store.database, *self._place(path))]

    def _content(self, version: Version) -> bytes:
        view = self._engine.as_of(version.seq)
        inode = view.get_inode(version.ino)
        content = read_content(self._engine.store, view, inode, 0, inode.size)
        digest = hashlib.sha256(content).digest()
        assert version.digest in (None, digest), f"{version}: not the digest of its content"
        return digest

    def undo_since(self, moment: str) -> None:
        self._ask("undo", since=f"op-{moment}")

    def undo_last(self, count: int) -> None:
        self._ask("undo", last=count)

    def redo(self) -> None:
        self._ask("redo", last=1)

    def restore(self, path: bytes, moment: str) -> None:
        self._ask("restore", path=os.fsdecode(path), moment=f"op-{moment}", exact=True)

    def kill(self) -> None:
        raise NotImplementedError

    def remount(self) -> None:
        self._portal.call(self._engine.close)
        self._engine = self._portal.call(Engine.start, self._path)

    def finish(self) -> list[str]:
        try:
            for fh in list(self._handles):
                self.close(fh)
            problems = [str(problem) for problem in self._ask("fsck", deep=True)["problems"]]
            self._portal.call(self._engine.close)
        finally:
            self._leaving.close()
            shutil.rmtree(self._path)
        return problems

    # Inside

    def _call(self, action: Callable[..., Awaitable[R]], *args: Any, **named: Any) -> R:
        async def run() -> R:
            return await action(*args, **named)

        try:
            return self._portal.call(run)
        except errors.EngineError as error:
            code = ERRNO[type(error)]
            raise OSError(code, str(error)) from error

    def _ask(self, verb: str, **arguments: object) -> Reply:
        """Do what the control file does."""
        keep = self._engine.content

        def run(store: Store) -> Reply:
            request = Request(verb, arguments)
            return commands.execute(store, request, ACTOR, ignore_progress, keep=keep)

        self._portal.call(self._engine.settle)
        reply: Reply = self._portal.call(self._engine.in_peer, run)
        self._portal.call(self._engine.catch_up)
        return reply

    def _live(self) -> EngineView:
        return EngineView(self._engine.store, self._engine.reader)

    def _find(self, path: bytes) -> Inode | None:
        inode: Inode | None = self._call(self._engine.getattr, ROOT_INO)
        for part in path.split(b"/") if path else []:
            if inode is None:
                fail(errno.ENOENT)
            if not inode.is_dir:
                fail(errno.ENOTDIR)
            inode = self._call(self._engine.lookup, inode.ino, Name(part))
        return inode

    def _at(self, path: bytes) -> Inode:
        inode = self._find(path)
        if inode is None:
            fail(errno.ENOENT)
        return inode

    def _place(self, path: bytes) -> tuple[Ino, Name]:
        directory, _, name = path.rpartition(b"/")
        parent = self._at(directory)
        if not parent.is_dir:
            fail(errno.ENOTDIR)
        return parent.ino, Name(name)

    def _existing(self, path: bytes) -> tuple[Ino, Name]:
        self._at(path)
        return self._place(path)

    def _absent(self, path: bytes) -> tuple[Ino, Name]:
        if not path or self._find(path) is not None:
            fail(errno.EEXIST)
        return self._place(path)

    def _make(self, path: bytes, mode: int, **named: Any) -> None:
        self._call(self._engine.make, *self._absent(path), mode, ACTOR, **named)

    def _setattr(self, ino: Ino, **fields: int) -> None:
        self._call(self._engine.setattr, ino, NewAttributes(**fields), ACTOR)

    def _chown(self, inode: Inode, uid: int, gid: int) -> None:
        owner = _Owned(inode)
        mode = mode_after_chown(owner, ROOT)
        fields = {"uid": uid, "gid": gid, "mode": KEEP if mode == owner.mode else mode}
        self._setattr(inode.ino, **{name: new for name, new in fields.items() if new != KEEP})

    def _setxattr(self, find: Callable[[], Inode], name: bytes, value: bytes, flags: int) -> None:
        _check_xattr(name, value)
        inode = find()
        if name in (ACCESS, DEFAULT):
            if Acl.decode(value) is None:
                self._removexattr(lambda: inode, name)
                return
            if inode.is_symlink:
                fail(errno.EOPNOTSUPP)
        else:
            _require_xattrs(inode, name, errno.EPERM)
        self._call(self._engine.setxattr, inode.ino, name, value, ACTOR, flags)

    def _getxattr(self, find: Callable[[], Inode], name: bytes) -> bytes:
        _check_xattr(name)
        inode = find()
        _require_xattrs(inode, name, errno.ENODATA)
        return self._call(self._engine.getxattr, inode.ino, name)

    def _removexattr(self, find: Callable[[], Inode], name: bytes) -> None:
        _check_xattr(name)
        inode = find()
        _require_xattrs(inode, name, errno.EPERM)
        self._call(self._engine.removexattr, inode.ino, name, ACTOR)

    def _opened(self, fh: int) -> Inode:
        return self._call(self._engine.getattr, self._handles[fh][0].file.ino)

    def _add(self, handle: Handle, flags: int) -> int:
        fh, self._next_fh = self._next_fh, self._next_fh + 1
        self._handles[fh] = (handle, flags)
        return fh

    def _require_mappable(self, fh: int, *modes: int) -> None:
        if self._handles[fh][1] & os.O_ACCMODE not in modes:
            fail(errno.EACCES)


class _Live:
    """The live tree, with what open files have not yet put into the log."""

    def __init__(self, driver: EngineDriver) -> None:
        self._driver = driver
        self.stat, self.readdir, self.readlink = driver.stat, driver.readdir, driver.readlink
        self.listxattr, self.getxattr = driver.listxattr, driver.getxattr

    def iter_content(self, path: bytes) -> Iterator[bytes]:
        fh = self._driver.open(path, os.O_RDONLY, 0)
        try:
            offset = 0
            while block := self._driver.pread(fh, READ_SIZE, offset):
                yield block
                offset += len(block)
        finally:
            self._driver.close(fh)


class _Owned:
    """An inode as the permission rules see it."""

    def __init__(self, inode: Inode) -> None:
        self.mode, self.uid, self.gid = stat.S_IMODE(inode.mode), inode.uid, inode.gid
        self.is_dir, self.is_file = inode.is_dir, inode.is_file
        self.access: Acl | None = None


def _check_xattr(name: bytes, value: bytes = b"") -> None:
    if len(name) > XATTR_NAME_MAX:
        fail(errno.ERANGE)
    if len(value) > XATTR_VALUE_MAX:
        fail(errno.E2BIG)


def _require_xattrs(inode: Inode, name: bytes, refusal: int) -> None:
    if name in (ACCESS, DEFAULT):
        if inode.is_symlink:
            fail(errno.EOPNOTSUPP)
    elif name.startswith(b"user.") and not (inode.is_file or inode.is_dir):
        fail(refusal)


def _stat(inode: Inode) -> Stat:
    kind = Kind.of(inode.mode)
    return Stat(
        ino=inode.ino,
        kind=kind,
        mode=stat.S_IMODE(inode.mode),
        uid=inode.uid,
        gid=inode.gid,
        nlink=inode.nlink,
        size=inode.size if kind in (Kind.FILE, Kind.SYMLINK) else None,
        mtime_ns=inode.mtime_ns,
        rdev=inode.rdev,
    )
