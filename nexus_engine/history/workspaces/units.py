"""Which changes of names need each other: of these all are made, or none.

What moved loses a name and gains one; what is new needs the directory that it is in; a directory
goes when all that is in it does. A conflict spreads to whatever needs what is in conflict, a choice
to whatever the chosen needs.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterator

from nexus_engine.history.workspaces.names import NOT_EMPTY, NameChange
from nexus_engine.history.workspaces.sides import Sides
from nexus_engine.meta.reader import PATH_DEPTH_MAX
from nexus_engine.types import ROOT_INO, Ino, Path

NO_PARENT = "its directory cannot be applied"
MOVED = "moved in the base as well"
LOOP = "a directory would be inside itself"


class Units:
    """Changes of names, and what each of them needs."""

    def __init__(self, sides: Sides, changes: Collection[NameChange]) -> None:
        self._sides = sides
        self.changes = changes
        self.gains: dict[Ino, list[NameChange]] = defaultdict(list)
        self.losses: dict[Ino, list[NameChange]] = defaultdict(list)
        for change in changes:
            if change.after:
                self.gains[change.after].append(change)
            if change.now:
                self.losses[change.now].append(change)
        self._refuse()

    def of(self, ino: Ino) -> list[NameChange]:
        """Return the changes that give a name to something or take one from it."""
        return [*self.gains.get(ino, ()), *self.losses.get(ino, ())]

    def choose(self, chosen: Callable[[Path], bool]) -> list[NameChange]:
        """Return the changes at chosen paths, and those that they need."""
        found = {change for change in self.changes if chosen(change.path)}
        pending = list(found)
        while pending:
            for needed, _ in self._needs(pending.pop()):
                if needed not in found:
                    found.add(needed)
                    pending.append(needed)
        return [change for change in self.changes if change in found]

    def _needs(self, change: NameChange) -> Iterator[tuple[NameChange, str]]:
        """Yield what a change needs, and why it cannot be without."""
        for ino in (change.after, change.now):
            if ino in self.gains:
                yield from ((other, "") for other in self.of(ino) if other is not change)
        if change.parent < 0:
            yield from ((other, NO_PARENT) for other in self.gains.get(change.parent, ()))
        yield from ((below, NOT_EMPTY) for below in change.inside)

    def _refuse(self) -> None:
        for ino, gains in self.gains.items():
            conflict = self._reason(ino, gains)
            for change in gains:
                change.conflict = change.conflict or conflict
        needed_by: dict[NameChange, list[tuple[NameChange, str]]] = defaultdict(list)
        for change in self.changes:
            for needed, reason in self._needs(change):
                needed_by[needed].append((change, reason))
        pending = [change for change in self.changes if change.conflict]
        while pending:
            culprit = pending.pop()
            for change, reason in needed_by[culprit]:
                if not change.conflict:
                    change.conflict = reason or culprit.conflict
                    pending.append(change)

    def _reason(self, ino: Ino, gains: list[NameChange]) -> str:
        """Return why something cannot have the names that it is to have."""
        inode = self._sides.live(ino)
        if inode is None:
            return ""
        source = self._sides.live(gains[0].source)
        links = 0 if inode.is_dir or source is None else source.nlink - 1
        if len(gains) > len(self.losses.get(ino, ())) + links:
            return MOVED
        return LOOP if inode.is_dir and self._is_inside(gains[0].parent, ino) else ""

    def _is_inside(self, directory: Ino, ino: Ino) -> bool:
        current = directory
        for _ in range(PATH_DEPTH_MAX):
            if current in (ino, ROOT_INO):
                return current == ino
            gains = self.gains.get(current)
            current = gains[0].parent if gains else self._sides.now.parent_of(current)
        return True
