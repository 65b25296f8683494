"""A pyfuse3 filesystem in memory that is correct and does nothing else: the ceiling.

Stock trio, pyfuse3's default options, entries and attributes valid for an hour. Nothing is
locked, logged, checked (``default_permissions`` makes the kernel do that) or kept.

Usage: ``python -m benchlib.memfs MOUNTPOINT [--flush] [--count]``. Prints ``ready`` once the
kernel talks to it, and unmounts when its standard input is closed, so that it can never
outlive the benchmark.
"""

from __future__ import annotations

import argparse
import errno
import os
import stat
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pyfuse3
import trio
from pyfuse3 import (
    EntryAttributes,
    FileInfo,
    FUSEError,
    ReaddirToken,
    RequestContext,
    SetattrFields,
    StatvfsData,
)

CACHE_TIMEOUT_S = 3600
BLOCK_BYTES = 4096
COUNTS_XATTR = b"user.bench.requests"
COUNTED = (
    "lookup", "getattr", "setattr", "readlink", "mknod", "mkdir", "symlink", "link", "unlink",
    "rmdir", "rename", "create", "open", "read", "write", "flush", "release", "opendir",
    "readdir", "releasedir", "statfs", "setxattr", "listxattr", "removexattr", "fsync",
    "fsyncdir",
)  # fmt: skip


class Inode:
    __slots__ = ("attributes", "children", "content", "lookups", "parent", "target", "xattrs")

    def __init__(self, attributes: EntryAttributes) -> None:
        self.attributes = attributes
        self.children: dict[bytes, Inode] = {}
        self.content = bytearray()
        self.lookups = 0
        self.parent: Inode = self
        self.target = b""
        self.xattrs: dict[bytes, bytes] = {}

    @property
    def is_dir(self) -> bool:
        return stat.S_ISDIR(self.attributes.st_mode)


