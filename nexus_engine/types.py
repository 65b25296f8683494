"""The nouns of the engine: small immutable values, no behaviour beyond arithmetic on themselves."""

from __future__ import annotations

import stat
from typing import NamedTuple, NewType

Ino = NewType("Ino", int)
"""Inode number: > 0, never reused within a store."""

Seq = NewType("Seq", int)
"""Position in the log: > 0, monotonic, the only ordering of operations."""

Name = NewType("Name", bytes)
"""One path component: 1 to 255 bytes, no slash, no NUL, any encoding."""

Path = NewType("Path", bytes)
"""Components joined by slashes, relative to the root, without a leading slash; b"" is the root."""

Digest = NewType("Digest", bytes)
"""SHA-256 of a chunk's content, 32 bytes."""

ROOT_INO = Ino(1)
NO_INO = Ino(0)
NAME_MAX = 255
SYMLINK_MAX = 4095
SIZE_MAX = 2**63 - 1
XATTR_VALUE_MAX = 65536
XATTR_LIST_MAX = 65536


class Inode(NamedTuple):
    """One version of an inode, as the ``inode`` table stores it (column order is field order)."""

    ino: Ino
    from_seq: Seq
    """The operation that made this version."""
    mode: int
    """File type and permission bits, as in ``st_mode``."""
    uid: int
    gid: int
    nlink: int
    """Number of names. Directories keep 2 + their child directories."""
    rdev: int
    size: int
    """Bytes; for a symlink the length of its target."""
    atime_ns: int
    """Like the next three: nanoseconds since the epoch, but for far times (``times.py``)."""
    mtime_ns: int
    ctime_ns: int
    btime_ns: int
    content_seq: Seq
    """The operation that last changed the bytes; names the content version."""
    target: bytes | None
    """Symlink target."""

    @property
    def is_dir(self) -> bool:
        return self.mode & 0o170000 == stat.S_IFDIR

    @property
    def is_file(self) -> bool:
        return self.mode & 0o170000 == stat.S_IFREG

    @property
    def is_symlink(self) -> bool:
        return self.mode & 0o170000 == stat.S_IFLNK


class Dentry(NamedTuple):
    """One directory entry: (parent, name) → ino."""

    parent: Ino
    name: Name
    ino: Ino
    kind: int
    """``stat.S_IFMT`` of the inode's mode."""
    from_seq: Seq


class Extent(NamedTuple):
    """A file's byte range, stored as a slice of a chunk."""

    start: int
    """File offset, bytes."""
    length: int
    """Bytes, > 0."""
    digest: Digest
    chunk_offset: int
    """Where in the decoded chunk the slice begins, bytes."""

    @property
    def end(self) -> int:
        return self.start + self.length

    def after(self, offset: int) -> Extent:
        """Return the part that lies at and after a file offset before its end."""
        skipped = max(0, offset - self.start)
        return Extent(
            self.start + skipped, self.length - skipped, self.digest, self.chunk_offset + skipped
        )


AGENT_MAX = 255
"""Characters of an agent's name: it is in every record and intent."""


def agent_name(said: bytes) -> str:
    """Return what ``NEXUS_AGENT`` says as text of a bounded length."""
    return said.decode(errors="replace")[:AGENT_MAX]


class Actor(NamedTuple):
    """Who did it, as known when the request came in."""

    uid: int
    gid: int
    pid: int = 0
    start_ticks: int = 0
    """Start time of the process in clock ticks since boot: tells a reused pid apart."""
    command: str = ""
    session: int = 0
    """Session id (setsid(2)) of the process."""
    agent: str = ""
    """``NEXUS_AGENT`` of the process or its nearest ancestor that has one."""
    principal: str = ""
    """API callers: the authenticated name."""


class FsUsage(NamedTuple):
    """What ``statfs`` reports."""

    block_size: int
    blocks: int
    blocks_free: int
    blocks_available: int
    """Of these; a disk may have less than a quota leaves."""
    inodes: int
    inodes_free: int
