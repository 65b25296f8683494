"""The layer that tries again, without a server."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from nexus_engine.backends.retrying import REQUESTS_AT_ONCE, Again, Attempt, Retrying
from nexus_engine.errors import ObjectNotFound, ObjectStoreFailed, StoreHung


def _retrying(deadline_s: float = 1.0) -> Retrying:
    return Retrying(deadline_s, chance=lambda: 0.0)


def test_what_may_be_tried_again_is_and_each_attempt_knows_its_number() -> None:
    seen: list[int] = []

    def attempt(this: Attempt) -> str:
        seen.append(this.number)
        if this.number < 3:
            raise Again(ObjectStoreFailed("not yet"))
        return "done"

    assert _retrying()(attempt) == "done"
    assert seen == [0, 1, 2, 3]


def test_what_will_not_change_is_not_tried_again() -> None:
    seen: list[int] = []

    def attempt(this: Attempt) -> None:
        seen.append(this.number)
        raise ObjectNotFound("none")

    with pytest.raises(ObjectNotFound, match="none"):
        _retrying()(attempt)
    assert seen == [0]


def test_pauses_double_up_to_a_limit_and_are_spread_by_chance() -> None:
    retrying = Retrying(chance=lambda: 1.0)
    pauses = [retrying._pause_s(number) for number in range(9)]
    assert pauses == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0, 5.0]
    assert Retrying(chance=lambda: 0.5)._pause_s(3) == 0.4
    assert 0 <= Retrying()._pause_s(60) <= 5


def test_a_server_that_refuses_at_once_is_not_asked_for_longer_because_much_is_to_be_sent() -> None:
    """A gigabyte has hours for its way, but not for refusals."""

    def attempt(_: Attempt) -> None:
        raise Again(ObjectStoreFailed("busy"), after_s=0.2)

    begun_s = time.monotonic()
    with pytest.raises(ObjectStoreFailed, match=r"busy \(\d attempts in 1 s\)"):
        _retrying()(attempt, size=1 << 30)
    assert time.monotonic() - begun_s < 1.1


def test_a_large_transfer_has_longer_than_the_deadline() -> None:
    def attempt(this: Attempt) -> float:
        return this.ends_s - time.monotonic()

    assert _retrying()(attempt, size=128 << 20) > 1000


def test_a_pause_longer_than_what_is_left_is_not_made() -> None:
    def attempt(_: Attempt) -> None:
        raise Again(ObjectStoreFailed("come tomorrow"), after_s=86400)

    begun_s = time.monotonic()
    with pytest.raises(ObjectStoreFailed, match="1 attempts"):
        _retrying()(attempt)
    assert time.monotonic() - begun_s < 0.5


def test_few_requests_are_under_way_at_once() -> None:
    """Whoever has no place in time is told so."""
    retrying = _retrying(0.5)
    inside, go = threading.Semaphore(0), threading.Event()

    def attempt(_: Attempt) -> str:
        inside.release()
        go.wait(30)
        return "done"

    with ThreadPoolExecutor(REQUESTS_AT_ONCE) as pool:
        calls = [pool.submit(retrying, attempt) for _ in range(REQUESTS_AT_ONCE)]
        for _ in calls:
            inside.acquire(timeout=30)
        with pytest.raises(StoreHung, match="waiting"):
            retrying(attempt)
        go.set()
        assert [call.result() for call in calls] == ["done"] * REQUESTS_AT_ONCE


def test_the_deadline_ends_what_is_being_waited_for() -> None:
    attempt = Attempt(0, time.monotonic() - 1, 1.0)
    with pytest.raises(TimeoutError):
        attempt.wait_s()
    assert Attempt(0, time.monotonic() + 60, 1.0).wait_s() == 1.0
    assert Attempt(0, time.monotonic() + 0.5, 1.0).wait_s() <= 0.5
