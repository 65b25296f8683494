"""Existence follows from names: an undo must not end a life that it has no business with."""

from __future__ import annotations

from collections.abc import Callable, Collection

from nexus_engine.history.undo.attributes import Attributes, settle_attributes
from nexus_engine.history.undo.cells import Outcome, settle
from nexus_engine.history.undo.lives import History, Lives
from nexus_engine.history.undo.names import LATER, Cause, Names
from nexus_engine.history.undo.rights import REFUSED, Rights
from nexus_engine.meta.reader import AsOfReader, Reader
from nexus_engine.meta.undo_queries import UndoQueries
from nexus_engine.types import ROOT_INO, Ino, Inode, Seq

GONE = "removed later"
VANISHES = "its other names were removed later"
SURVIVES = "renamed or linked later"


class Existence:
    """Which inodes live after the undo, and whether they should."""

    def __init__(
        self,
        queries: UndoQueries,
        names: Names,
        lives: Lives,
        selected: Collection[Seq],
        as_of: Callable[[Seq], AsOfReader],
    ) -> None:
        self._queries = queries
        self._names = names
        self._lives = lives
        self._selected = frozenset(selected)
        self._as_of = as_of

    def check(self) -> bool:
        """Refuse, once, what would remove or keep an inode against its history.

        Returns:
            Whether something was refused: then settle the names again, and check again.
        """
        self._lives.load()
        names = self._names
        refused = False
        for ino, history in list(self._lives.of.items()):
            if ino == ROOT_INO:
                continue
            now, after = names.is_alive_now(ino), names.is_alive_after(ino)
            if now and not after:
                refused |= self._check_removal(ino, history)
            elif after:
                refused |= self._check_survival(ino, history)
            elif names.force and self._is_missed(ino, history):
                refused |= names.expand(self.death(ino))
        return refused

    def is_own(self, ino: Ino) -> bool:
        """Tell whether selected operations brought it into being: it stays or goes as a whole."""
        history = self._lives.of[ino]
        outcome = self._outcome(ino, history, self._names.was_selected)
        return ino != ROOT_INO and not outcome.target and any(self._births(history))

    def is_unmade(self, ino: Ino) -> bool:
        """Tell whether what brought it into being is undone, not just overtaken."""
        history = self._lives.of[ino]
        return bool(self._outcome(ino, history, self._names.is_active).reverted)

    def attributes(self, ino: Ino, *, compare: bool = False) -> Attributes | None:
        """Decide what becomes of an inode's attributes, should it live."""
        history = self._lives.of[ino]
        detours = history.detours(lambda seq: self._names.is_active(seq, ino))
        return settle_attributes(
            history,
            detours,
            self._selected.__contains__,
            self._lives.is_without,
            self._queries.iter_versions_before,
            self._as_of,
            force=self._names.force,
            compare=compare,
        )

    def death(self, ino: Ino) -> Cause:
        """Blame whoever took an inode's last name."""
        return self._last_loss(ino, GONE)

    def survival(self, ino: Ino) -> Cause:
        """Blame whatever keeps an inode that selected operations brought into being."""
        for seq in self._births(self._lives.of[ino]):
            for unit in self._names.units_of.get((seq, ino), ()):
                if unit.blocked is not None:
                    return unit.blocked
        return Cause(SURVIVES)

    def _outcome(
        self, ino: Ino, history: History, is_selected: Callable[[Seq, Ino], bool]
    ) -> Outcome[bool]:
        existed, changes = history.existence()
        return settle(existed, changes, lambda seq: is_selected(seq, ino))

    def _births(self, history: History) -> list[Seq]:
        return [seq for seq, born in history.existence()[1] if born and seq in self._selected]

    def _check_removal(self, ino: Ino, history: History) -> bool:
        names = self._names
        if self._outcome(ino, history, names.is_active).target:
            # Undoing a link, say, after somebody removed the file's other name.
            cause = self._last_loss(ino, VANISHES)
        else:
            attributes = None if names.force else self.attributes(ino, compare=True)
            others = attributes.others() if attributes is not None else []
            if not others:
                return False
            cause = Cause(LATER, max(others))
        return names.refuse(names.units_losing(ino), cause)

    def _check_survival(self, ino: Ino, history: History) -> bool:
        """Nothing would be left of it, but for names that somebody else gave it."""
        names = self._names
        births = [
            unit
            for seq, born in history.existence()[1]
            if born and names.is_active(seq, ino)
            for unit in names.units_of[seq, ino]
        ]
        if not births or self._outcome(ino, history, names.is_active).target:
            return False
        after = names.names_after(ino)
        gained = names.gained.get(ino, [])
        key = next((key for key in after if key not in gained), after[0])
        return names.refuse(births, names.cause_of_name(key, SURVIVES))

    def _is_missed(self, ino: Ino, history: History) -> bool:
        """It is gone though it was there before, and selected operations changed it."""
        attributes = self.attributes(ino) if history.existence()[0] else None
        return attributes is not None and any(attributes.selected())

    def _last_loss(self, ino: Ino, reason: str) -> Cause:
        row = self._queries.last_name(ino)
        if row is None or row.to_seq is None:
            return Cause(reason)
        return Cause(reason, row.to_seq, (row.parent, row.name))


def check_rights(names: Names, rights: Rights, reader: Reader) -> bool:
    """Refuse, once, names that the actor may not change."""
    if rights.is_root:
        return False
    refused = False
    for key, (now, _) in list(names.changed.items()):
        directory = _latest(reader, key[0])
        inode = _latest(reader, now) if now else None
        if directory is None or not rights.may_change_name(directory, inode):
            refused |= names.refuse(names.units_at(key), Cause(REFUSED))
    return refused


def _latest(reader: Reader, ino: Ino) -> Inode | None:
    return reader.find_inode(ino) or reader.find_departed(ino)
