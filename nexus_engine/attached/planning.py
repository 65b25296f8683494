"""What is to be done at a source so that it has what is here: a plan, made from one moment.

States are compared, not operations: of every file that operations since the last push may have
changed, what it is now and what its object was when last seen. So a file that was written ten times
is pushed once, one that came and went not at all, and who died in the middle goes on where it was.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from nexus_engine.meta import attachment_queries
from nexus_engine.meta.attachment_queries import Attachment, SourceObject
from nexus_engine.meta.connection import Connection
from nexus_engine.meta.reader import Reader
from nexus_engine.types import ROOT_INO, Ino, Inode, Name, Path, Seq

_PAGE = 512


class Put(NamedTuple):
    """An object is to have the content of a file."""

    key: bytes
    path: Path
    """Of the file, relative to the attachment's directory."""
    inode: Inode
    replaces: SourceObject | None
    """What is there; ``None``: nothing, as far as is known."""
    same: SourceObject | None
    """An object that has this content."""


class Plan(NamedTuple):
    """What is to be done. Content is that of after an operation, whatever was written since."""

    head: Seq
    puts: list[Put]
    deletes: list[SourceObject]

    @property
    def size(self) -> int:
        return len(self.puts) + len(self.deletes)


def plan_push(connection: Connection, attachment: Attachment) -> Plan:
    """Return what the source lacks. Sees one moment, whoever writes meanwhile."""
    with connection.one_moment():
        reader = Reader(connection)
        head = reader.head()
        # What is gone has no files: they are not to be deleted at the source.
        if reader.find_inode(attachment.ino) is None:
            return Plan(head, [], [])
        return _Planning(connection, reader, attachment).make(head)


class _Planning:
    def __init__(self, connection: Connection, reader: Reader, attachment: Attachment) -> None:
        self._connection = connection
        self._reader = reader
        self._attachment = attachment
        self._ways: dict[Ino, Path | None] = {attachment.ino: Path(b""), ROOT_INO: None}
        self._walked: set[Ino] = set()
        self._files: dict[Path, Inode] = {}
        """What may have to be put."""
        self._known: dict[bytes, SourceObject] = {}
        """What may have to be put anew, or deleted."""

    def make(self, head: Seq) -> Plan:
        connection, number = self._connection, self._attachment.number
        changed = attachment_queries.changed_inodes(connection, self._attachment.pushed_seq, head)
        if changed is None:
            self._look_below(self._attachment.ino, Path(b""))
            self._add_known(attachment_queries.objects(connection, number))
        for ino, moved in changed or ():
            self._look_at(ino, moved=moved)
        for path in attachment_queries.unpushed(connection, number):
            self._look_up(path)
        deletes: list[SourceObject] = []
        for known in self._known.values():
            inode = self._find(known.path)
            if inode is not None and inode.is_dir and known.ino == inode.ino:
                continue
            if inode is not None and inode.is_file:
                self._files[known.path] = inode
            else:
                deletes.append(known)
        found = [self._put(path, inode) for path, inode in self._files.items()]
        puts = [put for put in found if put is not None]
        keys = {put.key for put in puts}
        return Plan(head, puts, [known for known in deletes if known.key not in keys])

    def _put(self, path: Path, inode: Inode) -> Put | None:
        connection, number = self._connection, self._attachment.number
        known = attachment_queries.object_shown_at(connection, number, path)
        if known is not None and _has_content_of(known, inode):
            return None
        key = bytes(path) if known is None else known.key
        same = [
            each
            for each in attachment_queries.objects_of(connection, number, inode.ino)
            if _has_content_of(each, inode)
        ]
        replaces = known or attachment_queries.object_at(connection, number, key)
        return Put(key, path, inode, replaces, same[0] if same else None)

    # -- what may have changed --

    def _look_at(self, ino: Ino, *, moved: bool) -> None:
        """Take note of an inode that may have changed, wherever it is and was.

        Args:
            moved: It may have come with all that is in it.
        """
        connection, number = self._connection, self._attachment.number
        self._add_known(attachment_queries.objects_of(connection, number, ino))
        inode = self._reader.find_inode(ino)
        if inode is None or inode.nlink == 0:
            return
        for dentry in self._reader.dentries_of(ino):
            above = self._way(dentry.parent)
            path = None if above is None else _join(above, dentry.name)
            path = self._top(ino, path)
            if inode.is_dir:
                if moved:
                    self._look_below(ino, path)
            elif path is not None:
                self._look_up(path)

    def _look_below(self, directory: Ino, path: Path | None) -> None:
        """Take note of all files below a directory that came, moved or went.

        Args:
            path: Where it is; ``None``: it is not in the attachment (any more).
        """
        for inode, below in self._walk(directory, path):
            known = attachment_queries.objects_of(
                self._connection, self._attachment.number, inode.ino
            )
            self._add_known(known)
            if below is not None and inode.is_file:
                self._look_up(below)

    def _look_up(self, path: Path) -> None:
        known = attachment_queries.object_shown_at(self._connection, self._attachment.number, path)
        if known is not None:
            self._known[known.key] = known
            return
        inode = self._find(path)
        if inode is not None and inode.is_file:
            self._files[path] = inode

    def _add_known(self, known: list[SourceObject]) -> None:
        self._known.update((each.key, each) for each in known)

    # -- the tree --

    def _walk(self, directory: Ino, path: Path | None) -> Iterator[tuple[Inode, Path | None]]:
        pending = [(directory, path)]
        while pending:
            ino, path = pending.pop()
            if ino in self._walked:
                continue
            self._walked.add(ino)
            after = 0
            while page := self._reader.list_rows(ino, after, _PAGE):
                after = page[-1].cookie
                for entry in page:
                    below = None if path is None else _join(path, entry.name)
                    below = self._top(entry.inode.ino, below)
                    if entry.inode.is_dir:
                        pending.append((entry.inode.ino, below))
                    yield entry.inode, below

    def _top(self, ino: Ino, path: Path | None) -> Path | None:
        return Path(b"") if ino == self._attachment.ino else path

    def _find(self, path: Path) -> Inode | None:
        inode = self._reader.find_inode(self._attachment.ino)
        for part in path.split(b"/"):
            if inode is None or not inode.is_dir:
                return None
            inode = self._reader.find_child_row(inode.ino, Name(part))
        return inode

    def _way(self, directory: Ino) -> Path | None:
        """Return where a directory is in the attachment; ``None``: it is not in it."""
        names = []
        while directory not in self._ways:
            found = self._reader.dentries_of(directory)
            if not found:
                self._ways[directory] = None  # it is gone
                break
            names.append((directory, found[0].name))
            directory = found[0].parent
        path = self._ways[directory]
        for directory, name in reversed(names):
            path = self._ways[directory] = None if path is None else _join(path, name)
        return path


def _has_content_of(known: SourceObject, inode: Inode) -> bool:
    return known.ino == inode.ino and known.content_seq == inode.content_seq


def _join(directory: Path, name: bytes) -> Path:
    return Path(directory + b"/" + name if directory else name)
