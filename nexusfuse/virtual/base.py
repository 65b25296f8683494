"""What every virtual node can do, and the open things that nodes give out."""

from __future__ import annotations

import errno
import os
import stat
from typing import Protocol

import pyfuse3

from nexus_engine.types import Actor, Inode, Name
from nexusfuse.attributes import read_only, to_entry

NONE_TIMEOUT_S = 0.0


Entry = tuple[int, bytes, pyfuse3.EntryAttributes]
"""One line of a directory listing: cookie, name, attributes. Plain: there are many."""


class OpenFile(Protocol):
    """An open regular file, real or not."""

    async def read(self, offset: int, length: int) -> bytes: ...
    async def write(self, offset: int, data: bytes) -> int: ...
    async def flush(self) -> None: ...
    async def fsync(self) -> None: ...
    async def release(self) -> None: ...


class OpenDirectory(Protocol):
    """An open directory, real or not."""

    async def entries(self, after: int) -> list[Entry]:
        """Return some entries after a cookie (0: from the start); none at the end."""
        ...


class Node(Protocol):
    """A file or directory that is in no table."""

    async def attributes(self) -> pyfuse3.EntryAttributes: ...
    async def lookup(self, name: Name, actor: Actor) -> pyfuse3.EntryAttributes | None: ...
    async def open(self, flags: int, actor: Actor) -> tuple[OpenFile, pyfuse3.FileInfo]: ...
    async def opendir(self, actor: Actor) -> OpenDirectory: ...
    async def readlink(self, actor: Actor) -> bytes: ...
    async def getxattr(self, name: bytes, actor: Actor) -> bytes: ...
    async def listxattr(self, actor: Actor) -> list[bytes]: ...
    async def mkdir(self, name: Name, actor: Actor) -> pyfuse3.EntryAttributes: ...
    async def rmdir(self, name: Name, actor: Actor) -> None: ...


class BaseNode:
    """Refuses everything; nodes say what they can."""

    async def lookup(self, name: Name, actor: Actor) -> pyfuse3.EntryAttributes | None:
        raise pyfuse3.FUSEError(errno.ENOTDIR)

    async def open(self, flags: int, actor: Actor) -> tuple[OpenFile, pyfuse3.FileInfo]:
        raise pyfuse3.FUSEError(errno.EISDIR)

    async def opendir(self, actor: Actor) -> OpenDirectory:
        raise pyfuse3.FUSEError(errno.ENOTDIR)

    async def readlink(self, actor: Actor) -> bytes:
        raise pyfuse3.FUSEError(errno.EINVAL)

    async def getxattr(self, name: bytes, actor: Actor) -> bytes:
        raise pyfuse3.FUSEError(pyfuse3.ENOATTR)

    async def listxattr(self, actor: Actor) -> list[bytes]:
        return []

    async def mkdir(self, name: Name, actor: Actor) -> pyfuse3.EntryAttributes:
        raise read_only()

    async def rmdir(self, name: Name, actor: Actor) -> None:
        raise read_only()


class ReadOnlyFile:
    """The parts of an open file that cannot be written."""

    async def write(self, offset: int, data: bytes) -> int:
        raise pyfuse3.FUSEError(errno.EBADF)

    async def flush(self) -> None:
        return

    async def fsync(self) -> None:
        return

    async def release(self) -> None:
        return


class FixedFile(ReadOnlyFile):
    """Bytes made when the file was opened."""

    def __init__(self, content: bytes) -> None:
        self._content = content

    async def read(self, offset: int, length: int) -> bytes:
        return self._content[offset : offset + length]


class FixedDirectory:
    """A listing made when the directory was opened."""

    def __init__(self, entries: list[tuple[bytes, pyfuse3.EntryAttributes]]) -> None:
        self._entries = [(i, name, e) for i, (name, e) in enumerate(entries, start=1)]

    async def entries(self, after: int) -> list[Entry]:
        return self._entries[after:]


def virtual_entry(
    number: int, directory: Inode, mode: int, *, size: int = 0
) -> pyfuse3.EntryAttributes:
    """Return attributes of a node: owner and times of the directory it belongs to."""
    inode = directory._replace(
        mode=mode, nlink=2 if stat.S_ISDIR(mode) else 1, size=size, rdev=0, target=None
    )
    return to_entry(inode, number)


def volatile(entry: pyfuse3.EntryAttributes) -> pyfuse3.EntryAttributes:
    """Have the kernel ask again each time."""
    entry.entry_timeout = entry.attr_timeout = NONE_TIMEOUT_S
    return entry


def direct_file(*, nonseekable: bool = False) -> pyfuse3.FileInfo:
    """Return the flags of a file whose size nobody knows before it is read."""
    return pyfuse3.FileInfo(direct_io=True, nonseekable=nonseekable)


def require_read_only(flags: int) -> None:
    """Refuse to open for writing."""
    if flags & os.O_ACCMODE != os.O_RDONLY or flags & os.O_TRUNC:
        raise read_only()
