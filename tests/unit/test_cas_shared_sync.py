"""Callers of a sync at one time share it, and none is told "done" too early."""

from __future__ import annotations

import threading
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from nexus_engine.cas.shared_sync import SharedSync
from nexus_engine.errors import ObjectStoreFailed


class Announcing(threading.Condition):
    """A condition that says when somebody begins to wait, with the lock still held."""

    def __init__(self) -> None:
        super().__init__(threading.Lock())
        self.waiters = threading.Semaphore(0)

    def wait(self, timeout: float | None = None) -> bool:
        self.waiters.release()
        return super().wait(timeout)


class Work:
    """A sync whose runs the test starts and ends one by one."""

    def __init__(self) -> None:
        self.runs = 0
        self.began = threading.Semaphore(0)
        self.may_end = threading.Semaphore(0)
        self.fail_runs: set[int] = set()

    def __call__(self) -> None:
        self.runs += 1
        run = self.runs
        self.began.release()
        assert self.may_end.acquire(timeout=30)
        if run in self.fail_runs:
            raise ObjectStoreFailed("injected")


def start(
    pool: ThreadPoolExecutor, work: Work, waiting: int
) -> tuple[SharedSync, Future[None], list[Future[None]]]:
    """Return a sync with its first run under way and ``waiting`` callers queued behind it."""
    shared = SharedSync(work)
    changed = shared._changed = Announcing()
    first = pool.submit(shared)
    assert work.began.acquire(timeout=30)
    later = [pool.submit(shared) for _ in range(waiting)]
    for _ in later:
        assert changed.waiters.acquire(timeout=30)
    return shared, first, later


def test_a_lone_caller_runs_it_each_time() -> None:
    """Nothing is remembered: what was put in between must be synced too."""
    work = Work()
    shared = SharedSync(work)
    for expected in (1, 2, 3):
        work.may_end.release()
        shared()
        assert work.runs == expected


def test_callers_during_a_run_share_the_next_one() -> None:
    """Nine fsyncs of nine programs cost two."""
    work = Work()
    with ThreadPoolExecutor(9) as pool:
        _, first, later = start(pool, work, 8)
        work.may_end.release()
        first.result(30)
        assert work.began.acquire(timeout=30)
        assert not any(caller.done() for caller in later)
        work.may_end.release()
        for caller in later:
            caller.result(30)
    assert work.runs == 2


def test_a_failure_is_nobodys_success() -> None:
    """Whoever waited on a run that failed tries again instead of returning."""
    work = Work()
    work.fail_runs = {2}
    with ThreadPoolExecutor(4) as pool:
        _, first, later = start(pool, work, 3)
        for _ in range(3):
            work.may_end.release()
        first.result(30)
        errors = [caller.exception(30) for caller in later]
    assert work.runs == 3
    assert sorted(error is None for error in errors) == [False, True, True]
    assert any(isinstance(error, ObjectStoreFailed) for error in errors)


def test_a_failed_run_does_not_block_the_next() -> None:
    """The disk may have room again."""
    work = Work()
    work.fail_runs = {1}
    shared = SharedSync(work)
    work.may_end.release(2)
    with pytest.raises(ObjectStoreFailed):
        shared()
    shared()
    assert work.runs == 2


def test_where_they_fail_together_nobody_tries_for_hours() -> None:
    """Work that fails after a minute: the last of ten must not wait for ten minutes."""
    work = Work()
    work.fail_runs = {1}
    with ThreadPoolExecutor(8) as pool:
        shared = SharedSync(work, fail_together=True)
        changed = shared._changed = Announcing()
        first = pool.submit(shared)
        assert work.began.acquire(timeout=30)
        later = [pool.submit(shared) for _ in range(3)]
        for _ in later:
            assert changed.waiters.acquire(timeout=30)
        work.may_end.release()
        for caller in (first, *later):
            with pytest.raises(ObjectStoreFailed):
                caller.result(timeout=30)
        assert work.runs == 1
        work.may_end.release()
        shared()  # who comes later tries
        assert work.runs == 2
