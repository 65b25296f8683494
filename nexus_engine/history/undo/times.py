"""Directory times under an undo.

A directory's mtime follows from its entries, so it goes back too: to what it would be had the
selected operations not happened.
"""

from __future__ import annotations

from collections.abc import Callable

from nexus_engine.history.undo.cells import settle
from nexus_engine.history.undo.lives import Lives
from nexus_engine.history.undo.names import Names
from nexus_engine.meta.undo_queries import UndoQueries
from nexus_engine.types import Ino, Inode, Seq


class DirectoryTimes:
    """Answers for every directory in ``Lives``, once all names are settled."""

    def __init__(self, queries: UndoQueries, names: Names, lives: Lives) -> None:
        self._queries = queries
        self._names = names
        self._lives = lives
        self._undone: dict[tuple[Seq, Ino], bool] = {}
        """Whether all that an operation did to the entries of a directory is undone."""
        for unit in names.units.values():
            if unit.selected:
                for parent, _ in unit.keys:
                    known = self._undone.get((unit.seq, parent), True)
                    self._undone[unit.seq, parent] = known and unit.active

    def mtime(self, directory: Ino, now: Inode | None) -> int | None:
        """Return the mtime that a directory should have.

        Args:
            now: The directory as it is, if it exists.

        Returns:
            ``None`` if the log does not know: leave it.
        """
        history = self._lives.of[directory]
        first = self._lives.directories.get(directory, history.first)
        base = self._base(directory, first)

        def is_selected(seq: Seq) -> bool:
            known = self._undone.get((seq, directory))
            return self._lives.is_without(seq) if known is None else known

        versions = [version.inode.from_seq for version in history.versions]
        set_seq = max((seq for seq in versions if seq >= first), default=None)
        if now is not None and base is not None:
            # The usual case, however many entries were made since: the newest change that stays.
            for seq in self._queries.iter_child_changes_back(directory, first):
                if set_seq is not None and seq <= set_seq:
                    break
                if not is_selected(seq):
                    return self._queries.time_of(seq)
            if set_seq is None:
                return base
        return self._mtime_of_many(directory, first, base, is_selected)

    def _base(self, directory: Ino, first: Seq) -> int | None:
        """Return the mtime from before ``first``, but for what was undone since."""
        found = self._queries.directory_mtime(directory, Seq(first - 1))
        while found is not None and self._lives.is_without(found[1]):
            earlier = self._queries.directory_mtime(directory, Seq(found[1] - 1))
            if earlier is None:
                break
            found = earlier
        return None if found is None else found[0]

    def _mtime_of_many(
        self, directory: Ino, first: Seq, base: int | None, is_selected: Callable[[Seq], bool]
    ) -> int | None:
        """Weigh every change: an undo among them set a time that was there before."""
        history = self._lives.of[directory]
        times = dict(self._queries.child_changes(directory, first))
        for version, _ in history.versions:
            if version.from_seq >= first:
                times[version.from_seq] = version.mtime_ns
        detours = history.detours(lambda seq: self._names.is_active(seq, directory))
        steps = [
            (seq, time)
            for seq, time in sorted(times.items())
            if not any(born <= seq <= died for born, died in detours)
        ]
        if base is None:
            if not steps:
                return None
            base = steps.pop(0)[1]
        return settle(base, steps, is_selected).target
