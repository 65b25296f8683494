"""Workspaces as commands: who may ask what, and what the replies hold."""

from __future__ import annotations

from typing import Any

import pytest

from nexus_engine import errors
from nexus_engine.commands import Request, execute, ignore_progress, workspaces
from nexus_engine.types import Actor
from tests.unit.undoing import ROOT
from tests.unit.worlds import ALICE, BOB, World


def ask(world: World, actor: Actor, verb: str, **args: object) -> dict[str, Any]:
    request = Request(f"workspace-{verb}", args)
    return execute(world.store, request, actor, ignore_progress)


async def test_who_may_not_read_the_base_or_write_where_it_is_to_be_makes_none(
    world: World,
) -> None:
    with pytest.raises(errors.PermissionDenied):
        ask(world, BOB, "create", name="w", over="docs")
    await world.chmod("", 0o777)
    await world.chmod("docs", 0o700)
    with pytest.raises(errors.PermissionDenied):
        ask(world, BOB, "create", name="w", over="docs")
    await world.chmod("docs", 0o755)
    reply = ask(world, BOB, "create", name="w", over="docs")
    assert (reply["path"], reply["over"]) == ("workspaces/w", "docs")
    assert world.inode("workspaces").uid == BOB.uid
    assert world.inode("workspaces/w").uid == ALICE.uid


async def test_a_file_that_was_not_readable_is_not_readable_in_it(world: World) -> None:
    await world.chmod("", 0o777)
    await world.chmod("docs/b", 0o600)
    ask(world, BOB, "create", name="w", over="docs")
    assert world.inode("workspaces/w/b").mode & 0o777 == 0o600
    await world.write("workspaces/w/b", b"secret")
    await world.write("workspaces/w/old/c", b"open")
    changes = ask(world, BOB, "diff", name="w")["changes"]
    patches = {change["path"]: change["patch"] for change in changes}
    assert patches["b"] == ""
    assert "+open" in patches["old/c"]
    with pytest.raises(errors.PermissionDenied):
        ask(world, BOB, "apply", name="w")


async def test_names_in_directories_that_one_may_not_list_are_hidden(world: World) -> None:
    ask(world, ROOT, "create", name="w", over="docs")
    await world.chmod("docs/old", 0o700)
    await world.chmod("workspaces/w/old", 0o700)
    await world.write("workspaces/w/old/c", b"changed")
    assert [c["path"] for c in ask(world, ALICE, "status", name="w")["changes"]] == ["old/c"]
    assert [c["path"] for c in ask(world, BOB, "status", name="w")["changes"]] == ["(hidden)"]
    await world.chmod("workspaces", 0o700)
    assert ask(world, BOB, "list")["workspaces"] == []
    with pytest.raises(errors.NotFound):
        ask(world, BOB, "status", name="w")


async def test_a_diff_comes_in_parts_with_deletions_first(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workspaces, "PATCH_BYTES", 250)
    ask(world, ROOT, "create", name="w", over="docs")
    await world.unlink("workspaces/w/b")
    for number in range(3):
        await world.write(f"workspaces/w/big{number}", b"line of a text\n" * 4)
    first = ask(world, ROOT, "diff", name="w")
    assert [c["change"] for c in first["changes"]] == ["removed", "added", "added"]
    rest = ask(world, ROOT, "diff", name="w", skip=first["next"])
    assert [c["path"] for c in rest["changes"]] == ["big2"]
    assert rest["next"] is None


async def test_what_would_be_applied_is_shown_and_not_done(world: World) -> None:
    ask(world, ROOT, "create", name="w", over="docs")
    await world.write("workspaces/w/b", b"changed")
    head = world.head
    reply = ask(world, ROOT, "apply", name="w", dry_run=True)
    assert (reply["change_count"], reply["seq"], world.head) == (1, None, head)
    reply = ask(world, ROOT, "apply", name="w", paths=["b/"])
    assert (reply["change_count"], reply["seq"]) == (1, head + 1)
