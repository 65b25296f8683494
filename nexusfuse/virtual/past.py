"""``history/<moment>/…``: the tree as it was, read-only, cacheable for ever."""

from __future__ import annotations

import stat

import pyfuse3

from nexus_engine import errors
from nexus_engine.engine import Engine
from nexus_engine.meta.reader import PATH_DEPTH_MAX, AsOfReader
from nexus_engine.permissions.acl import NAMES as ACLS
from nexus_engine.permissions.modes import READ, SEARCH, allows
from nexus_engine.types import ROOT_INO, Actor, Ino, Inode, Name, Seq
from nexusfuse.actors import groups_of
from nexusfuse.attributes import negative_entry, to_entry
from nexusfuse.virtual.base import (
    BaseNode,
    Entry,
    OpenDirectory,
    OpenFile,
    ReadOnlyFile,
    require_read_only,
    volatile,
)
from nexusfuse.virtual.numbers import Moments

_BATCH = 64
_NAMES_TRIED = 64
_FMODE_EXEC = 0x20
"""Among the flags of an open by execve(2); ``__FMODE_EXEC`` of Linux."""


class PastNode(BaseNode):
    """An inode as of a moment."""

    def __init__(
        self, engine: Engine, moments: Moments, seq: Seq, ino: Ino, *, shared: bool
    ) -> None:
        self._engine = engine
        self._moments = moments
        self._seq = seq
        self._ino = ino
        self._shared = shared
        self._view: AsOfReader = engine.as_of(seq)

    def _entry(self, inode: Inode) -> pyfuse3.EntryAttributes:
        """Return attributes that the kernel may keep; where others may enter, ask each time."""
        stored = self._view.stored_bytes(inode.ino, inode.size) if inode.is_file else -1
        number = self._moments.number(self._seq, inode.ino)
        entry = to_entry(inode, number, stored=stored)
        return volatile(entry) if self._shared else entry

    async def attributes(self) -> pyfuse3.EntryAttributes:
        return self._entry(self._view.get_inode(self._ino))

    async def lookup(self, name: Name, actor: Actor) -> pyfuse3.EntryAttributes | None:
        self._require_allowed_now(self._ino, SEARCH, actor)
        child = await self._engine.look(self._ino, self._view.find_child, self._ino, name)
        self._engine.require_whole(self._seq)
        return negative_entry() if child is None else self._entry(child)

    async def open(self, flags: int, actor: Actor) -> tuple[OpenFile, pyfuse3.FileInfo]:
        require_read_only(flags)
        inode = self._view.get_inode(self._ino)
        if flags & _FMODE_EXEC and inode.mode & (stat.S_ISUID | stat.S_ISGID):
            # Who removed such a program, or mended it, does not want it run.
            raise errors.PermissionDenied("set-user-ID programs of the past do not run")
        self._require_allowed_now(self._ino, READ, actor)
        return PastFile(self._engine, self._view, inode), pyfuse3.FileInfo(keep_cache=True)

    async def opendir(self, actor: Actor) -> OpenDirectory:
        self._require_allowed_now(self._ino, READ, actor)
        return PastDirectory(self)

    async def readlink(self, actor: Actor) -> bytes:
        self._require_allowed_now(self._ino, 0, actor)
        target = self._view.get_inode(self._ino).target
        if target is None:
            raise errors.InvalidArgument("not a symlink")
        return target

    async def getxattr(self, name: bytes, actor: Actor) -> bytes:
        # The kernel asks for ACLs on behalf of whoever comes first, to decide for all.
        if name not in ACLS:
            self._require_allowed_now(self._ino, READ, actor)
        inode = self._view.get_inode(self._ino)
        return await self._engine.getxattr_at(self._view, inode, name)

    async def listxattr(self, actor: Actor) -> list[bytes]:
        self._require_allowed_now(self._ino, READ, actor)
        return self._view.xattr_names(self._ino)

    async def listed(self, after: int) -> list[Entry]:
        find = self._view.list_children
        listed = await self._engine.look(self._ino, find, self._ino, after, _BATCH)
        self._engine.require_whole(self._seq)
        return [(cookie, name, self._entry(inode)) for cookie, name, inode in listed]

    def dots(self) -> list[Entry]:
        here = self._view.get_inode(self._ino)
        up = self._view.find_inode(self._view.parent_of(self._ino)) or here
        return [(1, b".", self._entry(here)), (2, b"..", self._entry(up))]

    def _require_allowed_now(self, ino: Ino, want: int, actor: Actor) -> None:
        """The kernel checked the mode of then; what was closed since stays closed.

        Raises:
            PermissionDenied: The live inode, or a live directory above it, forbids it today.
        """
        if actor.uid == 0:
            return
        gids = {actor.gid} | groups_of(actor.pid)
        current = ino
        for _ in range(PATH_DEPTH_MAX):
            reader = self._engine.reader
            live = reader.find_inode(current)
            if live is not None and not allows(reader, live, want, actor.uid, gids):
                raise errors.PermissionDenied("not readable now")
            if current == ROOT_INO:
                break
            current, want = self._view.parent_of(current), SEARCH
        if not self._is_reachable(ino, actor, gids):
            raise errors.PermissionDenied("not reachable now")

    def _is_reachable(self, ino: Ino, actor: Actor, gids: set[int]) -> bool:
        """Tell whether a live inode has a name that the actor can use; what is gone has none."""
        reader = self._engine.reader
        dentries = reader.dentries_of(ino)
        return not dentries or any(
            self._may_search(dentry.parent, actor, gids) for dentry in dentries[:_NAMES_TRIED]
        )

    def _may_search(self, directory: Ino, actor: Actor, gids: set[int]) -> bool:
        reader = self._engine.reader
        current = directory
        for _ in range(PATH_DEPTH_MAX):
            inode = reader.find_inode(current)
            if inode is None or not allows(reader, inode, SEARCH, actor.uid, gids):
                return False
            if current == ROOT_INO:
                return True
            current = reader.parent_of(current)
        return False


class PastDirectory:
    """An open directory of the past."""

    def __init__(self, node: PastNode) -> None:
        self._node = node

    async def entries(self, after: int) -> list[Entry]:
        if after < 2:
            return self._node.dots()[after:] + await self._node.listed(0)
        return await self._node.listed(after if after > 2 else 0)


class PastFile(ReadOnlyFile):
    """An open file of the past."""

    def __init__(self, engine: Engine, view: AsOfReader, inode: Inode) -> None:
        self._engine = engine
        self._view = view
        self._inode = inode

    async def read(self, offset: int, length: int) -> bytes:
        return await self._engine.read_at(self._view, self._inode, offset, length)
