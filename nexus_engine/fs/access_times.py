"""When things were read last: in memory first, and in the inode's row soon after.

Reading is not an operation: it has no record, and no version of the inode. As with ext4's
``lazytime`` a crash may lose the last seconds of it.
"""

from __future__ import annotations

from nexus_engine.store import Store
from nexus_engine.types import Ino, Inode

_DAY_NS = 24 * 3600 * 10**9
_BATCH = 1024
PENDING_MAX = 16384


class AccessTimes:
    """The atimes that are newer than their rows. Rule: relatime, as mount(8) has it."""

    def __init__(self, store: Store, *, enabled: bool) -> None:
        self._store = store
        self._enabled = enabled
        self._pending: dict[Ino, int] = {}

    def __contains__(self, ino: object) -> bool:
        return ino in self._pending

    def is_due(self, inode: Inode) -> bool:
        """Tell whether reading this now sets its atime.

        Args:
            inode: As programs see it.
        """
        if not self._enabled:
            return False
        atime_ns = inode.atime_ns
        if atime_ns <= inode.mtime_ns or atime_ns <= inode.ctime_ns:
            return True
        return self._store.clock.time_ns() - atime_ns >= _DAY_NS

    def read(self, inode: Inode) -> None:
        """Something read this inode."""
        if self.is_due(inode):
            if len(self._pending) >= PENDING_MAX:
                self._pending.clear()  # better some old atimes than no end of memory
            self._pending[inode.ino] = self._store.clock.time_ns()

    def over(self, inode: Inode) -> Inode:
        """Return the inode with its last atime."""
        if not self._pending:
            return inode
        atime_ns = self._pending.get(inode.ino)
        return inode if atime_ns is None else inode._replace(atime_ns=atime_ns)

    def forget(self, ino: Ino) -> None:
        """The atime was set by somebody."""
        self._pending.pop(ino, None)

    def write(self) -> list[Ino]:
        """Put what is in memory into the rows.

        Returns:
            Whose rows changed.

        Raises:
            StoreBusy: Another process is writing; what is left stays in memory.
        """
        written: list[Ino] = []
        while self._pending:
            batch = dict(list(self._pending.items())[:_BATCH])
            self._store.database.put_access_times(batch)
            for ino in batch:
                del self._pending[ino]
            written += batch
        return written
