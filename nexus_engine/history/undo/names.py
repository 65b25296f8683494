"""The names of the tree under an undo: which come back, which go, and where that is refused.

Each selected operation is split into *units*: names that stand or fall together, because an inode
moves from one to the other. Undoing half of a rename would leave a file with two names, or none.
"""

from __future__ import annotations

import stat
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from nexus_engine.history.undo.cells import BASE, Outcome, settle
from nexus_engine.meta.undo_queries import Key, NameRow, Operation, UndoQueries
from nexus_engine.types import NO_INO, ROOT_INO, Ino, Seq

LATER = "changed later"
NOT_EMPTY = "the directory is not empty"
NO_PARENT = "its directory was removed later"
TWO_NAMES = "the directory has another name now"
LOOP = "the directory would lie within itself"


class Cause(NamedTuple):
    """Why something cannot be undone."""

    reason: str
    seq: Seq = BASE
    """The operation that is in the way, or ``BASE``."""
    key: Key | None = None
    """The name that it is in the way with."""


@dataclass(slots=True)
class Cell:
    """What a name meant: inode numbers, ``NO_INO`` for nothing."""

    first: Seq
    base: Ino
    changes: list[tuple[Seq, Ino]]
    steps: dict[Seq, tuple[Ino, Ino]] = field(default_factory=dict)
    """(before, after) of each change."""
    outcome: Outcome[Ino] = field(default_factory=lambda: Outcome(NO_INO, BASE, [], {}, {}, []))

    @property
    def now(self) -> Ino:
        return self.changes[-1][1] if self.changes else self.base


@dataclass(slots=True, eq=False)
class Unit:
    """Names that one operation changed together."""

    seq: Seq
    keys: list[Key]
    inos: set[Ino]
    selected: bool
    forced: bool = False
    """Not asked for, but in the way of what was."""
    blocked: Cause | None = None

    @property
    def active(self) -> bool:
        return self.selected and self.blocked is None


