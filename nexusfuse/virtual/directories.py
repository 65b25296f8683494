"""The directories of ``.nexus``: itself, history, versions, snapshots."""

from __future__ import annotations

import errno
import stat
from typing import TYPE_CHECKING

import pyfuse3

from nexus_engine import errors
from nexus_engine.history import moments as history_moments
from nexus_engine.history import snapshots, versions
from nexus_engine.meta.database import Database
from nexus_engine.types import Actor, Ino, Inode, Name, Seq
from nexusfuse.attributes import negative_entry, to_entry
from nexusfuse.virtual.base import (
    BaseNode,
    FixedDirectory,
    OpenDirectory,
    virtual_entry,
    volatile,
)
from nexusfuse.virtual.numbers import NAMES, NodeKind, node_number

if TYPE_CHECKING:
    from nexusfuse.virtual.tree import VirtualTree

LATEST_MOMENTS = 20
"""Moments that ``ls history`` offers beside the snapshots."""

Listing = list[tuple[bytes, pyfuse3.EntryAttributes]]


class DirectoryNode(BaseNode):
    """A virtual directory that belongs to a real one."""

    kind: NodeKind
    mask = 0o555
    """Which of the real directory's permission bits it shows."""

    def __init__(self, tree: VirtualTree, directory: Ino) -> None:
        self._tree = tree
        self._engine = tree.engine
        self._database = tree.engine.store.database
        self._directory = directory

    def _inode(self) -> Inode:
        return self._engine.reader.get_inode(self._directory)

    async def attributes(self) -> pyfuse3.EntryAttributes:
        inode = self._inode()
        number = node_number(self.kind, self._directory)
        return virtual_entry(number, inode, stat.S_IFDIR | inode.mode & self.mask)

    async def opendir(self, actor: Actor) -> OpenDirectory:
        here = await self.attributes()
        return FixedDirectory([(b".", here), (b"..", here), *await self._list()])

    async def _list(self) -> Listing:
        return []

    def _past(self, seq: Seq, ino: Ino) -> pyfuse3.EntryAttributes | None:
        """Return an inode as of a moment, or ``None`` where it did not exist."""
        inode = self._engine.as_of(seq).find_inode(ino)
        return None if inode is None else to_entry(inode, self._tree.moments.number(seq, ino))

    def _moments(self, named: list[tuple[bytes, Seq]]) -> Listing:
        """List moments at which the directory existed.

        The attributes are today's: the kernel is told to ask again, and working out those of
        two hundred moments would make a mere ``ls`` slow.
        """
        inode = self._inode()
        first = self._engine.reader.first_seq(self._directory) or 0
        return [
            (name, volatile(to_entry(inode, self._tree.moments.number(seq, self._directory))))
            for name, seq in named
            if seq >= first
        ]


class NexusNode(DirectoryNode):
    """``.nexus`` where no real directory has the name."""

    kind = NodeKind.NEXUS
    mask = 0o777

    async def lookup(self, name: Name, actor: Actor) -> pyfuse3.EntryAttributes | None:
        kind = NAMES.get(name)
        if kind is None:
            return volatile(negative_entry())
        return await self._tree.node(node_number(kind, self._directory)).attributes()

    async def _list(self) -> Listing:
        return [
            (name, await self._tree.node(node_number(kind, self._directory)).attributes())
            for name, kind in NAMES.items()
        ]


