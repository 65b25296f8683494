"""Copies of far objects on the disk: bounded, verified, and nothing that anybody needs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nexus_engine.backends.block_cache import BlockCache
from nexus_engine.backends.cache_files import BLOCK_BYTES

NAME = "0123456789abcdef"


@pytest.fixture
def cache(tmp_path: Path) -> BlockCache:
    return BlockCache(tmp_path / "cache", 4 * BLOCK_BYTES)


def whole(cache: BlockCache, tmp_path: Path, content: bytes, name: str = NAME) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    cache.adopt(name, path)
    assert not path.exists()


def again(cache: BlockCache, limit_bytes: int = 4 * BLOCK_BYTES) -> BlockCache:
    """Return the cache as the next process finds it."""
    return BlockCache(cache._files.directory, limit_bytes)


def test_a_block_is_read_as_it_was_put(cache: BlockCache) -> None:
    content = os.urandom(BLOCK_BYTES)
    cache.put(NAME, 3, content)
    assert cache.read(NAME, 3, 0, BLOCK_BYTES) == content
    assert cache.read(NAME, 3, 1000, 50) == content[1000:1050]
    assert cache.read(NAME, 2, 0, 10) is None
    assert cache.read_resident(NAME, 3, 1000, 50) in (None, content[1000:1050])


def test_a_whole_object_is_read_in_blocks(cache: BlockCache, tmp_path: Path) -> None:
    content = os.urandom(2 * BLOCK_BYTES + 100)
    whole(cache, tmp_path, content)
    assert cache.read(NAME, 1, 5, 100) == content[BLOCK_BYTES + 5 : BLOCK_BYTES + 105]
    assert cache.read(NAME, 2, 0, BLOCK_BYTES) == content[2 * BLOCK_BYTES :]
    assert cache.read(NAME, 3, 0, 10) == b""


def test_it_survives_a_restart(cache: BlockCache, tmp_path: Path) -> None:
    content = os.urandom(BLOCK_BYTES + 100)
    whole(cache, tmp_path, content)
    cache.put("other", 7, b"block")
    found = again(cache)
    assert found.used_bytes == cache.used_bytes
    assert found.read(NAME, 0, 0, BLOCK_BYTES) == content[:BLOCK_BYTES]
    assert found.read("other", 7, 1, 3) == b"loc"


@pytest.mark.parametrize("index", [0, 1])
def test_after_a_restart_what_decayed_is_dropped(
    cache: BlockCache, tmp_path: Path, index: int
) -> None:
    whole(cache, tmp_path, os.urandom(BLOCK_BYTES + 100))
    flip(next(cache._files.directory.glob("*.pack")), index * BLOCK_BYTES + 10)
    found = again(cache)
    assert found.read_resident(NAME, index, 0, 50) is None
    assert found.read(NAME, index, 0, 50) is None
    assert found.used_bytes == 0
    assert list(cache._files.directory.iterdir()) == []


def test_a_block_that_decayed_is_dropped(cache: BlockCache) -> None:
    cache.put(NAME, 3, os.urandom(1000))
    flip(next(cache._files.directory.iterdir()), 10)
    assert again(cache).read(NAME, 3, 0, 50) is None


@pytest.mark.parametrize("sums", [b"", b"12345678"])
def test_copies_without_their_checksums_are_not_used(
    cache: BlockCache, tmp_path: Path, sums: bytes
) -> None:
    """As a power loss leaves them: nothing of it was synced."""
    whole(cache, tmp_path, os.urandom(BLOCK_BYTES + 100))
    next(cache._files.directory.glob("*.sums")).write_bytes(sums)
    assert again(cache).read(NAME, 0, 0, 50) is None


def test_what_was_not_read_for_longest_goes_first(cache: BlockCache) -> None:
    for index in range(4):
        cache.put(NAME, index, bytes(BLOCK_BYTES))
    cache.read(NAME, 0, 0, 1)
    cache.put(NAME, 4, bytes(BLOCK_BYTES))
    assert [cache.has(NAME, index) for index in range(5)] == [True, False, True, True, True]
    assert cache.used_bytes == 4 * BLOCK_BYTES
    assert len(list(cache._files.directory.iterdir())) == 4


def test_an_object_larger_than_the_cache_is_let_go(cache: BlockCache, tmp_path: Path) -> None:
    whole(cache, tmp_path, bytes(5 * BLOCK_BYTES))
    assert cache.read(NAME, 0, 0, 1) is None
    assert list(cache._files.directory.iterdir()) == []


def test_a_smaller_limit_holds_from_the_next_start_on(cache: BlockCache) -> None:
    for index in range(4):
        cache.put(NAME, index, bytes(BLOCK_BYTES))
    assert again(cache, BLOCK_BYTES).used_bytes == BLOCK_BYTES
    assert len(list(cache._files.directory.iterdir())) == 1


def test_what_is_forgotten_is_gone_from_the_disk_whoever_put_it(
    cache: BlockCache, tmp_path: Path
) -> None:
    """A purge destroys content."""
    other = again(cache)
    whole(other, tmp_path, os.urandom(100))
    other.put("block", 3, b"block")
    assert cache.forget(NAME)
    assert cache.forget("block")
    assert list(cache._files.directory.iterdir()) == []
    assert other.read(NAME, 0, 0, 5) is None
    assert other.read("block", 3, 0, 5) is None
    assert not cache.forget(NAME)


def test_the_limit_holds_for_several_processes_together(cache: BlockCache) -> None:
    other = again(cache)
    for index in range(8):
        cache.put("mine", index, bytes(BLOCK_BYTES))
        other.put("others", index, bytes(BLOCK_BYTES))
    assert len(list(cache._files.directory.iterdir())) <= 5


def test_what_is_none_of_ours_is_left_alone(cache: BlockCache) -> None:
    for name in ("README", "a.b.c", "x.pack", "half.new"):
        (cache._files.directory / name).write_bytes(b"?")
    assert again(cache).used_bytes == 0
    assert len(list(cache._files.directory.iterdir())) == 4


def test_where_nothing_can_be_written_nothing_is_kept(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    cache = BlockCache(tmp_path / "file" / "cache", 1 << 30)
    cache.put(NAME, 0, b"block")
    assert cache.read(NAME, 0, 0, 5) is None
    whole(cache, tmp_path, b"pack")
    assert cache.read(NAME, 0, 0, 4) is None


def flip(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1]))
