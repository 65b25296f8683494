"""The turns of pyfuse3's workers: fast while nobody waits, fair as soon as somebody does."""

from __future__ import annotations

import os
import threading

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from nexusfuse import scheduling
from nexusfuse.scheduling import FAST_MAX, UnfairLock, _Lowlevel


async def test_one_holds_the_lock_at_a_time() -> None:
    lock = UnfairLock()
    inside = 0

    async def worker() -> None:
        nonlocal inside
        for _ in range(20):
            async with lock:
                inside += 1
                assert inside == 1
                await trio.lowlevel.checkpoint()
                inside -= 1

    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(worker)


async def test_the_releaser_may_take_it_again_at_once() -> None:
    """A handler that never waits lets its worker go on, with no other task in between."""
    lock = UnfairLock()
    turns: list[str] = []

    async def other() -> None:
        async with lock:
            turns.append("other")

    async with trio.open_nursery() as nursery:
        await lock.__aenter__()
        nursery.start_soon(other)
        await wait_all_tasks_blocked()
        for _ in range(3):
            await lock.__aexit__(None, None, None)
            await lock.__aenter__()
            turns.append("same")
        await lock.__aexit__(None, None, None)
    assert turns == ["same", "same", "same", "other"]


async def test_a_handler_that_waits_delays_nobody() -> None:
    """While one worker waits for a slow backend, another reads and answers."""
    lock = UnfairLock()
    answered = trio.Event()

    async def other() -> None:
        async with lock:
            answered.set()

    async with trio.open_nursery() as nursery:
        await lock.__aenter__()
        nursery.start_soon(other)
        await wait_all_tasks_blocked()
        await lock.__aexit__(None, None, None)
        with trio.fail_after(5):
            await answered.wait()  # the slow backend: it answers only after the other request


async def test_a_cancelled_worker_takes_no_turn_from_others() -> None:
    lock = UnfairLock()
    done: list[str] = []

    async def worker(name: str, scope: trio.CancelScope) -> None:
        with scope:
            async with lock:
                done.append(name)

    async with trio.open_nursery() as nursery:
        await lock.__aenter__()
        scopes = [trio.CancelScope() for _ in range(3)]
        for number, scope in enumerate(scopes):
            nursery.start_soon(worker, f"worker {number}", scope)
            await wait_all_tasks_blocked()
        scopes[0].cancel()
        await wait_all_tasks_blocked()
        await lock.__aexit__(None, None, None)
    assert done == ["worker 1", "worker 2"]


async def test_other_tasks_run_under_a_flood_of_requests() -> None:
    """Uploads, timers and stops must not starve while the kernel always has another request."""
    reader, writer = os.pipe()
    os.write(writer, b"always readable")
    lowlevel = _Lowlevel(lambda: 1)
    ran = False

    async def other() -> None:
        nonlocal ran
        ran = True

    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(other)
            for _ in range(FAST_MAX):
                await lowlevel.wait_readable(reader)
            assert not ran, "a request that is there already needs no event loop"
            for _ in range(2):  # trio runs what is ready in random order: at the latest the second
                for _ in range(FAST_MAX + 1):
                    await lowlevel.wait_readable(reader)
            assert ran
    finally:
        os.close(reader)
        os.close(writer)


async def test_the_next_request_is_waited_for_without_the_event_loop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A program sends it as soon as it has the last answer."""
    monkeypatch.setattr(scheduling, "QUIET_MS", 10_000)
    reader, writer = os.pipe()
    sender = threading.Thread(target=os.write, args=(writer, b"the next request"))
    looped = False

    async def other() -> None:
        nonlocal looped
        looped = True

    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(other)
            sender.start()
            await _Lowlevel(lambda: 0).wait_readable(reader)
            assert not looped
    finally:
        sender.join()
        os.close(reader)
        os.close(writer)


async def test_what_a_request_waits_for_is_not_kept_waiting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its disk has answered; the event loop must pass that on, whether or not others ask more."""
    monkeypatch.setattr(scheduling, "QUIET_MS", 10_000)
    reader, writer = os.pipe()

    async def answer_from_disk() -> None:
        os.write(writer, b"what its program asks next")

    try:
        with trio.fail_after(5):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(answer_from_disk)
                await _Lowlevel(lambda: 1).wait_readable(reader)
    finally:
        os.close(reader)
        os.close(writer)


async def test_the_rest_of_trio_is_as_it_was() -> None:
    assert _Lowlevel(int).current_task() is trio.lowlevel.current_task()
