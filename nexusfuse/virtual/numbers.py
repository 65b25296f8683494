"""Inode numbers of things that are in no table.

Bit 62 marks them, so that no real inode is taken for one. The rest says what it is without any
state to look up, so that the kernel may forget and ask again as it likes::

    62    61..60   59..40         39..0
    1     NODE     node kind      ino        a virtual node of a directory
    1     NAMED    0              index      versions/<name>, interned
    1     SLOT     moment slot    ino        an inode as of a moment

    62    61..60   59..30         29..0
    1     PAST     moment         ino        the same, while both are small enough

In a store of more than 2^30 operations or inodes a moment that is looked at takes a slot; a mount
has 2^20 of them.
"""

from __future__ import annotations

import enum

from nexus_engine import errors
from nexus_engine.types import Ino, Name, Seq

VIRTUAL = 1 << 62
_PAST, _NODE, _NAMED, _SLOT = (kind << 60 for kind in range(4))
_KIND = 3 << 60
_PAST_SHIFT = 30
_PAST_MASK = (1 << _PAST_SHIFT) - 1
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
    if not number & VIRTUAL:
        return Ino(number)
    return Ino(number & (_INO_MASK if number & _KIND else _PAST_MASK))


def is_past(number: int) -> bool:
    return number & (VIRTUAL | _KIND) in (VIRTUAL | _PAST, VIRTUAL | _SLOT)


def is_node(number: int) -> bool:
    return number & (VIRTUAL | _KIND) == VIRTUAL | _NODE


def is_named(number: int) -> bool:
    return number & (VIRTUAL | _KIND) == VIRTUAL | _NAMED


def split_node(number: int) -> tuple[NodeKind, Ino]:
    """Return the kind and the directory of a node's number."""
    return NodeKind(number >> _FIELD_SHIFT & _FIELD_MAX), Ino(number & _INO_MASK)


class Moments:
    """Numbers for inodes of the past."""

    def __init__(self) -> None:
        self._slots: dict[Seq, int] = {}
        self._seqs: list[Seq] = []

    def number(self, seq: Seq, ino: Ino) -> int:
        """Return the number of an inode as of a moment.

        Raises:
            TooManyMoments: Over a million moments of a huge store were looked at since the mount.
        """
        if seq <= _PAST_MASK and ino <= _PAST_MASK:
            return VIRTUAL | _PAST | seq << _PAST_SHIFT | ino
        slot = self._slots.get(seq)
        if slot is None:
            slot = len(self._seqs)
            if slot > _FIELD_MAX:
                raise errors.TooManyMoments("remount to look at more moments of the past")
            self._slots[seq] = slot
            self._seqs.append(seq)
        return VIRTUAL | _SLOT | slot << _FIELD_SHIFT | ino

    def split(self, number: int) -> tuple[Seq, Ino]:
        """Return the moment and the inode of a number."""
        if not number & _KIND:
            return Seq(number >> _PAST_SHIFT & _PAST_MASK), Ino(number & _PAST_MASK)
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
