"""What a connection knows of current rows while operations of its own wait for a shared COMMIT.

It holds the write lock then, so nobody else can change a row: what it has read or written since
BEGIN is true until COMMIT. Whoever makes a file asks for the same few rows over and over, and an
answer from here costs a tenth of SQLite's.

A fact that is missing costs a query; one that is wrong would get into the store. So all are
forgotten when the transaction ends, when an operation or a statement fails, and when rows change in
another way than by the methods of `Transaction` that note it here.
"""

from __future__ import annotations

import enum
from typing import Any, Final

from nexus_engine.types import Ino, Inode, Name

FACTS_MAX = 4096
"""With more of one kind all are forgotten."""
_NLINK, _MTIME_NS, _CTIME_NS = map(Inode._fields.index, ("nlink", "mtime_ns", "ctime_ns"))
_LONG_BYTES = 1024
"""A longer attribute is not kept here."""


class Unknown(enum.Enum):
    """Ask SQLite. ``None`` is something else: it is known that there is no such row."""

    UNKNOWN = enum.auto()


UNKNOWN: Final = Unknown.UNKNOWN


class Known:
    """Facts about current rows, for whoever reads and changes by one connection."""

    def __init__(self) -> None:
        self.is_open = False
        """Facts may be noted; where not, there are none."""
        self.inodes: dict[Ino, Inode | None] = {}
        self.children: dict[tuple[Ino, Name], Ino | None] = {}
        self.xattrs: dict[tuple[Ino, bytes], bytes | None] = {}
        self.only_names: dict[Ino, tuple[Ino, Name] | None] = {}
        """The name of an inode that has one; ``None``: it has none at all."""
        self._bare: set[Ino] = set()
        """Have no xattrs but those in ``xattrs``."""
        self._empty: set[Ino] = set()
        """Have no extents."""

    def open(self) -> None:
        """The write lock is held: from now on facts stay true."""
        self.is_open = True

    def close(self) -> None:
        """They may not stay true any longer."""
        if self.is_open:
            self.is_open = False
            self._forget()

    def _forget(self) -> None:
        self.inodes.clear()
        self.children.clear()
        self.xattrs.clear()
        self.only_names.clear()
        self._bare.clear()
        self._empty.clear()

    # -- asking --

    def find_child(self, parent: Ino, name: Name) -> Inode | Unknown | None:
        ino = self.children.get((parent, name), UNKNOWN)
        if ino is None or ino is UNKNOWN:
            return ino
        return self.inodes.get(ino, UNKNOWN)

    def find_xattr(self, ino: Ino, name: bytes) -> bytes | Unknown | None:
        return self.xattrs.get((ino, name), None if ino in self._bare else UNKNOWN)

    def is_empty(self, ino: Ino) -> bool:
        """Tell whether a file is known to have no extents."""
        return ino in self._empty

    # -- what was read, or is a row as it stands here from now on --

    def note_inode(self, ino: Ino, inode: Inode | None) -> None:
        if self.is_open:
            if len(self.inodes) >= FACTS_MAX:
                self._forget()
            self.inodes[ino] = inode

    def note_child(self, parent: Ino, name: Name, ino: Ino | None) -> None:
        if self.is_open:
            if len(self.children) >= FACTS_MAX:
                self._forget()
            self.children[parent, name] = ino

    def note_xattr(self, ino: Ino, name: bytes, value: bytes | None) -> None:
        if self.is_open:
            if len(self.xattrs) >= FACTS_MAX or (value and len(value) > _LONG_BYTES):
                self._forget()
            if not value or len(value) <= _LONG_BYTES:
                self.xattrs[ino, name] = value

    # -- what changed --

    def note_new(self, ino: Ino) -> None:
        """A number was given out that no row has."""
        if self.is_open:
            self.note_inode(ino, None)
            self.only_names[ino] = None
            self._bare.add(ino)
            self._empty.add(ino)

    def note_touched(self, directory: Ino, time_ns: int, subdirectories: int) -> None:
        inode = self.inodes.get(directory)
        if inode is not None:
            fields: list[Any] = list(inode)
            fields[_NLINK] += subdirectories
            fields[_MTIME_NS] = fields[_CTIME_NS] = time_ns
            self.inodes[directory] = Inode._make(fields)

    def note_named(self, parent: Ino, name: Name, ino: Ino) -> None:
        """An inode got a name."""
        self.note_child(parent, name, ino)
        if self.only_names.pop(ino, UNKNOWN) is None:
            self.only_names[ino] = parent, name

    def note_unnamed(self, parent: Ino, name: Name) -> None:
        """A name went."""
        if self.is_open:
            ino = self.children.get((parent, name), UNKNOWN)
            if ino is UNKNOWN or ino is None:
                self.only_names.clear()
            elif self.only_names.pop(ino, UNKNOWN) == (parent, name):
                self.only_names[ino] = None
            self.note_child(parent, name, None)

    def note_filled(self, ino: Ino) -> None:
        """A file got extents."""
        self._empty.discard(ino)