class Names:
    """Every name that selected operations changed. ``settle`` decides; the rest looks ahead."""

    def __init__(self, queries: UndoQueries, *, force: bool) -> None:
        self.force = force
        self.cells: dict[Key, Cell] = {}
        self.units: dict[tuple[Seq, Key], Unit] = {}
        self.units_of: dict[tuple[Seq, Ino], list[Unit]] = {}
        self.kinds: dict[Ino, int] = {}
        self.changed: dict[Key, tuple[Ino, Ino]] = {}
        """What is to change: (inode now, inode after)."""
        self.lost: dict[Ino, list[Key]] = {}
        self.gained: dict[Ino, list[Key]] = {}
        self.changed_in: dict[Ino, list[Key]] = {}
        self.expansions: set[Seq] = set()
        """Operations that force took in."""
        self._queries = queries
        self._now: dict[Ino, list[NameRow]] = {}
        self._dirty: dict[Key, None] = {}

    # -- what is selected --

    def select(self, operations: Collection[Operation]) -> None:
        """Select every name that the operations changed."""
        keys = self._queries.names_changed(operations)
        self._add_units(keys)
        for seq, of_seq in keys.items():
            for key in of_seq:
                unit = self.units.get((seq, key))
                if unit is not None:
                    unit.selected = True

    def is_active(self, seq: Seq, ino: Ino) -> bool:
        """Tell whether what an operation did to the names of an inode is being undone."""
        units = [unit for unit in self.units_of.get((seq, ino), ()) if unit.selected]
        return bool(units) and all(unit.blocked is None for unit in units)

    def was_selected(self, seq: Seq, ino: Ino) -> bool:
        """Tell whether it was asked for, whether or not it can be done."""
        return any(unit.selected for unit in self.units_of.get((seq, ino), ()))

    def _add_units(self, keys: dict[Seq, set[Key]]) -> None:
        firsts: dict[Key, Seq] = {}
        for seq, of_seq in keys.items():
            for key in of_seq:
                known = self.cells.get(key)
                if known is None or seq < known.first:
                    firsts[key] = min(seq, firsts.get(key, seq))
        self._load(firsts)
        for seq, of_seq in keys.items():
            changed = [key for key in sorted(of_seq) if seq in self.cells[key].steps]
            for together in self._components(seq, changed):
                self._add_unit(seq, together)

    def _load(self, firsts: dict[Key, Seq]) -> None:
        rows: dict[Key, list[NameRow]] = {key: [] for key in firsts}
        for row in self._queries.name_history(firsts):
            rows[row.parent, row.name].append(row)
            self.kinds[row.ino] = row.kind
        for key, first in firsts.items():
            self.cells[key] = _cell(first, rows[key])
            self._decide(key)
            self._dirty[key] = None

    def _components(self, seq: Seq, keys: list[Key]) -> list[list[Key]]:
        """Group names between which an inode moved."""
        if len(keys) < 2:
            return [keys] if keys else []
        group = {key: key for key in keys}

        def find(key: Key) -> Key:
            while group[key] != key:
                group[key] = key = group[group[key]]
            return key

        lost: dict[Ino, list[Key]] = {}
        gained: dict[Ino, list[Key]] = {}
        for key in keys:
            before, after = self.cells[key].steps[seq]
            lost.setdefault(before, []).append(key)
            gained.setdefault(after, []).append(key)
        for ino in lost.keys() & gained.keys() - {NO_INO}:
            together = lost[ino] + gained[ino]
            for key in together[1:]:
                group[find(key)] = find(together[0])
        groups: dict[Key, list[Key]] = {}
        for key in keys:
            groups.setdefault(find(key), []).append(key)
        return list(groups.values())

    def _add_unit(self, seq: Seq, keys: list[Key]) -> None:
        if (seq, keys[0]) in self.units:
            return
        inos = {ino for key in keys for ino in self.cells[key].steps[seq]} - {NO_INO}
        unit = Unit(seq, keys, inos, selected=False)
        for key in keys:
            self.units[seq, key] = unit
        for ino in inos:
            self.units_of.setdefault((seq, ino), []).append(unit)

    # -- deciding --

    def settle(self) -> None:
        """Decide each name, until what belongs together agrees."""
        while self._dirty:
            dirty, self._dirty = self._dirty, {}
            for key in dirty:
                self._settle_cell(key)
            for key in dirty:
                outcome = self.cells[key].outcome
                for seq in (*outcome.superseded, *outcome.reverted):
                    self._require_agreement(self.units[seq, key])
                for seq, by in outcome.superseded.items():
                    self._require_no_move(self.units[seq, key], key, by)
        self._look_ahead()

    def _decide(self, key: Key) -> Outcome[Ino]:
        cell = self.cells[key]

        def is_selected(seq: Seq) -> bool:
            unit = self.units.get((seq, key))
            return unit is not None and unit.active

        cell.outcome = settle(cell.base, cell.changes, is_selected)
        return cell.outcome

    def _settle_cell(self, key: Key) -> None:
        outcome = self._decide(key)
        for by in set(outcome.conflicts.values()):
            # Where an undo of something older is in the way, the two may cancel out.
            first = self._queries.first_reversed(by)
            if first is not None and first < self.cells[key].first:
                self._load({key: first})
                return
        for seq, by in outcome.conflicts.items():
            self.refuse([self.units[seq, key]], Cause(LATER, by, key))

    def _require_agreement(self, unit: Unit) -> None:
        """Where others took away what an inode moved to, it must not come back as well.

        (Where others put it back themselves, the name that it moved to may go all the same.)
        """
        if not unit.active or len(unit.keys) < 2 or not self._dirty.keys().isdisjoint(unit.keys):
            return
        overtaken: dict[Key, Seq] = {}
        for key in unit.keys:
            by = self.cells[key].outcome.superseded.get(unit.seq)
            if by is not None:
                overtaken[key] = by
        if len(overtaken) == len(unit.keys):
            return
        for key, by in overtaken.items():
            if self.cells[key].steps[unit.seq][1] != NO_INO:
                self.refuse([unit], Cause(LATER, by, key))

    def _require_no_move(self, unit: Unit, key: Key, by: Seq) -> None:
        """A name that others moved on is not one that they took back."""
        given = self.cells[key].steps[unit.seq][1]
        if not unit.active or given == NO_INO:
            return
        if (by, key) not in self.units:
            operations = self._queries.operations([by])
            self._add_units(self._queries.names_changed(operations))
        mover = self.units.get((by, key))
        for other in mover.keys if mover is not None else ():
            if self.cells[other].steps[by][1] == given:
                self.refuse([unit], Cause(LATER, by, key))

    def refuse(self, units: Iterable[Unit], cause: Cause) -> bool:
        """Leave units alone because of a cause; with force, undo the cause as well.

        Returns:
            Whether that changes anything.
        """
        active = [unit for unit in units if unit.active]
        if not active:
            return False
        if self.force and (self.expand(cause) or self._is_pending(cause)):
            for unit in active:
                self._dirty.update(dict.fromkeys(unit.keys))
            return True
        cause = self.root_cause(cause)
        for unit in active:
            unit.blocked = cause
            self._dirty.update(dict.fromkeys(unit.keys))
        return True

    def _is_pending(self, cause: Cause) -> bool:
        unit = self.units.get((cause.seq, cause.key)) if cause.key is not None else None
        return unit is not None and unit.active and not self._dirty.keys().isdisjoint(unit.keys)

    def root_cause(self, cause: Cause) -> Cause:
        """What is in the way may itself be something selected that something is in the way of."""
        unit = self.units.get((cause.seq, cause.key)) if cause.key is not None else None
        if unit is not None and unit.blocked is not None:
            return cause._replace(seq=unit.blocked.seq, key=unit.blocked.key)
        return cause

    def expand(self, cause: Cause) -> bool:
        """Select what is in the way, if it can be."""
        if cause.key is None or cause.seq == BASE:
            return False
        unit = self.units.get((cause.seq, cause.key))
        if unit is None:
            operations = self._queries.operations([cause.seq])
            self._add_units(self._queries.names_changed(operations))
            unit = self.units.get((cause.seq, cause.key))
        if unit is None or unit.selected:
            return False
        unit.selected = unit.forced = True
        self.expansions.add(unit.seq)
        self._dirty.update(dict.fromkeys(unit.keys))
        return True

    # -- the tree as it would be --

    def _look_ahead(self) -> None:
        self.changed, self.lost, self.gained, self.changed_in = {}, {}, {}, {}
        for key, cell in self.cells.items():
            now, after = cell.now, cell.outcome.target
            if now == after:
                continue
            self.changed[key] = (now, after)
            self.changed_in.setdefault(key[0], []).append(key)
            if now:
                self.lost.setdefault(now, []).append(key)
            if after:
                self.gained.setdefault(after, []).append(key)

    def units_at(self, key: Key) -> list[Unit]:
        """Return the units that change a name."""
        return [self.units[seq, key] for seq in self.cells[key].outcome.reverted]

    def units_losing(self, ino: Ino) -> list[Unit]:
        return [unit for key in self.lost.get(ino, ()) for unit in self.units_at(key)]

    def prefetch(self, inos: Iterable[Ino]) -> None:
        """Load the current names of inodes in one go."""
        missing = {ino for ino in inos if ino not in self._now}
        if not missing:
            return
        for ino in missing:
            self._now[ino] = []
        for row in self._queries.names_of(missing):
            self._now[row.ino].append(row)
            self.kinds[row.ino] = row.kind

    def names_now(self, ino: Ino) -> list[NameRow]:
        if ino not in self._now:
            self.prefetch((ino,))
        return self._now[ino]

    def names_after(self, ino: Ino) -> list[Key]:
        lost = self.lost.get(ino, ())
        kept: list[Key] = [(row.parent, row.name) for row in self.names_now(ino)]
        return [key for key in kept if key not in lost] + self.gained.get(ino, [])

    def is_alive_now(self, ino: Ino) -> bool:
        return ino == ROOT_INO or bool(self.names_now(ino))

    def is_alive_after(self, ino: Ino) -> bool:
        return ino == ROOT_INO or bool(self.names_after(ino))

    def is_dir(self, ino: Ino) -> bool:
        return self.kinds.get(ino) == stat.S_IFDIR

    def cause_of_name(self, key: Key, reason: str) -> Cause:
        """Blame whatever makes that a name means something after the undo."""
        cell = self.cells.get(key)
        if cell is not None:
            return Cause(reason, cell.outcome.target_seq, key)
        for row in self._queries.name_history({key: Seq(2**62)}):
            return Cause(reason, row.from_seq, key)
        return Cause(reason)


def _cell(first: Seq, rows: list[NameRow]) -> Cell:
    rows.sort(key=lambda row: row.from_seq)
    base = NO_INO
    after: dict[Seq, Ino] = {}
    for row in rows:
        if row.from_seq < first:
            base = row.ino
        else:
            after[row.from_seq] = row.ino
        if row.to_seq is not None:
            after.setdefault(row.to_seq, NO_INO)
    cell = Cell(first, base, [])
    value = base
    for seq in sorted(after):
        if after[seq] != value:
            cell.steps[seq] = (value, after[seq])
            value = after[seq]
            cell.changes.append((seq, value))
    return cell
