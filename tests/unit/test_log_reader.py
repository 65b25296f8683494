"""Reading the log: the right records, in order, by whichever index."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from itertools import islice
from pathlib import Path as FilePath

import pytest

from nexus_engine import errors
from nexus_engine.meta import log_queries
from nexus_engine.meta.transaction import Transaction
from nexus_engine.oplog.reader import LogQuery, entries, follow, get_entry, is_undone
from nexus_engine.records import Change, Record
from nexus_engine.types import ROOT_INO, Path, Seq
from tests.unit.worlds import ALICE, BOB, World


@pytest.fixture
async def world(tmp_path: FilePath) -> AsyncIterator[World]:
    """Two agents take turns in two directories."""
    world = World(tmp_path / "store")
    await world.mkdir("a")
    await world.mkdir("b")
    for number in range(30):
        world.actor = (ALICE, BOB)[number % 2]
        directory = "ab"[number // 2 % 2]
        await world.write(f"{directory}/f{number}", b"%d" % number)
        if number % 5 == 0:
            await world.rename(f"{directory}/f{number}", f"b/moved{number}")
    yield world
    await world.close()


@pytest.fixture(
    params=[(3, 0), (20_000, 0), (3, 1000)], ids=["by index", "one by one", "few by index"]
)
def scanned(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """All ways to find records must agree."""
    records, few = request.param
    monkeypatch.setattr(log_queries, "SCAN_RECORDS", records)
    monkeypatch.setattr(log_queries, "FEW_HITS", few)


def in_directory(name: bytes) -> Callable[[Record], bool]:
    def is_in(record: Record) -> bool:
        paths = [record.path, record.path2 or b""]
        return any(path == name or path.startswith(name + b"/") for path in paths)

    return is_in


QUERIES: list[tuple[LogQuery, Callable[[Record], bool]]] = [
    (LogQuery(), lambda r: True),
    (LogQuery(path=Path(b"a")), in_directory(b"a")),
    (LogQuery(path=Path(b"b")), in_directory(b"b")),
    (LogQuery(path=Path(b"a/f1")), in_directory(b"a/f1")),
    (LogQuery(path=Path(b"")), lambda r: True),
    (LogQuery(agent="alice"), lambda r: r.actor.agent == "alice"),
    (LogQuery(pid=52), lambda r: r.actor.pid == 52),
    (LogQuery(session=50, kind="write"), lambda r: r.actor == BOB and r.kind == "write"),
    (LogQuery(uid=1000), lambda r: r.actor.uid == 1000),
    (LogQuery(kind="rename"), lambda r: r.kind == "rename"),
    (LogQuery(since_seq=Seq(10), until_seq=Seq(20)), lambda r: 10 <= r.seq <= 20),
    (LogQuery(path=Path(b"a"), until_seq=Seq(30)), lambda r: in_directory(b"a")(r) and r.seq <= 30),
    (LogQuery(path=Path(b"b"), agent="bob"), lambda r: in_directory(b"b")(r) and r.actor == BOB),
    (LogQuery(agent="nobody"), lambda r: False),
    (LogQuery(path=Path(b"nowhere")), lambda r: False),
]


@pytest.mark.usefixtures("scanned")
@pytest.mark.parametrize(("query", "wanted"), QUERIES, ids=map(str, range(len(QUERIES))))
@pytest.mark.parametrize("newest_first", [True, False])
async def test_a_query_finds_what_a_look_at_every_record_finds(
    world: World, query: LogQuery, wanted: Callable[[Record], bool], newest_first: bool
) -> None:
    everything = [get_entry(world.database, Seq(seq)).record for seq in range(1, world.head + 1)]
    expected = [record for record in everything if wanted(record)]
    if newest_first:
        expected.reverse()
    query = query._replace(newest_first=newest_first)
    assert [entry.record for entry in entries(world.database, query)] == expected
    limited = [entry.record for entry in entries(world.database, query._replace(limit=4))]
    assert limited == expected[:4]


async def test_a_record_says_who_and_what(world: World) -> None:
    entry = get_entry(world.database, Seq(4))
    assert (entry.record.kind, entry.record.path, entry.record.actor) == ("create", b"a/f0", ALICE)
    assert not entry.undone
    with pytest.raises(errors.InvalidMoment, match="no operation op-1000"):
        get_entry(world.database, Seq(1000))


def reverse(world: World, target: Seq) -> Seq:
    def rule(tx: Transaction) -> Seq:
        tx.add_reversal(target)
        return tx.commit(Change("undo", ROOT_INO, Path(b""), undoes=target))

    return world.store.transact(rule, BOB)


@pytest.mark.usefixtures("scanned")
async def test_undone_is_turned_around_by_each_undo_of_the_undo(world: World) -> None:
    target = Seq(5)
    first = reverse(world, target)
    assert get_entry(world.database, target).undone
    redo = reverse(world, first)
    assert not is_undone(world.database, target)
    assert is_undone(world.database, first)
    reverse(world, redo)
    states = {entry.record.seq: entry.undone for entry in entries(world.database, LogQuery())}
    assert (states[target], states[first], states[redo]) == (True, False, True)
    reverse(world, target)
    assert is_undone(world.database, target)


@pytest.mark.usefixtures("scanned")
async def test_an_undo_belongs_to_the_paths_of_what_it_reversed(world: World) -> None:
    undo = reverse(world, Seq(4))
    redo = reverse(world, undo)
    of_a = [e.record.seq for e in islice(entries(world.database, LogQuery(path=Path(b"a"))), 2)]
    of_b = [e.record.seq for e in entries(world.database, LogQuery(path=Path(b"b")))]
    assert of_a == [redo, undo]
    assert undo not in of_b
    since = LogQuery(path=Path(b"a"), since_seq=redo)  # what it reversed was long before
    assert [e.record.seq for e in entries(world.database, since)] == [redo]


async def test_following_yields_what_came_after(world: World) -> None:
    head = world.head
    assert list(follow(world.database, head)) == []
    await world.mkdir("c")
    await world.mkdir("d")
    assert [entry.record.path for entry in follow(world.database, head)] == [b"c", b"d"]
    assert [entry.record.seq for entry in follow(world.database, Seq(0))] == list(
        range(1, world.head + 1)
    )
