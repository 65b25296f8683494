"""Versions: every content that a name ever led to."""

from __future__ import annotations

import hashlib
import os
from collections.abc import AsyncIterator
from pathlib import Path as FilePath

import pytest

from nexus_engine.history.versions import names_with_versions, read_content, versions
from nexus_engine.types import ROOT_INO, Name
from tests.unit.worlds import ALICE, BOB, World

FILE = Name(b"file")


@pytest.fixture
async def world(tmp_path: FilePath) -> AsyncIterator[World]:
    world = World(tmp_path / "store")
    yield world
    await world.close()


def contents(world: World, name: bytes = FILE) -> list[bytes]:
    found = []
    for version in versions(world.database, ROOT_INO, Name(name)):
        view = world.database.as_of(version.seq)
        inode = view.get_inode(version.ino)
        assert inode.size == version.size
        found.append(read_content(world.store, view, inode, 0, inode.size))
    return found


async def test_every_content_is_a_version_newest_first(world: World) -> None:
    await world.write("file", b"one")
    world.actor = BOB
    await world.write("file", b"two!")
    await world.chmod("file", 0o600)
    assert contents(world) == [b"two!", b"one", b""]
    newest, older, first = versions(world.database, ROOT_INO, FILE)
    assert (newest.actor, newest.kind, newest.size) == (BOB, "write", 4)
    assert (older.actor, first.kind) == (ALICE, "create")
    assert newest.time_ns > older.time_ns > first.time_ns


async def test_a_deleted_file_keeps_its_versions(world: World) -> None:
    await world.write("file", b"one")
    await world.unlink("file")
    assert contents(world) == [b"one", b""]


async def test_files_that_had_the_name_one_after_the_other_all_count(world: World) -> None:
    await world.write("file", b"one")
    await world.write("draft", b"two")
    await world.rename("draft", "file")
    assert contents(world) == [b"two", b"", b"one", b""]


async def test_a_file_is_followed_under_its_other_names(world: World) -> None:
    await world.write("before", b"one")
    await world.rename("before", "file")
    await world.rename("file", "after")
    await world.write("after", b"two")
    assert contents(world) == [b"two", b"one", b""]


async def test_digests_are_those_of_the_whole_content(world: World) -> None:
    await world.write("file", b"one")
    digests = [version.digest for version in versions(world.database, ROOT_INO, FILE)]
    assert digests == [hashlib.sha256(b"one").digest(), hashlib.sha256(b"").digest()]
    await world.patch("file", 1, b"N")
    newest = versions(world.database, ROOT_INO, FILE)[0]
    assert newest.digest is None
    digest = hashlib.sha256(b"oNe").digest()
    world.database.add_content_hash(newest.ino, newest.seq, digest)
    assert versions(world.database, ROOT_INO, FILE)[0].digest == digest


async def test_what_was_written_after_the_last_name_went_is_no_version(world: World) -> None:
    await world.write("file", b"one")
    handle = await world.engine.open(world.inode("file").ino, os.O_RDWR, ALICE)
    await world.unlink("file")
    await world.engine.write(handle, 0, b"secret")
    assert contents(world) == [b"one", b""]
    await world.engine.release(handle)
    assert contents(world) == [b"one", b""]


async def test_directories_and_links_have_no_versions(world: World) -> None:
    await world.mkdir("dir")
    await world.symlink("link", b"file")
    assert versions(world.database, ROOT_INO, Name(b"dir")) == []
    assert versions(world.database, ROOT_INO, Name(b"link")) == []
    assert versions(world.database, ROOT_INO, Name(b"never")) == []


async def test_names_that_ever_were_files_come_once_each(world: World) -> None:
    await world.mkdir("dir")
    await world.write("file", b"1")
    await world.unlink("file")
    await world.write("file", b"2")
    await world.write(b"caf\xe9", b"not utf-8")
    await world.rename("file", "kept")
    names = list(names_with_versions(world.database, ROOT_INO))
    assert sorted(names) == [b"caf\xe9", b"file", b"kept"]


async def test_a_long_directory_is_read_in_pages(world: World) -> None:
    names = {b"f%d" % number for number in range(1200)}
    for name in names:
        await world.engine.make(ROOT_INO, Name(name), 0o100644, ALICE)
    listed = list(names_with_versions(world.database, ROOT_INO))
    assert len(listed) == 1200
    assert set(listed) == names
