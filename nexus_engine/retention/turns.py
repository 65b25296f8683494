"""Taking turns: one process at a time lets go of the past, and lets others write in between."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from nexus_engine import errors
from nexus_engine.backends.files import lock_within, translate
from nexus_engine.meta.connection import Connection
from nexus_engine.store import Store

R = TypeVar("R")

LOCK_NAME = "retention.lock"
"""In the store's directory; holds the pid of whoever has the lock."""
_SHORT_S, _LONG_S = 0.004, 0.012
"""How long a batch is to keep others from writing."""
_PAUSE_MAX_S = 0.1


@contextlib.contextmanager
def alone(store: Store, *, wait_s: float = 0.0) -> Iterator[None]:
    """Keep other processes, and other threads of this one, from pruning and collecting.

    Raises:
        StoreBusy: Another one is at it, and was still after ``wait_s``.
    """
    path = store.path / LOCK_NAME
    try:
        fd = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise translate(error, f"open {path}") from error
    try:
        if not lock_within(fd, wait_s):
            holder = os.pread(fd, 16, 0).decode().strip() or "?"
            raise errors.StoreBusy(
                f"process {holder} is pruning this store or giving its space back:"
                " try again when it is done"
            )
        with contextlib.suppress(OSError):  # a full disk: the lock holds without a name in it
            os.ftruncate(fd, 0)
            os.pwrite(fd, b"%d" % os.getpid(), 0)
        yield
    finally:
        os.close(fd)


def pause(store: Store, seconds: float) -> None:
    """Wait.

    Raises:
        Interrupted: Whoever wanted this work done wants it to end.
    """
    if store.stopping.wait(seconds):
        raise errors.Interrupted("told to stop")


class Batches:
    """Transactions so short that a program which writes meanwhile does not notice."""

    def __init__(self, store: Store, size: int) -> None:
        self._store = store
        self.size = size
        """Of the next batch; follows from how long the last one took."""

    def run(self, action: Callable[[Connection], R]) -> R:
        """Run statements in a transaction; then leave others the same time."""
        store = self._store
        begin_s = time.monotonic()
        result = store.upkeep(store.database.in_transaction, action)
        took_s = time.monotonic() - begin_s
        if took_s > _LONG_S:
            self.size = max(1, self.size // 2)
        elif took_s < _SHORT_S:
            self.size *= 2
        # SQLite's lock is not fair: who asks again at once gets it again.
        pause(store, min(took_s, _PAUSE_MAX_S))
        return result