class MemoryFilesystem(pyfuse3.Operations):
    supports_dot_lookup = True

    def __init__(self) -> None:
        super().__init__()
        self._inodes: dict[int, Inode] = {}
        self._next_ino = pyfuse3.ROOT_INODE
        self._listings: dict[int, list[tuple[bytes, Inode]]] = {}
        self._next_listing = 1
        root = self._new_inode(stat.S_IFDIR | 0o755, os.getuid(), os.getgid())
        root.lookups = 1  # The kernel never forgets the root.

    def init(self) -> None:
        print("ready", flush=True)

    async def lookup(self, parent_inode: int, name: bytes, ctx: RequestContext) -> EntryAttributes:
        directory = self._inodes[parent_inode]
        if name == b".":
            inode = directory
        elif name == b"..":
            inode = directory.parent
        else:
            inode = _child(directory, name)
        inode.lookups += 1
        return inode.attributes

    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        for ino, count in inode_list:
            inode = self._inodes[ino]
            inode.lookups -= count
            self._drop_if_unreachable(inode)

    async def getattr(self, inode: int, ctx: RequestContext) -> EntryAttributes:
        return self._inodes[inode].attributes

    async def setattr(
        self,
        inode: int,
        attr: EntryAttributes,
        fields: SetattrFields,
        fh: int | None,
        ctx: RequestContext,
    ) -> EntryAttributes:
        found = self._inodes[inode]
        kept = found.attributes
        now_ns = time.time_ns()
        if fields.update_size:
            _resize(found, attr.st_size)
            kept.st_mtime_ns = now_ns
        if fields.update_mode:
            kept.st_mode = stat.S_IFMT(kept.st_mode) | stat.S_IMODE(attr.st_mode)
        if fields.update_uid:
            kept.st_uid = attr.st_uid
        if fields.update_gid:
            kept.st_gid = attr.st_gid
        if fields.update_atime:
            kept.st_atime_ns = attr.st_atime_ns
        if fields.update_mtime:
            kept.st_mtime_ns = attr.st_mtime_ns
        kept.st_ctime_ns = attr.st_ctime_ns if fields.update_ctime else now_ns
        return kept

    async def readlink(self, inode: int, ctx: RequestContext) -> bytes:
        return self._inodes[inode].target

    async def mknod(
        self, parent_inode: int, name: bytes, mode: int, rdev: int, ctx: RequestContext
    ) -> EntryAttributes:
        inode = self._add(parent_inode, name, mode, ctx)
        inode.attributes.st_rdev = rdev
        return inode.attributes

    async def mkdir(
        self, parent_inode: int, name: bytes, mode: int, ctx: RequestContext
    ) -> EntryAttributes:
        return self._add(parent_inode, name, stat.S_IFDIR | mode, ctx).attributes

    async def symlink(
        self, parent_inode: int, name: bytes, target: bytes, ctx: RequestContext
    ) -> EntryAttributes:
        inode = self._add(parent_inode, name, stat.S_IFLNK | 0o777, ctx)
        inode.target = target
        inode.attributes.st_size = len(target)
        return inode.attributes

    async def link(
        self, inode: int, new_parent_inode: int, new_name: bytes, ctx: RequestContext
    ) -> EntryAttributes:
        found, directory = self._inodes[inode], self._inodes[new_parent_inode]
        if new_name in directory.children:
            raise FUSEError(errno.EEXIST)
        directory.children[new_name] = found
        found.attributes.st_nlink += 1
        found.lookups += 1
        now_ns = time.time_ns()
        found.attributes.st_ctime_ns = now_ns
        _touch(directory, now_ns)
        return found.attributes

    async def unlink(self, parent_inode: int, name: bytes, ctx: RequestContext) -> None:
        directory = self._inodes[parent_inode]
        inode = _child(directory, name)
        if inode.is_dir:
            raise FUSEError(errno.EISDIR)
        self._detach(directory, name, inode)

    async def rmdir(self, parent_inode: int, name: bytes, ctx: RequestContext) -> None:
        directory = self._inodes[parent_inode]
        inode = _child(directory, name)
        if not inode.is_dir:
            raise FUSEError(errno.ENOTDIR)
        if inode.children:
            raise FUSEError(errno.ENOTEMPTY)
        self._detach(directory, name, inode)

    async def rename(
        self,
        parent_inode_old: int,
        name_old: bytes,
        parent_inode_new: int,
        name_new: bytes,
        flags: int,
        ctx: RequestContext,
    ) -> None:
        if flags & ~(pyfuse3.RENAME_EXCHANGE | pyfuse3.RENAME_NOREPLACE):
            raise FUSEError(errno.EINVAL)
        source, target = self._inodes[parent_inode_old], self._inodes[parent_inode_new]
        moved, replaced = _child(source, name_old), target.children.get(name_new)
        if flags & pyfuse3.RENAME_EXCHANGE:
            if replaced is None:
                raise FUSEError(errno.ENOENT)
            source.children[name_old] = replaced
            self._reparent(replaced, target, source)
        elif replaced is not moved:
            if replaced is not None:
                self._require_replaceable(moved, replaced, flags)
                self._detach(target, name_new, replaced)
            del source.children[name_old]
        else:
            return  # rename(2): two names of one inode; nothing happens.
        target.children[name_new] = moved
        self._reparent(moved, source, target)
        now_ns = time.time_ns()
        moved.attributes.st_ctime_ns = now_ns
        _touch(source, now_ns)
        _touch(target, now_ns)

    async def create(
        self, parent_inode: int, name: bytes, mode: int, flags: int, ctx: RequestContext
    ) -> tuple[FileInfo, EntryAttributes]:
        attributes = self._add(parent_inode, name, mode, ctx).attributes
        return FileInfo(fh=attributes.st_ino), attributes

    async def open(self, inode: int, flags: int, ctx: RequestContext) -> FileInfo:
        if flags & os.O_TRUNC:
            found = self._inodes[inode]
            _resize(found, 0)
            _touch(found, time.time_ns())
        return FileInfo(fh=inode)

    async def read(self, fh: int, off: int, size: int) -> bytes:
        with memoryview(self._inodes[fh].content) as view:
            return bytes(view[off : off + size])

    async def write(self, fh: int, off: int, buf: bytes) -> int:
        inode = self._inodes[fh]
        content, end = inode.content, off + len(buf)
        if off > len(content):
            content.extend(bytes(off - len(content)))
        if off == len(content):
            content += buf
        elif end <= len(content):
            with memoryview(content) as view:  # A bytearray would copy buf first.
                view[off:end] = buf
        else:
            content[off:end] = buf
        _set_size(inode)
        _touch(inode, time.time_ns())
        return len(buf)

    async def release(self, fh: int) -> None:
        pass  # The kernel's lookups keep an open file alive.

    async def opendir(self, inode: int, ctx: RequestContext) -> int:
        fh = self._next_listing
        self._next_listing += 1
        self._listings[fh] = list(self._inodes[inode].children.items())
        return fh

    async def readdir(self, fh: int, start_id: int, token: ReaddirToken) -> None:
        entries = self._listings[fh]
        for position in range(start_id, len(entries)):
            name, inode = entries[position]
            if inode.attributes.st_nlink == 0:
                continue  # Removed since opendir.
            if not pyfuse3.readdir_reply(token, name, inode.attributes, position + 1):
                return
            inode.lookups += 1

    async def releasedir(self, fh: int) -> None:
        del self._listings[fh]

    async def statfs(self, ctx: RequestContext) -> StatvfsData:
        result = StatvfsData()
        result.f_bsize = result.f_frsize = BLOCK_BYTES
        result.f_blocks = result.f_bfree = result.f_bavail = 1 << 24
        result.f_files = result.f_ffree = result.f_favail = 1 << 24
        result.f_namemax = 255
        return result

    async def setxattr(self, inode: int, name: bytes, value: bytes, ctx: RequestContext) -> None:
        self._inodes[inode].xattrs[name] = value

    async def getxattr(self, inode: int, name: bytes, ctx: RequestContext) -> bytes:
        value = self._inodes[inode].xattrs.get(name)
        if value is None:
            raise FUSEError(pyfuse3.ENOATTR)
        return value

    async def listxattr(self, inode: int, ctx: RequestContext) -> Sequence[bytes]:
        return list(self._inodes[inode].xattrs)

    async def removexattr(self, inode: int, name: bytes, ctx: RequestContext) -> None:
        if self._inodes[inode].xattrs.pop(name, None) is None:
            raise FUSEError(pyfuse3.ENOATTR)

    def _new_inode(self, mode: int, uid: int, gid: int) -> Inode:
        attributes = EntryAttributes()
        attributes.st_ino = self._next_ino
        self._next_ino += 1
        attributes.entry_timeout = attributes.attr_timeout = CACHE_TIMEOUT_S
        attributes.st_mode, attributes.st_uid, attributes.st_gid = mode, uid, gid
        attributes.st_nlink = 2 if stat.S_ISDIR(mode) else 1
        attributes.st_blksize = BLOCK_BYTES
        now_ns = time.time_ns()
        attributes.st_atime_ns = attributes.st_mtime_ns = attributes.st_ctime_ns = now_ns
        inode = Inode(attributes)
        self._inodes[attributes.st_ino] = inode
        return inode

    def _add(self, parent: int, name: bytes, mode: int, ctx: RequestContext) -> Inode:
        directory = self._inodes[parent]
        if name in directory.children:
            raise FUSEError(errno.EEXIST)
        if directory.attributes.st_nlink == 0:
            raise FUSEError(errno.ENOENT)
        inode = self._new_inode(mode, ctx.uid, ctx.gid)
        inode.parent = directory
        inode.lookups = 1
        directory.children[name] = inode
        if inode.is_dir:
            directory.attributes.st_nlink += 1
        _touch(directory, inode.attributes.st_ctime_ns)
        return inode

    def _detach(self, directory: Inode, name: bytes, inode: Inode) -> None:
        del directory.children[name]
        now_ns = time.time_ns()
        if inode.is_dir:
            directory.attributes.st_nlink -= 1
            inode.attributes.st_nlink = 0
        else:
            inode.attributes.st_nlink -= 1
        inode.attributes.st_ctime_ns = now_ns
        _touch(directory, now_ns)
        self._drop_if_unreachable(inode)

    def _drop_if_unreachable(self, inode: Inode) -> None:
        if inode.lookups == 0 and inode.attributes.st_nlink == 0:
            del self._inodes[inode.attributes.st_ino]

    def _reparent(self, inode: Inode, old: Inode, new: Inode) -> None:
        if inode.is_dir and old is not new:
            old.attributes.st_nlink -= 1
            new.attributes.st_nlink += 1
            inode.parent = new

    def _require_replaceable(self, moved: Inode, replaced: Inode, flags: int) -> None:
        if flags & pyfuse3.RENAME_NOREPLACE:
            raise FUSEError(errno.EEXIST)
        if replaced.is_dir and not moved.is_dir:
            raise FUSEError(errno.EISDIR)
        if moved.is_dir and not replaced.is_dir:
            raise FUSEError(errno.ENOTDIR)
        if replaced.children:
            raise FUSEError(errno.ENOTEMPTY)


