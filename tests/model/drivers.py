"""The filesystems under test, behind one Protocol.

``PathDriver`` makes real system calls below a directory: tmpfs and ext4 (which
test the reference) or a mount. ``MountDriver`` adds what only Nexus has.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import itertools
import mmap
import os
import shutil
import stat as stat_bits
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from nexus_engine.commands import Reply, Request, ignore_progress
from nexusfuse.ctl import control

from .permissions import ACCESS, DEFAULT, ROOT, Caller
from .tree import Entry, Kind, Stat, Tree, hard_link_groups, joined, stat_difference

READ_SIZE = 1 << 20


@dataclass(frozen=True, slots=True)
class Features:
    """What a driver can be asked for; the machine leaves out the rules for the rest.

    ``caller`` does everything, with ``umask``; ``users``: so may others, in turns.
    ``knows_who_writes``: who opened does not count for who writes.
    ``xattr_bytes`` bounds the names and values of one file (ext4: one block).
    ``history_of_open_files``: a moment includes what a handle that is still
    open has written. Where not, the machine closes such handles first.
    ``undo_since_takes_back_undos``: ``undo_since`` counts undos among what it
    undoes, and so returns even to a moment that an undo had gone back beyond.
    """

    caller: Caller = ROOT
    umask: int = 0
    users: bool = False
    xattrs: bool = True
    xattr_bytes: int = 200_000
    acls: bool = False
    follows_symlinks: bool = True
    knows_who_writes: bool = True
    supports_history: bool = False
    history_of_open_files: bool = False
    exact_history_mtimes: bool = True
    supports_undo: bool = False
    undo_since_takes_back_undos: bool = False
    supports_undo_last: bool = False
    supports_restore: bool = False
    supports_remount: bool = False
    supports_kill: bool = False

    @property
    def privileged(self) -> bool:
        return self.caller.privileged


class TreeView(Protocol):
    """What reading a whole tree needs: live, or as of a moment. Paths are lstat-like."""

    def stat(self, path: bytes) -> Stat: ...
    def readdir(self, path: bytes) -> list[bytes]: ...
    def readlink(self, path: bytes) -> bytes: ...
    def iter_content(self, path: bytes) -> Iterator[bytes]: ...
    def listxattr(self, path: bytes) -> list[bytes]: ...
    def getxattr(self, path: bytes, name: bytes) -> bytes: ...


class Driver(Protocol):
    """One filesystem under test, empty but for its root directory (mode 0755).

    Paths are relative to that root, ``b""`` being the root. Every failure is
    an ``OSError`` with the errno that a program would see. A handle is any
    int that ``open`` returned; the machine uses none after ``close``.
    The meaning of each operation is that of ``ReferenceFs``.
    """

    @property
    def features(self) -> Features: ...

    def now_ns(self) -> int: ...

    def act_as(self, caller: Caller) -> None:
        """With features.users: who does what comes."""
        ...

    def mkdir(self, path: bytes, mode: int) -> None: ...
    def mknod(self, path: bytes, kind: Kind, mode: int, rdev: int) -> None: ...
    def symlink(self, target: bytes, path: bytes) -> None: ...
    def link(self, existing: bytes, path: bytes) -> None: ...
    def unlink(self, path: bytes) -> None: ...
    def rmdir(self, path: bytes) -> None: ...
    def rename(self, old: bytes, new: bytes, flags: int) -> None: ...
    def readlink(self, path: bytes) -> bytes: ...
    def readdir(self, path: bytes) -> list[bytes]: ...

    def stat(self, path: bytes) -> Stat: ...
    def fstat(self, fh: int) -> Stat: ...
    def chmod(self, path: bytes, mode: int) -> None: ...
    def chown(self, path: bytes, uid: int, gid: int) -> None: ...
    def utimens(self, path: bytes, atime_ns: int, mtime_ns: int) -> None: ...
    def touch(self, path: bytes) -> None: ...
    def fchmod(self, fh: int, mode: int) -> None: ...
    def fchown(self, fh: int, uid: int, gid: int) -> None: ...
    def futimens(self, fh: int, atime_ns: int, mtime_ns: int) -> None: ...

    def setxattr(self, path: bytes, name: bytes, value: bytes, flags: int) -> None: ...
    def getxattr(self, path: bytes, name: bytes) -> bytes: ...
    def removexattr(self, path: bytes, name: bytes) -> None: ...
    def listxattr(self, path: bytes) -> list[bytes]: ...
    def fsetxattr(self, fh: int, name: bytes, value: bytes, flags: int) -> None: ...
    def fgetxattr(self, fh: int, name: bytes) -> bytes: ...
    def fremovexattr(self, fh: int, name: bytes) -> None: ...
    def flistxattr(self, fh: int) -> list[bytes]: ...

    def open(self, path: bytes, flags: int, mode: int) -> int: ...
    def open_again(self, fh: int, flags: int) -> int: ...
    def close(self, fh: int) -> None: ...
    def pread(self, fh: int, length: int, offset: int) -> bytes: ...
    def pwrite(self, fh: int, data: bytes, offset: int) -> int: ...
    def copy_range(self, source: int, sink: int, length: int, start: int, to: int) -> int: ...
    def mapped_read(self, fh: int, length: int, offset: int) -> bytes: ...
    def mapped_write(self, fh: int, data: bytes, offset: int) -> None: ...
    def truncate(self, path: bytes, size: int) -> None: ...
    def ftruncate(self, fh: int, size: int) -> None: ...
    def fsync(self, fh: int, *, datasync: bool) -> None: ...

    def tree(self) -> Tree:
        """Return the live tree (``walk_tree`` does it for any ``TreeView``)."""
        ...

    def finish(self) -> list[str]:
        """Close what is still open, and return what a check of the store finds."""
        ...

    # With features.supports_history:

    def moment(self) -> str:
        """Name the present."""
        ...

    def operation(self) -> str:
        """Return the latest operation, which is a moment as well."""
        ...

    def tree_at(self, moment: str) -> Tree: ...

    def versions(self, path: bytes) -> list[bytes]:
        """Return the SHA-256 of every content that there was under a name, in any order."""
        ...

    # With features.supports_undo (undo_last: features.supports_undo_last):

    def undo_since(self, moment: str) -> None:
        """Undo every operation after ``moment``, as one undo. No handle is open."""
        ...

    def undo_last(self, count: int) -> None: ...

    def redo(self) -> None:
        """Undo the latest undo."""
        ...

    # With features.supports_restore:

    def restore(self, path: bytes, moment: str) -> None:
        """Make a directory what it was at a moment, and nothing else."""
        ...

    # With features.supports_remount (kill: features.supports_kill):

    def remount(self) -> None:
        """Stop and start the filesystem. No handle is open."""
        ...

    def kill(self) -> None:
        """The same without a warning: what close(2) returned for is there."""
        ...


def walk_tree(view: TreeView, *, xattrs: bool) -> Tree:
    """Read a whole tree: names, attributes, bytes, link targets, hard links."""
    stats: dict[bytes, Stat] = {}
    pending = [b""]
    while pending:
        path = pending.pop()
        stats[path] = view.stat(path)
        if stats[path].kind is Kind.DIRECTORY:
            names = view.readdir(path)
            assert len(names) == len(set(names)), f"{path!r}: a name is listed twice: {names}"
            pending += [joined(path, name) for name in names]
    links = hard_link_groups((path, stat.ino) for path, stat in stats.items())
    return {
        path: Entry(
            stat=stat,
            content=_content(view, path, stat),
            xattrs=_xattrs(view, path) if xattrs else (),
            links=links[stat.ino],
        )
        for path, stat in stats.items()
    }


class PathView:
    """A tree below a real directory."""

    def __init__(self, root: bytes) -> None:
        self._root = root

    def stat(self, path: bytes) -> Stat:
        return _stat(os.lstat(self._at(path)))

    def readdir(self, path: bytes) -> list[bytes]:
        return sorted(os.listdir(self._at(path)))

    def readlink(self, path: bytes) -> bytes:
        return os.readlink(self._at(path))

    def iter_content(self, path: bytes) -> Iterator[bytes]:
        fd = os.open(self._at(path), os.O_RDONLY | os.O_NOFOLLOW)
        try:
            # Not what the kernel remembers of it: what the file system gives.
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            while block := os.read(fd, READ_SIZE):
                yield block
        finally:
            os.close(fd)

    def listxattr(self, path: bytes) -> list[bytes]:
        return _shared(os.listxattr(self._at(path), follow_symlinks=False))

    def getxattr(self, path: bytes, name: bytes) -> bytes:
        return os.getxattr(self._at(path), name, follow_symlinks=False)

    def _at(self, path: bytes) -> bytes:
        return self._root + b"/" + path if path else self._root


class PathDriver(PathView):
    """Real system calls below a directory."""

    def __init__(self, root: bytes, features: Features | None = None) -> None:
        """Take an existing, empty directory; without ``features``, find them out."""
        super().__init__(root)
        os.chmod(root, 0o755)
        if os.geteuid() == 0:
            os.chown(root, os.geteuid(), os.getegid())
        self.features = features or found_features(root)
        self._caller = self.features.caller
        self._fds: set[int] = set()

    def now_ns(self) -> int:
        return time.time_ns()

    def act_as(self, caller: Caller) -> None:
        """Become somebody else, through being root again."""
        if caller == self._caller:
            return
        ourselves = self.features.caller
        os.seteuid(ourselves.uid)
        os.setegid(ourselves.gid)
        os.setgroups(caller.groups)
        os.setegid(caller.gid)
        os.seteuid(caller.uid)
        self._caller = caller

    def mkdir(self, path: bytes, mode: int) -> None:
        os.mkdir(self._at(path), mode)

    def mknod(self, path: bytes, kind: Kind, mode: int, rdev: int) -> None:
        os.mknod(self._at(path), kind.type_bits | mode, rdev)

    def symlink(self, target: bytes, path: bytes) -> None:
        os.symlink(target, self._at(path))

    def link(self, existing: bytes, path: bytes) -> None:
        os.link(self._at(existing), self._at(path), follow_symlinks=False)

    def unlink(self, path: bytes) -> None:
        os.unlink(self._at(path))

    def rmdir(self, path: bytes) -> None:
        os.rmdir(self._at(path))

    def rename(self, old: bytes, new: bytes, flags: int) -> None:
        if flags:
            _renameat2(self._at(old), self._at(new), flags)
        else:
            os.rename(self._at(old), self._at(new))

    def fstat(self, fh: int) -> Stat:
        return _stat(os.fstat(fh))

    def chmod(self, path: bytes, mode: int) -> None:
        os.chmod(self._at(path), mode)

    def chown(self, path: bytes, uid: int, gid: int) -> None:
        os.lchown(self._at(path), uid, gid)

    def utimens(self, path: bytes, atime_ns: int, mtime_ns: int) -> None:
        os.utime(self._at(path), ns=(atime_ns, mtime_ns), follow_symlinks=False)

    def touch(self, path: bytes) -> None:
        os.utime(self._at(path), follow_symlinks=False)

    def fchmod(self, fh: int, mode: int) -> None:
        os.fchmod(fh, mode)

    def fchown(self, fh: int, uid: int, gid: int) -> None:
        os.fchown(fh, uid, gid)

    def futimens(self, fh: int, atime_ns: int, mtime_ns: int) -> None:
        os.utime(fh, ns=(atime_ns, mtime_ns))

    def fsetxattr(self, fh: int, name: bytes, value: bytes, flags: int) -> None:
        os.setxattr(fh, name, value, flags)

    def fgetxattr(self, fh: int, name: bytes) -> bytes:
        return os.getxattr(fh, name)

    def fremovexattr(self, fh: int, name: bytes) -> None:
        os.removexattr(fh, name)

    def flistxattr(self, fh: int) -> list[bytes]:
        return _shared(os.listxattr(fh))

    def setxattr(self, path: bytes, name: bytes, value: bytes, flags: int) -> None:
        os.setxattr(self._at(path), name, value, flags, follow_symlinks=False)

    def removexattr(self, path: bytes, name: bytes) -> None:
        os.removexattr(self._at(path), name, follow_symlinks=False)

    def open(self, path: bytes, flags: int, mode: int) -> int:
        fd = os.open(self._at(path), flags | os.O_CLOEXEC, mode)
        self._fds.add(fd)
        return fd

    def open_again(self, fh: int, flags: int) -> int:
        fd = os.open(f"/proc/self/fd/{fh}", flags | os.O_CLOEXEC)
        self._fds.add(fd)
        return fd

    def close(self, fh: int) -> None:
        self._fds.remove(fh)
        os.close(fh)

    def pread(self, fh: int, length: int, offset: int) -> bytes:
        return os.pread(fh, length, offset)

    def pwrite(self, fh: int, data: bytes, offset: int) -> int:
        return os.pwrite(fh, data, offset)

    def copy_range(self, source: int, sink: int, length: int, start: int, to: int) -> int:
        length = min(length, max(0, os.fstat(source).st_size - start))
        done = more = os.copy_file_range(source, sink, length, start, to)
        while more and done < length:
            more = os.copy_file_range(source, sink, length - done, start + done, to + done)
            done += more
        return done

    def mapped_read(self, fh: int, length: int, offset: int) -> bytes:
        begin = offset % mmap.ALLOCATIONGRANULARITY
        with mmap.mmap(fh, begin + length, prot=mmap.PROT_READ, offset=offset - begin) as mapping:
            return mapping[begin:]

    def mapped_write(self, fh: int, data: bytes, offset: int) -> None:
        begin = offset % mmap.ALLOCATIONGRANULARITY
        with mmap.mmap(fh, begin + len(data), offset=offset - begin) as mapping:
            mapping[begin:] = data

    def truncate(self, path: bytes, size: int) -> None:
        os.truncate(self._at(path), size)

    def ftruncate(self, fh: int, size: int) -> None:
        os.ftruncate(fh, size)

    def fsync(self, fh: int, *, datasync: bool) -> None:
        (os.fdatasync if datasync else os.fsync)(fh)

    def tree(self) -> Tree:
        return walk_tree(self, xattrs=self.features.xattrs)

    def finish(self) -> list[str]:
        self.act_as(self.features.caller)
        self._close_all()
        # Thousands of examples would otherwise fill a tmpfs.
        shutil.rmtree(self._root)
        return []

    def moment(self) -> str:
        raise NotImplementedError

    def operation(self) -> str:
        raise NotImplementedError

    def versions(self, path: bytes) -> list[bytes]:
        raise NotImplementedError

    def tree_at(self, moment: str) -> Tree:
        raise NotImplementedError

    def undo_since(self, moment: str) -> None:
        raise NotImplementedError

    def undo_last(self, count: int) -> None:
        raise NotImplementedError

    def redo(self) -> None:
        raise NotImplementedError

    def restore(self, path: bytes, moment: str) -> None:
        raise NotImplementedError

    def remount(self) -> None:
        raise NotImplementedError

    def kill(self) -> None:
        raise NotImplementedError

    def _close_all(self) -> None:
        while self._fds:
            # What is wrong with this close was reported, if it was, by the
            # operation that failed; the rest must still be closed.
            with contextlib.suppress(OSError):
                os.close(self._fds.pop())


class MountDriver(PathDriver):
    """A directory of a real Nexus mount: system calls, ``.nexus``, and commands."""

    # Snapshots belong to the whole mount: no two examples may share a name.
    _snapshots = itertools.count(1)

    def __init__(
        self,
        root: bytes,
        mountpoint: bytes,
        *,
        remount: Callable[[], None],
        kill: Callable[[], None],
    ) -> None:
        """Take an empty directory of a mount that lets other users in.

        Args:
            remount: Unmounts and mounts again at the same place.
            kill: Kills the daemon and mounts again at the same place.
        """
        super().__init__(root, mount_features())
        self._mountpoint = mountpoint
        self._remount = remount
        self._kill = kill

    def tree(self) -> Tree:
        """Return the tree that programs see, which must be the one that the daemon has."""
        tree = super().tree()
        for path, entry in tree.items():
            _synchronise(self._at(path))
            stale = stat_difference(self.stat(path), entry.stat)
            assert not stale, f"{path!r}: the kernel remembered something else: {stale}"
        return tree

    def moment(self) -> str:
        name = f"model-{os.getpid()}-{next(self._snapshots)}"
        os.mkdir(self._root + b"/.nexus/snapshots/" + os.fsencode(name))
        return name

    def operation(self) -> str:
        return f"op-{self._ask('status')['operations']}"

    def tree_at(self, moment: str) -> Tree:
        view = PathView(self._root + b"/.nexus/history/" + os.fsencode(moment))
        return walk_tree(view, xattrs=self.features.xattrs)

    def versions(self, path: bytes) -> list[bytes]:
        directory, _, name = path.rpartition(b"/")
        view = PathView(joined(self._at(directory) + b"/.nexus/versions", name))
        return [
            digest for one in view.readdir(b"") if (digest := _content(view, one, view.stat(one)))
        ]

    def undo_since(self, moment: str) -> None:
        self._ask("undo", since=moment)

    def undo_last(self, count: int) -> None:
        self._ask("undo", last=count)

    def redo(self) -> None:
        self._ask("redo", last=1)

    def restore(self, path: bytes, moment: str) -> None:
        below = os.path.relpath(self._at(path), self._mountpoint)
        self._ask("restore", path=os.fsdecode(below), moment=moment, exact=True)

    def remount(self) -> None:
        self._remount()

    def kill(self) -> None:
        self._kill()

    def finish(self) -> list[str]:
        self.act_as(self.features.caller)
        self._close_all()
        return [str(problem) for problem in self._ask("fsck")["problems"]]

    def _ask(self, verb: str, **arguments: object) -> Reply:
        return control.ask(self._mountpoint, Request(verb, arguments), ignore_progress)


def mount_features() -> Features:
    """Return what a Nexus mount promises. Not found out: a broken one must fail, not skip."""
    return Features(
        caller=_caller(),
        umask=_umask(),
        users=os.geteuid() == 0,
        acls=True,
        knows_who_writes=False,
        supports_history=True,
        history_of_open_files=True,
        supports_undo=True,
        supports_undo_last=True,
        supports_restore=True,
        supports_remount=True,
        supports_kill=True,
    )


def found_features(root: bytes) -> Features:
    """Try what the filesystem below ``root`` can do."""
    return Features(
        caller=_caller(),
        umask=_umask(),
        users=os.geteuid() == 0,
        xattrs=_takes_xattr(root, b"user.nexus-model-probe", b"x"),
        xattr_bytes=200_000
        if _takes_xattr(root, b"user.nexus-model-probe", bytes(8_000))
        else 3_000,
        acls=_takes_xattr(root, DEFAULT, b""),
    )


def _takes_xattr(root: bytes, name: bytes, value: bytes) -> bool:
    try:
        os.setxattr(root, name, value)
        os.removexattr(root, name)
    except OSError:
        return False
    return True


def _caller() -> Caller:
    return Caller(os.geteuid(), os.getegid(), tuple(os.getgroups()))


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _content(view: TreeView, path: bytes, stat: Stat) -> bytes | None:
    if stat.kind is Kind.SYMLINK:
        return view.readlink(path)
    if stat.kind is not Kind.FILE:
        return None
    digest = hashlib.sha256()
    for block in view.iter_content(path):
        digest.update(block)
    return digest.digest()


def _xattrs(view: TreeView, path: bytes) -> tuple[tuple[bytes, bytes], ...]:
    return tuple((name, view.getxattr(path, name)) for name in sorted(view.listxattr(path)))


def _stat(found: os.stat_result) -> Stat:
    kind = Kind.of(found.st_mode)
    return Stat(
        ino=found.st_ino,
        kind=kind,
        mode=stat_bits.S_IMODE(found.st_mode),
        uid=found.st_uid,
        gid=found.st_gid,
        nlink=found.st_nlink,
        size=found.st_size if kind in (Kind.FILE, Kind.SYMLINK) else None,
        mtime_ns=found.st_mtime_ns,
        rdev=found.st_rdev,
    )


def _shared(names: list[str]) -> list[bytes]:
    """Return the names of attributes that all filesystems treat alike."""
    encoded = map(os.fsencode, names)
    return sorted(
        name
        for name in encoded
        if name.startswith((b"user.", b"trusted.")) or name in (ACCESS, DEFAULT)
    )


_libc = ctypes.CDLL(None, use_errno=True)


def _renameat2(old: bytes, new: bytes, flags: int) -> None:
    at_fdcwd = -100
    if _libc.renameat2(at_fdcwd, old, at_fdcwd, new, ctypes.c_uint(flags)):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def _synchronise(path: bytes) -> None:
    """Have the kernel ask the file system for the attributes, whatever it remembers.

    Source: statx(2), AT_STATX_FORCE_SYNC.
    """
    at_fdcwd, force_sync, no_follow, basic = -100, 0x2000, 0x100, 0x7FF
    found = ctypes.create_string_buffer(256)
    if _libc.statx(at_fdcwd, path, force_sync | no_follow, basic, found):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
