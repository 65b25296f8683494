"""The counters of quotas: what is below a directory that has limits, exact after every operation.

A quota counts each inode that has a name at or below its directory, once, and the sizes of files
and symlinks among them. Where no directory has one, none of this is made, and a transaction pays
one comparison a row.

An operation is accounted for when it is committed: of each inode that it touched, what it was
before and what it is now. A directory that moved between quotas brings along what is below it,
which is read then: nothing is kept for directories without a quota.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from nexus_engine import errors
from nexus_engine.meta.connection import Connection
from nexus_engine.meta.reader import Reader
from nexus_engine.meta.statements import CHARGE_QUOTA
from nexus_engine.types import ROOT_INO, Ino, Name, Seq

Trees = frozenset[Ino]
"""Directories with a quota that something counts in."""

_NOWHERE: Trees = frozenset()
_CHAINS_MAX = 65536
_DIRECTORY = 0o040000

# A promise that was made is kept; and what only ever gives back is not asked.
_NEVER_REFUSED = frozenset(("write", "recover", "quota", "prune", "purge", "repair"))

_BELOW = (
    "WITH RECURSIVE below (ino) AS (VALUES (?1) UNION ALL SELECT d.ino FROM below b"
    f" CROSS JOIN dentry d ON d.parent = b.ino WHERE d.kind = {_DIRECTORY} AND d.from_seq < ?2)"
)
_ENTRIES = (
    "FROM below b CROSS JOIN dentry d ON d.parent = b.ino CROSS JOIN inode i ON i.ino = d.ino"
    " WHERE d.from_seq < ?2 AND i.from_seq < ?2"
)
_SHARED = f"d.kind <> {_DIRECTORY} AND i.nlink > 1"
_COUNT = f"{_BELOW} SELECT coalesce(sum(i.size), 0), count(*) {_ENTRIES} AND NOT ({_SHARED})"
_FILES_OF_SEVERAL_NAMES = f"{_BELOW} SELECT DISTINCT i.ino, i.size {_ENTRIES} AND {_SHARED}"
_ANY_SEQ = 2**62
_NAMES = "SELECT parent FROM dentry WHERE ino = ?"
_STATE = (
    "SELECT i.size, i.mode & 61440, d.parent FROM inode i LEFT JOIN dentry d ON d.ino = i.ino"
    " WHERE i.ino = ?"
)


class Usage(NamedTuple):
    """What counts in a quota."""

    bytes: int
    inodes: int

    def plus(self, other: Usage) -> Usage:
        return Usage(self.bytes + other.bytes, self.inodes + other.inodes)

    def minus(self, other: Usage) -> Usage:
        return Usage(self.bytes - other.bytes, self.inodes - other.inodes)


NOTHING = Usage(0, 0)


class Quota(NamedTuple):
    """A directory's limits; ``None`` is no limit."""

    ino: Ino
    max_bytes: int | None
    max_inodes: int | None
    used: Usage


def all_quotas(connection: Connection) -> list[Quota]:
    rows = connection.all("SELECT ino, max_bytes, max_inodes, bytes, inodes FROM quota")
    return [Quota(row[0], row[1], row[2], Usage(row[3], row[4])) for row in rows]


def find_quota(connection: Connection, ino: Ino) -> Quota | None:
    row = connection.one(
        "SELECT ino, max_bytes, max_inodes, bytes, inodes FROM quota WHERE ino = ?", (ino,)
    )
    return None if row is None else Quota(row[0], row[1], row[2], Usage(row[3], row[4]))


def put_quota(connection: Connection, quota: Quota) -> None:
    connection.run(
        "INSERT OR REPLACE INTO quota (ino, max_bytes, max_inodes, bytes, inodes)"
        " VALUES (?, ?, ?, ?, ?)",
        (quota.ino, quota.max_bytes, quota.max_inodes, *quota.used),
    )


