"""Times in 64 bits: exact where they are likely, ordered and close everywhere."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexus_engine.times import pack_time, unpack_time

INT64 = range(-(2**63), 2**63)
YEAR_NS = 31_556_952 * 10**9
times = st.integers(-2500 * YEAR_NS, 2500 * YEAR_NS)


@given(times)
def test_a_time_comes_back_to_the_microsecond(ns: int) -> None:
    assert pack_time(ns) in INT64
    assert 0 <= ns - unpack_time(pack_time(ns)) < 1000


@given(st.integers(-280 * YEAR_NS, 280 * YEAR_NS))
def test_times_of_these_centuries_come_back_exactly(ns: int) -> None:
    assert unpack_time(pack_time(ns)) == ns


@pytest.mark.parametrize("year", [1, 1000, 1600, 1901, 1969, 2038, 2106, 2263, 2486, 4000])
def test_whole_seconds_come_back_exactly(year: int) -> None:
    ns = (year - 1970) * YEAR_NS // 10**9 * 10**9
    assert unpack_time(pack_time(ns)) == ns


@given(times, times)
def test_codes_are_ordered_as_times_are(first: int, second: int) -> None:
    if first < second:
        assert pack_time(first) <= pack_time(second)


def test_beyond_all_codes_the_last_one_stands() -> None:
    assert pack_time(10**40) == pack_time(10**41) in INT64
    assert pack_time(-(10**40)) == pack_time(-(10**41)) in INT64
