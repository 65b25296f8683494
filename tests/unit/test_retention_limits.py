"""Of some files more is kept than of others, and history takes no more than it may."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path as FilePath

import msgspec
import pytest

from nexus_engine import errors
from nexus_engine.check.fsck import check
from nexus_engine.config import ClassRule, Retention, Thinning, bytes_of
from nexus_engine.history import snapshots
from nexus_engine.history.versions import read_content, versions
from nexus_engine.meta import retention_queries, retention_rules
from nexus_engine.retention import gc
from nexus_engine.retention.prune import foresee, prune
from nexus_engine.types import Seq
from tests.unit.retaining import DAY, HOUR, beside, seal, stored
from tests.unit.worlds import ALICE, World

KEEP = retention_rules.TAG_KEEP


@pytest.fixture
async def world(tmp_path: FilePath) -> AsyncIterator[World]:
    world = World(tmp_path / "store")
    yield world
    assert world.problems(deep=True) == []
    await world.close()


def contents(world: World, path: str) -> list[bytes]:
    """Return everything that can still be read of a file, newest first."""
    found = []
    for version in versions(world.database, *world.place(path)):
        view = world.database.as_of(version.moment)
        inode = view.get_inode(version.ino)
        found.append(read_content(world.store, view, inode, 0, inode.size))
    return found


async def rewrite(world: World, path: str, count: int, step_ns: int = DAY) -> list[bytes]:
    """Give a file so many contents, one after the other; return them, newest first."""
    written = []
    for number in range(count):
        content = b"%s %d" % (path.encode(), number)
        await world.write(path, content)
        written.append(content)
        world.clock.now_ns += step_ns
    return written[::-1]


async def test_a_class_may_keep_more_than_the_store(world: World) -> None:
    await world.mkdir("contracts")
    await world.mkdir("contracts/old")
    kept = await rewrite(world, "contracts/old/a", 10)
    await rewrite(world, "other", 2)
    policy = Retention(keep_all="1d", classes=[ClassRule("52w", paths=["/contracts"])])
    prune(world.store, policy, ALICE)
    assert contents(world, "contracts/old/a")[:10] == kept
    assert contents(world, "other") == [b"other 1"]


async def test_the_first_class_counts(world: World) -> None:
    await world.mkdir("contracts")
    await world.mkdir("contracts/node_modules")
    kept = await rewrite(world, "contracts/node_modules/a", 5)
    policy = Retention(
        keep_all="1d",
        classes=[
            ClassRule("52w", paths=["/contracts"]),
            ClassRule("1h", names=["node_modules"]),
        ],
    )
    prune(world.store, policy, ALICE)
    assert contents(world, "contracts/node_modules/a")[:5] == kept


async def test_of_each_file_so_many_contents_stay(world: World) -> None:
    """Besides those that keep_all keeps anyway."""
    old = await rewrite(world, "old", 9)
    new = await rewrite(world, "new", 9, step_ns=HOUR)
    prune(
        world.store, Retention(keep_all="10h", thin=[Thinning("1h", "52w")], max_versions=3), ALICE
    )
    assert contents(world, "old") == old[:3]
    assert contents(world, "new")[:9] == new
    first = world.inode("old").content_seq
    with pytest.raises(errors.HistoryExpired):
        world.read("old", Seq(first - 5))


async def test_a_class_may_have_a_number_of_contents_of_its_own(world: World) -> None:
    await world.mkdir("logs")
    log = await rewrite(world, "logs/log", 9)
    other = await rewrite(world, "other", 9)
    policy = Retention(keep_all="52w", classes=[ClassRule(paths=["/logs"], max_versions=2)])
    prune(world.store, policy, ALICE)
    assert contents(world, "logs/log") == log[:2]
    assert contents(world, "other")[:9] == other


@pytest.mark.parametrize("tagged", ["dir", "dir/file"])
async def test_what_is_tagged_keeps_everything(world: World, tagged: str) -> None:
    """Also of a class, and also when it is removed."""
    await world.mkdir("dir")
    kept = await rewrite(world, "dir/file", 6)
    await world.setxattr(tagged, KEEP, b"")
    other = await rewrite(world, "other", 6)
    policy = Retention(
        keep_all="1d", max_versions=2, classes=[ClassRule("1h", names=["dir", "other"])]
    )
    prune(world.store, policy, ALICE)
    assert contents(world, "dir/file")[:6] == kept
    assert contents(world, "other") == other[:1]
    if tagged == "dir/file":
        await world.unlink("dir/file")
        world.clock.now_ns += 100 * DAY
        await world.write("later", b"")
        prune(world.store, policy, ALICE)
        assert contents(world, "dir/file")[:6] == kept


async def test_a_version_opens_though_the_operation_that_made_it_is_not_kept(world: World) -> None:
    """It is listed as long as some kept moment has it, and none is listed that cannot be read."""
    await rewrite(world, "file", 3, step_ns=HOUR)
    await world.chmod("file", 0o600)
    world.clock.now_ns += 2 * DAY
    await world.write("file", b"last")
    world.clock.now_ns += 12 * HOUR
    prune(world.store, Retention(keep_all="1d"), ALICE)
    found = versions(world.database, *world.place("file"))
    assert [world.read("file", version.moment) for version in found] == [b"last", b"file 2"]
    assert found[1].seq < retention_queries.pruned_to(world.database.connection)


async def test_history_takes_no_more_than_it_may(world: World) -> None:
    """The oldest moments go first; keep_all, snapshots and the present stay."""
    policy = Retention(keep_all="1d", thin=[Thinning("1h", "52w")], max_history="1MiB")
    await world.write("pinned", os.urandom(100_000))
    snapshots.create(world.store, "pin", ALICE)
    await world.unlink("pinned")
    for day in range(60):
        await world.write("big", os.urandom(50_000))
        world.clock.now_ns += DAY
        if day == 40:
            await world.write("present", os.urandom(2_000_000))
    await seal(world)
    for _ in range(2):
        done = await beside(world, lambda store: prune(store, policy, ALICE))
        assert done.excess_bytes == 0
    await beside(world, lambda store: gc.collect(store, dead_share=0.01))
    history = 1 << 20
    present = 2_050_000
    assert present + history * 0.9 < stored(world) < present + history * 1.05
    assert len(world.read("pinned", snapshots.list_all(world.database)[0].seq)) == 100_000
    assert len(contents(world, "big")) > 15


async def test_what_must_stay_may_be_above_the_limit_and_is_said(world: World) -> None:
    policy = Retention(keep_all="52w", max_history="64KiB")
    for _ in range(5):
        await world.write("big", os.urandom(50_000))
    done = prune(world.store, policy, ALICE)
    assert 4 * 50_000 - 65_536 < done.excess_bytes < 4 * 51_000 - 65_536
    assert len(contents(world, "big")) >= 5


async def test_what_is_foreseen_is_what_comes(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows and records exactly; bytes within the headers of the packs."""
    monkeypatch.setattr("nexus_engine.cas.writer.PACK_SIZE", 300_000)
    policy = Retention(
        keep_all="2d", thin=[Thinning("1d", "9d")], keep_log="3d", max_versions=4,
        classes=[ClassRule("1h", names=["node_modules"]), ClassRule("52w", paths=["/kept"])],
    )  # fmt: skip
    for directory in ("kept", "app", "app/node_modules"):
        await world.mkdir(directory)
    for day in range(20):
        for path in ("kept/a", "app/b", "app/node_modules/c", f"app/node_modules/{day}"):
            await world.write(path, os.urandom(30_000))
        if day > 2:
            await world.unlink(f"app/node_modules/{day - 2}")
        world.clock.now_ns += DAY
    await seal(world)
    world.clock.step_ns = 0
    _, foreseen = foresee(world.store, policy)
    before = stored(world)
    done = await beside(world, lambda store: prune(store, policy, ALICE))
    collected = await beside(world, gc.collect)
    assert (done.rows, done.records) == (foreseen.rows, foreseen.records)
    assert foreseen.freed_bytes <= foreseen.unnamed_bytes + 32 * collected.packs
    assert collected.freed_bytes == pytest.approx(foreseen.freed_bytes, rel=0.01)
    await seal(world)
    assert before - stored(world) == pytest.approx(foreseen.freed_bytes, rel=0.01)
    assert check(world.store, deep=True) == []


def test_limits_are_sizes_or_shares_of_the_disk() -> None:
    assert bytes_of("500MiB", 0) == 500 << 20
    assert bytes_of("1.5 GiB", 0) == 3 << 29
    assert bytes_of("30%", 1000) == 300


@pytest.mark.parametrize(
    "setting",
    [
        {"max_history": "lots"},
        {"max_versions": 0},
        {"keep_log": "1h"},
        {"classes": [{"names": ["x"]}]},
        {"classes": [{"names": ["x"], "keep": "1d", "max_versions": 0}]},
    ],
)
def test_what_cannot_be_a_policy_is_refused(setting: dict[str, object]) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"keep_all": "1d", **setting}, Retention)
