"""Attachments without a mount: what is imported and pushed, and what others parts of a store see.

Source: docs/USAGE.md, "Attached buckets and folders"; docs/FORMAT.md, "Attachments".
"""

from __future__ import annotations

import io
import os
from collections.abc import AsyncIterator
from pathlib import Path as FilePath
from typing import Any

import pytest

from nexus_engine import errors
from nexus_engine.backup.dump import dump, load
from nexus_engine.commands import Request, execute, ignore_progress
from nexus_engine.fs.attributes import NewAttributes
from nexus_engine.retention import gc
from nexus_engine.types import Actor
from tests.unit.undoing import ROOT
from tests.unit.worlds import BOB, World

MIB = 1 << 20


class Attached:
    """A store of which one directory, ``data``, is another directory's."""

    def __init__(self, world: World, source: FilePath) -> None:
        self.world = world
        self.source = source

    def ask(self, verb: str, **args: object) -> dict[str, Any]:
        return self.ask_as(ROOT, verb, args)

    def ask_as(self, actor: Actor, verb: str, args: dict[str, object]) -> dict[str, Any]:
        return execute(self.world.store, Request(verb, args), actor, ignore_progress)

    def add(self, **args: object) -> dict[str, Any]:
        return self.ask("mounts-add", path="data", url=f"file://{self.source}", **args)

    def refresh(self) -> dict[str, Any]:
        return self.ask("mounts-refresh", path="data")

    def info(self) -> dict[str, Any]:
        return self.ask("mounts-info", path="data")

    def put(self, key: str, content: bytes) -> None:
        path = self.source / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)

    def there(self) -> dict[str, bytes]:
        """Return what is at the source."""
        return {
            str(path.relative_to(self.source)): path.read_bytes()
            for path in self.source.rglob("*")
            if path.is_file() and ".nexus-bucket" not in path.parts
        }

    def here(self) -> dict[str, bytes]:
        """Return what is in the directory."""
        return {
            path.decode().removeprefix("/"): row[6]
            for path, row in self.world.tree("data").items()
            if row[4] is not None
        }


@pytest.fixture
async def attached(tmp_path: FilePath) -> AsyncIterator[Attached]:
    source = tmp_path / "source"
    source.mkdir()
    made = Attached(World(tmp_path / "store"), source)
    made.put("one", b"1\n")
    made.put("d/two", b"2\n")
    made.put("d/big", os.urandom(3 * MIB))
    yield made
    assert made.world.problems(deep=True) == []
    await made.world.close()


async def test_nothing_is_fetched_before_it_is_read_and_nothing_twice(attached: Attached) -> None:
    attached.add()
    assert attached.info()["fetched_bytes"] == 0
    world = attached.world
    handle = await world.engine.open(world.inode("data/d/big").ino, os.O_RDONLY, ROOT)
    content = (attached.source / "d/big").read_bytes()
    assert await world.engine.read(handle, 2 * MIB + 5, 10) == content[2 * MIB + 5 :][:10]
    assert attached.info()["fetched_bytes"] == MIB
    assert await world.engine.read(handle, 0, 3 * MIB) == content
    assert attached.info()["fetched_bytes"] == 3 * MIB
    await world.engine.release(handle)
    (attached.source / "d/big").unlink()
    assert world.read("data/d/big") == content


async def test_what_was_read_outlives_gc_and_what_was_not_is_no_damage(attached: Attached) -> None:
    attached.add()
    world = attached.world
    big = world.read("data/d/big")
    before = world.head
    await world.write("data/d/big", b"small now")
    attached.refresh()
    gc.collect(world.store, dead_share=0.0)
    assert world.read("data/d/big", before) == big
    assert attached.there()["d/big"] == b"small now"


async def test_what_an_overwritten_object_held_is_fetched_before(attached: Attached) -> None:
    attached.add()
    big, before = attached.there()["d/big"], attached.world.head
    await attached.world.write("data/d/big", b"new")
    await attached.world.engine.unlink(*attached.world.place("data/one"), ROOT)
    attached.refresh()
    assert attached.there() == {"d/big": b"new", "d/two": b"2\n"}
    assert attached.world.read("data/d/big", before) == big
    assert attached.world.read("data/one", before) == b"1\n"


async def test_what_others_overwrote_unread_is_an_honest_error(attached: Attached) -> None:
    attached.add()
    before = attached.world.head
    attached.put("one", b"another one\n")
    assert attached.refresh()["changed"] == 1
    assert attached.world.read("data/one") == b"another one\n"
    with pytest.raises(errors.ObjectChanged):
        attached.world.read("data/one", before)


