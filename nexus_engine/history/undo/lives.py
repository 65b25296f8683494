"""What inodes went through since the first operation of an undo: lives, versions, xattrs."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field

from nexus_engine.history.undo.names import Names, Unit
from nexus_engine.meta.undo_queries import Operation, UndoQueries, VersionRow
from nexus_engine.types import Ino, Inode, Seq

Steps = list[tuple[Seq, bytes | None]]


@dataclass(slots=True)
class History:
    """An inode's versions since an operation, and the last one from before."""

    first: Seq
    versions: list[VersionRow]
    xattrs: dict[bytes, tuple[bytes | None, Steps]] = field(default_factory=dict)
    """Those that changed: the value before ``first``, and the changes."""
    lives: list[tuple[Seq, Seq | None]] = field(default_factory=list)
    """(operation that began it, operation that ended it) of each stretch of existence."""

    def __post_init__(self) -> None:
        while len(self.versions) > 1 and self.versions[1].inode.from_seq < self.first:
            del self.versions[0]
        for inode, died in self.versions:
            if self.lives and self.lives[-1][1] == inode.from_seq:
                self.lives[-1] = (self.lives[-1][0], died)
            else:
                self.lives.append((inode.from_seq, died))

    @property
    def now(self) -> Inode | None:
        """The current version; a directory's times are those of its ``from_seq``."""
        last = self.versions[-1] if self.versions else None
        return last.inode if last is not None and last.to_seq is None else None

    def existence(self) -> tuple[bool, list[tuple[Seq, bool]]]:
        """Return whether it existed before ``first``, and each birth and death since."""
        existed = False
        changes = []
        for born, died in self.lives:
            if born >= self.first:
                changes.append((born, True))
            elif died is None or died >= self.first:
                existed = True
            if died is not None and died >= self.first:
                changes.append((died, False))
        return existed, changes

    def detours(self, is_active: Callable[[Seq], bool]) -> list[tuple[Seq, Seq]]:
        """Return the lives that the undo passes over, because others began and ended them.

        An undo brought the inode back, and a redo took it away again: what it was in between is
        not what it was before. (A death and a rebirth cancel out as well: the life goes on.)
        """
        detours: list[tuple[Seq, Seq]] = []
        open_ends: list[tuple[Seq, bool, bool]] = []
        for seq, born in self.existence()[1]:
            active = is_active(seq)
            if active or not open_ends or open_ends[-1][2]:
                open_ends.append((seq, born, active))
                continue
            before, was_birth, _ = open_ends.pop()
            if was_birth:
                detours.append((before, seq))
        # Where nothing else is left, others wanted it after all.
        return detours if self.inodes(detours) else []

    def inodes(self, detours: list[tuple[Seq, Seq]]) -> list[Inode]:
        """Return the versions outside detours."""
        if not detours:
            return [row.inode for row in self.versions]
        return [
            row.inode
            for row in self.versions
            if not any(born <= row.inode.from_seq < died for born, died in detours)
        ]


class Lives:
    """The histories of every inode and directory that an undo is concerned with."""

    def __init__(
        self, queries: UndoQueries, names: Names, operations: Collection[Operation]
    ) -> None:
        self.of: dict[Ino, History] = {}
        self.attributes: set[Ino] = set()
        """Inodes of which selected operations may have changed more than names."""
        self.directories: dict[Ino, Seq] = {}
        """Directories with the first selected operation that changed an entry or their times."""
        self._queries = queries
        self._names = names
        self._seen: set[Unit] = set()
        self._firsts: dict[Ino, Seq] = {}
        self._unread: set[Ino] = set()
        self._selected = {operation.seq for operation in operations}
        self._without: dict[Seq, bool] = {}
        for seq, inos in queries.inodes_changed(operations).items():
            for ino in inos:
                self.attributes.add(ino)
                self._want(ino, seq)

    def is_without(self, seq: Seq) -> bool:
        """Tell whether an operation counts as not having happened: now, or by an earlier undo.

        Times ask this: a later change hides them from the undo of an earlier one, so that they
        can only go back once both are undone.
        """
        known = self._without.get(seq)
        if known is None:
            reversal = self._queries.last_reversal(seq)
            undone = reversal is not None and not self.is_without(reversal)
            known = self._without[seq] = seq in self._selected or undone
        return known

    def selected_versions(self, ino: Ino) -> set[Seq]:
        """Return the selected operations that made a version of an inode."""
        versions = {row.inode.from_seq for row in self.of[ino].versions}
        return versions & self._selected

    def load(self) -> None:
        """Take in what the names concern that was selected since the last call."""
        for unit in self._names.units.values():
            if unit.selected and unit not in self._seen:
                self._seen.add(unit)
                for ino in unit.inos:
                    self._want(ino, unit.seq)
                for parent, _ in unit.keys:
                    self._want(parent, unit.seq)
                    known = self.directories.get(parent, unit.seq)
                    self.directories[parent] = min(known, unit.seq)
        wanted = {ino: self._firsts[ino] for ino in self._unread}
        self._unread = set()
        self._read(wanted)
        self._names.prefetch(wanted)

    def _want(self, ino: Ino, seq: Seq) -> None:
        if ino not in self._firsts or seq < self._firsts[ino]:
            self._firsts[ino] = seq
            self._unread.add(ino)

    def _read(self, wanted: dict[Ino, Seq]) -> None:
        versions = self._queries.versions(wanted)
        for ino, first in wanted.items():
            self.of[ino] = History(first, versions.get(ino, []))
            inode = self.of[ino].versions[-1].inode if ino in versions else None
            if ino in self.attributes and inode is not None and inode.is_dir:
                self.directories[ino] = min(first, self.directories.get(ino, first))
        for row in self._queries.xattr_history(wanted):
            history = self.of[row.ino]
            before, steps = history.xattrs.setdefault(row.name, (None, []))
            if row.from_seq < history.first:
                history.xattrs[row.name] = (row.value, steps)
            else:
                steps.append((row.from_seq, row.value))
            if row.to_seq is not None:
                steps.append((row.to_seq, None))
        for ino in wanted:
            for name, (before, steps) in self.of[ino].xattrs.items():
                self.of[ino].xattrs[name] = (before, _in_order(steps))


def _in_order(steps: Iterable[tuple[Seq, bytes | None]]) -> Steps:
    """Sort changes; of two at one operation, the value counts, not the end of the one before."""
    latest: dict[Seq, bytes | None] = {}
    for seq, value in steps:
        if value is not None or seq not in latest:
            latest[seq] = value
    return sorted(latest.items())
