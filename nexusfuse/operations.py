"""One method for each FUSE request: unpack, call, pack.

A number with bit 62 belongs to the virtual tree; everything else is the engine's.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import pyfuse3
import trio

from nexus_engine import errors
from nexus_engine.check.garbage import find_garbage
from nexus_engine.engine import Engine
from nexus_engine.fs.files import Handle
from nexus_engine.types import ROOT_INO, Actor, Ino, Inode, Name
from nexusfuse.actors import ActorResolver, groups_of
from nexusfuse.asked import inode_asked_for, mode_before_umask, with_times_of_now
from nexusfuse.attributes import from_entry, negative_entry, read_only, to_entry
from nexusfuse.errno_map import fuse_request
from nexusfuse.handles import HandleTable
from nexusfuse.invalidate import forget_attributes
from nexusfuse.virtual.base import Entry, OpenDirectory, OpenFile, volatile
from nexusfuse.virtual.numbers import NAMES, VIRTUAL, NodeKind, inode_part, is_node, node_number
from nexusfuse.virtual.reports import EventStream
from nexusfuse.virtual.tree import VirtualTree

NEXUS = Name(b".nexus")
_BATCH = 64
STATFS_LIMIT_S = 1.0
_NOBODY = Actor(0, 0)


class LiveFile:
    """An open file of the live tree."""

    __slots__ = ("_engine", "_handle", "_start_soon")

    def __init__(self, engine: Engine, handle: Handle, start_soon: Callable[..., None]) -> None:
        self._engine = engine
        self._handle = handle
        self._start_soon = start_soon

    async def read(self, offset: int, length: int) -> bytes:
        return await self._engine.read(self._handle, offset, length)

    async def write(self, offset: int, data: bytes) -> int:
        handle = self._handle
        may_cost = data and self._engine.has_set_ids(handle)
        if may_cost and await self._engine.drop_set_ids(handle):
            self._start_soon(forget_attributes, handle.file.ino)
        return await self._engine.write(handle, offset, data)

    async def flush(self) -> None:
        await self._engine.flush(self._handle)

    async def fsync(self) -> None:
        await self._engine.fsync(self._handle)

    async def release(self) -> None:
        await self._engine.release(self._handle)


class LiveDirectory:
    """An open directory of the live tree."""

    __slots__ = ("_engine", "_ino")

    def __init__(self, engine: Engine, ino: Ino) -> None:
        self._engine = engine
        self._ino = ino

    async def entries(self, after: int) -> list[Entry]:
        dots: list[Entry] = []
        if after < 2:
            here = await self._engine.getattr(self._ino)
            self._engine.note_listed(here)
            up = await self._engine.getattr(await self._engine.parent_of(self._ino))
            dots = [(1, b".", to_entry(here)), (2, b"..", to_entry(up))][after:]
        listed = await self._engine.list_children(self._ino, after if after > 2 else 0, _BATCH)
        stored = self._engine.content.stored_bytes
        return dots + [
            (cookie, name, to_entry(inode, stored=stored(inode))) for cookie, name, inode in listed
        ]


class Operations(pyfuse3.Operations):
    """What the kernel calls."""

    supports_dot_lookup = True
    enable_writeback_cache = False
    enable_acl = True

    def __init__(self, engine: Engine, *, read_only: bool) -> None:
        super().__init__()
        self._engine = engine
        self._read_only = read_only
        self._actors = ActorResolver()
        self._files: HandleTable[OpenFile] = HandleTable()
        self._directories: HandleTable[OpenDirectory] = HandleTable()
        self._openers: dict[int, int] = {}
        """Users who have files of ``.nexus`` open, by handle."""
        self._written_around_cache: set[int] = set()
        self.tree: VirtualTree
        self.device = 0
        """``st_dev`` of the mount, once it serves."""
        self.requests: Counter[str] = Counter()
        self.under_way = 0

    def close(self) -> None:
        self._actors.close()

    async def find_damage(
        self, request: str, arguments: dict[str, Any]
    ) -> errors.CorruptMetadata | None:
        """Return what is damaged of what a request was about; ``None`` if nothing is."""
        numbers = [arguments.get(name) for name in ("ino", "parent", "new_parent")]
        if arguments.get("fh") is not None:
            table = self._directories if request.endswith("dir") else self._files
            numbers.append(table.number(arguments["fh"]))
        inos = [inode_part(number) for number in numbers if number is not None]
        # Nobody but .nexus reads the log.
        log = any(number is not None and number & VIRTUAL for number in numbers)
        try:
            return await self._engine.in_reader(partial(find_garbage, inos=inos, log=log))
        except errors.EngineError:
            return None  # the traceback tells more

    def _actor(self, ctx: pyfuse3.RequestContext) -> Actor:
        """Return who changes something."""
        if self._read_only:
            raise read_only()
        return self._actors.resolve(ctx)

    def _entry(self, inode: Inode) -> pyfuse3.EntryAttributes:
        return to_entry(inode, stored=self._engine.stored_bytes(inode))

    # -- names and attributes --

    @fuse_request
    async def lookup(
        self, parent: int, name: bytes, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        if name in (b".", b".."):
            return await self._dot(parent, name)
        if parent & VIRTUAL:
            entry = await self.tree.node(parent).lookup(Name(name), _caller(ctx))
            return negative_entry() if entry is None else entry
        inode = await self._engine.lookup(Ino(parent), Name(name))
        if inode is not None:
            return self._entry(inode)
        if name == NEXUS:
            number = node_number(NodeKind.NEXUS, parent)
            # Asked for each time: it turns real when something is put into it.
            return volatile(await self.tree.node(number).attributes())
        if name in NAMES:
            return await self._lookup_beside_real(Ino(parent), name)
        return negative_entry()

    async def _lookup_beside_real(self, parent: Ino, name: bytes) -> pyfuse3.EntryAttributes:
        """Find a virtual name in a real directory called ``.nexus``."""
        dentries = self._engine.reader.dentries_of(parent)
        if not dentries or dentries[0].name != NEXUS:
            return volatile(negative_entry())  # the directory may be renamed to .nexus
        number = node_number(NAMES[name], dentries[0].parent)
        return volatile(await self.tree.node(number).attributes())

    async def _dot(self, ino: int, name: bytes) -> pyfuse3.EntryAttributes:
        """Resolve what only a file handle from another time asks for."""
        if ino & VIRTUAL:
            raise pyfuse3.FUSEError(errno.ESTALE)
        target = Ino(ino) if name == b"." else await self._engine.parent_of(Ino(ino))
        return to_entry(await self._engine.getattr(target))

    @fuse_request
    async def getattr(self, ino: int, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        if ino & VIRTUAL:
            return await self.tree.node(ino).attributes()
        return self._entry(await self._engine.getattr(Ino(ino)))

    @fuse_request
    async def setattr(
        self,
        ino: int,
        attr: pyfuse3.EntryAttributes,
        fields: pyfuse3.SetattrFields,
        fh: int | None,
        ctx: pyfuse3.RequestContext,
    ) -> pyfuse3.EntryAttributes:
        if ino & VIRTUAL:
            if self.tree.is_control(ino) and fields.update_size:
                return await self.tree.node(ino).attributes()  # `echo … > control` truncates
            raise read_only()
        new = with_times_of_now(ctx.pid, from_entry(attr, fields), time.time_ns())
        groups = partial(groups_of, ctx.pid)
        inode = await self._engine.setattr(Ino(ino), new, self._actor(ctx), groups)
        return self._entry(inode)

    @fuse_request
    async def readlink(self, ino: int, ctx: pyfuse3.RequestContext) -> bytes:
        if ino & VIRTUAL:
            return await self.tree.node(ino).readlink(_caller(ctx))
        return await self._engine.readlink(Ino(ino))

    @fuse_request
    async def access(self, ino: int, mode: int, ctx: pyfuse3.RequestContext) -> bool:
        return True  # default_permissions: the kernel has decided

    @fuse_request
    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        """Nothing is kept for the kernel's references: a number says all there is to know."""
        if self._written_around_cache:
            self._written_around_cache.difference_update(ino for ino, _ in inode_list)

    # -- making and removing names --

    async def _make(
        self,
        parent: int,
        name: bytes,
        mode: int,
        ctx: pyfuse3.RequestContext,
        **kind: Any,
    ) -> Inode:
        actor = self._actor(ctx)
        directory = await self._real_directory(parent, actor)
        before_umask = partial(mode_before_umask, ctx.pid, mode, ctx.umask)
        return await self._engine.make(
            directory, Name(name), mode, actor, before_umask=before_umask, **kind
        )

    async def _real_directory(self, parent: int, actor: Actor) -> Ino:
        """Return where a new name goes; a virtual ``.nexus`` becomes real with its first entry."""
        if not parent & VIRTUAL:
            return Ino(parent)
        directory = self._nexus_directory(parent)
        existing = await self._engine.lookup(directory, NEXUS)
        if existing is None:
            mode = (await self._engine.getattr(directory)).mode
            existing = await self._engine.make(directory, NEXUS, mode, actor)
        return existing.ino

    def _nexus_directory(self, number: int) -> Ino:
        """Return the directory whose ``.nexus`` a number is; nothing else takes new names."""
        node = self.tree.nexus_of(number)
        if node is None:
            raise read_only()
        return node

    @fuse_request
    async def mknod(
        self, parent: int, name: bytes, mode: int, rdev: int, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        if not stat.S_IFMT(mode):
            mode |= stat.S_IFREG
        return to_entry(await self._make(parent, name, mode, ctx, rdev=rdev))

    @fuse_request
    async def mkdir(
        self, parent: int, name: bytes, mode: int, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        if parent & VIRTUAL and self.tree.nexus_of(parent) is None:
            return await self.tree.node(parent).mkdir(Name(name), self._actor(ctx))
        return to_entry(await self._make(parent, name, mode, ctx))

    @fuse_request
    async def symlink(
        self, parent: int, name: bytes, target: bytes, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        mode = stat.S_IFLNK | 0o777
        return to_entry(await self._make(parent, name, mode, ctx, target=target))

    @fuse_request
    async def link(
        self, ino: int, new_parent: int, new_name: bytes, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        if ino & VIRTUAL:
            raise read_only() if new_parent & VIRTUAL else pyfuse3.FUSEError(errno.EXDEV)
        actor = self._actor(ctx)
        directory = await self._real_directory(new_parent, actor)
        return to_entry(await self._engine.link(Ino(ino), directory, Name(new_name), actor))

    @fuse_request
    async def unlink(self, parent: int, name: bytes, ctx: pyfuse3.RequestContext) -> None:
        if parent & VIRTUAL:
            raise read_only()
        await self._engine.unlink(Ino(parent), Name(name), self._actor(ctx))

    @fuse_request
    async def rmdir(self, parent: int, name: bytes, ctx: pyfuse3.RequestContext) -> None:
        if parent & VIRTUAL:
            await self.tree.node(parent).rmdir(Name(name), self._actor(ctx))
            return
        if name == NEXUS and await self._engine.lookup(Ino(parent), NEXUS) is None:
            raise pyfuse3.FUSEError(errno.EBUSY)  # not a directory that could be removed
        await self._engine.rmdir(Ino(parent), Name(name), self._actor(ctx))

    @fuse_request
    async def rename(
        self,
        parent: int,
        name: bytes,
        new_parent: int,
        new_name: bytes,
        flags: int,
        ctx: pyfuse3.RequestContext,
    ) -> None:
        if parent & VIRTUAL or new_parent & VIRTUAL:
            raise read_only()
        actor = self._actor(ctx)
        await self._engine.rename(
            Ino(parent), Name(name), Ino(new_parent), Name(new_name), flags, actor
        )

    # -- files --

    @fuse_request
    async def create(
        self, parent: int, name: bytes, mode: int, flags: int, ctx: pyfuse3.RequestContext
    ) -> tuple[pyfuse3.FileInfo, pyfuse3.EntryAttributes]:
        actor = self._actor(ctx)
        directory = await self._real_directory(parent, actor)
        before_umask = partial(mode_before_umask, ctx.pid, mode, ctx.umask)
        try:
            handle, inode = await self._engine.create(
                directory, Name(name), mode, actor, before_umask
            )
        except errors.AlreadyExists:
            if flags & os.O_EXCL:
                raise
            # Another process of the store made it, and the kernel does not know yet: told so, it
            # looks again, and checks whether the caller may open what is there.
            raise pyfuse3.FUSEError(errno.ESTALE) from None
        info = pyfuse3.FileInfo(
            fh=self._files.add(LiveFile(self._engine, handle, self.tree.start_soon), inode.ino),
            keep_cache=self._may_keep_cache(handle, flags),
        )
        return info, to_entry(inode)

    @fuse_request
    async def open(self, ino: int, flags: int, ctx: pyfuse3.RequestContext) -> pyfuse3.FileInfo:
        if ino & VIRTUAL:
            return await self._open_virtual(ino, flags, self._actors.resolve(ctx))
        # Readers leave no trace in the log, so there is no need to know who they are.
        reads = flags & os.O_ACCMODE == os.O_RDONLY and not flags & os.O_TRUNC
        actor = _NOBODY if reads else self._actor(ctx)
        handle = await self._engine.open(Ino(ino), flags, actor, partial(groups_of, ctx.pid))
        return pyfuse3.FileInfo(
            fh=self._files.add(LiveFile(self._engine, handle, self.tree.start_soon), ino),
            keep_cache=self._may_keep_cache(handle, flags),
        )

    async def _open_virtual(self, ino: int, flags: int, actor: Actor) -> pyfuse3.FileInfo:
        counts = is_node(ino)
        with ExitStack() as undo:
            if counts:
                self.tree.limits.opened(actor.uid)
                undo.callback(self.tree.limits.closed, actor.uid)
            file, info = await self.tree.node(ino).open(flags, actor)
            undo.pop_all()
        info.fh = self._files.add(file, ino)
        if counts:
            self._openers[info.fh] = actor.uid
        return info

    def _may_keep_cache(self, handle: Handle, flags: int) -> bool:
        """Tell whether the pages that the kernel has of a file may serve this opening of it.

        After an asynchronous O_DIRECT write the kernel drops no pages: a reader beside it may have
        brought back what was there before.
        """
        ino = handle.file.ino
        writes = flags & os.O_ACCMODE != os.O_RDONLY
        if writes and flags & os.O_DIRECT:
            self._written_around_cache.add(ino)
        elif ino in self._written_around_cache:
            if handle.file.handles == 1:
                self._written_around_cache.remove(ino)
            return False
        writes_only = flags & os.O_ACCMODE == os.O_WRONLY
        return writes_only or not self._engine.wants_to_see_reads(handle)

    @fuse_request
    async def read(self, fh: int, offset: int, size: int) -> bytes:
        return await self._files.get(fh).read(offset, size)

    @fuse_request
    async def write(self, fh: int, offset: int, data: bytes) -> int:
        return await self._files.get(fh).write(offset, data)

    @fuse_request
    async def flush(self, fh: int) -> None:
        await self._files.get(fh).flush()

    @fuse_request
    async def fsync(self, fh: int, datasync: bool) -> None:  # noqa: FBT001 - pyfuse3's signature
        await self._files.get(fh).fsync()

    @fuse_request
    async def release(self, fh: int) -> None:
        uid = self._openers.pop(fh, None)
        if uid is not None:
            self.tree.limits.closed(uid)
        await self._files.pop(fh).release()

    @fuse_request
    async def poll(
        self, ino: int, fh: int, handle: pyfuse3.PollHandle | None, ctx: pyfuse3.RequestContext
    ) -> int:
        file = self._files.get(fh)
        if isinstance(file, EventStream):
            return file.poll(handle)
        raise pyfuse3.FUSEError(errno.ENOSYS)

    # -- directories --

    @fuse_request
    async def opendir(self, ino: int, ctx: pyfuse3.RequestContext) -> int:
        if ino & VIRTUAL:
            directory = await self.tree.node(ino).opendir(self._actors.resolve(ctx))
            return self._directories.add(directory, ino)
        return self._directories.add(LiveDirectory(self._engine, Ino(ino)), ino)

    @fuse_request
    async def readdir(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        directory = self._directories.get(fh)
        after = start_id
        while entries := await directory.entries(after):
            for cookie, name, attributes in entries:
                if not pyfuse3.readdir_reply(token, name, attributes, cookie):
                    return
                after = cookie

    @fuse_request
    async def releasedir(self, fh: int) -> None:
        self._directories.pop(fh)

    @fuse_request
    async def fsyncdir(self, fh: int, datasync: bool) -> None:  # noqa: FBT001
        await self._engine.fsync_directory()

    # -- extended attributes --

    @fuse_request
    async def getxattr(self, ino: int, name: bytes, ctx: pyfuse3.RequestContext) -> bytes:
        if ino & VIRTUAL:
            return await self.tree.node(ino).getxattr(name, _caller(ctx))
        value = await self._engine.find_xattr(Ino(ino), name)
        if value is None:
            raise pyfuse3.FUSEError(errno.ENODATA)
        return value

    @fuse_request
    async def listxattr(self, ino: int, ctx: pyfuse3.RequestContext) -> list[bytes]:
        if ino & VIRTUAL:
            names = await self.tree.node(ino).listxattr(_caller(ctx))
        else:
            names = await self._engine.listxattr(Ino(ino))
        if ctx.uid == 0:
            return names
        return [name for name in names if not name.startswith(b"trusted.")]  # xattr(7)

    @fuse_request
    async def setxattr(
        self, ino: int, name: bytes, value: bytes, ctx: pyfuse3.RequestContext
    ) -> None:
        if ino & VIRTUAL:
            raise read_only()
        groups = partial(groups_of, ctx.pid)
        await self._engine.setxattr(Ino(ino), name, value, self._actor(ctx), groups=groups)

    @fuse_request
    async def removexattr(self, ino: int, name: bytes, ctx: pyfuse3.RequestContext) -> None:
        if ino & VIRTUAL:
            raise read_only()
        await self._engine.removexattr(Ino(ino), name, self._actor(ctx))

    # -- the filesystem --

    @fuse_request
    async def statfs(self, ctx: pyfuse3.RequestContext) -> pyfuse3.StatvfsData:
        ino = None
        if self._engine.has_quotas:
            # It looks at the caller's path, which may lead anywhere, other dead mounts included.
            with trio.move_on_after(STATFS_LIMIT_S):
                look = partial(inode_asked_for, ctx.pid, self.device)
                ino = await trio.to_thread.run_sync(look, abandon_on_cancel=True)
        live = ino is not None and not ino & VIRTUAL
        usage = await self._engine.usage(Ino(ino) if live and ino else ROOT_INO)
        reply = pyfuse3.StatvfsData()
        reply.f_bsize = reply.f_frsize = usage.block_size
        reply.f_blocks = usage.blocks
        reply.f_bfree = usage.blocks_free
        reply.f_bavail = usage.blocks_available
        reply.f_files = usage.inodes
        reply.f_ffree = reply.f_favail = usage.inodes_free
        reply.f_namemax = 255
        return reply


def _caller(ctx: pyfuse3.RequestContext) -> Actor:
    """Return as much of who asks as a permission check needs."""
    return Actor(ctx.uid, ctx.gid, ctx.pid)
