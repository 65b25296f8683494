"""What differs between two moments."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path as FilePath

import pytest

from nexus_engine import errors
from nexus_engine.history import diff as diffing
from nexus_engine.history.diff import diff, unified_diff
from nexus_engine.history.restore import restore
from nexus_engine.types import Path, Seq
from tests.unit.worlds import BOB, World, to_path

Found = tuple[str, bytes, bytes | None]


@pytest.fixture(params=[0, 200_000], ids=["walked", "from the log"], autouse=True)
def span(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways must find the same."""
    monkeypatch.setattr(diffing, "SPAN_MAX", request.param)


@pytest.fixture
async def world(tmp_path: FilePath) -> AsyncIterator[World]:
    world = World(tmp_path / "store")
    await world.mkdir("src")
    await world.mkdir("src/deep")
    await world.mkdir("src/quiet")
    await world.write("src/quiet/file", b"same")
    await world.write("src/main", b"one\n")
    await world.write("src/deep/lib", b"lib\n")
    yield world
    await world.close()


def differences(world: World, since: Seq, path: str = "") -> list[Found]:
    found = diff(world.database, to_path(path), since, world.head)
    return sorted((d.kind, d.path, d.path2) for d in found)


async def test_nothing_changed_is_no_difference(world: World) -> None:
    then = world.head
    assert differences(world, then) == []
    await world.setattr("src/main", mtime_ns=5)
    await world.write("src/main", b"one\n")
    assert differences(world, then) == []


async def test_each_kind_of_change_is_named(world: World) -> None:
    then = world.head
    await world.write("src/main", b"two\n")
    await world.write("src/new", b"")
    await world.unlink("src/deep/lib")
    await world.chmod("src/deep", 0o700)
    await world.setattr("src", uid=5)
    await world.setxattr("src/quiet/file", b"user.a", b"b")
    assert differences(world, then) == [
        ("added", b"src/new", None),
        ("mode", b"src/deep", None),
        ("modified", b"src/main", None),
        ("owner", b"src", None),
        ("removed", b"src/deep/lib", None),
        ("xattr", b"src/quiet/file", None),
    ]


async def test_backwards_added_and_removed_change_places(world: World) -> None:
    then = world.head
    await world.write("src/new", b"")
    found = list(diff(world.database, Path(b""), world.head, then))
    assert [(d.kind, d.path) for d in found] == [("removed", b"src/new")]
    assert found[0].before is not None
    assert found[0].after is None


async def test_a_rename_is_one_difference(world: World) -> None:
    then = world.head
    await world.rename("src/main", "src/deep/start")
    await world.write("src/deep/start", b"two\n")
    assert differences(world, then) == [
        ("modified", b"src/main", b"src/deep/start"),
        ("renamed", b"src/main", b"src/deep/start"),
    ]


async def test_a_moved_directory_is_one_rename_and_what_changed_in_it(world: World) -> None:
    then = world.head
    await world.rename("src", "lib")
    await world.write("lib/deep/lib", b"changed")
    await world.rename("lib", "code")
    await world.write("code/deep/new", b"")
    assert differences(world, then) == [
        ("added", b"code/deep/new", None),
        ("modified", b"src/deep/lib", b"code/deep/lib"),
        ("renamed", b"src", b"code"),
    ]


async def test_an_editor_that_saves_into_a_new_file_modifies(world: World) -> None:
    then = world.head
    await world.write("src/main~", b"two\n")
    await world.rename("src/main~", "src/main")
    assert differences(world, then) == [("modified", b"src/main", None)]


async def test_a_name_given_on_is_a_rename_and_an_addition(world: World) -> None:
    then = world.head
    await world.rename("src/main", "src/first")
    await world.write("src/main", b"second\n")
    assert differences(world, then) == [
        ("added", b"src/main", None),
        ("renamed", b"src/main", b"src/first"),
    ]


