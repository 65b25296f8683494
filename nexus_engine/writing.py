"""How a process changes its store: in turn with others, on a full disk too, several to a COMMIT."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

import anyio

from nexus_engine import errors
from nexus_engine.meta.busy import BUSY_LIMIT_S, retry
from nexus_engine.meta.database import Database
from nexus_engine.meta.journal import Entry, Journal, read_journal
from nexus_engine.meta.transaction import Transaction
from nexus_engine.owners import JOURNAL, is_alone
from nexus_engine.reserve import Reserve, full, may_use_reserve
from nexus_engine.types import Actor

P = ParamSpec("P")
R = TypeVar("R")

log = logging.getLogger(__name__)

WAITING_MAX = 256
"""So many operations share a COMMIT at the most: it keeps others waiting."""


class Writing:
    """The transactions of one open store. Use from the store's thread."""

    def __init__(
        self,
        database: Database,
        reserve: Reserve,
        peers: Path,
        owner: str,
        checkpoint: Callable[[], None],
    ) -> None:
        """Write to a database.

        Args:
            checkpoint: Shortens the write-ahead log if it has grown.
        """
        self._database = database
        self._reserve = reserve
        self._peers = peers
        self._owner = owner
        self._checkpoint = checkpoint
        self._turn = anyio.Lock()
        """Held by whoever waits for another process's transaction."""
        self._journal: Journal | None = None
        self._on_waiting: Callable[[], None] | None = None

    async def write(
        self,
        rule: Callable[Concatenate[Transaction, P], R],
        actor: Actor,
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> R:
        """Run a rule in a transaction, in the event loop; wait only for other processes.

        Whoever waits does so in the order of calls: what was done first comes first in the log.

        Raises:
            NoSpace: The disk is full; what frees space is tried again with the reserve.
        """
        transact = self._transact
        if not self._turn.locked():
            try:
                return transact(rule, actor, *args, **kwargs)
            except errors.StoreBusy:
                pass  # then in turn with others
        deadline_s = time.monotonic() + BUSY_LIMIT_S
        async with self._turn:
            delay_s = 0.0005
            while True:
                try:
                    return transact(rule, actor, *args, **kwargs)
                except errors.StoreBusy:
                    if time.monotonic() > deadline_s:
                        raise
                # Asking again beats a thread that waits: the transactions of others are short, and
                # a request that is cancelled leaves nothing behind.
                await anyio.sleep(delay_s)
                delay_s = min(delay_s * 2, 0.05)

    def transact(
        self,
        rule: Callable[Concatenate[Transaction, P], R],
        actor: Actor,
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> R:
        """Run a rule in a transaction; blocks while another process writes."""
        return retry(self._transact, rule, actor, *args, **kwargs)

    def _transact(
        self,
        rule: Callable[Concatenate[Transaction, P], R],
        actor: Actor,
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> R:
        try:
            if not self._reserve.spent:
                try:
                    return self._database.transact(rule, actor, *args, **kwargs)
                except errors.NoSpace:
                    if not may_use_reserve(rule):
                        raise
            elif not may_use_reserve(rule):
                raise full()
            result = self.with_reserve(self._database.transact, rule, actor, *args, **kwargs)
        finally:
            if waiting := self._database.waiting:
                self._look_after_waiting(waiting)
        # A thousand deletes a second would outrun the thread that shortens the write-ahead log.
        self._checkpoint()
        return result

    def upkeep(self, action: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run one of the database's upkeep methods; blocks while another process writes."""
        return retry(self.with_reserve, action, *args, **kwargs)

    def with_reserve(self, action: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run what must go on while the disk is full; it can be run again after it failed."""
        while True:
            try:
                return action(*args, **kwargs)
            except errors.NoSpace:
                if not self._reserve.spend():
                    raise

    # -- operations that share a COMMIT --

    def let_wait(self, on_waiting: Callable[[], None] | None) -> None:
        """Let operations wait for one COMMIT, while no other process has the store open.

        Args:
            on_waiting: Called when one begins to wait; `settle` must be called soon after.
                ``None``: from now on they do not wait.
        """
        if on_waiting is None:
            self._on_waiting = None
            return
        if self._journal is None:
            self._journal = Journal(self._peers / f"{self._owner}{JOURNAL}")
        self._on_waiting = on_waiting
        self._database.let_wait(self._journal, self._may_wait, self.settle)

    def settle(self) -> None:
        """Commit what waits for it, so that every connection sees it.

        Raises:
            MetadataFailed, NoSpace, StoreBusy: It still waits, in the journal.
        """
        if self._database.waiting:
            retry(self.with_reserve, self._database.settle)

    def _may_wait(self) -> bool:
        """Tell whether operations may wait now.

        Asked with the write lock held: who opens the store has it for a moment, after making his
        own lock file, and finds either our journal as of then or that we have seen his file.
        """
        if self._on_waiting is None or self._reserve.spent or self._database.is_wanted:
            return False
        return is_alone(self._peers)

    def _look_after_waiting(self, waiting: int) -> None:
        """An operation waits, and its caller is told that it is done: what fails now is no news."""
        database = self._database
        if (
            waiting >= WAITING_MAX
            or database.is_wanted
            or database.is_interrupted
            or self._reserve.spent
            or self._on_waiting is None
        ):
            try:
                self.settle()
            except errors.EngineError as error:
                log.error("%s; what was done waits in the journal", error)
        elif waiting == 1:
            self._on_waiting()

    def finish_journals(self) -> None:
        """Do what processes that died, or could not, left to be committed."""
        # See docs/FORMAT.md, "Journals", for why nothing can slip through.
        journals = [path for path in self._peers.glob(f"*{JOURNAL}") if path.stem != self._owner]
        if not journals:
            return

        def read() -> list[Entry]:
            return [entry for path in journals for entry in read_journal(path)]

        done, lost = retry(self.with_reserve, self._database.redo, read)
        if done:
            log.warning("committed %d operations that a process which died left to be", done)
        if lost:
            log.warning("%d operations in a journal have no place in the log: power was lost", lost)

    def close(self) -> None:
        """Let go of the journal; what is in it stays."""
        if self._journal is not None:
            self._journal.close()
