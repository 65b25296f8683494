"""What one user may take of the daemon through ``.nexus``: memory and threads are everybody's."""

from __future__ import annotations

import logging
from collections import Counter

import trio

from nexus_engine import errors

log = logging.getLogger(__name__)

WAITING_MAX = 64 << 20
"""Bytes of replies and logs that are kept for one user to read; past that, no more."""
COMMANDS_MAX = 8
"""Commands that run at a time, each in a thread with a store of its own."""
COMMANDS_OF_USER_MAX = 2
OPEN_MAX = 1024
"""Files of ``.nexus`` that one user may have open."""
_USERS_MAX = 256


class Limits:
    """Counts by user."""

    def __init__(self) -> None:
        self.commands = trio.CapacityLimiter(COMMANDS_MAX)
        self._users: dict[int, trio.CapacityLimiter] = {}
        self._waiting: Counter[int] = Counter()
        self._open: Counter[int] = Counter()
        self._told: set[int] = set()
        """Users of whom the log says that they have too many open."""

    def commands_of(self, uid: int) -> trio.CapacityLimiter:
        """Return what bounds the commands of a user that run at a time."""
        if len(self._users) >= _USERS_MAX:
            idle = [u for u, limit in self._users.items() if not limit.statistics().borrowed_tokens]
            for user in idle:
                del self._users[user]
        return self._users.setdefault(uid, trio.CapacityLimiter(COMMANDS_OF_USER_MAX))

    def wait(self, uid: int, size: int) -> None:
        """Note that so many bytes more (or fewer) wait for a user to read them."""
        self._waiting[uid] += size
        if not self._waiting[uid]:
            del self._waiting[uid]

    def require_room(self, uid: int) -> None:
        """Refuse a user who does not read what they asked for.

        Raises:
            StoreBusy: There is too much already.
        """
        if self._waiting[uid] > WAITING_MAX:
            raise errors.StoreBusy("read or close what is open in .nexus first")

    def opened(self, uid: int) -> None:
        """Count a file that a user opens.

        Raises:
            TooManyOpenFiles: There are too many already.
        """
        if self._open[uid] >= OPEN_MAX:
            text = f"user {uid} has {OPEN_MAX} files in .nexus open, and may have no more"
            if uid not in self._told:
                self._told.add(uid)
                log.warning("%s; each takes memory of the daemon", text)
            raise errors.TooManyOpenFiles(text)
        self._open[uid] += 1

    def closed(self, uid: int) -> None:
        self._open[uid] -= 1
        if self._open[uid] < OPEN_MAX // 2:
            self._told.discard(uid)
        if not self._open[uid]:
            del self._open[uid]