class HistoryNode(DirectoryNode):
    """``history``: every name that means a moment is a directory."""

    kind = NodeKind.HISTORY

    async def lookup(self, name: Name, actor: Actor) -> pyfuse3.EntryAttributes | None:
        if name == b"now":
            await self._engine.settle()
        try:
            text = name.decode()
            seq = history_moments.resolve_moment(
                self._database, text, self._engine.store.clock.time_ns()
            )
        except (UnicodeDecodeError, errors.InvalidMoment):
            return volatile(negative_entry())
        entry = self._past(seq, self._directory)
        # What a moment means may change ("2h" does all the time, a snapshot can be dropped); the
        # directory it leads to never does.
        return volatile(negative_entry() if entry is None else entry)

    async def _list(self) -> Listing:
        now_ns = self._engine.store.clock.time_ns()

        def find(database: Database) -> list[tuple[bytes, Seq]]:
            names = [snapshot.name for snapshot in snapshots.list_all(database)]
            names += history_moments.latest_moments(
                database, self._directory, LATEST_MOMENTS, now_ns
            )
            return [
                (name.encode(), history_moments.resolve_moment(database, name, now_ns))
                for name in dict.fromkeys(names)
            ]

        return self._moments(await self._engine.in_reader(find))


class VersionsNode(DirectoryNode):
    """``versions``: a directory for each file that this directory ever held."""

    kind = NodeKind.VERSIONS

    async def lookup(self, name: Name, actor: Actor) -> pyfuse3.EntryAttributes | None:
        await self._engine.look(self._directory, self._engine.reader.appear, self._directory)
        if not versions.versions(self._database, self._directory, name):
            return volatile(negative_entry())
        return volatile(self._named(name))

    async def _list(self) -> Listing:
        await self._engine.look(self._directory, self._engine.reader.appear, self._directory)
        names = versions.names_with_versions(self._database, self._directory)
        return [(name, volatile(self._named(name))) for name in names]

    def _named(self, name: Name) -> pyfuse3.EntryAttributes:
        inode = self._inode()
        number = self._tree.names.number(self._directory, name)
        return virtual_entry(number, inode, stat.S_IFDIR | inode.mode & self.mask)


class FileVersionsNode(DirectoryNode):
    """``versions/<name>``: one file for each content it ever had, named by the operation."""

    def __init__(self, tree: VirtualTree, directory: Ino, name: Name) -> None:
        super().__init__(tree, directory)
        self._name = name

    async def attributes(self) -> pyfuse3.EntryAttributes:
        inode = self._inode()
        number = self._tree.names.number(self._directory, self._name)
        return virtual_entry(number, inode, stat.S_IFDIR | inode.mode & self.mask)

    async def lookup(self, name: Name, actor: Actor) -> pyfuse3.EntryAttributes | None:
        for version in versions.versions(self._database, self._directory, self._name):
            if b"%d" % version.seq == name:
                entry = self._past(version.moment, version.ino)
                if entry is not None:
                    return volatile(entry)
        return volatile(negative_entry())

    async def _list(self) -> Listing:
        listing: Listing = []
        for version in versions.versions(self._database, self._directory, self._name):
            entry = self._past(version.moment, version.ino)
            if entry is not None:
                listing.append((b"%d" % version.seq, volatile(entry)))
        return listing


class SnapshotsNode(DirectoryNode):
    """``snapshots``: ``mkdir`` makes one, ``rmdir`` drops it."""

    kind = NodeKind.SNAPSHOTS
    mask = 0o777

    async def lookup(self, name: Name, actor: Actor) -> pyfuse3.EntryAttributes | None:
        for snapshot in snapshots.list_all(self._database):
            if snapshot.name.encode() == name:
                entry = self._past(snapshot.seq, self._directory)
                return volatile(negative_entry() if entry is None else entry)
        return volatile(negative_entry())

    async def _list(self) -> Listing:
        return self._moments([(s.name.encode(), s.seq) for s in snapshots.list_all(self._database)])

    async def mkdir(self, name: Name, actor: Actor) -> pyfuse3.EntryAttributes:
        await self._engine.settle()
        seq = await self._engine.store.write(snapshots.add_snapshot, actor, _text(name))
        entry = self._past(seq, self._directory)
        assert entry is not None
        return volatile(entry)

    async def rmdir(self, name: Name, actor: Actor) -> None:
        await self._engine.store.write(snapshots.remove_snapshot, actor, _text(name))


def _text(name: Name) -> str:
    try:
        return name.decode()
    except UnicodeDecodeError:
        raise pyfuse3.FUSEError(errno.EILSEQ) from None
