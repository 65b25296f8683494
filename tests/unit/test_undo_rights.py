"""Who is not root undoes what they could have changed themselves."""

from __future__ import annotations

from nexus_engine.history.select import Selector, select
from nexus_engine.history.undo import plan_undo
from tests.unit.undoing import (
    conflicts,
    told,
)
from tests.unit.worlds import ALICE, BOB, World


async def test_others_than_root_may_only_undo_what_they_could_change(world: World) -> None:
    await world.chmod("docs", 0o755)
    start = world.head
    await world.unlink("docs/b")
    await world.patch("docs/a", 0, b"X")
    await world.setattr("docs/s", mtime_ns=1)
    seqs = select(world.database, Selector(since_seq=start))
    dry = plan_undo(world.store, seqs, actor=BOB)
    assert dry.items == []
    assert {(c.path, c.what, c.reason) for c in dry.conflicts} == {
        (b"docs/b", "name", "no permission"),
        (b"docs/a", "content", "no permission"),
    }
    assert plan_undo(world.store, seqs, actor=ALICE).conflicts == []


async def test_write_permission_is_enough_for_content_but_not_for_modes(world: World) -> None:
    await world.chmod("docs/a", 0o666)
    start = world.head
    await world.patch("docs/a", 0, b"X")
    await world.chmod("docs/a", 0o606)
    seqs = select(world.database, Selector(since_seq=start))
    dry = plan_undo(world.store, seqs, actor=BOB)
    assert told(dry) == [("content", b"docs/a")]
    assert conflicts(dry) == [(b"docs/a", "mode", "")]