async def test_a_chunk_that_is_lost_here_is_fetched_again(attached: Attached) -> None:
    attached.add()
    world = attached.world
    assert world.read("data/one") == b"1\n"
    await world.restart(lambda: world.edit("DELETE FROM chunk"))
    assert world.read("data/one") == b"1\n"


async def test_several_changes_of_a_file_are_one_request(attached: Attached) -> None:
    attached.add()
    world = attached.world
    for number in range(10):
        await world.write("data/new", b"%d" % number)
    await world.write("data/passing", b"x")
    await world.engine.unlink(*world.place("data/passing"), ROOT)
    assert attached.info()["waiting"] == 1
    assert attached.refresh()["pushed"] == 1
    assert attached.there()["new"] == b"9"


async def test_names_that_change_places_change_them_at_the_source(attached: Attached) -> None:
    attached.add()
    world = attached.world
    await world.engine.rename(
        *world.place("data/one"), *world.place("data/d/two"), 2, ROOT
    )  # RENAME_EXCHANGE
    attached.refresh()
    assert (attached.there()["one"], attached.there()["d/two"]) == (b"2\n", b"1\n")
    await world.engine.rename(*world.place("data/d"), *world.place("data/e"), 0, ROOT)
    await world.engine.link(world.inode("data/one").ino, *world.place("data/again"), ROOT)
    attached.refresh()
    assert attached.there() == attached.here()
    assert sorted(attached.there()) == ["again", "e/big", "e/two", "one"]


async def test_a_file_becomes_a_directory_and_a_directory_a_file(attached: Attached) -> None:
    attached.add()
    world = attached.world
    await world.engine.unlink(*world.place("data/one"), ROOT)
    await world.mkdir("data/one")
    await world.write("data/one/below", b"b")
    for name in ("data/d/two", "data/d/big"):
        await world.engine.unlink(*world.place(name), ROOT)
    await world.engine.rmdir(*world.place("data/d"), ROOT)
    await world.write("data/d", b"a file")
    attached.refresh()
    assert attached.there() == {"one/below": b"b", "d": b"a file"}


async def test_a_file_renamed_here_and_changed_there_is_the_new_content_under_the_new_name(
    attached: Attached,
) -> None:
    attached.add()
    world = attached.world
    await world.engine.rename(*world.place("data/one"), *world.place("data/renamed"), 0, ROOT)
    attached.put("one", b"changed there\n")
    attached.refresh()
    assert attached.here() == attached.there()
    assert attached.there()["renamed"] == b"changed there\n"
    assert "one" not in attached.there()


async def test_an_editor_that_replaces_the_file_is_no_conflict(attached: Attached) -> None:
    attached.add()
    world = attached.world
    await world.write("data/one.tmp", b"edited\n")
    await world.engine.rename(*world.place("data/one.tmp"), *world.place("data/one"), 0, ROOT)
    assert attached.refresh()["conflicts"] == 0
    assert attached.there()["one"] == b"edited\n"
    attached.put("one", b"theirs\n")
    await world.write("data/one.tmp", b"edited again\n")
    await world.engine.rename(*world.place("data/one.tmp"), *world.place("data/one"), 0, ROOT)
    assert attached.refresh()["conflicts"] == 1
    assert attached.here()["one"] == b"theirs\n"
    assert b"edited again\n" in attached.here().values()
    assert attached.here() == attached.there()


async def test_removing_an_attachment_leaves_the_source_and_an_undo_attaches_it_again(
    attached: Attached,
) -> None:
    attached.add()
    await attached.world.write("data/new", b"n")
    there = attached.there()
    seq = attached.ask("mounts-remove", path="data")["seq"]
    assert not attached.world.exists("data")
    assert attached.ask("mounts-list")["mounts"] == []
    assert attached.there() == there | {"new": b"n"}
    attached.put("later", b"l")
    attached.ask("undo", operations=[seq])
    assert attached.refresh()["added"] == 1
    assert attached.here() == attached.there()
    await attached.world.write("data/new", b"changed")
    attached.refresh()
    assert attached.there()["new"] == b"changed"


async def test_making_an_attachment_cannot_be_undone(attached: Attached) -> None:
    attached.add()
    found = attached.ask("log", limit=10)["operations"]
    seqs = [each["seq"] for each in found if each["kind"] == "attach"]
    assert len(seqs) == 2
    for seq in seqs:
        with pytest.raises(errors.InvalidSelector):
            attached.ask("undo", operations=[seq])


