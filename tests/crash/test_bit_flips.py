"""Bits flip in packs and in pages of the database: damage is named, and nothing reads wrong."""

from __future__ import annotations

import random
import re
import shutil
from pathlib import Path as FilePath
from typing import NamedTuple

import pytest
import trio

from nexus_engine import errors
from nexus_engine.check.fsck import Problem, check
from nexus_engine.check.scrub import scrub
from nexus_engine.commands import ignore_progress
from nexus_engine.history.versions import read_content
from nexus_engine.meta.connection import GARBAGE
from nexus_engine.meta.reader import View, resolve
from nexus_engine.recovery import recover
from nexus_engine.repair.repair import repair
from nexus_engine.repair.salvage import salvage
from nexus_engine.store import Store
from nexus_engine.types import Actor, Path, Seq
from tests.unit.worlds import World

ROOT = Actor(0, 0, 99, 1, "nexus-ctl")
WHOLE = {"database", "schema", "store", "unreadable", "log-chain", "log-gap", "log-actor"}
"""Problems that speak of all files at once."""
LEFT = {"log-chain", "log-gap", "content-lost", "content-lost-past", "content-changed",
        "pack-unknown"}  # fmt: skip


class Sound(NamedTuple):
    """A store, and what is in it."""

    store: FilePath
    files: dict[bytes, bytes]
    moments: dict[Seq, dict[bytes, bytes]]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Sound:
    return trio.run(build, tmp_path_factory.mktemp("sound") / "store")


async def build(path_of_store: FilePath) -> Sound:
    """A few hundred files, some of them changed, moved and removed since."""
    rng = random.Random(5)
    world = World(path_of_store)
    files: dict[bytes, bytes] = {}
    moments: dict[Seq, dict[bytes, bytes]] = {}
    for d in range(8):
        await world.mkdir(f"d{d}")
    for number in range(240):
        path = b"d%d/f%d" % (number % 8, number)
        files[path] = rng.randbytes(rng.choice((0, 10, 500, 5000, 50_000)))
        await world.write(path, files[path])
        if number % 60 == 59:
            moments[world.head] = dict(files)
    for path in rng.sample(sorted(files), 80):
        match rng.randrange(4):
            case 0:
                files[path] = rng.randbytes(rng.choice((20, 2000)))
                await world.write(path, files[path])
            case 1:
                patch, offset = rng.randbytes(30), rng.randrange(200)
                await world.patch(path, offset, patch)
                old = files[path].ljust(offset, b"\0")
                files[path] = old[:offset] + patch + old[offset + 30 :]
            case 2:
                await world.rename(path, path + b"-moved")
                files[path + b"-moved"] = files.pop(path)
            case _:
                await world.unlink(path)
                del files[path]
    moments[world.head] = dict(files)
    await world.close()
    return Sound(world.path, files, moments)


class Outcome(NamedTuple):
    """What reading everything came to."""

    failed: set[bytes]
    """An error, or nothing of this name."""
    wrong: set[bytes]
    """Other bytes than were written."""


def flip(path: FilePath, rng: random.Random, bits: int, *, first: int = 0) -> list[int]:
    """Flip bits of a file from an offset on; return where."""
    data = bytearray(path.read_bytes())
    places = [rng.randrange(first, len(data)) for _ in range(bits)]
    for place in places:
        data[place] ^= 1 << rng.randrange(8)
    path.write_bytes(data)
    return places


def read_all(store: Store, files: dict[bytes, bytes], at: Seq | None = None) -> Outcome:
    """Read every file."""
    view: View = store.reader if at is None else store.database.as_of(at)
    outcome = Outcome(set(), set())
    for path, content in files.items():
        try:
            inode = resolve(view, Path(path))
            if inode is None or not inode.is_file:
                outcome.failed.add(path)
            elif read_content(store, view, inode, 0, inode.size) != content:
                outcome.wrong.add(path)
        except (errors.EngineError, *GARBAGE):
            outcome.failed.add(path)  # a mount answers EIO to both
    return outcome


def named(problems: list[Problem], paths: set[bytes]) -> set[bytes]:
    """Return those of the paths that a problem names."""
    if any(problem.code in WHOLE for problem in problems):
        return paths
    places = " ".join(problem.where for problem in problems)
    files = set(re.findall(r"/(f\d+)", places))
    directories = set(re.findall(r"/(d\d)(?![\w/])", places))
    words = {path: re.findall(r"\w+", path.decode()) for path in paths}
    return {p for p, (directory, file, *_) in words.items()
            if file in files or directory in directories}  # fmt: skip


def opened(path: FilePath) -> Store:
    store = Store.open(path)
    try:
        recover(store)
    except errors.EngineError:
        store.abandon()
        raise
    return store


