"""System calls that Python has no name for, and ways to be somebody else."""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import shutil
import stat
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import NamedTuple

import pytest

RENAME_NOREPLACE, RENAME_EXCHANGE, RENAME_WHITEOUT = 1, 2, 4
UTIME_NOW, UTIME_OMIT = (1 << 30) - 1, (1 << 30) - 2
AT_FDCWD = -100
NOBODY = 65534

_libc = ctypes.CDLL(None, use_errno=True)


class _Timespec(ctypes.Structure):
    _fields_ = (("tv_sec", ctypes.c_long), ("tv_nsec", ctypes.c_long))


class _Dirent(ctypes.Structure):
    """Source: readdir(3), as glibc has it on 64-bit machines."""

    _fields_ = (
        ("d_ino", ctypes.c_uint64),
        ("d_off", ctypes.c_int64),
        ("d_reclen", ctypes.c_ushort),
        ("d_type", ctypes.c_ubyte),
        ("d_name", ctypes.c_char * 256),
    )


_libc.opendir.restype = _libc.readdir.restype = ctypes.c_void_p
_libc.telldir.restype = ctypes.c_long


def renameat2(old: os.PathLike[str], new: os.PathLike[str], flags: int) -> None:
    """Source: rename(2)."""
    result = _libc.renameat2(
        AT_FDCWD, os.fsencode(old), AT_FDCWD, os.fsencode(new), ctypes.c_uint(flags)
    )
    if result != 0:
        _fail(os.fspath(old))


def utimensat(path: os.PathLike[str], atime: tuple[int, int], mtime: tuple[int, int]) -> None:
    """Set times as (seconds, nanoseconds), with UTIME_NOW and UTIME_OMIT.

    Source: utimensat(2).
    """
    times = (_Timespec * 2)(_Timespec(*atime), _Timespec(*mtime))
    if _libc.utimensat(AT_FDCWD, os.fsencode(path), times, 0) != 0:
        _fail(os.fspath(path))


class DirectoryStream:
    """Source: opendir(3), readdir(3), telldir(3), seekdir(3), rewinddir(3)."""

    def __init__(self, path: os.PathLike[str]) -> None:
        address = _libc.opendir(os.fsencode(path))
        if not address:
            _fail(os.fspath(path))
        self._stream = ctypes.c_void_p(address)

    def read(self) -> bytes | None:
        """Return the next name, ``None`` at the end."""
        entry = _libc.readdir(self._stream)
        if not entry:
            return None
        return bytes(ctypes.cast(entry, ctypes.POINTER(_Dirent)).contents.d_name)

    def rest(self) -> list[bytes]:
        return list(iter(self.read, None))

    def tell(self) -> int:
        return int(_libc.telldir(self._stream))

    def seek(self, position: int) -> None:
        _libc.seekdir(self._stream, ctypes.c_long(position))

    def rewind(self) -> None:
        _libc.rewinddir(self._stream)

    def close(self) -> None:
        _libc.closedir(self._stream)


def _fail(name: str) -> None:
    number = ctypes.get_errno()
    raise OSError(number, os.strerror(number), name)


@contextmanager
def refused(*expected: int) -> Iterator[None]:
    """Require that the block fails with one of these errnos."""
    names = "|".join(errno.errorcode[number] for number in expected)
    got = "success"
    try:
        yield
    except OSError as error:
        if error.errno in expected:
            return
        got = str(error)
    raise AssertionError(f"{got}, expected {names}")


def run_as(uid: int, gid: int, action: Callable[[], object]) -> int:
    """Run something in a child process as another user, in the current directory.

    Returns:
        0, or the errno it failed with; 255 for anything else.
    """
    child = os.fork()
    if child == 0:
        code = 255
        try:
            os.setgroups([])
            os.setresgid(gid, gid, gid)
            os.setresuid(uid, uid, uid)
            action()
            code = 0
        except OSError as error:
            code = error.errno or 255
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def kind(path: os.PathLike[str] | str | bytes) -> int:
    """Return the file type bits of what is at a path; symlinks are not followed."""
    return stat.S_IFMT(os.lstat(path).st_mode)


class Libc:
    """Every function of the C library under its own name; -1 becomes ``OSError``.

    Integers are passed as longs, strings and paths as bytes, ``None`` as NULL.
    """

    _library = ctypes.CDLL(None, use_errno=True)

    def __getattr__(self, name: str) -> Callable[..., int]:
        function = getattr(self._library, name)
        function.restype = ctypes.c_long

        def call(*arguments: object) -> int:
            ctypes.set_errno(0)
            result = int(function(*map(self._argument, arguments)))
            if result in (-1, 2**32 - 1):  # as a long or as an int
                _fail(name)
            return result

        return call

    @staticmethod
    def _argument(value: object) -> object:
        if isinstance(value, int):
            return ctypes.c_ulong(value & (2**64 - 1))
        return os.fsencode(value) if isinstance(value, str | os.PathLike) else value


