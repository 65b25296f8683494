"""Scrub: all content is read, what decayed is named, and it goes on where it stopped."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from pathlib import Path as FilePath

import pytest

from nexus_engine.check.scrub import load_state, scrub, summary
from nexus_engine.config import Scrub, parse_bytes
from tests.unit.test_fsck import pack_file
from tests.unit.worlds import World

FAST = 10**12
CONTENT = [random.Random(seed).randbytes(5000) for seed in range(20)]


@pytest.fixture
async def world(tmp_path: FilePath) -> AsyncIterator[World]:
    world = World(tmp_path / "store")
    for number in range(20):
        await world.write(f"f{number}", CONTENT[number])
    await world.write("f3", b"new content of this one")
    world.store.chunks.sync()
    yield world
    world.store.chunks.close()
    world.database.close()


def flip(world: World, content: bytes) -> None:
    path = pack_file(world)
    data = bytearray(path.read_bytes())
    data[data.index(content) + len(content) // 2] ^= 4
    path.write_bytes(data)


async def test_sound_content_is_whole(world: World) -> None:
    done = scrub(world.store, rate_bytes=FAST)
    assert (done.complete, done.resumed, done.chunks, done.problems) == (True, False, 21, [])
    assert summary(world.store)["scrub_damaged_files"] == 0
    assert summary(world.store)["scrub_ended_ns"] > 0


async def test_damaged_files_are_named_now_and_in_the_past(world: World) -> None:
    flip(world, CONTENT[3])
    flip(world, CONTENT[5])
    done = scrub(world.store, rate_bytes=FAST)
    named = {(p.code, p.where) for p in done.problems if p.code != "chunk-content"}
    (now, then) = sorted(named)
    assert now == ("content-lost", f"/f5 (inode {world.inode('f5').ino})")
    assert then == ("content-lost-past", f"/f3 (inode {world.inode('f3').ino})")
    assert len([p for p in done.problems if p.code == "chunk-content"]) == 2
    assert summary(world.store)["scrub_damaged_files"] == 2


async def test_it_goes_on_where_it_stopped_and_forgets_no_damage(world: World) -> None:
    flip(world, CONTENT[0])
    flip(world, CONTENT[19])
    rounds, stop_after = 0, 3

    def pause(_: float) -> bool:
        nonlocal stop_after
        stop_after -= 1
        return stop_after == 0

    while True:
        stop_after, rounds = 3, rounds + 1
        done = scrub(world.store, rate_bytes=FAST, pause=pause)
        assert done.resumed == (rounds > 1)
        if done.complete:
            break
        assert done.chunks == 3 * rounds
        assert summary(world.store)["scrub_read_bytes"] == done.read_bytes
    assert (rounds, done.chunks) == (8, 21)
    named = {p.where.partition(" ")[0] for p in done.problems if p.code == "content-lost"}
    assert named == {"/f0", "/f19"}
    assert load_state(world.store).pack == 0


async def test_it_reads_no_faster_than_it_may(world: World) -> None:
    waits: list[float] = []

    def pause(seconds: float) -> bool:
        waits.append(seconds)
        return False

    done = scrub(world.store, rate_bytes=1000, pause=pause)
    assert waits == sorted(waits)
    assert waits[-1] == pytest.approx(done.read_bytes / 1000, rel=0.1)


async def test_a_pack_that_is_gone_is_damage(world: World) -> None:
    path = pack_file(world)
    path.rename(path.with_suffix(".away"))
    assert len(scrub(world.store, rate_bytes=FAST).problems) == 21 + 21
    path.with_suffix(".away").rename(path)
    assert scrub(world.store, rate_bytes=FAST).problems == []


async def test_a_note_that_is_garbage_begins_anew(world: World) -> None:
    world.database.set_store_value("scrub", '{"pack": "x"')
    assert scrub(world.store, rate_bytes=FAST).chunks == 21
    world.database.set_store_value("scrub", 7)
    assert scrub(world.store, rate_bytes=FAST).chunks == 21


@pytest.mark.parametrize(
    ("text", "value"), [("1", 1), ("500K", 500_000), ("50M", 50_000_000), ("2G", 2_000_000_000)]
)
def test_numbers_of_bytes(text: str, value: int) -> None:
    assert parse_bytes(text) == value


@pytest.mark.parametrize("text", ["", "M", "-1", "0", "1.5M", "1T", "²"])
def test_what_is_no_number_of_bytes(text: str) -> None:
    with pytest.raises(ValueError):
        parse_bytes(text)
    with pytest.raises(ValueError):
        Scrub(rate=text)