class FlushingFilesystem(MemoryFilesystem):
    """Answers flush too, so that each close costs the request that a real promise costs."""

    async def flush(self, fh: int) -> None:
        pass


def count_requests(operations: MemoryFilesystem) -> None:
    """Count handler calls, readable as an xattr of the root: where the kernel cannot tell."""
    counts: Counter[str] = Counter()
    for name in COUNTED:
        setattr(operations, name, _counted(counts, name, getattr(operations, name)))
    getxattr = operations.getxattr

    async def counted_getxattr(inode: int, name: bytes, ctx: RequestContext) -> bytes:
        if name == COUNTS_XATTR:
            return "".join(f"requests_{key} {value}\n" for key, value in counts.items()).encode()
        counts["getxattr"] += 1
        return await getxattr(inode, name, ctx)

    operations.getxattr = counted_getxattr  # type: ignore[method-assign]


def _counted(
    counts: Counter[str], name: str, handler: Callable[..., Awaitable[Any]]
) -> Callable[..., Awaitable[Any]]:
    def counted(*arguments: Any) -> Awaitable[Any]:
        counts[name] += 1
        return handler(*arguments)

    return counted


def _child(directory: Inode, name: bytes) -> Inode:
    inode = directory.children.get(name)
    if inode is None:
        raise FUSEError(errno.ENOENT)
    return inode


