"""Limits for directories: the rules, and what open files hold before the log has it."""

from __future__ import annotations

from typing import NamedTuple

from nexus_engine import errors
from nexus_engine.meta import quotas
from nexus_engine.meta.database import Database
from nexus_engine.meta.quotas import NOTHING, Quota, QuotaTrees, Trees, Usage
from nexus_engine.meta.transaction import Transaction
from nexus_engine.records import Change
from nexus_engine.reserve import frees_space
from nexus_engine.types import Ino, Inode


def set_quota(tx: Transaction, ino: Ino, max_bytes: int | None, max_inodes: int | None) -> Quota:
    """Rule: give a directory limits, for all that is at and below it.

    There may be more there already; then nothing comes in until enough has gone.

    Args:
        max_bytes: ``None``: as it is; for a directory without a quota, no limit.

    Raises:
        NotADirectory: Only directories have quotas.
    """
    directory = tx.get_inode(ino)
    if not directory.is_dir:
        raise errors.NotADirectory("only directories have quotas")
    before = quotas.find_quota(tx.connection, ino)
    if before is not None:
        max_bytes = before.max_bytes if max_bytes is None else max_bytes
        max_inodes = before.max_inodes if max_inodes is None else max_inodes
    quota = tx.put_quota(ino, max_bytes, max_inodes)
    details = {"max_bytes": max_bytes, "max_inodes": max_inodes}
    tx.commit(Change("quota", ino, tx.directory_path(ino), details=details))
    return quota


@frees_space
def remove_quota(tx: Transaction, ino: Ino) -> None:
    """Rule: lift the limits of a directory.

    Raises:
        NotFound: It has none.
    """
    if quotas.find_quota(tx.connection, ino) is None:
        raise errors.NotFound("it has no quota")
    tx.remove_quota(ino)
    tx.commit(Change("quota", ino, tx.directory_path(ino), details={"removed": True}))


class Limits(NamedTuple):
    """(what is left, of how much), ``None`` for no limit."""

    bytes: tuple[int, int] | None
    inodes: tuple[int, int] | None


def _fullest(limits: list[tuple[int, int]]) -> tuple[int, int] | None:
    """Return (left, limit) of the one of (limit, used) that leaves least."""
    return min(((max(0, limit - used), limit) for limit, used in limits), default=None)


class Held:
    """What open files of this process take of quotas, besides what is in rows.

    Bytes that were written and are in no operation yet; files without a name, which nothing else
    counts any more.
    """

    def __init__(self, database: Database) -> None:
        self._connection = database.connection
        self._totals = database.held
        self._files: dict[Ino, tuple[Trees, Usage]] = {}
        self._trees = QuotaTrees(self._connection)

    @property
    def active(self) -> bool:
        """Whether there is any quota at all."""
        return bool(self._trees.roots)

    def reload(self) -> None:
        """Quotas came or went, or directories moved."""
        files, self._files = self._files, {}
        self._totals.clear()
        self._trees = QuotaTrees(self._connection)
        for ino, (trees, usage) in files.items():
            self.put(ino, usage, trees & self._trees.roots if usage.inodes else None)

    def put(self, ino: Ino, usage: Usage, trees: Trees | None = None) -> None:
        """Say what an open file holds now.

        Args:
            trees: Where; ``None``: where it was put before, or else where it has its names.
        """
        known, before = self._files.pop(ino, (None, NOTHING))
        if usage == before == NOTHING:
            return
        trees = trees if trees is not None else known
        if trees is None:
            trees = self._trees.of_file(ino)
        if known is not None:
            self._add(known, NOTHING.minus(before))
        self._add(trees, usage)
        if usage != NOTHING:
            self._files[ino] = (trees, usage)

    def room_bytes(self, ino: Ino) -> int | None:
        """Return how many bytes more a file may get; ``None``: as many as it likes."""
        rooms = [
            max(0, quota.max_bytes - quota.used.bytes)
            for quota in self._quotas(self._where(ino))
            if quota.max_bytes is not None
        ]
        return min(rooms) if rooms else None

    def exceeded(self, ino: Ino) -> errors.QuotaExceeded:
        """Return the refusal of a file's growth."""
        fullest = min(
            (quota for quota in self._quotas(self._where(ino)) if quota.max_bytes is not None),
            key=lambda quota: (quota.max_bytes or 0) - quota.used.bytes,
        )
        return quotas.exceeded(self._connection, fullest.ino)

    def limits(self, inode: Inode) -> Limits:
        """Return what the fullest quotas that an inode is in leave."""
        if not self.active:
            return Limits(None, None)
        directory = inode.is_dir
        trees = self._trees.of_directory(inode.ino) if directory else self._where(inode.ino)
        found = self._quotas(trees)
        sizes = [(q.max_bytes, q.used.bytes) for q in found if q.max_bytes is not None]
        counts = [(q.max_inodes, q.used.inodes) for q in found if q.max_inodes is not None]
        return Limits(_fullest(sizes), _fullest(counts))

    def trees_of_directory(self, ino: Ino) -> Trees:
        return self._trees.of_directory(ino)

    def _where(self, ino: Ino) -> Trees:
        known = self._files.get(ino)
        return self._trees.of_file(ino) if known is None else known[0]

    def _quotas(self, trees: Trees) -> list[Quota]:
        found = [quotas.find_quota(self._connection, ino) for ino in trees]
        return [
            quota._replace(used=quota.used.plus(self._totals.get(quota.ino, NOTHING)))
            for quota in found
            if quota is not None
        ]

    def _add(self, trees: Trees, usage: Usage) -> None:
        for ino in trees:
            self._totals[ino] = self._totals.get(ino, NOTHING).plus(usage)
