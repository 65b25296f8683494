"""The chunk store in one thread: what was put is read back, verified, and stored once."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterable, Iterator
from hashlib import sha256
from pathlib import Path

import pytest

from nexus_engine.backends.local import LocalObjectStore
from nexus_engine.cas import own_packs, writer
from nexus_engine.cas.codec import CODEC_RAW, CODEC_ZSTD, MAX_CHUNK
from nexus_engine.cas.pack import (
    KIND_CHUNK,
    KIND_INTENT,
    PACK_HEADER_SIZE,
    ScanStop,
    content_of,
    encode_record,
    pack_key,
)
from nexus_engine.cas.store import ChunkStore, Location
from nexus_engine.errors import (
    CorruptChunk,
    MissingChunk,
    NoSpace,
    ObjectNotFound,
    StoreInaccessible,
)
from nexus_engine.types import Digest

TEXT = b"It was a bright cold day in April, and the clocks were striking thirteen. " * 60


class Engine:
    """The part of the engine that the chunk store knows: an index, and a list of packs."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.index: dict[Digest, Location] = {}
        self.packs: list[str] = []
        self.objects = LocalObjectStore(root)

    def open(self, cache_bytes: int = 64 << 20) -> ChunkStore:
        return ChunkStore(
            self.objects,
            self.root / "packs",
            self.index.get,
            on_new_pack=self.packs.append,
            cache_bytes=cache_bytes,
        )

    def commit(self, store: ChunkStore, digests: Iterable[Digest]) -> None:
        """Insert what the index lacks, as a transaction does, then say so."""
        for digest in digests:
            location = store.pending(digest)
            if location is not None:
                self.index.setdefault(digest, location)
        store.forget_pending(digests)

    def stored_chunks(self, store: ChunkStore) -> list[bytes]:
        """Return every chunk of every pack, each time that it is stored."""
        found = []
        for pack in self.packs:
            scan = store.scan(pack)
            found += [bytes(content_of(r)) for r in scan if r.kind == KIND_CHUNK]
            assert scan.stop is ScanStop.END, scan.reason
        return found


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    (tmp_path / "packs").mkdir()
    return Engine(tmp_path)


@pytest.fixture
def store(engine: Engine) -> Iterator[ChunkStore]:
    store = engine.open()
    yield store
    store.close()


def test_a_chunk_is_readable_as_soon_as_it_is_put(store: ChunkStore) -> None:
    """Before any sync or commit; any slice, by the digest that anyone can compute."""
    digest = store.put(TEXT)
    assert digest == sha256(TEXT).digest()
    assert store.read(digest, 0, len(TEXT)) == TEXT
    assert store.read(digest, 100, 50) == TEXT[100:150]
    assert store.read(digest, len(TEXT) - 5, 100) == TEXT[-5:]
    assert store.read(digest, len(TEXT) + 5, 100) == b""


@pytest.mark.parametrize("size", [0, 1, 127, 128, 4096, 1 << 20, MAX_CHUNK])
@pytest.mark.parametrize("kind", ["zeros", "random"])
def test_chunks_of_any_size_survive_reopening(engine: Engine, size: int, kind: str) -> None:
    """From nothing to the largest, compressible or not."""
    data = bytes(size) if kind == "zeros" else random.Random(size).randbytes(size)
    with_store = engine.open()
    digest = with_store.put(data)
    engine.commit(with_store, [digest])
    with_store.close()
    assert engine.open().read(digest, 0, size) == data


def test_a_put_of_known_content_stores_nothing(engine: Engine, store: ChunkStore) -> None:
    """Known because it is pending, because it is indexed, or by the same call."""
    digest = store.put(TEXT)
    assert store.put(bytearray(TEXT)) == digest
    engine.commit(store, [digest])
    assert store.put(memoryview(TEXT)) == digest
    assert store.put_many([b"twice", TEXT, b"twice"])[1] == digest
    assert sorted(engine.stored_chunks(store)) == sorted([TEXT, b"twice"])


