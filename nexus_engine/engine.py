"""The facade: one method per thing a caller can want. It wires; the rules are in ``fs/``.

``async`` methods may be awaited under trio or asyncio. They run SQLite inline, because a thread's
wake-up costs ten times the query; what waits for a disk or the network goes to a thread.
"""

from __future__ import annotations

import contextlib
import logging
import os
import stat
from collections.abc import Callable, Collection, Sequence
from pathlib import Path as FilePath
from typing import ParamSpec, TypeVar

import anyio
import anyio.to_thread

from nexus_engine import errors
from nexus_engine.clock import Clock
from nexus_engine.fs import attributes, computed, namespace
from nexus_engine.fs.attributes import NewAttributes
from nexus_engine.fs.batches import Batches, NewFile
from nexus_engine.fs.content import Content
from nexus_engine.fs.files import Handle
from nexus_engine.fs.reading import read_extents
from nexus_engine.history.moments import require_whole
from nexus_engine.history.versions import require_still_there
from nexus_engine.meta import lazy_queries
from nexus_engine.meta.database import Database
from nexus_engine.meta.reader import AsOfReader, Listed, View
from nexus_engine.meta.transaction import Transaction
from nexus_engine.metadata_copy import put_metadata
from nexus_engine.oplog.tail import Stale, Tail
from nexus_engine.permissions.acl import NAMES as ACLS
from nexus_engine.permissions.modes import SET_IDS, set_ids_lost
from nexus_engine.recovery import recover
from nexus_engine.store import Store
from nexus_engine.types import NAME_MAX, ROOT_INO, Actor, FsUsage, Ino, Inode, Name, Seq

P = ParamSpec("P")
R = TypeVar("R")
Groups = Callable[[], Collection[int]]

log = logging.getLogger(__name__)

_SECURING_MAX = 256
"""Who waits for a bucket does so in a thread. All who wait share what is sent."""
_NOBODY = Actor(0, 0)
_WATCHED_BYTES = 128 * 1024
_BROUGHT_BYTES = 8 * 1024 * 1024
_NAMES_SHOWN = 10


def no_groups() -> Collection[int]:
    """Return no further groups: of callers that have none, or for whom they do not matter."""
    return ()


