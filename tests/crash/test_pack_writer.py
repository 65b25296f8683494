"""Appending to packs on a disk that fails: no call promises what it did not do."""

from __future__ import annotations

import errno
import os
import random
import resource
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from nexus_engine.backends.local import LocalObjectStore
from nexus_engine.cas import writer
from nexus_engine.cas.pack import KIND_INTENT, PACK_HEADER_SIZE, ScanStop, content_of, pack_key
from nexus_engine.cas.store import ChunkStore, Location
from nexus_engine.cas.writer import PackWriter
from nexus_engine.errors import EngineError, NoSpace, ObjectStoreFailed
from nexus_engine.types import Digest

PACK = "00112233445566778899aabbccddeeff"
CHUNKS = [b"%d " % n + random.Random(n).randbytes(40 * n) for n in range(14)]


class FailingDisk:
    """Makes the Nth write fail: at once, or after half of it has been written.

    Args:
        number: The errno; ``None`` for no error, just a write that is cut short.
    """

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, nth: int, number: int | None, half: bool
    ) -> None:
        self.nth = nth
        self.number = number
        self.half = half
        self.writes = 0
        self.fired = False
        self.truncate_fails = False
        self._pwrite = os.pwrite
        self._ftruncate = os.ftruncate
        monkeypatch.setattr(os, "pwritev", self.pwritev)
        monkeypatch.setattr(os, "pwrite", self.pwrite)
        monkeypatch.setattr(os, "ftruncate", self.ftruncate)

    def pwritev(self, fd: int, buffers: Sequence[bytes], offset: int) -> int:
        return self.pwrite(fd, b"".join(buffers), offset)

    def pwrite(self, fd: int, data: bytes | memoryview, offset: int) -> int:
        self.writes += 1
        if self.writes == self.nth:
            self.fired = True
            if self.half:
                # The rest is for the next write, which is the one to fail.
                self.nth = self.nth + 1 if self.number else 0
                self.half = False
                return self._pwrite(fd, memoryview(data)[: len(data) // 2], offset)
            assert self.number is not None
            raise OSError(self.number, "injected")
        return self._pwrite(fd, data, offset)

    def ftruncate(self, fd: int, length: int) -> None:
        if self.truncate_fails:
            raise OSError(errno.EIO, "injected")
        self._ftruncate(fd, length)


class Bench:
    """A chunk store, and what it promised."""

    def __init__(self, root: Path) -> None:
        (root / "packs").mkdir()
        self.root = root
        self.index: dict[Digest, Location] = {}
        self.packs: list[str] = []
        self.promised: dict[Digest, bytes] = {}
        self.intents: list[bytes] = []
        self.errors: list[EngineError] = []

    def open(self) -> ChunkStore:
        return ChunkStore(
            LocalObjectStore(self.root),
            self.root / "packs",
            self.index.get,
            on_new_pack=self.packs.append,
            cache_bytes=0,
        )

    def put_all(self, store: ChunkStore) -> None:
        """Put everything in calls of two chunks and an intent; go on after a failure."""
        for number in range(0, len(CHUNKS), 2):
            pair = CHUNKS[number : number + 2]
            payload = b"intent %d" % number

            def intent(_: list[Digest], payload: bytes = payload) -> bytes:
                return payload

            try:
                digests = store.put_many(pair, intent)
            except EngineError as error:
                self.errors.append(error)
                continue
            self.promised.update(zip(digests, pair, strict=True))
            self.intents.append(payload)

    def commit(self, store: ChunkStore) -> None:
        for digest in self.promised:
            location = store.pending(digest)
            assert location is not None
            self.index[digest] = location
        store.forget_pending(self.promised)

    def check(self) -> None:
        """Everything promised reads back; a scan finds that, and nothing torn."""
        store = self.open()
        for digest, content in self.promised.items():
            assert store.read(digest, 0, len(content)) == content
        found: list[tuple[int, bytes]] = []
        for pack in self.packs:
            if not (self.root / pack_key(pack)).exists():
                continue
            scan = store.scan(pack)
            found += [(record.kind, bytes(content_of(record))) for record in scan]
            assert scan.stop is ScanStop.END, scan.reason
            assert scan.end == (self.root / pack_key(pack)).stat().st_size
        chunks = [content for kind, content in found if kind != KIND_INTENT]
        assert sorted(chunks) == sorted(self.promised.values())
        assert [content for kind, content in found if kind == KIND_INTENT] == self.intents


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


# A run without faults makes a write for the header and one for each of the seven calls.
@pytest.mark.parametrize("nth", range(1, 9))
@pytest.mark.parametrize("half", [False, True], ids=["nothing written", "half written"])
@pytest.mark.parametrize(
    ("number", "expected"),
    [(errno.ENOSPC, NoSpace), (errno.EDQUOT, NoSpace), (errno.EIO, ObjectStoreFailed)],
)
def test_the_nth_write_fails(
    bench: Bench,
    monkeypatch: pytest.MonkeyPatch,
    nth: int,
    half: bool,
    number: int,
    expected: type[EngineError],
) -> None:
    """That call reports it and leaves nothing; those before and after are kept."""
    store = bench.open()
    with monkeypatch.context() as patch:
        disk = FailingDisk(patch, nth, number, half)
        bench.put_all(store)
    assert disk.fired
    assert list(map(type, bench.errors)) == [expected]
    assert len(bench.intents) == 6
    bench.commit(store)
    store.close()
    bench.check()


@pytest.mark.parametrize("nth", range(1, 9))
def test_a_failed_put_can_be_repeated(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, nth: int
) -> None:
    """The digest is not taken for stored because of the first attempt."""
    store = bench.open()
    with monkeypatch.context() as patch:
        disk = FailingDisk(patch, nth, errno.ENOSPC, half=True)
        for chunk in CHUNKS[:8]:
            try:
                digest = store.put(chunk)
            except NoSpace:
                digest = store.put(chunk)
            bench.promised[digest] = chunk
    assert disk.fired
    bench.commit(store)
    store.close()
    bench.check()


@pytest.mark.parametrize("nth", range(1, 9))
def test_a_short_write_is_completed(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, nth: int
) -> None:
    """write(2) may write less than asked for without an error."""
    store = bench.open()
    with monkeypatch.context() as patch:
        disk = FailingDisk(patch, nth, None, half=True)
        bench.put_all(store)
    assert disk.fired
    assert bench.errors == []
    bench.commit(store)
    store.close()
    bench.check()


def test_a_torn_end_that_cannot_be_cut_off_is_cut_off_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the disk refuses the truncation as well, no append goes behind the torn bytes."""
    pack = PackWriter(tmp_path, PACK)
    pack.append([b"first"])
    with monkeypatch.context() as patch:
        disk = FailingDisk(patch, 1, errno.EIO, half=True)
        disk.truncate_fails = True
        with pytest.raises(ObjectStoreFailed):
            pack.append([b"torn" * 100])
        with pytest.raises(ObjectStoreFailed):
            pack.append([b"refused"])
        with pytest.raises(ObjectStoreFailed):
            pack.seal()
    assert disk.fired
    assert pack.path.stat().st_size > pack.length
    assert pack.append([b"second"]) == [PACK_HEADER_SIZE + 5]
    pack.seal()
    assert pack.path.read_bytes()[PACK_HEADER_SIZE:] == b"firstsecond"


@pytest.fixture
def file_size_limit() -> Iterator[Callable[[int], None]]:
    """setrlimit(2), RLIMIT_FSIZE: a short write up to the limit, then EFBIG, for real."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(size: int) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))

    yield limit
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_an_append_that_the_system_cuts_short_at_any_byte_leaves_nothing(
    tmp_path: Path, file_size_limit: Callable[[int], None]
) -> None:
    """The kernel itself stops the write, at each byte of the records in turn."""
    pack = PackWriter(tmp_path, PACK)
    pack.append([b"first"])
    before = pack.path.read_bytes()
    records = [b"x" * 50, b"y" * 30]
    for end in range(len(before), len(before) + 80):
        file_size_limit(end)
        try:
            with pytest.raises(ObjectStoreFailed, match="File too large"):
                pack.append(records)
        finally:
            file_size_limit(resource.RLIM_INFINITY)
        assert pack.path.read_bytes() == before
    assert pack.append(records) == [len(before), len(before) + 50]
    assert pack.path.read_bytes() == before + b"".join(records)


class LossyDisk:
    """What a disk holds after power loss, where a failed write-back drops the dirty bytes.

    As Linux does it: the failure is reported once, then the pages count as clean, and a
    later fsync that succeeds has nothing to write.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, failing: set[int]) -> None:
        self.durable: dict[Path, bytearray] = {}
        self.dirty: dict[Path, list[tuple[int, int]]] = {}
        self.syncs = 0
        self.fired = 0
        self._failing = failing
        self._pwritev = os.pwritev
        self._pwrite = os.pwrite
        monkeypatch.setattr(os, "pwritev", self.pwritev)
        monkeypatch.setattr(os, "pwrite", self.pwrite)
        monkeypatch.setattr(os, "fdatasync", self.fdatasync)

    def pwritev(self, fd: int, buffers: Sequence[bytes], offset: int) -> int:
        return self._wrote(fd, offset, self._pwritev(fd, buffers, offset))

    def pwrite(self, fd: int, data: bytes | memoryview, offset: int) -> int:
        return self._wrote(fd, offset, self._pwrite(fd, data, offset))

    def fdatasync(self, fd: int) -> None:
        self.syncs += 1
        path = _path_of(fd)
        dirty = self.dirty.pop(path, [])
        if self.syncs in self._failing:
            self.fired += 1
            raise OSError(errno.EIO, "injected")
        image = self.durable.setdefault(path, bytearray())
        for start, end in dirty:
            image.extend(bytes(max(0, end - len(image))))
            image[start:end] = os.pread(fd, end - start, start)

    def _wrote(self, fd: int, offset: int, count: int) -> int:
        self.dirty.setdefault(_path_of(fd), []).append((offset, offset + count))
        return count


def _path_of(fd: int) -> Path:
    return Path(f"/proc/self/fd/{fd}").readlink()


@pytest.mark.parametrize(
    "failing", [{1}, {2}, {3}, {4}, {1, 2}, {2, 3, 4}], ids=lambda failing: str(sorted(failing))
)
def test_what_a_sync_promised_is_on_the_disk_though_an_earlier_one_failed(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, failing: set[int]
) -> None:
    """After a failed fsync the data is written once more, or the next one would lie."""
    store = bench.open()
    disk = LossyDisk(monkeypatch, failing)
    for number in range(0, 12, 2):
        for chunk in CHUNKS[number : number + 2]:
            bench.promised[store.put(chunk)] = chunk
        try:
            store.sync()
        except ObjectStoreFailed:
            continue
        (info,) = store.packs_written()
        assert info.synced_length == info.length
        path = bench.root / pack_key(info.pack)
        assert disk.durable[path] == path.read_bytes()
    assert disk.fired == len(failing)
    bench.commit(store)
    store.close()
    bench.check()


def test_what_the_system_dropped_after_a_failed_sync_is_never_called_durable(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the pages gone there is nothing left to write: every later sync must fail too."""
    store = bench.open()
    digest = store.put(CHUNKS[5])
    location = store.pending(digest)
    assert location is not None
    LossyDisk(monkeypatch, {1})
    with pytest.raises(ObjectStoreFailed):
        store.sync()
    with (bench.root / pack_key(location.pack)).open("r+b") as file:
        file.seek(location.offset)
        file.write(bytes(location.stored_length))
    for _ in range(3):
        store.put(os.urandom(100))
        with pytest.raises(ObjectStoreFailed, match=r"lost.*nexus-ctl fsck"):
            store.sync()


@pytest.mark.parametrize("nth", [1, 2, 3])
def test_a_pack_that_could_not_be_sealed_is_sealed_later(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, nth: int
) -> None:
    """And its chunks are readable in the meantime."""
    monkeypatch.setattr(writer, "PACK_SIZE", 700)
    store = bench.open()
    real, calls = LocalObjectStore.put_file, []

    def put_file(self: LocalObjectStore, key: str, path: Path) -> None:
        calls.append(key)
        if len(calls) == nth:
            raise ObjectStoreFailed("injected")
        real(self, key, path)

    monkeypatch.setattr(LocalObjectStore, "put_file", put_file)
    bench.put_all(store)
    assert len(bench.packs) > 3
    with pytest.raises(ObjectStoreFailed, match="injected"):
        store.seal_full()
    for digest, content in bench.promised.items():
        assert store.read(digest, 0, len(content)) == content
    store.seal_full()
    bench.commit(store)
    store.close()
    assert all(info.sealed for info in store.packs_written())
    assert [info.pack for info in store.packs_written()] == bench.packs
    bench.check()
