"""The reference's open files: reading, writing, mapping, truncating.

Source: open(2), read(2), write(2), mmap(2), truncate(2), copy_file_range(2).
"""

from __future__ import annotations

import errno
import os
import stat as stat_bits

from .permissions import (
    READ,
    SEARCH,
    WRITE,
    fail,
    mode_after_write,
    require,
    require_created_anew,
)
from .reference_tree import Node, OpenFile, ReferenceTree, Unmodelled
from .tree import SPECIAL, Kind, Stat

SIZE_MAX = 16 << 20
"""A file longer than this is not modelled: holes are stored here as zeros."""


class ReferenceContent(ReferenceTree):
    def open(self, path: bytes, flags: int, mode: int) -> int:
        creat, excl = bool(flags & os.O_CREAT), bool(flags & os.O_EXCL)
        follow = not flags & os.O_NOFOLLOW and not (creat and excl)
        found = self._walk(path, follow=follow)
        node = found.node
        if node is not None:
            if creat and excl:
                fail(errno.EEXIST)
            if creat and found.parent is not None and node.is_file:
                require_created_anew(found.parent, node, self.caller)
            return self._opened(node, flags)
        if not creat or found.parent is None:
            fail(errno.ENOENT)
        require(found.parent, self.caller, WRITE | SEARCH)
        node = self._new_node(found.parent, Kind.FILE, mode & 0o7777)
        self._add(found.parent, found.name, node)
        return self._handle(node, flags)

    def open_again(self, fh: int, flags: int) -> int:
        """Open the file behind a handle once more, through /proc; it needs no name."""
        return self._opened(self._nodes[self._open[fh].ino], flags)

    def close(self, fh: int) -> None:
        node = self._nodes[self._open.pop(fh).ino]
        node.opens -= 1
        self._drop_if_unused(node)

    def pread(self, fh: int, length: int, offset: int) -> bytes:
        opened = self._open[fh]
        if not opened.readable:
            fail(errno.EBADF)
        return self._nodes[opened.ino].data[offset : offset + length]

    def pwrite(self, fh: int, data: bytes, offset: int) -> int:
        """pwrite(2); on a descriptor that appends, Linux ignores the offset."""
        opened = self._open[fh]
        if not opened.writable:
            fail(errno.EBADF)
        node = self._nodes[opened.ino]
        self._require_known_writer(node, opened)
        self._write(node, data, len(node.data) if opened.append else offset)
        return len(data)

    def copy_range(self, source: int, sink: int, length: int, start: int, to: int) -> int:
        """copy_file_range(2), until all is copied or the source ends."""
        one, two = self._open[source], self._open[sink]
        if not one.readable or not two.writable or two.append:
            fail(errno.EBADF)
        data = self._nodes[one.ino].data[start : start + length]
        if one.ino == two.ino and start < to + len(data) and to < start + len(data):
            fail(errno.EINVAL)
        self._require_known_writer(self._nodes[two.ino], two)
        self._write(self._nodes[two.ino], data, to)
        return len(data)

    def mapped_read(self, fh: int, length: int, offset: int) -> bytes:
        """Read through a mapping, which needs bytes that are there."""
        opened = self._open[fh]
        data = self._nodes[opened.ino].data[offset : offset + length]
        if not length or len(data) < length:
            raise Unmodelled("a mapping beyond the end of the file")
        if not opened.readable:
            fail(errno.EACCES)
        return data

    def mapped_write(self, fh: int, data: bytes, offset: int) -> None:
        """Write through a shared mapping."""
        opened = self._open[fh]
        node = self._nodes[opened.ino]
        if not data or offset + len(data) > len(node.data):
            raise Unmodelled("a mapping beyond the end of the file")
        if not opened.readable or not opened.writable:
            fail(errno.EACCES)
        node.put_data(_spliced(node.data, data, offset))
        node.perhaps_modified()

    def truncate(self, path: bytes, size: int) -> None:
        if size < 0:
            fail(errno.EINVAL)
        node = self._node(path, follow=True)
        if node.is_dir:
            fail(errno.EISDIR)
        if not node.is_file:
            fail(errno.EINVAL)
        require(node, self.caller, WRITE)
        self._resize(node, size)

    def ftruncate(self, fh: int, size: int) -> None:
        opened = self._open[fh]
        if size < 0 or not opened.writable:
            fail(errno.EINVAL)
        self._resize(self._nodes[opened.ino], size)

    def fsync(self, fh: int, *, datasync: bool) -> None:
        """Change nothing that a model without crashes could see."""

    def fstat(self, fh: int) -> Stat:
        return self.stat_of(self._nodes[self._open[fh].ino])

    def opened(self, fh: int) -> OpenFile:
        return self._open[fh]

    # Inside

    def _opened(self, node: Node, flags: int) -> int:
        """Open what exists."""
        if node.kind is Kind.SYMLINK:
            fail(errno.ELOOP)
        if node.is_dir and flags & (os.O_ACCMODE | os.O_CREAT | os.O_TRUNC):
            fail(errno.EISDIR)
        if node.is_dir or node.kind in SPECIAL:
            raise Unmodelled("a handle on something that is no regular file")
        access = flags & os.O_ACCMODE
        want = {os.O_RDONLY: READ, os.O_WRONLY: WRITE}.get(access, READ | WRITE)
        require(node, self.caller, want | (WRITE if flags & os.O_TRUNC else 0))
        if flags & os.O_TRUNC:
            self._resize(node, 0)
        return self._handle(node, flags)

    def _handle(self, node: Node, flags: int) -> int:
        access = flags & os.O_ACCMODE
        node.opens += 1
        fh, self._next_fh = self._next_fh, self._next_fh + 1
        self._open[fh] = OpenFile(
            node.ino,
            readable=access != os.O_WRONLY,
            writable=access != os.O_RDONLY,
            append=bool(flags & os.O_APPEND),
            opener=self.caller,
            mode=node.mode,
        )
        return fh

    def _write(self, node: Node, data: bytes, start: int) -> None:
        if start + len(data) > SIZE_MAX:
            raise Unmodelled("file too long")
        if data:
            node.mode = mode_after_write(node, self.caller)
            node.put_data(_spliced(node.data, data, start))

    def _require_known_writer(self, node: Node, opened: OpenFile) -> None:
        """What the kernel asks for is done when it asks. This it leaves to the file system."""
        if self._knows_who_writes or node.mode & stat_bits.S_IXGRP:
            return
        costs = {node.mode & ~mode_after_write(node, who) for who in (self.caller, opened.opener)}
        unknown = len(costs) > 1 or node.mode != opened.mode
        if unknown and any(bits & stat_bits.S_ISGID for bits in costs):
            raise Unmodelled("a set-group-ID bit that depends on who writes")

    def _resize(self, node: Node, size: int) -> None:
        if size > SIZE_MAX:
            raise Unmodelled("file too long")
        node.mode = mode_after_write(node, self.caller)
        if size == len(node.data):
            node.perhaps_modified()
        else:
            node.put_data(node.data[:size].ljust(size, b"\0"))


def _spliced(old: bytes, data: bytes, offset: int) -> bytes:
    return b"".join((old[:offset].ljust(offset, b"\0"), data, old[offset + len(data) :]))
