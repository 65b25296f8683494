"""Small parts of large chunks: right, verified, and without reading all of the chunk each time."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from nexus_engine.backends.local import LocalObjectStore
from nexus_engine.cas.blocks import BLOCK_BYTES
from nexus_engine.cas.pack import RECORD_HEADER_SIZE, pack_key
from nexus_engine.cas.store import ChunkStore
from nexus_engine.errors import CorruptChunk
from nexus_engine.types import Digest

LENGTH = 1_000_001


class Chunk:
    """One large chunk that does not compress, in a store without a cache."""

    def __init__(self, root: Path) -> None:
        (root / "packs").mkdir()
        self.content = random.Random(1).randbytes(LENGTH)
        self.store = ChunkStore(
            LocalObjectStore(root),
            root / "packs",
            lambda _: None,
            on_new_pack=lambda _: None,
            cache_bytes=0,
        )
        self.digest: Digest = self.store.put(self.content)
        location = self.store.pending(self.digest)
        assert location is not None
        self.path = root / pack_key(location.pack)
        self.begin = location.offset + RECORD_HEADER_SIZE

    def read(self, offset: int, length: int) -> bytes:
        return bytes(self.store.read(self.digest, offset, length))

    def flip(self, offset: int) -> None:
        with self.path.open("r+b") as file:
            file.seek(self.begin + offset)
            byte = file.read(1)
            file.seek(self.begin + offset)
            file.write(bytes([byte[0] ^ 1]))


@pytest.fixture
def chunk(tmp_path: Path) -> Chunk:
    return Chunk(tmp_path)


def test_any_part_is_what_was_put(chunk: Chunk) -> None:
    rng = random.Random(2)
    for _ in range(500):
        offset = rng.choice([rng.randrange(LENGTH), rng.randrange(60) * BLOCK_BYTES])
        length = rng.choice([1, 4096, BLOCK_BYTES, 3 * BLOCK_BYTES + 1, LENGTH])
        expected = chunk.content[offset : offset + length]
        assert chunk.read(offset, length) == expected
        resident = chunk.store.read_resident(chunk.digest, offset, length)
        assert resident is None or bytes(resident) == expected


def test_a_part_that_decayed_after_it_was_read_is_not_returned(chunk: Chunk) -> None:
    assert chunk.read(500_000, 4096) == chunk.content[500_000:504_096]
    chunk.flip(100_000)
    assert chunk.read(500_000, 4096) == chunk.content[500_000:504_096]
    with pytest.raises(CorruptChunk):
        chunk.read(99_000, 4096)
    chunk.flip(100_000)
    assert chunk.read(99_000, 4096) == chunk.content[99_000:103_096]


def test_small_reads_of_a_large_chunk_read_little(
    chunk: Chunk, monkeypatch: pytest.MonkeyPatch
) -> None:
    chunk.read(0, 4096)
    taken = []
    real = os.pread

    def pread(fd: int, length: int, offset: int) -> bytes:
        taken.append(length)
        return real(fd, length, offset)

    monkeypatch.setattr(os, "pread", pread)
    for offset in range(0, LENGTH, 50_000):
        chunk.read(offset, 4096)
    assert taken
    assert max(taken) <= 2 * BLOCK_BYTES
