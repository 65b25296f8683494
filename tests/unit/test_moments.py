"""Moments: what people type, and the state that it stands for."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path as FilePath

import pytest

from nexus_engine import errors
from nexus_engine.history import snapshots
from nexus_engine.history.moments import is_reserved, latest_moments, parse_time, resolve_moment
from nexus_engine.types import Ino, Path, Seq
from tests.unit.worlds import ALICE, BEGIN_NS, SECOND, World

NOW = BEGIN_NS + 500_000_000
"""2026-11-18T11:06:40.5Z"""
HOUR = 3600 * SECOND


@pytest.fixture
def zone(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    yield monkeypatch
    monkeypatch.undo()
    time.tzset()


@pytest.fixture
async def world(tmp_path: FilePath) -> AsyncIterator[World]:
    world = World(tmp_path / "store")
    yield world
    await world.close()


def iso(text: str) -> int:
    """Return a UTC time as nanoseconds, the slow and obvious way."""
    import calendar

    return calendar.timegm(time.strptime(text, "%Y-%m-%dT%H:%M:%S")) * SECOND


@pytest.mark.parametrize(
    ("text", "age_s"),
    [
        ("0s", 0), ("90s", 90), ("15m", 900), ("2h", 7200), ("3d", 3 * 86_400),
        ("1w", 7 * 86_400), ("1h30m", 5400), ("1w2d3h4m5s", 788_645),
    ],
)  # fmt: skip
def test_an_age_counts_back_from_now(text: str, age_s: int) -> None:
    assert parse_time(text, NOW) == NOW - age_s * SECOND


@pytest.mark.parametrize(
    ("text", "utc"),
    [
        ("2026", "2025-12-31T23:00:00"),
        ("2026-11", "2026-10-31T23:00:00"),
        ("2026-11-22", "2026-11-21T23:00:00"),
        ("2026-11-22T05", "2026-11-22T04:00:00"),
        ("2026-11-22T05:40", "2026-11-22T04:40:00"),
        ("2026-11-22 05:40:10", "2026-11-22T04:40:10"),
        ("2026-07-22T05:40:10", "2026-07-22T03:40:10"),
        ("2026-11-22T05:40:10Z", "2026-11-22T05:40:10"),
        ("2026-11-22T05:40:10+02:00", "2026-11-22T03:40:10"),
        ("2026-11-22T05:40-0330", "2026-11-22T09:10:00"),
        ("2026-11-22t05z", "2026-11-22T05:00:00"),
        ("1969-12-31T23:00:00Z", "1969-12-31T23:00:00"),
    ],
)
def test_a_time_of_any_precision_is_the_beginning_of_its_period(
    zone: pytest.MonkeyPatch, text: str, utc: str
) -> None:
    assert parse_time(text, NOW) == iso(utc)


def test_a_fraction_counts_to_the_nanosecond(zone: pytest.MonkeyPatch) -> None:
    base = iso("2026-11-22T04:40:10")
    assert parse_time("2026-11-22T05:40:10.123456789", NOW) == base + 123_456_789
    assert parse_time("2026-11-22T05:40:10.5", NOW) == base + 500_000_000
    assert parse_time("2026-11-22T04:40:10,25Z", NOW) == base + 250_000_000


def test_days_are_local_and_keep_the_clock_over_a_change_of_time(
    zone: pytest.MonkeyPatch,
) -> None:
    noon = iso("2026-10-25T11:00:00")  # 12:00; summer time ended this morning
    assert parse_time("today", noon) == iso("2026-10-24T22:00:00")
    assert parse_time("yesterday", noon) == iso("2026-10-24T10:00:00")
    assert parse_time("now", noon) == noon


@pytest.mark.parametrize(
    "text",
    ["2026-13", "2026-02-30", "2026-11-22T25", "2026-11-22T05:61", "0000", "2026-1-1",
     "2026-11-22T05:40:10.1234567891", "2026-11-22T05:40+99:00", "2026-11-22Tnoon", "2026-11-22T5"],
)  # fmt: skip
async def test_a_time_that_does_not_exist_is_refused(world: World, text: str) -> None:
    with pytest.raises(errors.InvalidMoment, match=text[:7]):
        resolve_moment(world.database, text, NOW)


async def test_what_is_no_moment_gets_told_the_forms(world: World) -> None:
    for text in ("", "tomorrow", "2 h", "h", "-2h", "op-", "op-x", "\uff12h", "\udcff"):
        with pytest.raises(errors.InvalidMoment, match="snapshot's name"):
            resolve_moment(world.database, text, NOW)


async def test_a_time_is_the_last_operation_at_or_before_it(world: World) -> None:
    world.clock.step_ns = 0
    seqs = []
    for number in range(1, 30):
        world.clock.now_ns = BEGIN_NS + number * 10 * SECOND
        await world.mkdir(f"d{number}")
        seqs.append((world.clock.now_ns, world.head))
    now = world.clock.now_ns + HOUR
    for at, seq in seqs:
        for moment, expected in ((at, seq), (at + SECOND, seq), (at - SECOND, Seq(seq - 1))):
            text = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(moment // SECOND))
            assert resolve_moment(world.database, text, now) == expected
    assert resolve_moment(world.database, "1h", now) == world.head
    assert resolve_moment(world.database, "1h10s", now) == world.head - 1
    assert resolve_moment(world.database, "now", now) == world.head
    assert resolve_moment(world.database, "2099", now) == world.head


async def test_operations_of_one_nanosecond_all_count(world: World) -> None:
    """A clock that was set back makes many operations share a time."""
    await world.mkdir("a")
    world.clock.now_ns -= HOUR
    for name in "bcd":
        await world.mkdir(name)
    assert resolve_moment(world.database, "now", world.clock.now_ns + 2 * HOUR) == world.head


async def test_before_the_beginning_says_when_that_was(world: World) -> None:
    with pytest.raises(errors.InvalidMoment, match=r"first moment is op-1, 2026-11-1") as caught:
        resolve_moment(world.database, "2h", NOW)
    begin = str(caught.value).rpartition(" ")[2]
    assert resolve_moment(world.database, begin, NOW) >= 1
    with pytest.raises(errors.InvalidMoment):
        resolve_moment(world.database, "before-op-1", NOW)


async def test_operations_by_number(world: World) -> None:
    await world.mkdir("a")
    await world.mkdir("b")
    assert resolve_moment(world.database, "op-2", NOW) == 2
    assert resolve_moment(world.database, "before-op-3", NOW) == 2
    for text in ("op-0", "op-4", "before-op-9", "op-999999999999999999"):
        with pytest.raises(errors.InvalidMoment, match="the last one is op-3"):
            resolve_moment(world.database, text, NOW)


async def test_snapshots_resolve_where_nothing_else_does(world: World) -> None:
    await world.mkdir("a")
    seq = snapshots.create(world.store, "before the flood", ALICE)
    await world.mkdir("b")
    assert resolve_moment(world.database, "before the flood", NOW) == seq == 2


def test_everything_with_a_form_of_its_own_is_reserved() -> None:
    for text in (
        "now",
        "today",
        "2h",
        "1h30m",
        "op-1",
        "before-op-1",
        "2026",
        "2026-11-22",
        "2026-99",
    ):
        assert is_reserved(text), text
    for text in ("release-1.0", "before", "h", "20261", "op", "now2", "2026-final"):
        assert not is_reserved(text), text


async def test_latest_moments_resolve_to_their_change_and_not_to_the_next(world: World) -> None:
    world.clock.step_ns = 7_300_000
    directory = await world.mkdir("dir")
    await world.mkdir("elsewhere")
    wanted = [world.head - 1]
    for number in range(20):
        await world.mkdir(f"elsewhere/{number}")
        await world.mkdir(f"dir/{number}")
        wanted.append(world.head)
        world.clock.now_ns += 900_000_000 * (number % 3)
    now = world.clock.time_ns()
    for key in (directory.ino, Path(b"dir")):
        moments = latest_moments(world.database, key, 100, now)
        assert len(moments) == len(set(moments)) == 21
        found = [resolve_moment(world.database, text, now) for text in moments]
        newest_first = list(reversed(wanted))
        for seq, change, newer in zip(
            found, newest_first, [world.head + 1, *newest_first], strict=False
        ):
            assert change <= seq < newer
    assert len(latest_moments(world.database, directory.ino, 5, now)) == 5


async def test_a_moment_offered_never_comes_to_mean_more(world: World) -> None:
    """The kernel may keep what it looked up: a whole second is offered once it is over."""
    directory = await world.mkdir("dir")
    now = world.clock.time_ns()
    (moment,) = latest_moments(world.database, directory.ino, 10, now)
    await world.mkdir("dir/more")
    assert resolve_moment(world.database, moment, now + HOUR) == world.head - 1


async def test_changes_at_the_same_nanosecond_are_told_apart_by_number(world: World) -> None:
    world.clock.step_ns = 0
    directory = await world.mkdir("dir")
    await world.mkdir("dir/a")
    now = world.clock.now_ns + SECOND
    assert latest_moments(world.database, directory.ino, 10, now)[1] == f"op-{world.head - 1}"


async def test_a_directory_that_moved_keeps_its_moments(world: World) -> None:
    await world.mkdir("top")
    await world.mkdir("top/dir")
    directory = world.inode("top/dir").ino
    await world.write("top/dir/file", b"1")
    await world.rename("top/dir", "top/renamed")
    await world.rename("top", "peak")
    await world.write("peak/renamed/file", b"2")
    now = world.clock.now_ns + HOUR
    found = [
        resolve_moment(world.database, text, now)
        for text in latest_moments(world.database, directory, 100, now)
    ]
    # mkdir, create, write, rename; not the rename of its parent; write.
    assert [world.head - seq for seq in found] == [0, 2, 3, 4, 5]


async def test_snapshots_are_no_changes(world: World) -> None:
    await world.mkdir("dir")
    for number in range(5):
        snapshots.create(world.store, f"s{number}", ALICE)
    now = world.clock.now_ns + HOUR
    assert len(latest_moments(world.database, Ino(1), 10, now)) == 2