class Engine:
    """One process's live filesystem over a store."""

    def __init__(self, store: Store, *, noatime: bool = False) -> None:
        self.store = store
        store.announce_writing()
        store.disk.look()
        store.database.shadows.run = store.with_reserve
        self.reader = store.reader
        self.content = Content(store, noatime=noatime)
        self.tail = Tail(store.database)
        self._batches = Batches(store, self.content, self.tail)
        self._securing = anyio.CapacityLimiter(_SECURING_MAX)

    @classmethod
    def start(cls, path: FilePath, *, clock: Clock | None = None, noatime: bool = False) -> Engine:
        """Open a store, finishing what a process that died left undone.

        Args:
            noatime: Reading leaves atimes alone.

        Raises:
            StoreNotFound, StoreInaccessible, StoreVersion, CorruptMetadata.
        """
        store = Store.open(path, clock=clock)
        try:
            recover(store)
            return cls(store, noatime=noatime)
        except errors.EngineError:
            store.abandon()
            raise

    async def close(self, *, drain: bool = True) -> errors.Unfinished | None:
        """End every session, make everything durable, close the store.

        Where that fails, the store is left as by a process that died: whoever opens it next
        finishes what programs were told is kept.

        Args:
            drain: Wait for uploads, where packs live in a bucket.

        Returns:
            What failed, and which files that concerns; ``None`` if everything is in order.
        """
        try:
            await self.content.seal_all()
            self.store.upkeep(self.content.drop_unlinked)
            self.store.upkeep(self.content.write_access_times)
            await self.store.disk.sync(self.store.chunks.close)
            if drain:
                self.store.settle()
                await self._drain()
            self.store.close()
        except errors.EngineError as error:
            left = await self.content.leave_sessions()
            with contextlib.suppress(errors.EngineError):
                self.store.settle()
            unfinished = errors.Unfinished(self._describe(error, left))
            self.store.abandon(str(unfinished))
            return unfinished
        return None

    async def _drain(self) -> None:
        """Wait until the bucket has everything, metadata too, as long as that gets on."""
        try:
            await anyio.to_thread.run_sync(self.store.drain)
            await anyio.to_thread.run_sync(put_metadata, self.store)
        except errors.EngineError as error:
            log.error("not everything is in %s: %s", self.store.packs_url, error)

    def _describe(self, error: errors.EngineError, left: dict[Ino, bool]) -> str:
        """Say in one line what an error at the end means for the files that were written to."""
        waiting = self.store.database.waiting
        if not left and not waiting:
            return f"not everything is on the disk: {error}; the next mount finishes it"
        kept = ["what is in the journal"] if waiting else []
        kept += [self._name(ino) for ino, kept in left.items() if kept]
        lost = [self._name(ino) for ino, kept in left.items() if not kept]
        text = f"not all that was written is in the log: {error}"
        if kept:
            text += f"; the next mount finishes {_some(kept)}"
        if lost:
            text += (
                "; lost, because neither close nor fsync has returned for it, is what was last"
                f" written to {_some(lost)}"
            )
        return text

    def _name(self, ino: Ino) -> str:
        path = None
        with contextlib.suppress(errors.EngineError):
            path = self.reader.find_path(ino)
        return f"inode {ino}" if path is None else "/" + path.decode(errors="backslashreplace")

    # -- the tree --

    async def lookup(self, parent: Ino, name: Name) -> Inode | None:
        """Return what a name means now, or ``None``.

        Raises:
            NameTooLong: No name is that long, which is not the same as being absent.
        """
        if len(name) > NAME_MAX:
            raise errors.NameTooLong(f"name of {len(name)} bytes; at most {NAME_MAX}")
        inode = await self.look(parent, self.reader.find_child, parent, name)
        return None if inode is None else self.content.over(inode)

    async def look(
        self, directory: Ino, find: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs
    ) -> R:
        """Ask for entries of a directory, which may have to become rows first (``shadows``)."""
        try:
            return find(*args, **kwargs)
        except errors.StoreBusy:
            # Not to be waited for in the loop: who writes may be a thread that waits for it.
            await self.store.write(_appear, _NOBODY, directory)
            return find(*args, **kwargs)

    async def getattr(self, ino: Ino) -> Inode:
        """Return an inode, also one that was removed and is still referred to.

        Raises:
            StaleInode: Never existed.
        """
        inode = self.reader.find_inode(ino) or self.reader.find_departed(ino)
        if inode is None:
            raise errors.StaleInode(f"inode {ino} is gone")
        return self.content.over(inode)

    async def setattr(
        self, ino: Ino, new: NewAttributes, actor: Actor, groups: Groups = no_groups
    ) -> Inode:
        """Change attributes. On an open file a new size belongs to the write session.

        Args:
            groups: Returns further groups of the actor.
        """
        chown = (new.uid, new.gid) != (None, None)
        if chown or (new.size is not None and actor.uid != 0):
            inode = await self.getattr(ino)
            lost = set_ids_lost(inode, actor, groups, chown=chown)
            if lost:
                mode = inode.mode if new.mode is None else new.mode
                new = new._replace(mode=mode & ~lost)
        if new.size is not None:
            self.store.database.attached.require_writable(ino)
            file = self.content.find_file(ino)
            alone = new == NewAttributes(size=new.size)
            if file is not None and (alone or ino in self.content.unlinked):
                attributes.check_size(new.size)
                # No FLUSH may ever follow: truncate(2) of a file that somebody else has open.
                inode = await self.content.truncate(file, new.size, actor, flush=True)
                if alone:
                    return inode
                new = new._replace(size=None)
        await self.content.seal_inode(ino)
        inode = await self.store.write(attributes.set_attributes, actor, ino, new)
        if new.mtime_ns is not None:
            self.content.set_mtime(ino, new.mtime_ns)
        if new.atime_ns is not None:
            self.content.access_times.forget(ino)
        return self._changed(inode)

    async def make(
        self,
        parent: Ino,
        name: Name,
        mode: int,
        actor: Actor,
        *,
        rdev: int = 0,
        target: bytes | None = None,
        before_umask: Callable[[], int] | None = None,
    ) -> Inode:
        """Make a file, directory, device node, fifo, socket or symlink, by ``mode``'s type.

        Args:
            before_umask: Returns ``mode`` as the program asked for it.
        """
        return await self.store.write(
            namespace.make, actor, parent, name, mode,
            rdev=rdev, target=target, before_umask=before_umask,
        )  # fmt: skip

    async def link(self, ino: Ino, parent: Ino, name: Name, actor: Actor) -> Inode:
        await self.content.seal_inode(ino)
        return self._changed(await self.store.write(namespace.link, actor, ino, parent, name))

    async def unlink(self, parent: Ino, name: Name, actor: Actor) -> None:
        await self._seal_child(parent, name)
        inode = await self.store.write(namespace.unlink, actor, parent, name, self.content)
        self._unlinked(inode, parent)

    async def rmdir(self, parent: Ino, name: Name, actor: Actor) -> None:
        await self.store.write(namespace.rmdir, actor, parent, name)

    async def rename(
        self, parent: Ino, name: Name, new_parent: Ino, new_name: Name, flags: int, actor: Actor
    ) -> None:
        await self._seal_child(parent, name)
        await self._seal_child(new_parent, new_name)
        moved, other = await self.store.write(
            namespace.rename, actor, parent, name, new_parent, new_name, flags, self.content
        )
        self._changed(moved)
        if other is not None:
            self._unlinked(other, new_parent)
        if self.content.held.active and (moved.is_dir or (other is not None and other.is_dir)):
            self.content.held.reload()

    def stored_bytes(self, inode: Inode) -> int:
        """Return how many of a file's bytes are not holes."""
        return self.content.stored_bytes(inode)

    async def readlink(self, ino: Ino) -> bytes:
        """Return a symlink's target.

        Raises:
            InvalidArgument: It is no symlink.
        """
        inode = await self.getattr(ino)
        if inode.target is None:
            raise errors.InvalidArgument("not a symlink")
        self.content.access_times.read(inode)
        return inode.target

    def note_listed(self, directory: Inode) -> None:
        """A directory was read."""
        self.content.access_times.read(directory)

    def wants_to_see_reads(self, handle: Handle) -> bool:
        """Tell whether reading through a handle would set the atime: not from a cache, then.

        Large files stay in the kernel's cache: reading all of a database again for a time is a
        bad bargain. So their atime follows only reads that come here anyway.
        """
        inode = handle.file.inode
        if handle.silent or inode is None or inode.size > _WATCHED_BYTES:
            return False
        return self.content.access_times.is_due(self.content.over(inode))

    async def list_children(self, parent: Ino, after: int, limit: int) -> list[Listed]:
        """Return up to ``limit`` entries after a cookie (0: from the start)."""
        listed = await self.look(parent, self.reader.list_children, parent, after, limit)
        over, is_over = self.content.over, self.content.is_over
        return [
            entry._replace(inode=over(entry.inode)) if is_over(entry.inode.ino) else entry
            for entry in listed
        ]

    async def parent_of(self, ino: Ino) -> Ino:
        return self.reader.parent_of(ino)

    async def _seal_child(self, parent: Ino, name: Name) -> None:
        """Content first: its record must not come after its file's removal."""
        if not self.content.has_open_files:
            return
        child = self.reader.find_child(parent, name)
        if child is not None:
            # With the disk full it stays in memory; its program was told, and the file may go.
            with contextlib.suppress(errors.NoSpace):
                await self.content.seal_inode(child.ino)

    def _changed(self, inode: Inode) -> Inode:
        file = self.content.find_file(inode.ino)
        if file is not None:
            file.inode = inode
        return self.content.over(inode)

    def _unlinked(self, inode: Inode, parent: Ino) -> None:
        self._changed(inode)
        if inode.nlink == 0 and inode.ino in self.content:
            self.content.note_unlinked(inode.ino, parent)

    # -- content --

    async def create(
        self,
        parent: Ino,
        name: Name,
        mode: int,
        actor: Actor,
        before_umask: Callable[[], int] | None = None,
    ) -> tuple[Handle, Inode]:
        """Make a regular file and open it."""
        mode = stat.S_IFREG | stat.S_IMODE(mode)
        inode = await self.make(parent, name, mode, actor, before_umask=before_umask)
        return self.content.open(inode, actor), inode

    async def open(self, ino: Ino, flags: int, actor: Actor, groups: Groups = no_groups) -> Handle:
        """Open a regular file.

        Args:
            flags: As of open(2). Access modes are the kernel's to check; O_TRUNC truncates
                whatever the mode, as on Linux.
            groups: Returns further groups of the actor.
        """
        inode = self.reader.get_inode(ino)
        if flags & (os.O_ACCMODE | os.O_TRUNC):
            attached = self.store.database.attached
            attached.require_writable(ino)
            if not flags & os.O_TRUNC and attached.roots:
                await self._bring(inode)
        lost = set_ids_lost(inode, actor, groups) if flags & os.O_TRUNC else 0
        if lost:
            await self.setattr(ino, NewAttributes(mode=inode.mode & ~lost), actor)
            inode = self.reader.get_inode(ino)
        handle = self.content.open(inode, actor, silent=bool(flags & os.O_NOATIME))
        if inode.mode & SET_IDS and flags & os.O_ACCMODE:
            handle.groups = groups()
        if flags & os.O_TRUNC:
            try:
                await self.content.truncate(handle.file, 0, actor)
            except errors.EngineError:
                await self.content.release(handle)
                raise
        return handle

    async def _bring(self, inode: Inode) -> None:
        """Have all of a file here, if it is small, before some of it is changed.

        Of one that others change meanwhile the rest would be gone, and in a conflict with theirs
        ours would be half a file. It may be outside of the attachment: in a workspace, a copy.
        """
        if 0 < inode.size <= _BROUGHT_BYTES:
            connection = self.store.database.connection
            with contextlib.suppress(errors.BackendError):  # it can be written to all the same
                for extent in self.reader.extents(inode.ino, 0, inode.size):
                    chunk = lazy_queries.find(connection, extent.digest)
                    if chunk is not None and chunk.content is None:
                        await self.store.sources.bring(extent.digest)

    async def read(self, handle: Handle, offset: int, length: int) -> bytes:
        return await self.content.read(handle, offset, length)

    def has_set_ids(self, handle: Handle) -> bool:
        """Whether a file has mode bits that writing to it may cost."""
        inode = handle.file.inode
        return inode is None or bool(inode.mode & SET_IDS)

    async def drop_set_ids(self, handle: Handle) -> bool:
        """Take away the mode bits that writing through a handle costs; tell whether there were any.

        Write requests do not say who writes: who opened the file does.
        """
        inode = await self.getattr(handle.file.ino)
        lost = set_ids_lost(inode, handle.actor, lambda: handle.groups)
        if lost:
            await self.setattr(inode.ino, NewAttributes(mode=inode.mode & ~lost), handle.actor)
        return bool(lost)

    async def write(self, handle: Handle, offset: int, data: bytes) -> int:
        return await self.content.write(handle, offset, data)

    async def write_batch(
        self,
        files: Sequence[NewFile],
        actor: Actor,
        *,
        groups: Groups = no_groups,
        kept: Callable[[list[Inode]], None] | None = None,
    ) -> list[Inode]:
        """Make many whole files, or put other content into them: much faster than one by one.

        Each becomes what creating or truncating, writing and closing it makes: a new file is one
        operation, with its content; one that was there gets a ``write``. As for `create` and
        `open`, whether the actor may is the caller's to check.

        When it returns, all of it survives the death of this process, as after `flush`; `sync`
        makes it survive a power loss. Files are done in order, in parts of at most 256 files or
        4 MiB, and of each part all or nothing. So if it raises, or the process dies, the files of
        some first parts are there, whole, and of the others nothing.

        A caller who serves a cache, as a mount is, has to `catch_up` then: these changes are told
        to it like those of other processes.

        Args:
            groups: Returns further groups of the actor.
            kept: Told the inodes of each part when it is done.

        Returns:
            The files, in order.

        Raises:
            NameTooLong, InvalidName, AlreadyExists (a dot): before anything was done.
            NotFound, NotADirectory, IsADirectory, InvalidArgument, QuotaExceeded, NoSpace: of the
                part that it is about nothing was done.
        """
        inodes: list[Inode] = []

        def note(part: list[Inode]) -> None:
            inodes.extend(part)
            if kept is not None:
                kept(part)

        await self._batches.write(files, actor, groups, note)
        return inodes

    async def flush(self, handle: Handle) -> None:
        """What was written survives the death of this process."""
        await self.content.flush(handle.file)

    async def fsync(self, handle: Handle) -> None:
        """What the file holds survives a power loss, whoever wrote it."""
        await self.content.flush(handle.file)
        self.store.settle()
        await self.store.disk.sync(self.store.sync, handle.file.ino, self.store.database.state())
        await self.secure()

    async def fsync_directory(self) -> None:
        """What a directory holds survives a power loss; and so does all else so far."""
        await self.sync()
        await self.secure()

    async def secure(self) -> None:
        """Where fsync promises more than this machine's disk: wait for that."""
        if self.store.fsync_secures:
            await anyio.to_thread.run_sync(self.store.secure, limiter=self._securing)

    async def release(self, handle: Handle) -> None:
        await self.content.release(handle)

    async def sync(self) -> None:
        """Make every change so far durable."""
        self.store.settle()
        await self.store.disk.sync(self.store.sync)

    # -- extended attributes --

    async def getxattr(self, ino: Ino, name: bytes) -> bytes:
        value = await self.find_xattr(ino, name)
        if value is None:
            raise errors.NoXattr(name.decode(errors="backslashreplace"))
        return value

    async def find_xattr(self, ino: Ino, name: bytes) -> bytes | None:
        """Return an extended attribute, or ``None``: most are asked for in vain."""
        attributes.check_xattr_name(name)
        if name in computed.NAMES:
            return await computed.live(self.store, self.content, ino, name)
        return self.reader.find_xattr(ino, name)

    async def getxattr_at(self, view: View, inode: Inode, name: bytes) -> bytes:
        """Return an extended attribute of an inode in a view of the past."""
        if name in computed.NAMES:
            return await computed.past(self.store, view, inode, name)
        value = view.find_xattr(inode.ino, name)
        if value is None:
            raise errors.NoXattr(name.decode(errors="backslashreplace"))
        return value

    async def listxattr(self, ino: Ino) -> list[bytes]:
        return self.reader.xattr_names(ino)

    async def setxattr(
        self,
        ino: Ino,
        name: bytes,
        value: bytes,
        actor: Actor,
        flags: int = 0,
        groups: Groups = no_groups,
    ) -> None:
        """Set an extended attribute.

        Args:
            flags: XATTR_CREATE or XATTR_REPLACE.
            groups: Returns further groups of the actor; ACLs ask for them.
        """
        _require_settable(name)
        await self.content.seal_inode(ino)
        if name in ACLS:
            await self.store.write(attributes.set_acl, actor, ino, name, value, groups())
        else:
            await self.store.write(attributes.set_xattr, actor, ino, name, value, flags)
        self.content.refresh_inode(ino)

    async def removexattr(self, ino: Ino, name: bytes, actor: Actor) -> None:
        _require_settable(name)
        await self.content.seal_inode(ino)
        if name in ACLS:
            await self.store.write(attributes.set_acl, actor, ino, name, None, ())
        else:
            await self.store.write(attributes.remove_xattr, actor, ino, name)
        self.content.refresh_inode(ino)

    # -- the past --

    def as_of(self, seq: Seq) -> AsOfReader:
        return self.store.database.as_of(seq)

    def require_whole(self, seq: Seq) -> None:
        """Refuse what was read of a moment that retention is letting go of: it may be half.

        Raises:
            HistoryExpired: It is not kept any more.
        """
        require_whole(self.store.database, seq, f"op-{seq}")

    async def read_at(self, view: View, inode: Inode, offset: int, length: int) -> bytes:
        """Return the bytes of a range of a file in a view of the past."""
        length = min(length, inode.size - offset)
        if length <= 0:
            return b""
        extents = view.extents(inode.ino, offset, length)
        require_still_there(view, inode)
        return await read_extents(self.store, extents, offset, length)

    async def settle(self) -> Seq:
        """Put everything that programs have written so far into the log.

        Returns:
            The log's end.
        """
        try:
            await self.content.seal_all()
        except (errors.NoSpace, errors.StoreHung) as error:
            # Their programs were told so; a command may be what makes room, or says what is wrong.
            log.warning("not all that was written is in the log: %s", error)
        return self.reader.head()

    async def in_reader(self, action: Callable[[Database], R]) -> R:
        """Run a query that may take long in a thread, on a connection of its own."""
        self.store.settle()
        return await anyio.to_thread.run_sync(self.store.with_reader, action)

    async def in_peer(self, action: Callable[[Store], R]) -> R:
        """Run long work in a thread with the store opened a second time, as another process would.

        The loop goes on serving; ``catch_up`` then tells what the work made stale.
        """

        def run() -> R:
            peer = Store.open(self.store.path, clock=self.store.clock, beside=self.store)
            try:
                return action(peer)
            finally:
                peer.leave()  # what it committed is done, whether or not it is on the disk yet

        self.store.settle()
        try:
            return await anyio.to_thread.run_sync(run)
        finally:
            with contextlib.suppress(errors.StoreHung):
                # Or what gc gave back would not be free yet.
                await self.store.disk.sync(self.store.objects.forget_deleted)

    # -- others --

    def catch_up(self) -> Stale | None:
        """Take note of what other processes committed; return what is stale for the caller."""
        stale = self.tail.poll()
        if stale is not None:
            self.content.refresh()
        return stale

    async def follow(self) -> None:
        """Go after packs that another process moved elsewhere."""
        await self.store.disk.sync(self.store.objects.follow)

    def figures(self) -> dict[str, int]:
        """Return the engine's own gauges, for status displays."""
        silent_s = self.store.disk.silent_s
        return {
            **self.content.figures(),
            **self.store.objects.figures(),
            "wal_bytes": self.store.database.connection.wal_bytes(),
            **({"disk_silent_s": silent_s} if silent_s else {}),
        }

    @property
    def has_quotas(self) -> bool:
        return self.content.held.active

    async def usage(self, ino: Ino = ROOT_INO) -> FsUsage:
        """Return what statfs(2) reports: the space of the disk that the packs are on.

        Args:
            ino: Something whose quotas, the fullest of them, may leave less than that.
        """
        disk = os.statvfs(self.store.path)
        total = disk.f_blocks * disk.f_frsize
        # The cache of a bucket gives way to what is written.
        spare = disk.f_bavail * disk.f_frsize + self.store.objects.figures().get("cache_bytes", 0)
        free = available = max(0, spare - self.store.reserve.missing_bytes())
        inodes, inodes_free = self.reader.count_inodes() + 2**32, 2**32
        limits = self.content.held.limits(await self.getattr(ino))
        if limits.bytes is not None:
            free, total = limits.bytes
            available = min(free, available)
        if limits.inodes is not None:
            inodes_free, inodes = limits.inodes
        return FsUsage(
            block_size=4096,
            blocks=total // 4096,
            blocks_free=free // 4096,
            blocks_available=available // 4096,
            inodes=inodes,
            inodes_free=inodes_free,
        )


def _appear(tx: Transaction, directory: Ino) -> None:
    tx.connection.appear(directory)


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
    return ", ".join(names[:_NAMES_SHOWN]) + more


def _require_settable(name: bytes) -> None:
    attributes.check_xattr_name(name)
    if name in computed.NAMES:
        raise errors.OperationNotPermitted(f"{name.decode()} is computed")
