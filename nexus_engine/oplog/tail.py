"""Notice what other processes committed, and what that makes stale."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from nexus_engine.meta.connection import detail
from nexus_engine.meta.database import Database
from nexus_engine.meta.reader import resolve
from nexus_engine.records import OF_MANY
from nexus_engine.types import NO_INO, Ino, Name, Path, Seq

_UNKNOWN = -1


class Stale(NamedTuple):
    """What a cache may hold wrongly after foreign operations."""

    upto: Seq
    entries: set[tuple[Ino, Name]]
    inodes: set[Ino]


class Tail:
    """A position in the log up to which this process knows everything."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._connection = database.connection
        self._cursor = database.reader.head()
        self._version = self._connection.data_version()
        database.own = set()

    def expose(self, seqs: Iterable[Seq]) -> None:
        """Have the next `poll` tell of operations of this process: caches do not know of them."""
        own = self._database.own
        assert own is not None
        own.difference_update(seqs)
        self._version = _UNKNOWN

    def poll(self) -> Stale | None:
        """Return what foreign operations since the last call made stale, ``None`` if nothing.

        Costs one pragma where nobody else wrote.
        """
        own = self._database.own
        assert own is not None
        version = self._connection.data_version()
        if version == self._version:
            if own:
                self._cursor = max(own)
                own.clear()
            return None
        self._database.shadows.forget()
        self._database.attached.forget()
        stale = Stale(self._cursor, set(), set())
        rows = self._connection.all(
            f"SELECT seq, kind, ino, path, path2, {detail('replaced')}, {detail('exchanged')}"
            " FROM oplog WHERE seq > ? ORDER BY seq",
            (self._cursor,),
        )
        for seq, kind, ino, path, path2, *others in rows:
            stale = stale._replace(upto=seq)
            if seq in own:
                own.discard(seq)
            elif kind in OF_MANY or kind == "purge":
                self._add_touched(stale, seq)
            else:
                stale.inodes.add(ino)
                stale.inodes.update(Ino(other) for other in others if isinstance(other, int))
                self._add_path(stale, path)
                if path2 is not None:
                    self._add_path(stale, path2)
        # Not before: after a read that failed, the next poll must look again.
        self._cursor, self._version = stale.upto, version
        return stale if stale.entries or stale.inodes else None

    def _add_touched(self, stale: Stale, seq: Seq) -> None:
        for ino, parent, name in self._connection.all(
            "SELECT ino, parent, name FROM touched WHERE seq = ?", (seq,)
        ):
            stale.inodes.add(ino)
            if parent != NO_INO:
                stale.entries.add((parent, name))
                stale.inodes.add(parent)

    def _add_path(self, stale: Stale, path: Path) -> None:
        directory, _, name = path.rpartition(b"/")
        parent = resolve(self._database.reader, Path(directory))
        # A parent that is no longer there was itself moved or removed by a later record.
        if parent is not None and name:
            stale.entries.add((parent.ino, Name(name)))
            stale.inodes.add(parent.ino)
