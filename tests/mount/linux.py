"""System calls that Python has no name for, and ways to be somebody else."""

from __future__ import annotations

import ctypes
import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager

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