def test_a_location_is_pending_until_it_is_forgotten(engine: Engine, store: ChunkStore) -> None:
    """The engine inserts it in the transaction that names the chunk."""
    digest = store.put(TEXT)
    location = store.pending(digest)
    assert location is not None
    assert location.pack == engine.packs[0]
    assert location.offset == PACK_HEADER_SIZE
    assert location.length == len(TEXT)
    assert location.codec == CODEC_ZSTD
    engine.commit(store, [digest])
    assert store.pending(digest) is None
    assert store.read(digest, 0, 10) == TEXT[:10]


def test_a_rolled_back_transaction_leaves_its_chunks_pending(store: ChunkStore) -> None:
    """The next one that names the content uses them."""
    digest = store.put(TEXT)
    location = store.pending(digest)
    assert store.put(TEXT) == digest
    assert store.pending(digest) == location


def test_small_files_with_their_intent_cost_one_write(
    engine: Engine, store: ChunkStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One system call, the intent last, and it knows the digests."""
    store.put(b"opens the pack")
    writes = []
    real = os.pwritev

    def pwritev(fd: int, buffers: list[bytes], offset: int) -> int:
        writes.append(len(buffers))
        return real(fd, buffers, offset)

    monkeypatch.setattr(os, "pwritev", pwritev)
    digests = store.put_many([b"one", b"two"], lambda digests: b"".join(digests))
    assert writes == [3]
    records = list(store.scan(engine.packs[0]))
    assert [record.kind for record in records] == [KIND_CHUNK, KIND_CHUNK, KIND_CHUNK, KIND_INTENT]
    assert content_of(records[-1]) == b"".join(digests)
    store.put_intent(b"alone")
    assert writes == [3, 1]
    assert [content_of(record) for record in store.scan(engine.packs[0])][-1] == b"alone"


def test_an_intent_for_known_chunks_is_written_all_the_same(
    engine: Engine, store: ChunkStore
) -> None:
    """It stands for a change, and a change may consist of old content."""
    store.put(TEXT)
    store.put_many([TEXT], lambda digests: b"again")
    kinds = [record.kind for record in store.scan(engine.packs[0])]
    assert kinds == [KIND_CHUNK, KIND_INTENT]


def test_more_records_than_one_system_call_takes_are_all_written(
    engine: Engine, store: ChunkStore
) -> None:
    """writev(2): IOV_MAX."""
    chunks = [b"%d" % number for number in range(2500)]
    digests = store.put_many(chunks)
    assert [store.read(digest, 0, 10) for digest in digests] == chunks
    assert sorted(engine.stored_chunks(store)) == sorted(chunks)


def test_a_chunk_that_is_too_long_is_refused(store: ChunkStore) -> None:
    """A bug of the caller; the digest can be put afterwards all the same."""
    for _ in range(2):
        with pytest.raises(ValueError):
            store.put(bytes(MAX_CHUNK + 1))
        with pytest.raises(ValueError):
            store.put_intent(bytes(MAX_CHUNK + 1))


def test_a_store_that_only_reads_creates_no_pack(engine: Engine) -> None:
    """A command that lists a directory must leave nothing behind."""
    store = engine.open()
    with pytest.raises(MissingChunk):
        store.read(Digest(bytes(32)), 0, 1)
    store.close()
    assert list((engine.root / "packs").iterdir()) == []
    assert engine.packs == []


def test_a_pack_that_stayed_empty_is_removed(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was registered before the first append, which failed."""
    store = engine.open()
    real, failed = writer._write_all, []

    def fail_after_header(fd: int, buffers: list[bytes], offset: int) -> None:
        if offset > 0:
            failed.append(offset)
            raise OSError(28, "injected")
        real(fd, buffers, offset)

    monkeypatch.setattr(writer, "_write_all", fail_after_header)
    with pytest.raises(NoSpace):
        store.put(TEXT)
    assert failed
    store.close()
    (info,) = store.packs_written()
    assert (info.pack, info.length, info.sealed) == (engine.packs[0], 0, True)
    assert list((engine.root / "packs").iterdir()) == []


def test_a_pack_that_cannot_be_registered_is_not_used(engine: Engine) -> None:
    """Else recovery would not know of it."""

    def refuse(pack: str) -> None:
        raise StoreInaccessible("injected")

    store = ChunkStore(engine.objects, engine.root / "packs", lambda _: None, on_new_pack=refuse)
    with pytest.raises(StoreInaccessible):
        store.put(TEXT)
    assert list((engine.root / "packs").iterdir()) == []
    assert store.pending(Digest(sha256(TEXT).digest())) is None


def test_packs_roll_over_when_full(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every pack is registered, sealed, reported until forgotten, and readable throughout."""
    monkeypatch.setattr(writer, "PACK_SIZE", 10_000)
    store = engine.open(cache_bytes=0)
    chunks = [random.Random(n).randbytes(3000) for n in range(40)]
    digests = [store.put(chunk) for chunk in chunks]
    assert len(engine.packs) == 10
    waiting = [info for info in store.packs_written() if not info.sealed]
    assert len(waiting) <= own_packs.MAX_FULL + 1
    assert [bytes(store.read(d, 0, 3000)) for d in digests] == chunks

    store.seal_full()
    infos = store.packs_written()
    assert {info.pack for info in infos} == set(engine.packs)
    assert all(info.sealed and info.synced_length == info.length for info in infos)
    store.forget_sealed([info.pack for info in infos[:-1]])
    assert [info.pack for info in store.packs_written()] == [infos[-1].pack]
    assert [bytes(store.read(d, 0, 3000)) for d in digests] == chunks

    digests.append(store.put(b"in the next pack"))
    assert len(engine.packs) == 11
    store.close()
    assert sorted(engine.stored_chunks(store)) == sorted([*chunks, b"in the next pack"])


def test_a_pack_that_is_not_full_is_left_open(engine: Engine, store: ChunkStore) -> None:
    """Sealing in the background must not take the pack away from the writers."""
    store.put(b"one")
    store.seal_full()
    assert [info.sealed for info in store.packs_written()] == [False]
    store.put(b"two")
    assert len(engine.packs) == 1


def test_nothing_can_be_put_after_close_but_all_can_be_read(engine: Engine) -> None:
    """A request that is late in a shutdown gets an error, not a lost chunk."""
    store = engine.open()
    digest = store.put(TEXT)
    store.close()
    store.close()
    with pytest.raises(StoreInaccessible, match="closed"):
        store.put(b"late")
    assert store.put(TEXT) == digest
    assert store.read(digest, 0, 10) == TEXT[:10]


def test_a_cached_chunk_is_resident(engine: Engine) -> None:
    """And a slice of it is not copied."""
    store = engine.open()
    digest = store.put(TEXT)
    store.read(digest, 0, 1)
    part = store.read_resident(digest, 100, 50)
    assert part == TEXT[100:150]
    assert isinstance(part, memoryview)
    store.close()


def test_a_chunk_in_the_page_cache_is_resident(engine: Engine) -> None:
    """In the open pack at once; in another one after its first read."""
    store = engine.open(cache_bytes=0)
    digests = [store.put(TEXT), store.put(b"small")]
    assert store.read_resident(digests[0], 0, len(TEXT)) == TEXT
    assert store.read_resident(digests[1], 1, 3) == b"mal"
    engine.commit(store, digests)
    store.close()
    assert store.read_resident(digests[0], 0, 10) is None
    assert store.read(digests[0], 0, 10) == TEXT[:10]
    assert store.read_resident(digests[1], 0, 10) == b"small"


def test_what_is_unknown_or_large_is_left_to_a_read(engine: Engine) -> None:
    """Decoding megabytes would hold up the event loop."""
    store = engine.open()
    assert store.read_resident(Digest(bytes(32)), 0, 1) is None
    digest = store.put(bytes(2 << 20))
    assert store.read_resident(digest, 0, 1) is None
    assert store.read(digest, 0, 1) == b"\0"
    assert store.read_resident(digest, 0, 1) == b"\0"
    store.close()


def test_a_chunk_without_its_pack_is_missing(engine: Engine) -> None:
    """The message names the chunk and the pack, and says what to do."""
    store = engine.open()
    digest = store.put(TEXT)
    engine.commit(store, [digest])
    store.close()
    engine.objects.delete(pack_key(engine.packs[0]))
    with pytest.raises(MissingChunk) as caught:
        engine.open().read(digest, 0, 1)
    for part in (digest.hex(), engine.packs[0], "nexus-ctl fsck"):
        assert part in str(caught.value)
    assert engine.open().read_resident(digest, 0, 1) is None
    with pytest.raises(ObjectNotFound):
        list(store.scan(engine.packs[0]))


def test_a_chunk_that_gc_moved_is_found_in_its_new_place(engine: Engine) -> None:
    """The reader had looked it up before the move, and read after it."""
    old, new = engine.open(), engine.open()
    digest = old.put(TEXT)
    stale = old.pending(digest)
    old.close()
    assert stale is not None
    assert new.put(TEXT) == digest
    moved = new.pending(digest)
    assert moved is not None
    new.close()
    engine.objects.delete(pack_key(stale.pack))
    answers = iter([stale, moved])
    reader = ChunkStore(
        engine.objects,
        engine.root / "packs",
        lambda _: next(answers),
        on_new_pack=engine.packs.append,
    )
    assert reader.read(digest, 0, len(TEXT)) == TEXT


def damaged(engine: Engine, data: bytes, damage: Callable[[bytes], bytes]) -> tuple[Digest, Path]:
    """Store ``data``, then rewrite its record."""
    store = engine.open()
    digest = store.put(data)
    engine.commit(store, [digest])
    store.close()
    path = engine.root / pack_key(engine.packs[0])
    content = path.read_bytes()
    path.write_bytes(content[:PACK_HEADER_SIZE] + damage(content[PACK_HEADER_SIZE:]))
    return digest, path


@pytest.mark.parametrize("data", [b"x", TEXT], ids=["raw", "compressed"])
def test_every_flipped_bit_is_a_corrupt_chunk(engine: Engine, data: bytes) -> None:
    """Never other bytes, never a crash, by either way of reading."""
    digest, path = damaged(engine, data, lambda record: record)
    good = path.read_bytes()
    store = engine.open(cache_bytes=0)
    assert store.read(digest, 0, len(data)) == data
    with path.open("r+b", buffering=0) as file:
        for bit in range(PACK_HEADER_SIZE * 8, len(good) * 8):
            at = bit // 8
            os.pwrite(file.fileno(), bytes([good[at] ^ 1 << bit % 8]), at)
            with pytest.raises(CorruptChunk):
                store.read(digest, 0, 1)
            with pytest.raises(CorruptChunk):
                store.read_resident(digest, 0, 1)
            os.pwrite(file.fileno(), good[at : at + 1], at)
    assert store.read(digest, 0, len(data)) == data


@pytest.mark.parametrize(
    "damage",
    [
        lambda record: record[:-1],
        lambda record: record[:20],
        lambda record: b"",
        lambda record: bytes(len(record)),
        lambda record: encode_record(KIND_CHUNK, CODEC_RAW, 1, Digest(bytes(32)), b"x"),
        lambda record: encode_record(KIND_CHUNK, 9, 1, Digest(record[24:56]), b"x"),
        lambda record: encode_record(KIND_CHUNK, CODEC_ZSTD, 9, Digest(record[24:56]), b"x"),
        lambda record: encode_record(KIND_INTENT, CODEC_RAW, 1, Digest(record[24:56]), b"x"),
    ],
    ids=["torn", "no header", "gone", "zeros", "other chunk", "codec", "not zstd", "an intent"],
)
def test_a_damaged_record_is_a_corrupt_chunk(
    engine: Engine, damage: Callable[[bytes], bytes]
) -> None:
    """The message names the chunk, the pack and the place, and says what to do."""
    digest, _ = damaged(engine, b"x", damage)
    with pytest.raises(CorruptChunk) as caught:
        engine.open().read(digest, 0, 1)
    expected = (digest.hex(), engine.packs[0], f"byte {PACK_HEADER_SIZE}", "`nexus-ctl fsck`")
    for part in expected:
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [-1, 0, 1 << 40, 1 << 70])
@pytest.mark.parametrize("field", ["offset", "stored_length"])
def test_an_index_entry_that_makes_no_sense_is_a_corrupt_chunk(
    engine: Engine, field: str, value: int
) -> None:
    """Nothing is allocated because a damaged database says so."""
    digest, _ = damaged(engine, TEXT, lambda record: record)
    good = engine.index[digest]
    engine.index[digest] = (
        good._replace(offset=value) if field == "offset" else good._replace(stored_length=value)
    )
    with pytest.raises(CorruptChunk, match=digest.hex()):
        engine.open().read(digest, 0, 1)


def test_sync_covers_the_open_pack_and_those_not_sealed(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pack that rolled over is as dirty as the current one."""
    monkeypatch.setattr(writer, "PACK_SIZE", 5000)
    store = engine.open()
    for number in range(5):
        store.put(random.Random(number).randbytes(3000))
    assert len(engine.packs) == 3
    assert all(info.synced_length == 0 for info in store.packs_written())
    store.sync()
    assert all(info.synced_length == info.length for info in store.packs_written())
    synced: list[int] = []
    monkeypatch.setattr(os, "fdatasync", synced.append)
    store.sync()
    assert synced == []
    store.close()


class WatchedObjects(LocalObjectStore):
    """Notes which objects were synced."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.synced: list[str] = []

    def sync(self, key: str) -> None:
        super().sync(key)
        self.synced.append(key)


def test_sync_covers_chunks_found_in_the_packs_of_others(engine: Engine) -> None:
    """Another process committed the chunk without a sync, and may die before it makes one.

    Ours was told "known", so that its own fsync has to make that pack durable.
    """
    other = engine.open()
    digests = [other.put(TEXT), other.put(b"second")]
    engine.commit(other, digests)
    engine.objects = watched = WatchedObjects(engine.root)
    ours = engine.open()
    ours.put(TEXT)
    ours.sync()
    assert watched.synced == [pack_key(engine.packs[0])]
    ours.put(TEXT)
    ours.sync()
    assert len(watched.synced) == 1
    ours.put(b"second")
    ours.sync()
    assert len(watched.synced) == 2
    ours.put(TEXT)
    ours.put(b"second")
    ours.sync()
    assert len(watched.synced) == 2
    ours.close()
    other.close()


def test_a_pack_that_gc_dropped_does_not_fail_a_sync(engine: Engine) -> None:
    """gc moves what is live, durably, before it drops the pack."""
    other, ours = engine.open(), engine.open()
    digest = other.put(TEXT)
    engine.commit(other, [digest])
    other.close()
    ours.put(TEXT)
    engine.objects.delete(pack_key(engine.packs[0]))
    ours.sync()
    ours.close()


def test_a_forked_child_cannot_append_to_its_parents_pack(store: ChunkStore) -> None:
    """Both would write to the same offset."""
    store.put(TEXT)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            store.put(b"from the child")
        except RuntimeError:
            status = 0
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