async def test_an_attachment_is_not_taken_away_by_accident(attached: Attached) -> None:
    attached.add()
    world = attached.world
    for name in ("data/one", "data/d/two", "data/d/big"):
        await world.engine.unlink(*world.place(name), ROOT)
    await world.engine.rmdir(*world.place("data/d"), ROOT)
    with pytest.raises(errors.InUse):
        await world.engine.rmdir(*world.place("data"), ROOT)
    await world.mkdir("other")
    with pytest.raises(errors.InUse):
        await world.engine.rename(*world.place("other"), *world.place("data"), 0, ROOT)
    await world.engine.rename(*world.place("data"), *world.place("other/moved"), 0, ROOT)
    assert attached.ask("mounts-list")["mounts"][0]["path"] == "other/moved"
    await world.write("other/moved/x", b"x")
    attached.ask("mounts-refresh", path="other/moved")
    assert attached.there() == {"x": b"x"}


async def test_no_attachment_is_in_another(attached: Attached, tmp_path: FilePath) -> None:
    attached.add()
    other = tmp_path / "other"
    other.mkdir()
    with pytest.raises(errors.InUse):
        attached.ask("mounts-add", path="data/below", url=f"file://{other}")
    attached.ask("mounts-add", path="other", url=f"file://{other}")
    world = attached.world
    with pytest.raises(errors.InUse):
        await world.engine.rename(*world.place("other"), *world.place("data/other"), 0, ROOT)


async def test_only_the_stores_owner_and_root_attach_and_detach(attached: Attached) -> None:
    attached.add()
    asked: dict[str, dict[str, object]] = {
        "mounts-add": {"path": "x", "url": f"file://{attached.source}"},
        "mounts-remove": {"path": "data"},
        "mounts-refresh": {"path": "data"},
        "mounts-info": {"path": "data"},
        "mounts-list": {},
    }
    for verb, args in asked.items():
        with pytest.raises(errors.OperationNotPermitted):
            attached.ask_as(BOB, verb, args)


async def test_what_cannot_be_attached_leaves_nothing(attached: Attached) -> None:
    world = attached.world
    await world.mkdir("full")
    await world.write("full/file", b"f")
    tree, url = world.tree(), f"file://{attached.source}"
    for path, other, error in (
        ("full", url, errors.DirectoryNotEmpty),
        ("full/file", url, errors.NotADirectory),
        ("nowhere/x", url, errors.NotFound),
        ("", url, errors.InvalidArgument),
        ("x", "file:///does/not/exist", errors.StoreInaccessible),
        ("x", "ftp://somewhere", errors.NotSupported),
        ("x", "no url", errors.InvalidArgument),
        ("x", "s3://user:secret@bucket", errors.InvalidArgument),
        ("x", f"{url}?option=1", errors.InvalidArgument),
    ):
        with pytest.raises(error) as raised:
            attached.ask("mounts-add", path=path, url=other)
        assert "secret" not in str(raised.value)
    with pytest.raises(errors.InvalidArgument):
        attached.add(options={"interval": "often"})
    assert world.tree() == tree


async def test_changes_that_cannot_be_pushed_are_told_and_kept(attached: Attached) -> None:
    attached.add()
    await attached.world.mkdir("data/.nexus-bucket")
    await attached.world.write("data/.nexus-bucket/file", b"f")
    attached.refresh()
    (stuck,) = attached.info()["unpushed"]
    assert stuck["path"] == ".nexus-bucket/file"
    with pytest.raises(errors.InUse):
        attached.ask("mounts-remove", path="data")
    world = attached.world
    await world.engine.rename(
        *world.place("data/.nexus-bucket/file"), *world.place("data/file"), 0, ROOT
    )
    attached.refresh()
    assert attached.info()["unpushed"] == []
    assert attached.there()["file"] == b"f"


async def test_a_source_that_is_gone_is_told_and_waited_for(attached: Attached) -> None:
    attached.add()
    await attached.world.write("data/one", b"changed")
    away = attached.source.rename(attached.source.with_name("away"))
    with pytest.raises(errors.StoreInaccessible):
        attached.refresh()
    assert "is its disk mounted" in attached.info()["trouble"] or attached.info()["trouble"]
    assert attached.info()["waiting"] == 1
    with pytest.raises(errors.StoreInaccessible):
        attached.world.read("data/d/two")
    away.rename(attached.source)
    attached.refresh()
    assert attached.info()["trouble"] is None
    assert attached.here() == attached.there()


