"""One transaction of a repair: what it changes, and the lines that say so."""

from __future__ import annotations

import itertools
import stat
from collections.abc import Callable
from typing import NamedTuple

from nexus_engine.check.naming import entry_name, inode_name
from nexus_engine.fs import namespace
from nexus_engine.meta.transaction import Transaction
from nexus_engine.records import Change
from nexus_engine.types import NO_INO, ROOT_INO, Digest, Ino, Inode, Name, Path

LOST_AND_FOUND = b"lost+found"
LINES_LOGGED = 100
"""Of what was done, so much is in the record."""
LOST = Digest(bytes(32))
"""Stands for a chunk that is not known: to read it is an error. Zeros would be wrong bytes."""


class Mended(NamedTuple):
    """One thing that was done."""

    code: str
    """The problem that it was done about."""
    where: str
    action: str


class Mending:
    """What a step of a repair works with."""

    def __init__(self, tx: Transaction) -> None:
        self.tx = tx
        self.connection = tx.connection
        self.done: list[Mended] = []
        self._place: Inode | None = None

    def say(self, code: str, where: str, action: str) -> None:
        self.done.append(Mended(code, where, action))

    def inode(self, code: str, ino: int, action: str) -> None:
        """Say what was done about an inode, which caches must forget."""
        self.say(code, inode_name(self.connection, ino), action)
        self.tx.add_touched(Ino(ino))

    def entry(self, code: str, parent: int, name: bytes, action: str, ino: int = 0) -> None:
        """Say what was done about a name; likewise."""
        self.say(code, entry_name(self.connection, parent, name), action)
        self.tx.add_touched(Ino(ino) if ino else Ino(parent), Ino(parent), name)

    def find_place(self) -> Ino:
        """Return the directory ``lost+found``, made if need be; to be asked for before changes."""
        if self._place is None:
            for number in itertools.count(1):
                name = LOST_AND_FOUND if number == 1 else b"%s-%d" % (LOST_AND_FOUND, number)
                found = self.tx.find_child(ROOT_INO, Name(name))
                if found is None and self.tx.find_dentry(ROOT_INO, Name(name)) is None:
                    # A record of its own, before that of the step.
                    found = namespace.make(self.tx, ROOT_INO, Name(name), stat.S_IFDIR | 0o700)
                if found is not None and found.is_dir:
                    self._place = found
                    break
        assert self._place is not None
        return self._place.ino

    def put_aside(self, inode: Inode) -> str:
        """Give an inode the name of its number in ``lost+found``; return the path."""
        place = self.find_place()
        for number in itertools.count(1):
            name = Name(b"#%d" % inode.ino if number == 1 else b"#%d-%d" % (inode.ino, number))
            if self.tx.find_dentry(place, name) is None:
                break
        self.tx.add_dentry(place, name, inode)
        self.tx.touch_directory(place, subdirectories=int(inode.is_dir))
        self.tx.add_touched(inode.ino, place, name)
        return entry_name(self.connection, place, name)

    def drop_name(self, parent: int, name: bytes) -> None:
        """Take a name out of a directory; it becomes past."""
        dentry = self.tx.find_dentry(Ino(parent), Name(name))
        self.tx.remove_dentry(Ino(parent), Name(name))
        ino = NO_INO if dentry is None else dentry.ino
        is_dir = dentry is not None and stat.S_ISDIR(dentry.kind)
        self.tx.touch_directory(Ino(parent), subdirectories=-1 if is_dir else 0)
        self.tx.add_touched(ino or Ino(parent), Ino(parent), name)


class Step(NamedTuple):
    """What is done about some problems."""

    codes: frozenset[str]
    mend: Callable[[Mending], None]


def run(tx: Transaction, step: Step) -> list[Mended]:
    """Rule: do one step; what it did is one ``repair`` record."""
    mending = Mending(tx)
    step.mend(mending)
    if mending.done:
        lines = [f"{m.code}: {m.where}: {m.action}" for m in mending.done[:LINES_LOGGED]]
        tx.forget_paths()
        details = {"mended": len(mending.done), "lines": lines}
        tx.commit(Change("repair", ROOT_INO, Path(b""), details=details))
    return mending.done
