"""Dumps and backups that somebody else made, or a disk changed: refused, or a store to check."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import trio
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from nexus_engine import commands, errors
from nexus_engine.backup.dump import dump, load
from nexus_engine.backup.making import make_backup
from nexus_engine.backup.restoring import restore_store
from nexus_engine.commands import Request, ignore_progress
from nexus_engine.store import Store
from nexus_engine.types import Actor
from tests.unit.undoing import fill
from tests.unit.worlds import World

ROOT = Actor(0, 0, 1, command="fuzz")
BRIEF = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
VALUES: list[Any] = [None, -1, 0, 1 << 63, "", "x", "\ud800", "../../x", [], {}, {"base64": "="}]


class Copies:
    """A store's packs, its dump and its backup."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.backup = directory / "backup"
        trio.run(self._make)

    async def _make(self) -> None:
        world = World(self.directory / "store")
        await fill(world)
        lines: list[bytes] = []
        dump(world.path, lines.append, ignore_progress)
        self.lines = [line for text in lines for line in text.splitlines(keepends=True)]
        make_backup(world.path, self.backup, keep=1, verify=False, progress=ignore_progress)
        await world.close()
        self.packs = world.path / "packs"
        (self.manifest,) = (self.backup / "generations").glob("*.json")

    def place(self) -> Path:
        return self.directory / os.urandom(8).hex()


@pytest.fixture(scope="module")
def copies(tmp_path_factory: pytest.TempPathFactory) -> Copies:
    return Copies(tmp_path_factory.mktemp("copies"))


def make(path: Path, action: Callable[[], object]) -> None:
    """A copy is refused, and then nothing was made; or there is a store, and it can be checked."""
    try:
        action()
    except errors.EngineError:
        assert not (path / "meta.db").exists()
        return
    store = Store.open(path)
    for verb, args in (("fsck", {}), ("log", {}), ("diff", {"since": "op-1"}), ("verify-log", {})):
        with suppress(errors.EngineError):
            commands.execute(store, Request(verb, args), ROOT, ignore_progress)
    store.abandon()
    shutil.rmtree(path)


def changed_lines(lines: list[bytes], rng: random.Random) -> list[bytes]:
    """Return the lines with something done to one of them, as by a program or a disk."""
    lines, at = list(lines), rng.randrange(len(lines))
    match rng.randrange(6):
        case 0:
            del lines[at]
        case 1:
            lines.insert(rng.randrange(len(lines)), lines[at])
        case 2:
            flipped = bytearray(lines[at])
            flipped[rng.randrange(len(flipped))] ^= 1 << rng.randrange(8)
            lines[at] = bytes(flipped)
        case 3:
            lines[at] = lines[at][: rng.randrange(len(lines[at]))]
            del lines[at + 1 :]
        case _:
            value = json.loads(lines[at])
            spoil(value, rng)
            lines[at] = json.dumps(value).encode() + b"\n"
    return lines


def spoil(value: dict[str, Any], rng: random.Random) -> None:
    """Put something else in one place of an object."""
    key = rng.choice(list(value))
    inner = value[key]
    if isinstance(inner, dict) and inner and rng.random() < 0.7:
        spoil(inner, rng)
    elif rng.random() < 0.2:
        del value[key]
    else:
        value[key] = rng.choice([*VALUES, rng.randrange(1 << 40), rng.randbytes(4).hex()])


@BRIEF
@given(seed=st.integers(0, 2**32))
@example(seed=318)  # a table that is no text
def test_any_dump_makes_a_store_or_nothing(copies: Copies, seed: int) -> None:
    rng = random.Random(seed)
    text = b"".join(changed_lines(copies.lines, rng))
    path = copies.place()
    make(path, lambda: load(BytesIO(text), path, packs=copies.packs, progress=ignore_progress))


@BRIEF
@given(text=st.binary(max_size=300))
@example(text=b"[" * 100_000 + b"\n")
@example(text=b'{"nexus_dump": 1}\n')
@example(text=b'{"nexus_dump": 1, "tables": {"inode": {}, "sqlite_schema": {"sql": "text"}}}\n')
def test_any_bytes_are_no_dump(copies: Copies, text: bytes) -> None:
    path = copies.place()
    with pytest.raises(errors.EngineError):
        load(BytesIO(text), path, packs=None, progress=ignore_progress)
    assert not (path / "meta.db").exists()


@BRIEF
@given(seed=st.integers(0, 2**32), garbage=st.binary(max_size=100))
@example(seed=227, garbage=b"")  # settings that no store is opened with
def test_any_manifest_is_restored_or_refused(copies: Copies, seed: int, garbage: bytes) -> None:
    """It names packs and files: none outside the backup is read, none outside the store written."""
    rng = random.Random(seed)
    backup, path = copies.place(), copies.place()
    shutil.copytree(copies.backup, backup)
    target = backup / "generations" / copies.manifest.name
    text = target.read_bytes()
    match rng.randrange(4):
        case 0:
            target.write_bytes(garbage)
        case 1:
            target.write_bytes(text[: rng.randrange(len(text))])
        case _:
            value = json.loads(text)
            spoil(value, rng)
            target.write_text(json.dumps(value))
    before = set(copies.directory.iterdir())
    make(path, lambda: restore_store(backup, path, generation=None, progress=ignore_progress))
    assert set(copies.directory.iterdir()) - before <= {path}
    shutil.rmtree(backup)