async def test_a_workspace_over_an_attachment_is_lazy_as_well(attached: Attached) -> None:
    attached.add()
    attached.ask("workspace-create", name="w", over="data")
    world = attached.world
    assert world.read("workspaces/w/d/two") == b"2\n"
    assert attached.info()["fetched_bytes"] == 2
    await world.write("workspaces/w/one", b"from w\n")
    attached.ask("workspace-apply", name="w")
    attached.refresh()
    assert attached.there()["one"] == b"from w\n"


async def test_a_file_that_is_appended_to_in_a_workspace_is_whole_whatever_others_do(
    attached: Attached,
) -> None:
    attached.add()
    attached.ask("workspace-create", name="w", over="data")
    world = attached.world
    await world.patch("workspaces/w/one", 2, b"more\n")
    attached.put("one", b"theirs")
    attached.refresh()
    assert world.read("workspaces/w/one") == b"1\nmore\n"


async def test_a_dump_has_what_is_attached(attached: Attached, tmp_path: FilePath) -> None:
    attached.add()
    world = attached.world
    assert world.read("data/one") == b"1\n"
    lines: list[bytes] = []
    dump(world.path, lines.append, ignore_progress)
    loaded = load(
        io.BytesIO(b"".join(lines)), tmp_path / "loaded", packs=world.path / "packs",
        progress=ignore_progress,
    )  # fmt: skip
    assert loaded.problems == []


async def test_a_purge_destroys_what_was_fetched(attached: Attached) -> None:
    attached.add(read_only=True)
    world = attached.world
    big = world.read("data/d/big")
    with pytest.raises(errors.InUse):
        attached.ask("purge", path="data/d/big")
    (attached.source / "d/big").unlink()
    attached.refresh()
    await world.restart()  # or the packs would be waited for that it is writing
    attached.ask("purge", path="data/d/big")
    packs = b"".join(path.read_bytes() for path in (world.path / "packs").glob("*.pack"))
    assert big[:1000] not in packs


async def test_a_file_that_is_written_to_keeps_its_mode_and_owner_at_a_directory(
    attached: Attached,
) -> None:
    (attached.source / "one").chmod(0o640)
    if os.geteuid() == 0:
        os.chown(attached.source / "one", 1234, 1235)
    before = (attached.source / "one").stat()
    attached.add()
    await attached.world.write("data/one", b"changed")
    attached.refresh()
    after = (attached.source / "one").stat()
    assert (after.st_mode, after.st_uid, after.st_gid) == (
        before.st_mode, before.st_uid, before.st_gid,
    )  # fmt: skip


async def test_programs_are_programs_on_both_sides(attached: Attached) -> None:
    world = attached.world
    (attached.source / "one").chmod(0o755)
    attached.add()
    assert world.inode("data/one").mode & 0o777 == 0o700
    assert world.inode("data/d/two").mode & 0o777 == 0o600
    await world.write("data/new", b"#!/bin/sh")
    await world.engine.setattr(world.inode("data/new").ino, NewAttributes(mode=0o700), ROOT)
    await world.engine.rename(*world.place("data/one"), *world.place("data/moved"), 0, ROOT)
    attached.refresh()
    modes = {path: (attached.source / path).stat().st_mode & 0o100 for path in attached.there()}
    assert {path for path, mode in modes.items() if mode} == {"new", "moved"}
    (attached.source / "d/two").chmod(0o755)
    attached.refresh()
    assert world.inode("data/d/two").mode & 0o777 == 0o700
    assert attached.info()["waiting"] == 0


async def test_what_is_attached_is_for_its_owner_unless_the_directory_was_made_for_more(
    attached: Attached,
) -> None:
    world = attached.world
    attached.add()
    assert world.inode("data").mode & 0o777 == 0o700
    assert world.inode("data/one").mode & 0o777 == 0o600
    attached.ask("mounts-remove", path="data")
    await world.mkdir("data", 0o750)
    attached.add()
    assert world.inode("data/one").mode & 0o777 == 0o640
    assert world.inode("data/d").mode & 0o777 == 0o750


async def test_packs_of_a_store_are_attached_read_only_if_at_all(attached: Attached) -> None:
    attached.put("nexus-store.json", b"{}")
    with pytest.raises(errors.InvalidArgument):
        attached.add()
    attached.add(read_only=True)


async def test_a_store_is_not_attached_to_itself(attached: Attached, tmp_path: FilePath) -> None:
    for path in (attached.world.path, attached.world.path / "packs", tmp_path, FilePath("/")):
        with pytest.raises(errors.InvalidArgument):
            attached.ask("mounts-add", path="x", url=f"file://{path}")
