"""Files of the local disk: reading without waiting, syncing, and errors in our own words."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import time
from collections.abc import Callable
from pathlib import Path

from nexus_engine.backends.base import View
from nexus_engine.errors import EngineError, NoSpace, ObjectStoreFailed, StoreInaccessible

_PIECE = 1 << 20
_OUT_OF_SPACE = (errno.ENOSPC, errno.EDQUOT)
_NOT_ALLOWED = (errno.EACCES, errno.EPERM, errno.EROFS)

_IN_MEMORY = frozenset((0x01021994, 0x858458F6, 0x794C7630))
"""tmpfs, ramfs and overlay."""
_FAR = frozenset(
    (0x65735546, 0x6969, 0xFE534D42, 0xFF534D42, 0x517B, 0x01021997, 0x00C36400, 0x5346414F,
     0x0BD00BD0, 0x01161970, 0x7461636F)
)  # fmt: skip
"""FUSE, NFS, SMB (three numbers), 9p, Ceph, AFS, Lustre, GFS2, OCFS2."""
_STATFS_BYTES = 256
_LOCK_POLL_S = 0.05
_SYNC_FILE_RANGE_WRITE = 2
_libc = ctypes.CDLL(None, use_errno=True)


def lock_within(fd: int, wait_s: float, *, pause: Callable[[float], object] = time.sleep) -> bool:
    """Lock an open file for this descriptor alone; tell whether that was to be had in time.

    Args:
        pause: Waits for so many seconds between two attempts; what it raises ends them.
    """
    ends_s = time.monotonic() + wait_s
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= ends_s:
                return False
            pause(_LOCK_POLL_S)
        else:
            return True


class OpenFile:
    """A descriptor that is closed when the last one to hold this object lets go of it.

    A cache may therefore drop an entry while another thread is inside ``pread``: that thread
    holds a reference, and the number cannot be reused under it. A counter of users would do
    the same for two lock operations more per read.
    """

    __slots__ = ("__weakref__", "_in_memory", "_nowait", "fd")

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._nowait = True
        self._in_memory = False

    def __del__(self) -> None:
        os.close(self.fd)

    def read(self, offset: int, length: int) -> bytes:
        """Return ``length`` bytes from ``offset``; fewer only at the end of the file.

        Raises:
            OSError: as pread(2).
        """
        content = os.pread(self.fd, length, offset)
        if len(content) == length or not content:
            return content
        # pread(2) may stop early anywhere; only nothing at all means the end.
        parts = [content]
        done = len(content)
        while done < length and (content := os.pread(self.fd, length - done, offset + done)):
            parts.append(content)
            done += len(content)
        return b"".join(parts)

    def read_resident(self, offset: int, length: int) -> View | None:
        """Like `read`, from pages already in memory; ``None`` if some are not.

        Raises:
            OSError: as preadv(2), except for "would wait".
        """
        if not self._nowait:
            return self.read(offset, length) if self._in_memory else None
        content = bytearray(length)
        view = memoryview(content)
        done = 0
        try:
            while done < length:
                count = os.preadv(self.fd, [view[done:]], offset + done, os.RWF_NOWAIT)
                if count == 0:
                    break
                done += count
        except OSError as error:
            if error.errno == errno.EAGAIN:
                return None
            if error.errno != errno.EOPNOTSUPP:
                raise
            # Filesystems that do not know the flag live in memory, or far away.
            self._in_memory = _type(self.fd) in _IN_MEMORY
            self._nowait = False
            return self.read(offset, length) if self._in_memory else None
        return view[:done].toreadonly()


def is_far(directory: Path) -> bool:
    """Tell whether writing there may wait for another machine or process, not for memory alone."""
    try:
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return _type(fd) in _FAR
    finally:
        os.close(fd)


def _type(fd: int) -> int:
    """Return the number of a file's filesystem type; 0 if it cannot be told.

    Source: fstatfs(2): ``f_type`` comes first, as a word.
    """
    buffer = ctypes.create_string_buffer(_STATFS_BYTES)
    if _libc.fstatfs(fd, buffer):
        return 0
    return ctypes.c_long.from_buffer(buffer).value & 0xFFFFFFFF


def sync_directory(path: Path) -> None:
    """Make the directory's entries durable.

    Raises:
        OSError: as open(2) and fsync(2).
    """
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def begin_write_back(fd: int, offset: int, length: int) -> None:
    """Have the kernel begin to write a range: a sync later has less to wait for.

    It promises nothing, and what goes wrong the sync says.
    Source: sync_file_range(2).
    """
    _libc.sync_file_range(
        fd, ctypes.c_int64(offset), ctypes.c_int64(length), _SYNC_FILE_RANGE_WRITE
    )


def write_again(fd: int) -> None:
    """Write a file's bytes once more, after a sync of it that failed.

    The kernel reports a failed write-back once and then takes the pages for clean: an fsync that
    just succeeds the second time has written nothing. Nobody may change these bytes meanwhile;
    appending is all right.

    Raises:
        OSError: as pread(2) and pwrite(2).
    """
    offset, end = 0, os.fstat(fd).st_size
    while offset < end:
        content = os.pread(fd, min(_PIECE, end - offset), offset)
        if not content:
            return  # it was cut meanwhile
        written = os.pwrite(fd, content, offset)
        if written == 0:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        offset += written


def translate(error: OSError, doing: str) -> EngineError:
    """Return what to raise for an error of the operating system.

    Args:
        doing: Completes "cannot …", such as ``read packs/0f3a.pack``.
    """
    message = f"cannot {doing}: {os.strerror(error.errno) if error.errno else error}"
    if error.errno in _OUT_OF_SPACE:
        return NoSpace(message)
    if error.errno in _NOT_ALLOWED:
        return StoreInaccessible(message)
    return ObjectStoreFailed(message)