libc = Libc()


class User(NamedTuple):
    """Who makes a call."""

    uid: int
    gid: int
    groups: tuple[int, ...] = ()


ROOT = User(0, 0)


@contextmanager
def acting_as(user: User) -> Iterator[None]:
    """Be somebody else for a while, as root alone can; the saved user id leads back."""
    groups = os.getgroups()
    os.setgroups(user.groups)
    os.setresgid(user.gid, user.gid, 0)
    os.setresuid(user.uid, user.uid, 0)
    try:
        yield
    finally:
        os.setresuid(0, 0, 0)
        os.setresgid(0, 0, 0)
        os.setgroups(groups)


class _Fd(int):
    """A descriptor: its number is no result."""

    def __repr__(self) -> str:
        return "fd"


_CONSTANTS = ("RENAME_", "UTIME_", "AT_")


class Calls:
    """The names that the lines of a table are written with: those of ``os``, and these."""

    def __init__(self, **more: object) -> None:
        self._open: list[int] = []
        self.names = {
            **vars(os),
            **{name: value for name, value in vars(stat).items() if name.startswith("S_")},
            **{name: value for name, value in globals().items() if name.startswith(_CONSTANTS)},
            "open": self.open,
            "AT": AT_FDCWD,
            "libc": libc,
            "renameat2": renameat2,
            "utimensat": utimensat,
            "limited": limited,
            **more,
        }

    def open(self, path: str, flags: int, mode: int = 0o644, dir_fd: int | None = None) -> int:
        self._open.append(os.open(path, flags, mode, dir_fd=dir_fd))
        return _Fd(self._open[-1])

    def outcome(self, directory: Path, line: str, user: User | None = None) -> str:
        """Evaluate a line in a directory; return what it gave, or the name of the errno."""
        before = os.open(".", os.O_PATH)
        os.chdir(directory)
        try:
            with acting_as(user) if user else nullcontext():
                return repr(eval(line, self.names))
        except OSError as error:
            return errno.errorcode[error.errno or 0]
        finally:
            os.fchdir(before)
            for fd in (before, *self._open):
                os.close(fd)
            self._open.clear()


def limited(size: int, call: Callable[[], object]) -> object:
    """Do something while files may only grow to a size (setrlimit(2), RLIMIT_FSIZE)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        return call()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def lines(table: str) -> list[tuple[str, str]]:
    """Return the lines of a table as pairs: the first column and the rest."""
    found = (line.split(None, 1) for line in table.strip().splitlines() if line.strip())
    return [(first, rest.strip()) for first, rest in found]


def listing(directory: Path) -> dict[str, tuple[object, ...]]:
    """Return all that a tree is, but for inode numbers and times."""
    found: dict[str, tuple[object, ...]] = {}
    walk = os.walk(directory)
    below = [Path(at, name) for at, names, files in walk for name in (*names, *files)]
    for path in (directory, *sorted(below)):
        status = path.lstat()
        more: object = status.st_size
        if stat.S_ISLNK(status.st_mode):
            more = os.readlink(path)
        elif stat.S_ISDIR(status.st_mode):
            more = None
        found[str(path.relative_to(directory))] = (
            oct(status.st_mode),
            status.st_nlink,
            (status.st_uid, status.st_gid),
            more,
        )
    return found


@contextmanager
def plain(directory: Path) -> Iterator[Path]:
    """Yield a directory of the kind of file system that ours is measured by: ext4, relatime.

    That is the given one, where it is such; else an image is mounted in it.
    """
    names = subprocess.check_output(["stat", "-f", "-c", "%T", directory], text=True)
    if names.strip() == "ext2/ext3" and os.statvfs(directory).f_flag & os.ST_RELATIME:
        yield directory
        return
    if os.geteuid() != 0 or shutil.which("mkfs.ext4") is None:
        pytest.skip("no ext4 here to compare with")
    image, mountpoint = directory / "image", directory / "ext4"
    mountpoint.mkdir()
    with image.open("wb") as file:
        file.truncate(64 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-b", "4096", "-I", "256", image], check=True, timeout=60)
    done = subprocess.run(["mount", "-o", "loop,relatime", image, mountpoint], check=False)
    if done.returncode != 0:
        pytest.skip("no ext4 here to compare with")
    try:
        yield mountpoint
    finally:
        subprocess.run(["umount", "-l", mountpoint], check=True, timeout=60)
