"""Many callers, one fsync."""

from __future__ import annotations

import threading
from collections.abc import Callable

from nexus_engine.errors import EngineError


class SharedSync:
    """Run ``work`` so that each caller is covered by a run that began after its call.

    A caller who arrives while a run is under way waits for the next one (this one may have
    looked already at what the caller wants synced); all who wait share that next run.
    If a run fails, the caller in whose thread it ran gets the error and each of the others
    tries for itself: nobody is told "durable" because of a run that was not.

    Args:
        fail_together: Who waits behind a run that fails gets its error, too. For work that fails
            only after a long time: one try after the other would keep the last one for hours.
    """

    def __init__(self, work: Callable[[], None], *, fail_together: bool = False) -> None:
        self._work = work
        self._fail_together = fail_together
        self._failed: tuple[int, EngineError] | None = None
        """The run that failed last, and how."""
        self._changed = threading.Condition(threading.Lock())
        self._running = False
        self._begun = 0
        self._done = 0
        """The latest run that succeeded; runs are numbered from 1."""

    def __call__(self) -> None:
        with self._changed:
            wanted = self._begun + 1
            while self._running and self._done < wanted:
                self._changed.wait()
                self._raise_failure(wanted - 1)
            if self._done >= wanted:
                return
            self._running = True
            self._begun += 1
            run = self._begun
        succeeded = False
        try:
            self._work()
            succeeded = True
        except EngineError as error:
            self._failed = (run, error)
            raise
        finally:
            with self._changed:
                self._running = False
                if succeeded:
                    self._done = run
                self._changed.notify_all()

    def _raise_failure(self, run: int) -> None:
        """Raise what a run failed with that was under way when somebody came."""
        if self._fail_together and self._failed is not None and self._failed[0] == run:
            error = self._failed[1]
            raise type(error)(*error.args)
