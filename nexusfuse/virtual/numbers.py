"""Inode numbers of things that are in no table.

Bit 62 marks them, so that no real inode is taken for one. The rest says what it is without any
state to look up, so that the kernel may forget and ask again as it likes::

    62    61..60   59..40         39..0
    1     PAST     moment slot    ino        an inode as of a moment
    1     NODE     node kind      ino        a virtual node of a directory
    1     NAMED    0              index      versions/<name>, interned

Times browsed in one mount take a slot each: a table of at most 2^20 numbers.
"""

from __future__ import annotations

import enum

from nexus_engine import errors
from nexus_engine.types import Ino, Name, Seq

VIRTUAL = 1 << 62
_PAST, _NODE, _NAMED = 0, 1 << 60, 2 << 60
_KIND = 3 << 60
_FIELD_SHIFT = 40
_FIELD_MAX = (1 << 20) - 1
_INO_MASK = (1 << _FIELD_SHIFT) - 1


class NodeKind(enum.IntEnum):
    """The virtual children of a directory."""

    NEXUS = 1
    HISTORY = 2
    VERSIONS = 3
    SNAPSHOTS = 4
    CONTROL = 5
    STATUS = 6
    LOG = 7
    EVENTS = 8


NAMES: dict[bytes, NodeKind] = {
    kind.name.lower().encode(): kind for kind in NodeKind if kind is not NodeKind.NEXUS
}
"""What ``.nexus`` holds."""


def node_number(kind: NodeKind, directory: int) -> int:
    return VIRTUAL | _NODE | kind << _FIELD_SHIFT | directory


def inode_part(number: int) -> Ino:
    """Return the inode that a number says something of."""
    return Ino(number & _INO_MASK if number & VIRTUAL else number)


def is_past(number: int) -> bool:
    return number & (VIRTUAL | _KIND) == VIRTUAL | _PAST


def is_node(number: int) -> bool:
    return number & (VIRTUAL | _KIND) == VIRTUAL | _NODE


def is_named(number: int) -> bool:
    return number & (VIRTUAL | _KIND) == VIRTUAL | _NAMED


def split_node(number: int) -> tuple[NodeKind, Ino]:
    """Return the kind and the directory of a node's number."""
    return NodeKind(number >> _FIELD_SHIFT & _FIELD_MAX), Ino(number & _INO_MASK)


class Moments:
    """Slots for the moments that have been looked at."""

    def __init__(self) -> None:
        self._slots: dict[Seq, int] = {}
        self._seqs: list[Seq] = []

    def number(self, seq: Seq, ino: Ino) -> int:
        """Return the number of an inode as of a moment.

        Raises:
            TooManyMoments: Over a million moments were looked at since the mount.
        """
        slot = self._slots.get(seq)
        if slot is None:
            slot = len(self._seqs)
            if slot > _FIELD_MAX:
                raise errors.TooManyMoments("remount to look at more moments of the past")
            self._slots[seq] = slot
            self._seqs.append(seq)
        return VIRTUAL | _PAST | slot << _FIELD_SHIFT | ino

    def split(self, number: int) -> tuple[Seq, Ino]:
        """Return the moment and the inode of a number."""
        return self._seqs[number >> _FIELD_SHIFT & _FIELD_MAX], Ino(number & _INO_MASK)


class Names:
    """Numbers for (directory, name)."""

    def __init__(self) -> None:
        self._indices: dict[tuple[Ino, Name], int] = {}
        self._names: list[tuple[Ino, Name]] = []

    def number(self, directory: Ino, name: Name) -> int:
        key = (directory, name)
        index = self._indices.get(key)
        if index is None:
            index = self._indices[key] = len(self._names)
            self._names.append(key)
        return VIRTUAL | _NAMED | index

    def split(self, number: int) -> tuple[Ino, Name]:
        return self._names[number & _INO_MASK]
