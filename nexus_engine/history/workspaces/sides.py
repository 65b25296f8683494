"""What a workspace is compared with: the base as it was, and as it is now."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from nexus_engine.history.subtrees import join
from nexus_engine.meta import workspace_queries
from nexus_engine.meta.connection import Connection
from nexus_engine.meta.reader import PATH_DEPTH_MAX, AsOfReader, Reader
from nexus_engine.meta.workspace_queries import Workspace
from nexus_engine.types import NO_INO, Dentry, Ino, Inode, Name, Path, Seq


class _Applied(NamedTuple):
    """What an earlier apply did to the base: whoever finds that unchanged meets nobody else."""

    view: AsOfReader
    names: set[tuple[Ino, Name]]
    inodes: set[Ino]


class Moment(NamedTuple):
    """Something of the base as it was once."""

    view: AsOfReader
    inode: Inode
    sources: list[Inode] | None
    """What stood for it in the workspace then; ``None``: that began as just this."""


class Sides:
    """The workspace, the base, and which of the one stands for which of the other.

    A negative number is that of something of the workspace that the base has nothing for.
    """

    def __init__(
        self,
        reader: Reader,
        connection: Connection,
        as_of: Callable[[Seq], AsOfReader],
        workspace: Workspace,
    ) -> None:
        self.workspace = workspace
        self.now = reader
        self.then = as_of(workspace.made_seq)
        """The workspace as it was made."""
        self.begin = as_of(workspace.base_seq)
        """The base as the workspace began."""
        self._connection = connection
        self._applied = [
            _Applied(
                as_of(seq),
                workspace_queries.touched_names(connection, seq),
                workspace_queries.touched_inodes(connection, seq),
            )
            for seq in workspace_queries.applied_seqs(connection, workspace)
        ]
        self._base: dict[Ino, Ino] = {}
        self._paths: dict[Ino, Path | None] = {workspace.ino: Path(b"")}

    def changed_names(self) -> list[tuple[Ino, Name]]:
        return workspace_queries.changed_names(self._connection, self.workspace)

    def changed_inodes(self) -> list[Ino]:
        return workspace_queries.changed_inodes(self._connection, self.workspace)

    # -- the workspace --

    def path_of(self, directory: Ino) -> Path | None:
        """Return where a directory is in the workspace, ``None`` if it is not (any more)."""
        way: list[Dentry] = []
        current = directory
        while current not in self._paths and len(way) < PATH_DEPTH_MAX:
            names = self.now.dentries_of(current)
            if not names:
                break
            way.append(names[0])
            current = names[0].parent
        path = self._paths.get(current)
        self._paths[current] = path
        for dentry in reversed(way):
            path = None if path is None else join(path, dentry.name)
            self._paths[dentry.ino] = path
        return path

    def any_path(self, ino: Ino) -> Path | None:
        """Return a path of anything in the workspace."""
        if ino == self.workspace.ino:
            return Path(b"")
        for dentry in self.now.dentries_of(ino):
            directory = self.path_of(dentry.parent)
            if directory is not None:
                return join(directory, dentry.name)
        return None

    def successor(self, directory: Ino) -> Ino:
        """Return what an earlier apply took for a directory that is gone: one made in its place."""
        if self.path_of(directory) is None:
            for other in self._sources(self.base(directory)):
                if self.path_of(other) is not None:
                    return other
        return directory

    def predecessor(self, directory: Ino) -> Ino:
        """Return the directory in whose place this one was made, when it was applied."""
        base = self.base(directory)
        if base > 0 and self.then.find_inode(directory) is None:
            for other in self._sources(base):
                if self.then.find_inode(other) is not None:
                    return other
        return directory

    def has_stand_in(self, base: Ino) -> bool:
        """Tell whether something in the workspace stands for this, wherever it is by now."""
        return any(self.any_path(source) is not None for source in self._sources(base))

    def _sources(self, base: Ino) -> list[Ino]:
        return workspace_queries.sources_of(self._connection, self.workspace, base)

    # -- what stands for what --

    def base(self, ino: Ino) -> Ino:
        """Return what something of the workspace stands for in the base."""
        known = self._base.get(ino)
        if known is None:
            known = self._base[ino] = self._find_base(ino)
        return known

    def _find_base(self, ino: Ino) -> Ino:
        found = workspace_queries.base_of(self._connection, self.workspace, ino)
        if found is None:
            return Ino(-ino)
        # What was put there by an apply that was undone since is new again.
        gone = self.live(found) is None and self.begin.find_inode(found) is None
        return Ino(-ino) if gone else found

    def pair(self, ino: Ino, base_ino: Ino) -> None:
        """Take something of the base for what something new of the workspace stands for."""
        self._base[ino] = base_ino

    # -- the base --

    def live(self, ino: Ino) -> Inode | None:
        """Return an inode that has a name now."""
        inode = self.now.find_inode(ino) if ino > 0 else None
        return inode if inode is not None and inode.nlink > 0 else None

    def meaning(self, directory: Ino, name: Name) -> Ino:
        """Return what a name in the base means now; 0: nothing."""
        dentry = self.now.find_dentry(directory, name) if directory > 0 else None
        return NO_INO if dentry is None else dentry.ino

    def expects(self, directory: Ino, name: Name, meaning: Ino) -> bool:
        """Tell whether nobody else gave a name of the base its meaning."""
        if directory < 0 or (self.begin.find_dentry_ino(directory, name) or NO_INO) == meaning:
            return True
        return self.has_applied(directory, name, meaning)

    def has_applied(self, directory: Ino, name: Name, meaning: Ino) -> bool:
        """Tell whether an earlier apply gave a name its meaning."""
        return any(
            (directory, name) in applied.names
            and (applied.view.find_dentry_ino(directory, name) or NO_INO) == meaning
            for applied in self._applied
        )

    def iter_moments(self, ino: Ino) -> Iterator[Moment]:
        """Yield what something of the base was when the two last had to do with each other."""
        for applied in reversed(self._applied):
            inode = applied.view.find_inode(ino) if ino in applied.inodes else None
            if inode is not None:
                found = [applied.view.find_inode(source) for source in self._sources(ino)]
                yield Moment(applied.view, inode, [each for each in found if each is not None])
        inode = self.begin.find_inode(ino)
        if inode is not None:
            yield Moment(self.begin, inode, None)
