"""The verbs on a real store, without a front end."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path as FilePath
from typing import Any

import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nexus_engine import errors
from nexus_engine.commands import Reply, Request, execute, ignore_progress
from nexus_engine.commands.arguments import to_bytes, to_path, to_text
from nexus_engine.commands.reading import iter_content
from nexus_engine.commands.verbs import VERBS
from nexus_engine.engine import Engine
from nexus_engine.store import Store
from nexus_engine.types import ROOT_INO, Actor, Ino, Name

ALICE = Actor(os.geteuid(), os.getegid(), 100, 1, "python", 7, "alice")
BOB = ALICE._replace(pid=200, agent="bob")
STRANGER = Actor(12345, 12345, 300)


async def put(engine: Engine, parent: Ino, name: bytes, content: bytes, actor: Actor) -> None:
    """Write a file, made if new: one operation for the name, one for the content."""
    inode = await engine.lookup(parent, Name(name))
    if inode is None:
        handle, _ = await engine.create(parent, Name(name), 0o644, actor)
    else:
        handle = await engine.open(inode.ino, os.O_WRONLY | os.O_TRUNC, actor)
    await engine.write(handle, 0, content)
    await engine.release(handle)


async def fill(path: FilePath) -> None:
    """Make nine operations: docs, docs/a twice, a name that is not UTF-8, docs/a removed."""
    engine = Engine.start(path)
    docs = await engine.make(ROOT_INO, Name(b"docs"), 0o040755, ALICE)
    await put(engine, docs.ino, b"a", b"one\n", ALICE)
    await put(engine, docs.ino, b"a", b"two two\n", BOB)
    await put(engine, docs.ino, b"b\xff", b"x", BOB)
    await engine.unlink(docs.ino, Name(b"a"), ALICE)
    await engine.close()


@pytest.fixture
def store(tmp_path: FilePath) -> Iterator[Store]:
    Store.create(tmp_path / "store", ALICE).close()
    trio.run(fill, tmp_path / "store")
    opened = Store.open(tmp_path / "store")
    yield opened
    opened.close()


def run(store: Store, verb: str, actor: Actor = ALICE, **args: Any) -> Reply:
    reply = execute(store, Request(verb, args), actor, ignore_progress)
    assert json.loads(json.dumps(reply)) == reply
    return reply


def seqs(reply: Reply) -> list[int]:
    return [operation["seq"] for operation in reply["operations"]]


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        ({}, [8, 7, 6, 5, 4, 3, 2, 1]),
        ({"limit": 2}, [8, 7]),
        ({"limit": 2, "before": 7}, [6, 5]),
        ({"after": 6}, [8, 7]),
        ({"agent": "bob"}, [7, 6, 5]),
        ({"pid": 200, "kind": "write"}, [7, 5]),
        ({"session": 8}, []),
        ({"path": "docs/a"}, [8, 5, 4, 3]),
        ({"path": "docs/b\udcff"}, [7, 6]),
        ({"since": "op-5", "until": "op-7"}, [7, 6]),
        ({"before": 1}, []),
    ],
)
def test_log_gives_what_every_condition_allows_newest_first(
    store: Store, args: dict[str, Any], expected: list[int]
) -> None:
    assert seqs(run(store, "log", **args)) == expected


def test_log_says_when_there_is_more(store: Store) -> None:
    assert run(store, "log", limit=8)["more"] is False
    assert run(store, "log", limit=7)["more"] is True


def test_log_tells_who_and_when(store: Store) -> None:
    (operation,) = run(store, "log", limit=1)["operations"]
    assert operation["actor"]["agent"] == "alice"
    assert operation["kind"] == "unlink"
    assert operation["time"].endswith("Z")
    assert operation["undone"] is False


def test_versions_lists_contents_of_a_file_that_is_gone(store: Store) -> None:
    found = run(store, "versions", path="docs/a")["versions"]
    assert [(version["seq"], version["size"]) for version in found] == [(5, 8), (4, 4), (3, 0)]


def test_content_of_any_moment_is_there(store: Store) -> None:
    assert b"".join(iter_content(store, "docs/a", "op-4", ALICE)) == b"one\n"
    assert b"".join(iter_content(store, "docs/a", "op-5", ALICE)) == b"two two\n"
    with pytest.raises(errors.NotFound):
        b"".join(iter_content(store, "docs/a", "op-8", ALICE))
    with pytest.raises(errors.IsADirectory):
        b"".join(iter_content(store, "docs", "op-8", ALICE))


def test_restore_brings_a_file_back_and_says_which_operation_that_is(store: Store) -> None:
    reply = run(store, "restore", path="docs/a", moment="op-4")
    assert reply["seq"] == 9
    assert {"action": "created", "path": "docs/a"} in reply["changes"]
    assert b"".join(iter_content(store, "docs/a", "op-9", ALICE)) == b"one\n"
    assert run(store, "restore", path="docs/a", moment="op-4")["seq"] is None


def test_diff_names_what_differs(store: Store) -> None:
    reply = run(store, "diff", since="op-5", path="")
    assert {(change["change"], change["path"]) for change in reply["changes"]} >= {
        ("removed", "docs/a"),
        ("added", "docs/b\udcff"),
    }


def test_diff_of_one_file_is_its_text(store: Store) -> None:
    reply = run(store, "diff", since="op-4", until="op-5", path="docs/a")
    assert "-one\n+two two\n" in reply["patch"]


def test_snapshots_come_and_go(store: Store) -> None:
    assert run(store, "snapshot-create", name="s")["seq"] == 8
    assert [row["name"] for row in run(store, "snapshot-list")["snapshots"]] == ["s"]
    assert seqs(run(store, "log", until="s", limit=1)) == [8]
    run(store, "snapshot-delete", name="s")
    assert run(store, "snapshot-list")["snapshots"] == []


def test_tags_are_extended_attributes(store: Store) -> None:
    run(store, "tag-set", path="docs", key="colour", value="bl\u00fc")
    assert run(store, "tag-list", path="docs")["tags"] == [{"key": "colour", "value": "bl\u00fc"}]
    docs = store.reader.resolve(to_path("docs"))
    assert docs is not None
    assert store.reader.find_xattr(docs.ino, b"user.nexus.tag.colour") == "bl\u00fc".encode()
    run(store, "tag-remove", path="docs", key="colour")
    with pytest.raises(errors.NoXattr):
        run(store, "tag-remove", path="docs", key="colour")


def test_verify_log_proves_the_chain(store: Store) -> None:
    told: list[tuple[str, int, int | None]] = []
    reply = execute(store, Request("verify-log", {}), ALICE, lambda *step: told.append(step))
    assert (reply["records"], reply["problems"]) == (8, [])
    assert told[-1][1:] == (8, 8)


def test_fsck_finds_a_fresh_store_clean(store: Store) -> None:
    assert run(store, "fsck")["problems"] == []
    assert run(store, "fsck", deep=True)["problems"] == []


def test_status_and_stats_count(store: Store) -> None:
    assert run(store, "status")["operations"] == 8
    assert run(store, "status")["store"] == str(store.path)
    assert run(store, "stats")["packs_bytes"] > 0


@pytest.mark.parametrize(
    ("verb", "args"),
    [
        ("tag-set", {"path": "docs", "key": "k", "value": "v"}),
        ("tag-remove", {"path": "docs", "key": "k"}),
        ("restore", {"path": "docs", "moment": "op-4"}),
        ("diff", {"since": "op-4"}),
    ],
)
def test_a_stranger_changes_nothing(store: Store, verb: str, args: dict[str, Any]) -> None:
    with pytest.raises(errors.AccessError):
        run(store, verb, STRANGER, **args)
    assert store.reader.head() == 8


def test_a_directory_without_search_permission_stops_a_stranger(store: Store) -> None:
    from nexus_engine.fs.attributes import NewAttributes, set_attributes

    docs = store.reader.resolve(to_path("docs"))
    assert docs is not None
    store.transact(set_attributes, ALICE, docs.ino, NewAttributes(mode=0o700))
    with pytest.raises(errors.PermissionDenied):
        run(store, "tag-list", STRANGER, path="docs/b\udcff")
    assert run(store, "tag-list", path="docs/b\udcff")["tags"] == []


@pytest.mark.parametrize(
    ("verb", "args", "error"),
    [
        ("format-disk", {}, errors.InvalidCommand),
        ("log", {"limit": 0}, errors.InvalidCommand),
        ("log", {"limit": "7"}, errors.InvalidCommand),
        ("log", {"colour": "red"}, errors.InvalidCommand),
        ("log", {"path": None, "agent": 3}, errors.InvalidCommand),
        ("log", {"path": "../etc"}, errors.InvalidName),
        ("log", {"path": "/docs"}, errors.InvalidName),
        ("log", {"path": "a\ud800"}, errors.InvalidName),
        ("log", {"path": "x" * 300}, errors.NameTooLong),
        ("log", {"since": "the other day"}, errors.InvalidMoment),
        ("restore", {"path": "docs"}, errors.InvalidCommand),
        ("restore", {"path": "nowhere", "moment": "op-4"}, errors.NotFound),
        ("tag-set", {"path": "docs", "key": "", "value": ""}, errors.InvalidArgument),
        ("tag-list", {"path": "nowhere"}, errors.NotFound),
        ("versions", {"path": "docs/never"}, errors.NotFound),
        ("snapshot-create", {"name": "a/b"}, errors.InvalidName),
        ("snapshot-delete", {"name": "none"}, errors.NotFound),
        ("undo", {"operations": [99]}, errors.InvalidSelector),
        ("undo", {}, errors.InvalidSelector),
        ("undo", {"last": -1}, errors.InvalidCommand),
    ],
)
def test_bad_requests_are_refused_and_change_nothing(
    store: Store, verb: str, args: dict[str, Any], error: type[errors.EngineError]
) -> None:
    with pytest.raises(error) as refused:
        run(store, verb, **args)
    assert str(refused.value)
    assert store.reader.head() == 8


@given(
    verb=st.sampled_from(list(VERBS)),
    args=st.dictionaries(
        st.sampled_from(["path", "key", "since", "until", "moment", "name", "limit", "last", "to"]),
        st.one_of(st.none(), st.booleans(), st.integers(), st.text(), st.lists(st.integers())),
    ),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_any_arguments_give_a_reply_or_an_expected_failure(
    store: Store, verb: str, args: dict[str, Any]
) -> None:
    with contextlib.suppress(errors.EngineError):
        execute(store, Request(verb, args), ALICE, ignore_progress)


@given(st.binary())
def test_any_bytes_survive_the_way_through_text(name: bytes) -> None:
    assert to_bytes(to_text(name)) == name
    assert to_bytes(json.loads(json.dumps(to_text(name)))) == name


def write_and_undo(store: Store) -> None:
    reply = run(store, "undo", last=1)
    assert (reply["operations"], reply["seq"], reply["conflicts"]) == (1, 9, [])


def test_undo_and_redo(store: Store) -> None:
    write_and_undo(store)
    assert b"".join(iter_content(store, "docs/a", "now", ALICE)) == b"two two\n"
    assert run(store, "log", limit=2)["operations"][1]["undone"] is True
    run(store, "redo", last=1)
    assert store.reader.resolve(to_path("docs/a")) is None


def test_a_dry_run_names_every_path_and_changes_nothing(store: Store) -> None:
    reply = run(store, "undo", agent="bob", dry_run=True)
    assert reply["dry_run"] is True
    assert [change["path"] for change in reply["changes"]] == ["docs/b\udcff"]
    assert store.reader.head() == 8
