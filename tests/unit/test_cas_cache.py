"""The chunk cache: recently used chunks stay, and the bound holds."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from hypothesis import given
from hypothesis import strategies as st

from nexus_engine.cas.cache import ENTRY_OVERHEAD, ChunkCache
from nexus_engine.types import Digest


def digest_of(number: int) -> Digest:
    return Digest(number.to_bytes(32, "big"))


def test_the_least_recently_used_chunk_goes_first() -> None:
    """Being found counts as use."""
    cache = ChunkCache(3 * (100 + ENTRY_OVERHEAD))
    for number in range(3):
        cache.put(digest_of(number), bytes(100))
    assert cache.find(digest_of(0)) is not None
    cache.put(digest_of(3), bytes(100))
    assert [cache.find(digest_of(n)) is not None for n in range(4)] == [True, False, True, True]


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 3000)), max_size=60))
def test_the_bound_holds_whatever_is_put(puts: list[tuple[int, int]]) -> None:
    """Counting each entry's overhead, and each digest once."""
    cache = ChunkCache(8000)
    for number, length in puts:
        cache.put(digest_of(number), bytes(length))
        assert cache.used_bytes <= 8000
    kept = [content for n in range(21) if (content := cache.find(digest_of(n))) is not None]
    assert cache.used_bytes == sum(len(content) + ENTRY_OVERHEAD for content in kept)


def test_a_chunk_larger_than_the_cache_evicts_nothing() -> None:
    """One huge read must not throw out everything else for nothing."""
    cache = ChunkCache(1000)
    cache.put(digest_of(1), b"small")
    cache.put(digest_of(2), bytes(1001))
    assert cache.find(digest_of(1)) == b"small"
    assert cache.find(digest_of(2)) is None


def test_threads_keep_the_count_right() -> None:
    """Lost updates of the sum would let the cache grow, or empty it."""
    cache = ChunkCache(50_000)

    def churn(seed: int) -> None:
        for step in range(3000):
            number = (seed * 7 + step * 13) % 200
            cache.put(digest_of(number), bytes(number * 5))
            cache.find(digest_of((number + seed) % 200))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(churn, range(8)))
    kept = [content for n in range(200) if (content := cache.find(digest_of(n))) is not None]
    assert 0 < cache.used_bytes <= 50_000
    assert cache.used_bytes == sum(len(content) + ENTRY_OVERHEAD for content in kept)