def _touch(inode: Inode, now_ns: int) -> None:
    inode.attributes.st_mtime_ns = inode.attributes.st_ctime_ns = now_ns


def _resize(inode: Inode, size_bytes: int) -> None:
    content = inode.content
    if size_bytes < len(content):
        del content[size_bytes:]
    else:
        content.extend(bytes(size_bytes - len(content)))
    _set_size(inode)


def _set_size(inode: Inode) -> None:
    size_bytes = len(inode.content)
    inode.attributes.st_size = size_bytes
    inode.attributes.st_blocks = (size_bytes + 511) // 512


async def _serve() -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_terminate_at_end_of_input)
        await pyfuse3.main()
        nursery.cancel_scope.cancel()


async def _terminate_at_end_of_input() -> None:
    async with trio.lowlevel.FdStream(os.dup(0)) as stream:
        async for _ in stream:
            pass
    pyfuse3.terminate()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("mountpoint")
    parser.add_argument("--flush", action="store_true")
    parser.add_argument("--count", action="store_true")
    arguments = parser.parse_args()

    operations = FlushingFilesystem() if arguments.flush else MemoryFilesystem()
    if arguments.count:
        count_requests(operations)
    options = {*pyfuse3.default_options, "fsname=bench-memfs"}
    pyfuse3.init(operations, arguments.mountpoint, options)
    try:
        trio.run(_serve)
    finally:
        pyfuse3.close(unmount=True)


if __name__ == "__main__":
    main()