def remove_quota(connection: Connection, ino: Ino) -> None:
    connection.run("DELETE FROM quota WHERE ino = ?", (ino,))


def count(connection: Connection, directory: Ino) -> Usage:
    """Count what is at and below a directory; reads all of it."""
    if connection.one("SELECT 1 FROM inode WHERE ino = ?", (directory,)) is None:
        return NOTHING
    used = _count_entries(connection, directory, Seq(_ANY_SEQ)).plus(Usage(0, 1))
    for _, size in connection.all(_FILES_OF_SEVERAL_NAMES, (directory, _ANY_SEQ)):
        used = used.plus(Usage(size, 1))
    return used


def _count_entries(connection: Connection, directory: Ino, before: Seq) -> Usage:
    """Count what is below, but for files of several names and what came or changed since."""
    return Usage(*(connection.one(_COUNT, (directory, before)) or NOTHING))


class QuotaTrees:
    """Which quotas something counts in, as the tree is now."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.roots: Trees = frozenset(row[0] for row in connection.all("SELECT ino FROM quota"))
        self._known: dict[Ino, Trees] = {}

    def of_directory(self, ino: Ino) -> Trees:
        way: list[Ino] = []
        above: Ino | None = ino
        while above is not None and above not in self._known:
            way.append(above)
            above = self._parent(above)
        found = _NOWHERE if above is None else self._known[above]
        if len(self._known) >= _CHAINS_MAX:
            self._known.clear()
        for directory in reversed(way):
            if directory in self.roots:
                found |= {directory}
            self._known[directory] = found
        return found

    def of_file(self, ino: Ino) -> Trees:
        """Return where an inode counts that is no directory: wherever it has a name."""
        found = _NOWHERE
        for (parent,) in self._connection.iterate(_NAMES, (ino,)):
            found |= self.of_directory(parent)
            if found == self.roots:
                break  # of 65,000 names the first one says it all
        return found

    def forget(self, ino: Ino | None = None) -> None:
        """A directory is gone, or (``None``) some directory moved."""
        if ino is None:
            self._known.clear()
        else:
            self._known.pop(ino, None)

    def _parent(self, ino: Ino) -> Ino | None:
        row = self._connection.one("SELECT parent FROM dentry WHERE ino = ? LIMIT 1", (ino,))
        return None if row is None or ino == ROOT_INO else row[0]


class _TreesBefore(QuotaTrees):
    """The same as the tree was when the operation began; names of directories went since."""

    def __init__(self, connection: Connection) -> None:
        super().__init__(connection)
        self.was_in: dict[Ino, Ino] = {}

    def _parent(self, ino: Ino) -> Ino | None:
        return self.was_in.get(ino) or super()._parent(ino)


class Accounts:
    """Follows one operation after the other, and keeps the counters right."""

    def __init__(
        self,
        connection: Connection,
        held: Mapping[Ino, Usage],
        change: Callable[[str, tuple[Any, ...]], tuple[Any, ...] | None],
    ) -> None:
        """Begin with the quotas of now.

        Args:
            held: What open files of this process hold besides, by quota.
            change: Runs a statement as part of the operation, returns its row.
        """
        self._connection = connection
        self._one = connection.one
        self._held = held
        self._run_returning = change
        self._trees = _TreesBefore(connection)
        self._before: dict[Ino, tuple[Trees, int]] = {}
        """Of each inode that the operation touched: where it counted, and its size."""

    @property
    def roots(self) -> Trees:
        return self._trees.roots

    def begin(self) -> None:
        self._before.clear()
        if self._trees.was_in:
            self._trees.was_in.clear()

    def touch(self, ino: Ino) -> None:
        """Something about an inode is going to change."""
        if ino not in self._before:
            self._before[ino] = self._state(self._trees, ino)

    def appear(self, ino: Ino) -> None:
        """An inode is going to be there that was not."""
        self._before.setdefault(ino, (_NOWHERE, 0))

    def name_goes(self, parent: Ino, hash_: int, name: Name) -> None:
        """A name is going to be removed."""
        row = self._one(
            "SELECT ino, kind FROM dentry WHERE parent = ? AND hash = ? AND name = ?",
            (parent, hash_, name),
        )
        if row is not None:
            self.touch(row[0])
            if row[1] == _DIRECTORY:
                self._trees.was_in.setdefault(row[0], parent)

    def settle(self, seq: Seq, kind: str) -> None:
        """Account for the operation; the next one begins.

        Raises:
            QuotaExceeded: There is no room for it.
        """
        before, was_in = self._before, self._trees.was_in
        now = QuotaTrees(self._connection) if was_in else self._trees
        changes: dict[Ino, Usage] = {}
        for ino, (trees, size) in before.items():
            trees_now, size_now = self._state(now, ino)
            _add(changes, trees, Usage(-size, -1))
            _add(changes, trees_now, Usage(size_now, 1))
        shared: dict[Ino, int] = {}
        for directory in was_in:
            shared |= self._move(changes, now, directory, seq)
        for ino, size in shared.items():
            if ino not in before:
                _add(changes, self._trees.of_file(ino), Usage(-size, -1))
                _add(changes, now.of_file(ino), Usage(size, 1))
        for ino, change in changes.items():
            if change != NOTHING:
                self._change(ino, change, refuse=kind not in _NEVER_REFUSED)
        gone_only = not any(now.of_directory(ino) for ino in was_in)
        for ino in was_in:
            self._trees.forget(ino if gone_only else None)
        self.begin()

    def _state(self, trees: QuotaTrees, ino: Ino) -> tuple[Trees, int]:
        """Return where an inode counts, and how many bytes."""
        found, size = _NOWHERE, 0
        for size, kind, parent in self._connection.iterate(_STATE, (ino,)):
            if kind == _DIRECTORY:
                return trees.of_directory(ino), size
            if parent is not None:
                above = trees.of_directory(parent)
                found = found | above if found else above
            if found == trees.roots:
                break
        return found, size

    def _move(
        self, changes: dict[Ino, Usage], now: QuotaTrees, directory: Ino, seq: Seq
    ) -> dict[Ino, int]:
        """Take along what stayed below a directory that moved.

        Returns:
            Files there that have other names as well, with their sizes, left to the caller: they
            may be below another such directory, too.
        """
        there, here = self._before[directory][0], now.of_directory(directory)
        if there == here or not here:
            return {}
        moved = _count_entries(self._connection, directory, seq)
        _add(changes, there - here, NOTHING.minus(moved))
        _add(changes, here - there, moved)
        return dict(self._connection.all(_FILES_OF_SEVERAL_NAMES, (directory, seq)))

    def _change(self, ino: Ino, change: Usage, *, refuse: bool) -> None:
        row = self._run_returning(CHARGE_QUOTA, (*change, ino))
        if row is None or not refuse:
            return
        max_bytes, max_inodes = row[:2]
        used = Usage(*row[2:]).plus(self._held.get(ino, NOTHING))
        # What takes nothing more is let through also where there is too much already.
        if change.bytes > 0 and max_bytes is not None and used.bytes > max_bytes:
            raise exceeded(self._connection, ino)
        if change.inodes > 0 and max_inodes is not None and used.inodes > max_inodes:
            raise exceeded(self._connection, ino)


def exceeded(connection: Connection, ino: Ino) -> errors.QuotaExceeded:
    """Return the refusal of what a quota has no room for."""
    path = Reader(connection).find_path(ino) or b""
    return errors.QuotaExceeded(f"over the quota of /{path.decode(errors='backslashreplace')}")


def _add(changes: dict[Ino, Usage], trees: Trees, usage: Usage) -> None:
    for ino in trees:
        changes[ino] = changes.get(ino, NOTHING).plus(usage)
