"""Byte ranges in memory, against a bytearray that does the same the slow way."""

from __future__ import annotations

from hashlib import sha256
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from nexus_engine.fs.extents import CHUNK_BYTES, DirtyMap, ExtentMap
from nexus_engine.types import Digest, Extent

SPAN = 64


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("put"), st.integers(0, SPAN - 1), st.integers(1, SPAN)),
            st.tuples(st.just("truncate"), st.integers(0, SPAN), st.just(0)),
        ),
        max_size=30,
    )
)
def test_later_extents_cover_earlier_ones(steps: list[tuple[str, int, int]]) -> None:
    """Each byte shows the slice of the extent that was laid over it last."""
    extents = ExtentMap()
    expected: list[tuple[bytes, int] | None] = [None] * (2 * SPAN)
    for number, (kind, position, length) in enumerate(steps):
        if kind == "put":
            digest = Digest(number.to_bytes(32, "big"))
            extents.put(Extent(position, length, digest, 1000))
            for offset in range(length):
                expected[position + offset] = (digest, 1000 + offset)
        else:
            extents.truncate(position)
            expected[position:] = [None] * (2 * SPAN - position)

    found: list[tuple[bytes, int] | None] = [None] * (2 * SPAN)
    for extent in extents.all():
        for offset in range(extent.length):
            assert found[extent.start + offset] is None, "extents overlap"
            found[extent.start + offset] = (extent.digest, extent.chunk_offset + offset)
    assert found == expected
    for start in range(0, 2 * SPAN, 7):
        overlapping = extents.overlapping(start, start + 5)
        assert overlapping == [e for e in extents.all() if e.start < start + 5 and e.end > start]


_offsets = st.one_of(
    st.integers(0, 40),
    st.integers(CHUNK_BYTES - 20, CHUNK_BYTES + 20),
    st.integers(2 * CHUNK_BYTES - 5, 2 * CHUNK_BYTES + 5),
)


@settings(deadline=None)
@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("write"), _offsets, st.integers(1, 30)),
            st.tuples(st.just("truncate"), _offsets, st.just(0)),
        ),
        max_size=20,
    )
)
def test_dirty_ranges_hold_the_bytes_written_last(steps: list[tuple[str, int, int]]) -> None:
    """What is dirty, and only that, with its latest bytes; no range crosses a chunk boundary."""
    dirty = DirtyMap()
    expected: dict[int, int] = {}
    for number, (kind, position, length) in enumerate(steps, start=1):
        if kind == "write":
            dirty.write(position, bytes([number]) * length)
            expected.update(dict.fromkeys(range(position, position + length), number))
        else:
            dirty.truncate(position)
            expected = {at: value for at, value in expected.items() if at < position}

    ranges = dirty.ranges()
    found = {r.start + i: value for r in ranges for i, value in enumerate(r.data)}
    assert found == expected
    assert dirty.bytes == len(expected) == sum(len(r.data) for r in ranges)
    assert all(r.start // CHUNK_BYTES == (r.end - 1) // CHUNK_BYTES for r in ranges)
    pairs = pairwise(ranges)
    assert all(a.end < b.start or a.end % CHUNK_BYTES == 0 for a, b in pairs)
    assert bool(dirty) == bool(expected)

    dirty.remove(ranges)
    assert dirty.bytes == 0
    assert not dirty


def test_a_large_write_fills_whole_chunks() -> None:
    """Equal content gives equal chunks: files are cut at multiples of the chunk size."""
    dirty = DirtyMap()
    dirty.write(CHUNK_BYTES // 2, bytes(2 * CHUNK_BYTES))
    assert [(r.start, len(r.data)) for r in dirty.full_ranges()] == [(CHUNK_BYTES, CHUNK_BYTES)]
    assert len(dirty.ranges()) == 3


_quarters = st.integers(0, 12).map(lambda number: number * (CHUNK_BYTES // 4))


@settings(max_examples=50)
@given(
    st.lists(st.tuples(st.sampled_from(["write", "truncate"]), _quarters, _quarters), max_size=12)
)
def test_a_digest_that_was_computed_ahead_is_that_of_the_bytes(
    steps: list[tuple[str, int, int]],
) -> None:
    """Also where a whole chunk was written over, in part or all of it, or cut off, since."""
    dirty = DirtyMap()
    for number, (kind, position, length) in enumerate(steps, start=1):
        if kind == "truncate":
            dirty.truncate(position)
        elif length:
            dirty.write(position, bytes([number]) * length)
        for whole in dirty.full_ranges():
            whole.hash_ahead()

    for found in dirty.ranges():
        assert (found.ahead is not None) == (len(found.data) == CHUNK_BYTES)
        if found.ahead is not None:
            assert found.ahead.result() == sha256(found.data).digest()
