"""The chunk store in many threads: each content once, no deadlock, no false promise."""

from __future__ import annotations

import os
import random
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path

import pytest

from nexus_engine.backends.local import LocalObjectStore
from nexus_engine.cas import writer
from nexus_engine.cas.pack import KIND_CHUNK, KIND_INTENT, ScanStop, content_of
from nexus_engine.cas.store import ChunkStore, Location
from nexus_engine.errors import StoreInaccessible
from nexus_engine.types import Digest

THREADS = 8


@pytest.fixture(autouse=True)
def _switch_often() -> Iterator[None]:
    """Make the interpreter change threads a hundred times as often as usual."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(5e-5)
    yield
    sys.setswitchinterval(before)


class Harness:
    """A store whose index and packs the test can see."""

    def __init__(self, root: Path) -> None:
        (root / "packs").mkdir()
        self.index: dict[Digest, Location] = {}
        self.packs: list[str] = []
        self.store = ChunkStore(
            LocalObjectStore(root),
            root / "packs",
            self.find,
            on_new_pack=self.packs.append,
            cache_bytes=1 << 20,
        )

    def find(self, digest: Digest) -> Location | None:
        return self.index.get(digest)

    def commit(self, digest: Digest) -> None:
        location = self.store.pending(digest)
        if location is not None:
            self.index.setdefault(digest, location)
        self.store.forget_pending([digest])

    def records(self) -> list[tuple[int, bytes]]:
        found = []
        for pack in self.packs:
            scan = self.store.scan(pack)
            found += [(record.kind, bytes(content_of(record))) for record in scan]
            assert scan.stop is ScanStop.END, scan.reason
        return found


@pytest.fixture
def harness(tmp_path: Path) -> Iterator[Harness]:
    harness = Harness(tmp_path)
    yield harness
    harness.store.close()


class Announcing(threading.Condition):
    """A condition that says when somebody begins to wait, with the lock still held."""

    def __init__(self, lock: threading.Lock) -> None:
        super().__init__(lock)
        self.waiters = threading.Semaphore(0)

    def wait(self, timeout: float | None = None) -> bool:
        self.waiters.release()
        return super().wait(timeout)


def test_threads_that_put_the_same_content_store_it_once(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also while packs roll over, others read, sync and seal, and commits come in between."""
    monkeypatch.setattr(writer, "PACK_SIZE", 60_000)
    contents = [random.Random(n).randbytes(1000) + bytes(n * 10) for n in range(150)]
    barrier = threading.Barrier(THREADS)

    def put_all(seed: int) -> int:
        order = contents[:]
        random.Random(seed).shuffle(order)
        barrier.wait(30)
        wrong = 0
        for step, content in enumerate(order):
            digest = harness.store.put(content)
            wrong += digest != sha256(content).digest()
            wrong += harness.store.read(digest, 0, len(content)) != content
            wrong += harness.store.read_resident(digest, 5, 10) not in (None, content[5:15])
            if step % 7 == seed % 7:
                harness.commit(digest)
            if step % 50 == seed:
                harness.store.sync()
            if step % 50 == seed + 10:
                harness.store.seal_full()
        return wrong

    with ThreadPoolExecutor(THREADS) as pool:
        assert list(pool.map(put_all, range(THREADS))) == [0] * THREADS
    assert len(harness.packs) > 2
    assert sorted(content for _, content in harness.records()) == sorted(contents)


def test_threads_that_put_different_content_lose_none(harness: Harness) -> None:
    """Each with its intents."""

    def put_all(thread: int) -> list[bytes]:
        contents = [b"%d/%d" % (thread, step) * 20 for step in range(150)]
        for content in contents:
            harness.store.put_many([content], lambda digests: b"intent" + digests[0])
        return contents

    with ThreadPoolExecutor(THREADS) as pool:
        contents = [content for part in pool.map(put_all, range(THREADS)) for content in part]
    records = harness.records()
    assert sorted(body for kind, body in records if kind == KIND_CHUNK) == sorted(contents)
    assert sum(kind == KIND_INTENT for kind, _ in records) == len(contents)