async def test_exchanged_names_are_two_renames(world: World) -> None:
    then = world.head
    await world.rename("src/main", "src/deep/lib", flags=2)
    assert differences(world, then) == [
        ("renamed", b"src/deep/lib", b"src/main"),
        ("renamed", b"src/main", b"src/deep/lib"),
    ]


async def test_a_renamed_over_file_is_removed(world: World) -> None:
    then = world.head
    await world.rename("src/main", "src/deep/lib")
    assert differences(world, then) == [
        ("removed", b"src/deep/lib", None),
        ("renamed", b"src/main", b"src/deep/lib"),
    ]


async def test_one_hard_link_more_or_less_is_added_or_removed(world: World) -> None:
    then = world.head
    await world.link("src/main", "src/deep/same")
    linked = world.head
    assert differences(world, then) == [("added", b"src/deep/same", None)]
    await world.unlink("src/main")
    assert differences(world, linked) == [("removed", b"src/main", None)]
    assert differences(world, then) == [("renamed", b"src/main", b"src/deep/same")]


async def test_a_file_that_became_a_directory_changed_its_type(world: World) -> None:
    then = world.head
    await world.unlink("src/main")
    await world.mkdir("src/main")
    await world.write("src/main/part", b"")
    assert differences(world, then) == [
        ("added", b"src/main/part", None),
        ("type", b"src/main", None),
    ]


async def test_a_removed_directory_lists_what_was_in_it(world: World) -> None:
    then = world.head
    await world.rename("src/deep/lib", "kept")
    await world.remove("src")
    assert differences(world, then) == [
        ("removed", b"src", None),
        ("removed", b"src/deep", None),
        ("removed", b"src/main", None),
        ("removed", b"src/quiet", None),
        ("removed", b"src/quiet/file", None),
        ("renamed", b"src/deep/lib", b"kept"),
    ]


async def test_below_a_path_the_rest_does_not_count(world: World) -> None:
    then = world.head
    await world.write("src/main", b"two\n")
    await world.rename("src/deep/lib", "src/outside")
    assert differences(world, then, "src/deep") == [("removed", b"src/deep/lib", None)]
    assert differences(world, then, "src/main") == [("modified", b"src/main", None)]
    with pytest.raises(errors.NotFound):
        differences(world, then, "nowhere")


async def test_a_restored_tree_does_not_differ_from_what_it_was(world: World) -> None:
    then = world.head
    await world.remove("src")
    restore(world.store, Path(b""), then, BOB, exact=True)
    assert differences(world, then) == []
    assert differences(world, Seq(then + 1)) != []


async def text(world: World, since: Seq, path: str) -> str:
    return "".join(unified_diff(world.store, to_path(path), since, world.head))


async def test_a_unified_diff_shows_the_lines(world: World) -> None:
    then = world.head
    assert await text(world, then, "src/main") == ""
    await world.write("src/main", b"one\ntwo\x0c still two")
    assert await text(world, then, "src/main") == (
        f"--- src/main@op-{then}\n+++ src/main@op-{world.head}\n@@ -1 +1,2 @@\n"
        " one\n+two\x0c still two\n\\ No newline at end of file\n"
    )


async def test_a_unified_diff_of_a_new_file_is_against_nothing(world: World) -> None:
    then = world.head
    await world.write("src/new", b"line\n")
    assert (await text(world, then, "src/new")).startswith("--- /dev/null\n+++ src/new@op-")


async def test_what_is_no_text_only_differs(world: World) -> None:
    then = world.head
    await world.write("src/main", b"\0\1\2")
    assert "differ (binary" in await text(world, then, "src/main")
    await world.write("src/main", b"x" * (diffing.TEXT_MAX_BYTES + 1))
    assert "too long" in await text(world, then, "src/main")
    with pytest.raises(errors.IsADirectory):
        await text(world, then, "src")
    with pytest.raises(errors.NotFound):
        await text(world, then, "nowhere")
