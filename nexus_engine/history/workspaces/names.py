"""Which names of the base are to come and go so that it is what the workspace is.

Each name that changed in the workspace is looked at by itself; ``units`` finds what belongs
together.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from nexus_engine.history.subtrees import iter_children, join
from nexus_engine.history.workspaces.contents import are_same, is_expected
from nexus_engine.history.workspaces.sides import Sides
from nexus_engine.types import NO_INO, Ino, Name, Path

CHANGED = "changed in the base as well"
GONE = "gone from the base"
OCCUPIED = "something else has the name in the base"
NOT_EMPTY = "something in it was added or changed in the base"


@dataclass(slots=True, eq=False)
class NameChange:
    """A name of the base is to change its meaning. Negative numbers: as in ``Sides``."""

    parent: Ino
    name: Name
    now: Ino
    after: Ino
    path: Path
    """In the workspace."""
    source: Ino
    """What the name means there; 0: nothing."""
    conflict: str = ""
    inside: list[NameChange] = field(default_factory=list)
    """A directory that goes: what is in it."""


class NameChanges:
    """Works out every ``NameChange``."""

    def __init__(self, sides: Sides) -> None:
        self.changes: dict[tuple[Ino, Name], NameChange] = {}
        self._sides = sides
        self._began_as: dict[Ino, Ino] = {}
        """Of a new directory in the place of another one: that."""
        self._seen: set[tuple[Ino, Name]] = set()
        self._new: deque[Ino] = deque()
        """New directories that are still to be looked through."""
        self._gained: set[Ino] = set()
        """What gets a name, in the base."""
        self.replaced: dict[Ino, Ino] = {}
        """Of something of the base: what is new in the workspace, and taken for it."""

    def collect(self) -> None:
        for directory, name in self._sides.changed_names():
            self._compare(self._sides.successor(directory), name)
            while self._new:
                new = self._new.popleft()
                for name in self._names_of(new):
                    self._compare(new, name)
        for change in list(self.changes.values()):
            if change.now and not change.conflict and change.now not in self._gained:
                self._check_removal(change)

    def _names_of(self, directory: Ino) -> Iterator[Name]:
        for entry in list(iter_children(self._sides.now.list_children, directory)):
            yield entry.name
        began_as = self._began_as.get(directory)
        if began_as is not None:
            for entry in iter_children(self._sides.then.list_children, began_as):
                yield entry.name

    # -- one name --

    def _compare(self, directory: Ino, name: Name) -> None:
        sides = self._sides
        above = sides.path_of(directory)
        if above is None or (directory, name) in self._seen:
            return
        self._seen.add((directory, name))
        path = join(above, name)
        began_as = self._began_as.get(directory) or sides.predecessor(directory)
        was = sides.then.find_dentry_ino(began_as, name) or NO_INO
        dentry = sides.now.find_dentry(directory, name)
        is_now = NO_INO if dentry is None else dentry.ino
        if is_now and is_now != was:
            self._pair(is_now, was)
        parent = sides.base(directory)
        wanted = sides.base(is_now) if is_now else NO_INO
        has = sides.meaning(parent, name)
        if not was and not is_now and not sides.has_applied(parent, name, has):
            return
        if wanted < 0 and has and self._is_taken_for(is_now, has):
            wanted = has
        inode = sides.now.find_inode(is_now) if is_now else None
        if inode is not None and inode.is_dir and (wanted < 0 or is_now in self._began_as):
            self._new.append(is_now)
        if has != wanted:
            conflict = self._conflict(parent, name, has, wanted)
            change = NameChange(parent, name, has, wanted, path, is_now, conflict)
            self.changes[parent, name] = change
            self._gained.add(wanted)

    def _pair(self, new: Ino, old: Ino) -> None:
        """Take what replaced something, as editors save files, for the same thing changed.

        Of a symlink or a device an inode never becomes another one.
        """
        sides = self._sides
        if not old or sides.base(new) > 0 or sides.any_path(old) is not None:
            return
        before, after = sides.then.find_inode(old), sides.now.find_inode(new)
        base = sides.base(old)
        if before is None or after is None or (before.mode ^ after.mode) & 0o170000:
            return
        if not (after.is_dir or after.is_file):
            return
        if sides.live(base) is not None and base not in self.replaced:
            sides.pair(new, base)
            self._began_as[new] = old
            self.replaced[base] = new

    def _is_taken_for(self, new: Ino, there: Ino) -> bool:
        """Take what both made under one name for the same thing, if it is: directories always."""
        sides = self._sides
        mine, theirs = sides.now.find_inode(new), sides.now.find_inode(there)
        if mine is None or theirs is None:
            return False
        both = mine.is_dir and theirs.is_dir
        if not both and not are_same((sides.now, mine), (sides.now, theirs)):
            return False
        if sides.has_stand_in(there):
            return False  # that moved, and this is another one in its place
        sides.pair(new, there)
        self.replaced[there] = new
        if both:
            self._new.append(new)
        return True

    def _conflict(self, parent: Ino, name: Name, has: Ino, wanted: Ino) -> str:
        sides = self._sides
        if parent > 0 and sides.live(parent) is None:
            return GONE
        if not sides.expects(parent, name, has):
            if not has:
                return GONE
            return CHANGED if sides.begin.find_dentry_ino(parent, name) else OCCUPIED
        return GONE if wanted > 0 and sides.live(wanted) is None else ""

    # -- what goes --

    def _check_removal(self, change: NameChange) -> None:
        sides = self._sides
        inode = sides.live(change.now)
        if inode is None:
            return
        if not inode.is_dir:
            if not is_expected(sides, inode):
                change.conflict = CHANGED
            return
        inside = list(self._iter_inside(change))
        strange = any(below.conflict for below in inside)
        for below in inside:
            # What moved out of it goes in any case: to where it moved.
            if not strange or below.now in self._gained:
                below.conflict = ""
                self.changes[below.parent, below.name] = below
        if strange:
            change.conflict = NOT_EMPTY
        else:
            change.inside = inside

    def _iter_inside(self, change: NameChange) -> Iterator[NameChange]:
        sides = self._sides
        stack = [change]
        while stack:
            above = stack.pop()
            for entry in iter_children(sides.now.list_children, above.now):
                ino, path = entry.inode.ino, join(above.path, entry.name)
                below = NameChange(above.now, entry.name, ino, NO_INO, path, NO_INO)
                if (above.now, entry.name) in self.changes:
                    continue
                if ino in self._gained:
                    yield below
                    continue
                if entry.inode.is_dir:
                    stack.append(below)
                    known = True
                else:
                    known = is_expected(sides, entry.inode)
                if not known or not sides.expects(above.now, entry.name, ino):
                    below.conflict = NOT_EMPTY
                yield below
