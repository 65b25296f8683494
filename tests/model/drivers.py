"""The filesystems under test, behind one Protocol.

``PathDriver`` makes real system calls below a directory: tmpfs and ext4 (which
test the reference) or a mount. ``MountDriver`` adds what only Nexus has.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import itertools
import os
import shutil
import stat as stat_bits
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from .tree import Entry, Kind, Stat, Tree, hard_link_groups, joined

READ_SIZE = 1 << 20


@dataclass(frozen=True, slots=True)
class Features:
    """What a driver can be asked for; the machine leaves out the rules for the rest.

    ``uid``, ``gid`` and ``umask`` are those with which files are created.
    ``xattr_bytes`` bounds the names and values of one file (ext4: one block).
    ``history_of_open_files``: a moment includes what a handle that is still
    open has written. Where not, the machine closes such handles first.
    ``undo_since_takes_back_undos``: ``undo_since`` counts undos among what it
    undoes, and so returns even to a moment that an undo had gone back beyond.
    """

    uid: int = 0
    gid: int = 0
    umask: int = 0
    privileged: bool = True
    xattrs: bool = True
    xattr_bytes: int = 200_000
    follows_symlinks: bool = True
    supports_history: bool = False
    history_of_open_files: bool = False
    exact_history_mtimes: bool = True
    supports_undo: bool = False
    undo_since_takes_back_undos: bool = False
    supports_undo_last: bool = False
    supports_remount: bool = False


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

    def mkdir(self, path: bytes, mode: int) -> None: ...
    def mkfifo(self, path: bytes, mode: int) -> None: ...
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

    def setxattr(self, path: bytes, name: bytes, value: bytes, flags: int) -> None: ...
    def getxattr(self, path: bytes, name: bytes) -> bytes: ...
    def removexattr(self, path: bytes, name: bytes) -> None: ...
    def listxattr(self, path: bytes) -> list[bytes]: ...

    def open(self, path: bytes, flags: int, mode: int) -> int: ...
    def close(self, fh: int) -> None: ...
    def pread(self, fh: int, length: int, offset: int) -> bytes: ...
    def pwrite(self, fh: int, data: bytes, offset: int) -> int: ...
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

    def tree_at(self, moment: str) -> Tree: ...

    # With features.supports_undo (undo_last: features.supports_undo_last):

    def undo_since(self, moment: str) -> None:
        """Undo every operation after ``moment``, as one undo. No handle is open."""
        ...

    def undo_last(self, count: int) -> None: ...

    def redo(self) -> None:
        """Undo the latest undo."""
        ...

    # With features.supports_remount:

    def remount(self) -> None:
        """Stop and start the filesystem. No handle is open."""
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
            while block := os.read(fd, READ_SIZE):
                yield block
        finally:
            os.close(fd)

    def listxattr(self, path: bytes) -> list[bytes]:
        names = map(os.fsencode, os.listxattr(self._at(path), follow_symlinks=False))
        return sorted(name for name in names if name.startswith(b"user."))

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
        self._fds: set[int] = set()

    def now_ns(self) -> int:
        return time.time_ns()

    def mkdir(self, path: bytes, mode: int) -> None:
        os.mkdir(self._at(path), mode)

    def mkfifo(self, path: bytes, mode: int) -> None:
        os.mkfifo(self._at(path), mode)

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

    def setxattr(self, path: bytes, name: bytes, value: bytes, flags: int) -> None:
        os.setxattr(self._at(path), name, value, flags, follow_symlinks=False)

    def removexattr(self, path: bytes, name: bytes) -> None:
        os.removexattr(self._at(path), name, follow_symlinks=False)

    def open(self, path: bytes, flags: int, mode: int) -> int:
        fd = os.open(self._at(path), flags | os.O_CLOEXEC, mode)
        self._fds.add(fd)
        return fd

    def close(self, fh: int) -> None:
        self._fds.remove(fh)
        os.close(fh)

    def pread(self, fh: int, length: int, offset: int) -> bytes:
        return os.pread(fh, length, offset)

    def pwrite(self, fh: int, data: bytes, offset: int) -> int:
        return os.pwrite(fh, data, offset)

    def truncate(self, path: bytes, size: int) -> None:
        os.truncate(self._at(path), size)

    def ftruncate(self, fh: int, size: int) -> None:
        os.ftruncate(fh, size)

    def fsync(self, fh: int, *, datasync: bool) -> None:
        (os.fdatasync if datasync else os.fsync)(fh)

    def tree(self) -> Tree:
        return walk_tree(self, xattrs=self.features.xattrs)

    def finish(self) -> list[str]:
        self._close_all()
        # Thousands of examples would otherwise fill a tmpfs.
        shutil.rmtree(self._root)
        return []

    def moment(self) -> str:
        raise NotImplementedError

    def tree_at(self, moment: str) -> Tree:
        raise NotImplementedError

    def undo_since(self, moment: str) -> None:
        raise NotImplementedError

    def undo_last(self, count: int) -> None:
        raise NotImplementedError

    def redo(self) -> None:
        raise NotImplementedError

    def remount(self) -> None:
        raise NotImplementedError

    def _close_all(self) -> None:
        while self._fds:
            # What is wrong with this close was reported, if it was, by the
            # operation that failed; the rest must still be closed.
            with contextlib.suppress(OSError):
                os.close(self._fds.pop())


class MountDriver(PathDriver):
    """A directory of a real Nexus mount: system calls, ``.nexus``, and ``nexus-ctl``."""

    # Snapshots belong to the whole mount: no two examples may share a name.
    _snapshots = itertools.count(1)

    def __init__(
        self,
        root: bytes,
        *,
        ctl: Callable[..., object],
        check: Callable[[], list[str]],
        remount: Callable[[], None] | None = None,
    ) -> None:
        """Take an empty directory of a mount.

        Args:
            ctl: Runs nexus-ctl with these arguments; raises where it fails.
            check: Returns the problems that fsck finds in the store.
            remount: Unmounts and mounts again at the same place.
        """
        super().__init__(root, mount_features(remountable=remount is not None))
        self._ctl = ctl
        self._check = check
        self._remount = remount

    def moment(self) -> str:
        name = f"model-{os.getpid()}-{next(self._snapshots)}"
        os.mkdir(self._root + b"/.nexus/snapshots/" + os.fsencode(name))
        return name

    def tree_at(self, moment: str) -> Tree:
        view = PathView(self._root + b"/.nexus/history/" + os.fsencode(moment))
        return walk_tree(view, xattrs=self.features.xattrs)

    def undo_since(self, moment: str) -> None:
        self._ctl("undo", "--since", moment)

    def undo_last(self, count: int) -> None:
        self._ctl("undo", "--last", str(count))

    def redo(self) -> None:
        self._ctl("redo")

    def remount(self) -> None:
        assert self._remount is not None
        self._remount()

    def finish(self) -> list[str]:
        self._close_all()
        return self._check()


def mount_features(*, remountable: bool = False) -> Features:
    """Return what a Nexus mount promises. Not found out: a broken one must fail, not skip."""
    return Features(
        uid=os.geteuid(),
        gid=os.getegid(),
        umask=_umask(),
        privileged=os.geteuid() == 0,
        supports_history=True,
        supports_undo=True,
        supports_undo_last=True,
        supports_remount=remountable,
    )


def found_features(root: bytes) -> Features:
    """Try what the filesystem below ``root`` can do."""
    return Features(
        uid=os.geteuid(),
        gid=os.getegid(),
        umask=_umask(),
        privileged=os.geteuid() == 0,
        xattrs=_takes_xattr(root, 1),
        xattr_bytes=200_000 if _takes_xattr(root, 8_000) else 3_000,
    )


def _takes_xattr(root: bytes, size_bytes: int) -> bool:
    name = b"user.nexus-model-probe"
    try:
        os.setxattr(root, name, b"x" * size_bytes)
    except OSError:
        return False
    os.removexattr(root, name)
    return True


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
    )


_libc = ctypes.CDLL(None, use_errno=True)


def _renameat2(old: bytes, new: bytes, flags: int) -> None:
    at_fdcwd = -100
    if _libc.renameat2(at_fdcwd, old, at_fdcwd, new, ctypes.c_uint(flags)):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