@pytest.fixture
def seed() -> int:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")  # noqa: T201 - shown when it fails
    return seed


def test_flips_in_packs(sound: Sound, tmp_path: FilePath, seed: int) -> None:
    assert flip_packs(sound, tmp_path, random.Random(seed), rounds=3) > 0


def test_flips_in_the_database(sound: Sound, tmp_path: FilePath, seed: int) -> None:
    assert flip_database(sound, tmp_path, random.Random(seed), rounds=10) > 0


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_many_flips_in_packs(sound: Sound, tmp_path: FilePath, seed: int) -> None:
    assert flip_packs(sound, tmp_path, random.Random(seed), rounds=200) > 150


def test_a_flip_in_the_name_of_a_column_is_damage_like_any_other(
    sound: Sound, tmp_path: FilePath
) -> None:
    """SQLite takes the schema as it finds it; our statements then ask for what it does not have."""
    path = tmp_path / "store"
    shutil.copytree(sound.store, path)
    content = bytearray((path / "meta.db").read_bytes())
    at = content.index(b"name TEXT", content.index(b"CREATE TABLE pack ("))
    content[at] ^= 1
    (path / "meta.db").write_bytes(content)

    (problem,) = look(path, sound)
    assert "no such column" in problem.message
    mend(path, sound)


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_many_flips_in_the_database(sound: Sound, tmp_path: FilePath, seed: int) -> None:
    assert flip_database(sound, tmp_path, random.Random(seed), rounds=400) > 100


def flip_packs(sound: Sound, tmp_path: FilePath, rng: random.Random, *, rounds: int) -> int:
    """Return in how many rounds a file was hit."""
    hit = 0
    for number in range(rounds):
        path = tmp_path / f"store-{number}"
        shutil.copytree(sound.store, path)
        packs = sorted((path / "packs").iterdir())
        for pack in rng.choices(packs, [p.stat().st_size for p in packs], k=3):
            flip(pack, rng, rng.randrange(1, 4))
        store = opened(path)
        before = read_all(store, sound.files)
        assert before.wrong == set()
        scrubbed = scrub(store, rate_bytes=10**12).problems
        checked = check(store, deep=True)
        for problems in (scrubbed, checked):
            lost = [problem for problem in problems if problem.code == "content-lost"]
            assert named(lost, set(sound.files)) == before.failed
        for seq, files in sound.moments.items():
            then = read_all(store, files, seq)
            assert then.wrong == set()
            assert named(scrubbed, then.failed) == then.failed
        repair(store, ROOT, ignore_progress, deep=True)
        after = read_all(store, sound.files)
        assert (after.wrong, after.failed) == (set(), before.failed)
        assert {problem.code for problem in check(store, deep=True)} <= LEFT
        store.leave()
        shutil.rmtree(path)
        hit += bool(before.failed)
    return hit


def flip_database(sound: Sound, tmp_path: FilePath, rng: random.Random, *, rounds: int) -> int:
    """Return in how many rounds something was found damaged."""
    hit = 0
    for number in range(rounds):
        path = tmp_path / f"store-{number}"
        shutil.copytree(sound.store, path)
        flip(path / "meta.db", rng, rng.choice((1, 1, 3, 20)))
        problems = look(path, sound)
        hit += bool(problems)
        mend(path, sound)
        shutil.rmtree(path)
    return hit


def look(path: FilePath, sound: Sound) -> list[Problem]:
    """Read everything of a damaged store; return what fsck says, which names all that is wrong."""
    try:
        store = opened(path)
    except errors.EngineError as error:
        return [Problem("database", "meta.db", str(error))]
    try:
        outcome = read_all(store, sound.files)
        problems = check(store, deep=True)
        bad = outcome.failed | outcome.wrong
        assert named(problems, bad) == bad, problems
        scrub(store, rate_bytes=10**12)
    except errors.CorruptMetadata as error:
        problems = [Problem("database", "meta.db", str(error))]
    finally:
        store.leave()
    return problems


def mend(path: FilePath, sound: Sound) -> None:
    """Repair as ``fsck --repair`` does; what is right or said to be lost afterwards."""
    try:
        store = opened(path)
        try:
            repair(store, ROOT, ignore_progress, deep=True)
        finally:
            store.leave()
    except errors.CorruptMetadata:
        try:
            salvage(path)
        except errors.CorruptMetadata:
            return  # nothing came back, and it said so
    store = opened(path)
    _, problems = repair(store, ROOT, ignore_progress, deep=True)
    again, problems = repair(store, ROOT, ignore_progress, deep=True)
    assert again == []
    assert {problem.code for problem in problems} <= LEFT, problems
    outcome = read_all(store, sound.files)
    assert named(problems, outcome.wrong) == outcome.wrong
    store.leave()