def test_threads_that_all_begin_a_pack_can_append_to_it(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To register a pack is to wait for the metadata; none is sealed meanwhile."""
    registering, may_end = threading.Semaphore(0), threading.Event()

    def register(pack: str) -> None:
        harness.packs.append(pack)
        registering.release()
        assert may_end.wait(30)

    monkeypatch.setattr(harness.store._packs, "_on_new_pack", register)
    contents = [b"%d" % thread for thread in range(THREADS)]
    with ThreadPoolExecutor(THREADS) as pool:
        puts = []
        for content in contents:
            puts.append(pool.submit(harness.store.put, content))
            assert registering.acquire(timeout=30)
        may_end.set()
    assert [harness.store.read(put.result(), 0, 10) for put in puts] == contents


def test_calls_that_want_each_others_chunks_do_not_deadlock(harness: Harness) -> None:
    """And no intent is found before the chunks that it names, whoever stored these."""
    rounds = [[b"%d/%d" % (step, n) * 50 for n in range(6)] for step in range(60)]
    barrier = threading.Barrier(THREADS)

    def put_all(seed: int) -> None:
        for contents in rounds:
            order = contents[:]
            random.Random(seed).shuffle(order)
            barrier.wait(30)
            harness.store.put_many(order, lambda digests: b"".join(digests))

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(put_all, range(THREADS)))
    seen: set[bytes] = set()
    intents = 0
    for kind, body in harness.records():
        if kind == KIND_INTENT:
            intents += 1
            assert {body[at : at + 32] for at in range(0, len(body), 32)} <= seen
        else:
            digest = sha256(body).digest()
            assert digest not in seen
            seen.add(digest)
    assert intents == THREADS * len(rounds)
    assert len(seen) == 6 * len(rounds)


def test_whoever_waits_for_a_put_that_fails_puts_it_himself(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other thread's error is not ours, and its chunk is not there."""
    store = harness.store
    settled = store._settled = Announcing(store._lock)
    asked = threading.Semaphore(0)
    may_fail = threading.Event()
    failures: list[Digest] = []

    def find(digests: Sequence[Digest]) -> dict[Digest, Location]:
        if not failures:
            failures.extend(digests)
            asked.release()
            assert may_fail.wait(30)
            raise StoreInaccessible("injected")
        return {}

    monkeypatch.setattr(store, "_find_reusable", find)
    with ThreadPoolExecutor(2) as pool:
        failing = pool.submit(store.put, b"content")
        assert asked.acquire(timeout=30)
        waiting = pool.submit(store.put_many, [b"content", b"more"], lambda digests: b"intent")
        assert settled.waiters.acquire(timeout=30)
        may_fail.set()
        assert isinstance(failing.exception(30), StoreInaccessible)
        digests = waiting.result(30)
    assert [store.read(digest, 0, 10) for digest in digests] == [b"content", b"more"]
    assert harness.records() == [
        (KIND_CHUNK, b"more"),
        (KIND_CHUNK, b"content"),
        (KIND_INTENT, b"intent"),
    ]


def test_a_sync_covers_what_was_put_before_it_while_others_put(harness: Harness) -> None:
    """fsync(2) on one file, while another is being written."""
    stop = threading.Event()

    def put_for_ever(seed: int) -> int:
        puts = 0
        while not stop.is_set():
            harness.store.put(b"%d/%d" % (seed, puts) * 30)
            puts += 1
        return puts

    def put_and_sync(seed: int) -> int:
        uncovered = 0
        for step in range(25):
            digest = harness.store.put(b"sync %d/%d" % (seed, step))
            harness.store.sync()
            location = harness.store.pending(digest)
            assert location is not None
            (info,) = [i for i in harness.store.packs_written() if i.pack == location.pack]
            uncovered += info.synced_length < location.offset + location.stored_length
        return uncovered

    with ThreadPoolExecutor(THREADS) as pool:
        putting = [pool.submit(put_for_ever, seed) for seed in range(2)]
        syncing = [pool.submit(put_and_sync, seed) for seed in range(4)]
        assert [caller.result(60) for caller in syncing] == [0, 0, 0, 0]
        stop.set()
        assert all(caller.result(30) > 0 for caller in putting)


def test_syncs_at_one_time_share_their_fsyncs(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seven programs that call fsync while one runs cost one more."""
    store = harness.store
    changed = store._shared_sync._changed = Announcing(threading.Lock())
    real = os.fdatasync
    syncs = []
    began, may_end = threading.Event(), threading.Event()

    def fdatasync(fd: int) -> None:
        syncs.append(fd)
        began.set()
        assert may_end.wait(30)
        real(fd)

    monkeypatch.setattr(os, "fdatasync", fdatasync)

    def put_and_sync(number: int) -> None:
        store.put(b"%d" % number)
        store.sync()

    with ThreadPoolExecutor(THREADS) as pool:
        first = pool.submit(put_and_sync, 0)
        assert began.wait(30)
        later = [pool.submit(put_and_sync, number) for number in range(1, THREADS)]
        for _ in later:
            assert changed.waiters.acquire(timeout=30)
        may_end.set()
        for caller in [first, *later]:
            caller.result(30)
    assert len(syncs) == 2
    (info,) = store.packs_written()
    assert info.synced_length == info.length
