"""Backups: what is restored is what was backed up; what breaks costs no more than it must."""

from __future__ import annotations

import fcntl
import itertools
import json
import os
import shutil
import stat
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path as FilePath
from time import monotonic

import pytest

from nexus_engine import errors
from nexus_engine.backup.layout import Manifest, opened_for_reading
from nexus_engine.backup.making import Made, make_backup
from nexus_engine.backup.restoring import Restored, restore_store
from nexus_engine.commands import ignore_progress
from nexus_engine.config import Retention
from nexus_engine.history import snapshots
from nexus_engine.history.select import Selector
from nexus_engine.meta.connection import DATABASE_NAME, RESTART_WAIT_MS, Connection
from nexus_engine.retention import gc
from nexus_engine.retention.prune import prune
from nexus_engine.services import Services
from nexus_engine.types import Seq
from tests.docs.markdown import DOCS, code, rows, section
from tests.unit.backups import Reopened, flip, pack_of, past
from tests.unit.undoing import fill, undo
from tests.unit.worlds import ALICE, SECOND, World

FORMAT = DOCS / "FORMAT.md"
MIB = 1 << 20


@pytest.fixture
def target(tmp_path: FilePath) -> FilePath:
    return tmp_path / "backup"


@pytest.fixture
async def decaying(tmp_path: FilePath) -> AsyncIterator[World]:
    """A store that the test breaks."""
    world = World(tmp_path / "store")
    await fill(world)
    yield world
    world.store.abandon()


@pytest.fixture
def small_disk(tmp_path: FilePath) -> Iterator[FilePath]:
    """A disk with room for three MiB."""
    if os.geteuid() != 0:
        pytest.skip("mounting a file system takes root")
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", disk], check=True)
    yield disk
    subprocess.run(["umount", "-l", disk], check=True)


@pytest.fixture
def packs_are_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nexus_engine.cas.writer.PACK_SIZE", 100_000)


def back_up(
    world: World,
    target: FilePath,
    *,
    keep: int = 7,
    verify: bool = False,
    progress: Callable[[str, int, int | None], None] = ignore_progress,
) -> Made:
    return make_backup(
        world.path, target, keep=keep, verify=verify, progress=progress, clock=world.clock
    )


def restore(target: FilePath, new: FilePath, generation: str | None = None) -> Restored:
    return restore_store(target, new, generation=generation, progress=ignore_progress)


def generations(target: FilePath) -> list[Manifest]:
    with opened_for_reading(target) as backup:
        return backup.find().manifests


def sizes(directory: FilePath) -> dict[str, int]:
    """Return the size of every file below a directory."""
    return {
        path.relative_to(directory).as_posix(): path.stat().st_size
        for path in directory.rglob("*")
        if path.is_file()
    }


async def check_restored(target: FilePath, new: FilePath, world: World, head: Seq) -> None:
    """Restore the newest generation; it must be the store as it was after an operation."""
    restored = restore(target, new)
    assert restored.manifest.head == head
    assert restored.problems == []
    assert restored.damaged_files == []
    copy = Reopened(new)
    assert copy.head == head
    assert past(copy) == [world.tree(at=Seq(seq)) for seq in range(1, head + 1)]
    assert copy.problems(deep=True) == []
    await copy.close()


async def test_a_restored_store_is_the_store_with_all_its_past(
    world: World, target: FilePath, tmp_path: FilePath
) -> None:
    snapshots.create(world.store, "kept", ALICE)
    await world.write("docs/a", b"second a")
    await world.unlink("docs/b")
    made = back_up(world, target)
    head = world.head
    await world.write("docs/later", b"in no backup")
    await check_restored(target, tmp_path / "new", world, head)
    assert made.manifest.head_hash == hash_at(world, head)
    copy = Reopened(tmp_path / "new")
    assert [snapshot.name for snapshot in snapshots.list_all(copy.database)] == ["kept"]
    undo(copy, Selector(last=1, until_seq=head))
    assert copy.read("docs/b") == b"first b"
    await copy.write("docs/new", b"it goes on")
    assert copy.problems(deep=True) == []
    await copy.close()


def hash_at(world: World, head: Seq) -> str:
    row = world.database.connection.one("SELECT hash FROM oplog WHERE seq = ?", (head,))
    assert row is not None
    return str(row[0].hex())


async def test_only_what_is_new_is_copied(world: World, target: FilePath) -> None:
    await world.write("big", os.urandom(3 * MIB))
    first = back_up(world, target)
    assert first.copied_bytes == sum(first.manifest.packs.values()) > 3 * MIB
    packs = target / "packs"
    before = {path.name: (path.stat().st_ino, path.stat().st_size) for path in packs.iterdir()}

    assert back_up(world, target).copied_bytes == 0

    await world.write("more", os.urandom(MIB))
    third = back_up(world, target)
    assert MIB <= third.copied_bytes < MIB + 1000
    after = {path.name: (path.stat().st_ino, path.stat().st_size) for path in packs.iterdir()}
    assert sum(size for _, size in after.values()) == third.copied_bytes + first.copied_bytes
    assert {ino for ino, _ in before.values()} <= {ino for ino, _ in after.values()}


async def test_a_backup_shares_nothing_with_the_store_and_is_for_its_owner_only(
    world: World, target: FilePath
) -> None:
    back_up(world, target)
    for path in target.rglob("*"):
        status = path.stat()
        assert stat.S_IMODE(status.st_mode) == (0o700 if path.is_dir() else 0o600), path
        assert path.is_dir() or status.st_nlink == 1


async def test_a_manifest_says_what_is_documented(world: World, target: FilePath) -> None:
    back_up(world, target)
    (path,) = (target / "generations").glob("*.json")
    fields = [name for row in rows(section(FORMAT, "Backups").text)[:11] for name in code(row[0])]
    assert fields == list(json.loads(path.read_text()))


async def test_settings_are_in_the_backup(
    world: World, target: FilePath, tmp_path: FilePath
) -> None:
    (world.path / "store.yaml").write_text("sync_interval_s: 9\n")
    back_up(world, target)
    restore(target, tmp_path / "new")
    assert (tmp_path / "new/store.yaml").read_text() == "sync_interval_s: 9\n"


async def test_generations_are_kept_as_asked_and_each_can_be_restored(
    world: World, target: FilePath, tmp_path: FilePath
) -> None:
    heads = []
    for number in range(4):
        await world.write("docs/a", b"%d" % number)
        heads.append(world.head)
        back_up(world, target, keep=3)
    kept = generations(target)
    assert [manifest.head for manifest in kept] == heads[1:]
    assert len(list((target / "generations").iterdir())) == 6
    for path in (target / "generations").glob("*.db"):
        # No write-ahead log belongs to it: https://sqlite.org/fileformat2.html, section 1.3.3.
        assert path.read_bytes()[18:20] == b"\x01\x01"
    for manifest in kept:
        new = tmp_path / manifest.generation
        assert restore(target, new, manifest.generation).problems == []
        copy = Reopened(new)
        assert copy.head == manifest.head
        assert copy.tree() == world.tree(at=Seq(manifest.head))
        await copy.close()
    assert back_up(world, target, keep=1).removed == [m.generation for m in kept]


async def test_packs_that_no_generation_needs_are_removed(
    packs_are_small: None, world: World, target: FilePath, tmp_path: FilePath
) -> None:
    await forget_much(world)
    first = back_up(world, target)
    gc.collect(world.store)
    second = back_up(world, target, keep=2)
    gone = first.manifest.packs.keys() - second.manifest.packs.keys()
    assert gone
    assert gone <= {path.stem for path in (target / "packs").iterdir()}
    third = back_up(world, target, keep=1)
    assert {path.stem for path in (target / "packs").iterdir()} == third.manifest.packs.keys()
    await check_restored_now(target, tmp_path / "new", world)


async def forget_much(world: World) -> None:
    """Write what fills packs, and let retention go of it."""
    await world.write("kept", os.urandom(30_000))
    for _ in range(20):
        await world.write("changing", os.urandom(20_000))
    await Services(world.engine).upkeep()
    world.clock.now_ns += 40 * 86400 * SECOND
    await world.write("other", b"now")
    prune(world.store, Retention(keep_all="1d"), ALICE)


async def check_restored_now(target: FilePath, new: FilePath, world: World) -> None:
    assert restore(target, new).problems == []
    copy = Reopened(new)
    assert copy.tree() == world.tree()
    assert copy.problems(deep=True) == []
    await copy.close()


async def test_packs_that_gc_removes_between_database_and_packs_begin_it_again(
    packs_are_small: None, world: World, target: FilePath, tmp_path: FilePath
) -> None:
    """The copy of the database names them: they are gone when their turn comes."""
    await forget_much(world)
    steps: list[str] = []
    collected: list[gc.Collected] = []

    def collect(what: str, done: int, total: int | None) -> None:
        steps.append(what)
        if what.startswith("looking") and not collected:
            collected.append(gc.collect(world.store))

    made = back_up(world, target, progress=collect)
    assert collected[0].packs > 0
    assert steps.count("checking metadata") == 2
    assert made.manifest.damaged == {}
    assert {path.stem for path in (target / "packs").iterdir()} == made.manifest.packs.keys()
    await check_restored_now(target, tmp_path / "new", world)


class Interrupted(Exception):
    """The process goes away."""


async def test_a_backup_that_is_cut_short_anywhere_leaves_the_one_before(
    packs_are_small: None, world: World, target: FilePath, tmp_path: FilePath
) -> None:
    """At every step: the last generation is there, and the next backup completes."""
    await world.write("first", os.urandom(150_000))
    back_up(world, target)
    before = world.head
    await world.write("second", os.urandom(250_000))
    after = world.head
    for last in itertools.count():
        steps = itertools.count()

        def stop(what: str, done: int, total: int | None) -> None:
            if next(steps) == last:  # noqa: B023 - called while it is so
                raise Interrupted

        copy = tmp_path / f"copy{last}"
        shutil.copytree(target, copy)
        try:
            back_up(world, copy, progress=stop)
        except Interrupted:
            await check_restored(copy, tmp_path / f"before{last}", world, before)
            assert back_up(world, copy).copied_bytes <= 252_000
        else:
            break
        finally:
            if last % 5 == 0:
                await check_restored(
                    copy, tmp_path / f"after{last}", world, Seq(generations(copy)[-1].head)
                )
        assert [manifest.head for manifest in generations(copy)] == [before, after]
        assert not [name for name in sizes(copy) if name.endswith(".new")]
    assert last > 5


async def test_torn_leftovers_are_used_as_far_as_they_are_whole(
    world: World, target: FilePath, tmp_path: FilePath
) -> None:
    """A process was killed while it copied a pack: what it wrote is in no manifest."""
    await world.write("a", os.urandom(MIB))
    await world.write("b", os.urandom(MIB))
    back_up(world, target)
    (manifest,) = (target / "generations").glob("*.json")
    manifest.unlink()
    pack = max((target / "packs").iterdir(), key=lambda path: path.stat().st_size)
    os.truncate(pack, MIB + MIB // 2)
    with pack.open("ab") as file:
        file.write(b"\0" * 5000)
    assert MIB < back_up(world, target).copied_bytes < 3 * MIB
    await check_restored(target, tmp_path / "new", world, world.head)


async def test_a_full_disk_is_one_line_and_changes_nothing(
    world: World, small_disk: FilePath, tmp_path: FilePath
) -> None:
    """Full while packs are copied; full before the metadata is."""
    back_up(world, small_disk / "backup")
    head, before = world.head, sizes(small_disk)
    await world.write("too big", os.urandom(5 * MIB))
    for number, size in enumerate((0, 3 * MIB - sum(before.values()) - 60_000)):
        with (small_disk / f"filler{number}").open("wb") as file:
            file.write(b"\0" * size)
        with pytest.raises(errors.NoSpace) as caught:
            back_up(world, small_disk / "backup")
        assert "as it was before" in str(caught.value)
        assert "\n" not in str(caught.value)
        fillers = {"filler0": 0, "filler1": size}
        assert sizes(small_disk) | fillers == before | fillers
        await check_restored(small_disk / "backup", tmp_path / f"new{number}", world, head)


async def test_a_chunk_of_the_store_that_decayed_is_found_and_the_rest_backed_up(
    decaying: World, target: FilePath, tmp_path: FilePath
) -> None:
    await decaying.write("good", os.urandom(5000))
    await decaying.write("docs/bad", os.urandom(5000))
    await decaying.write("gone", os.urandom(5000))
    flip(decaying, "docs/bad")
    flip(decaying, "gone")
    await decaying.write("docs/bad", b"new and fine")
    await decaying.unlink("gone")
    made = back_up(decaying, target)
    assert {(file.path, file.seq is None) for file in made.damaged_files} == {
        (b"docs/bad", False),
        (b"gone", False),
    }
    assert sum(map(len, made.manifest.damaged.values())) == 2

    restored = restore(target, tmp_path / "new")
    assert {file.path for file in restored.damaged_files} == {b"docs/bad", b"gone"}
    assert any("already when it was backed up" in p.message for p in restored.problems)
    copy = Reopened(tmp_path / "new")
    assert copy.read("good") == decaying.read("good")
    assert copy.read("docs/bad") == b"new and fine"
    with pytest.raises(errors.CorruptChunk):
        copy.read("gone", Seq(decaying.head - 1))
    await copy.close()

    # It stays found, also where nothing else is new.
    assert len(back_up(decaying, target).damaged_files) == 2


async def test_a_pack_of_the_backup_that_decayed_costs_its_files_and_can_be_mended(
    world: World, target: FilePath, tmp_path: FilePath
) -> None:
    await world.write("good", os.urandom(5000))
    await world.write("bad", os.urandom(5000))
    await world.link("bad", "docs/bad")
    back_up(world, target)
    flip(world, "bad", target / "packs")

    restored = restore(target, tmp_path / "new")
    assert [(file.path, file.seq) for file in restored.damaged_files] == [(b"bad", None)]
    assert {problem.code for problem in restored.problems} == {"chunk-record"}
    copy = Reopened(tmp_path / "new")
    assert copy.read("good") == world.read("good")
    with pytest.raises(errors.CorruptChunk):
        copy.read("bad")
    await copy.close()

    assert back_up(world, target).copied_bytes == 0  # nobody looked
    assert back_up(world, target, verify=True).copied_bytes > 5000
    await check_restored(target, tmp_path / "mended", world, world.head)


async def test_a_lost_pack_of_the_backup_costs_its_files(
    world: World, target: FilePath, tmp_path: FilePath
) -> None:
    await world.write("bad", os.urandom(5000))
    back_up(world, target)
    for path in (target / "packs").iterdir():
        path.unlink()
    restored = restore(target, tmp_path / "new")
    assert b"bad" in {file.path for file in restored.damaged_files}
    assert "pack-missing" in {problem.code for problem in restored.problems}
    assert back_up(world, target).copied_bytes > 5000
    await check_restored(target, tmp_path / "mended", world, world.head)


async def test_a_lost_pack_of_the_store_is_damage_and_no_work_of_gc(
    decaying: World, target: FilePath
) -> None:
    await decaying.write("bad", os.urandom(5000))
    pack_of(decaying, "bad").unlink()
    made = back_up(decaying, target)
    assert b"bad" in {file.path for file in made.damaged_files}


async def test_what_a_power_loss_left_in_a_pack_is_no_damage(
    world: World, target: FilePath, tmp_path: FilePath
) -> None:
    """Bytes between the chunks of the index that are no records."""
    await world.write("one", os.urandom(5000))
    lost = world.store.chunks.put(os.urandom(5000))
    place = world.store.chunks.pending(lost)
    assert place is not None
    await world.write("two", os.urandom(5000))
    with (world.path / "packs" / f"{place.pack}.pack").open("r+b") as file:
        file.seek(place.offset)
        file.write(b"\0" * place.stored_length)
    assert back_up(world, target).damaged_files == []
    await check_restored(target, tmp_path / "new", world, world.head)


async def test_a_damaged_database_copy_is_refused_and_another_generation_named(
    world: World, target: FilePath, tmp_path: FilePath
) -> None:
    first = back_up(world, target).manifest
    await world.write("new", b"new")
    second = back_up(world, target).manifest
    database = target / "generations" / f"{second.generation}.db"
    content = bytearray(database.read_bytes())
    content[len(content) // 2] ^= 1
    database.write_bytes(content)
    with pytest.raises(errors.CorruptMetadata, match=first.generation):
        restore(target, tmp_path / "new")
    assert list((tmp_path / "new").iterdir()) == []  # to be tried again
    assert restore(target, tmp_path / "new", first.generation).problems == []


async def test_a_damaged_manifest_is_never_passed_over_in_silence(
    world: World, target: FilePath, tmp_path: FilePath
) -> None:
    first = back_up(world, target).manifest
    world.clock.now_ns += 60 * SECOND
    second = back_up(world, target).manifest
    path = target / "generations" / f"{second.generation}.json"
    path.write_bytes(path.read_bytes()[:100])
    before = sizes(target)
    with pytest.raises(errors.CorruptMetadata, match=first.generation):
        restore(target, tmp_path / "new")
    assert restore(target, tmp_path / "new", first.generation[:-1]).problems == []
    world.clock.now_ns += 60 * SECOND
    assert back_up(world, target, keep=1).broken == [second.generation]
    assert sizes(target).keys() >= before.keys() - {
        f"generations/{first.generation}.json",
        f"generations/{first.generation}.db",
    }


async def test_an_altered_log_in_a_backup_shows(
    world: World, target: FilePath, tmp_path: FilePath
) -> None:
    """The manifest has the hash that the log must end with."""
    back_up(world, target)
    path = next((target / "generations").glob("*.json"))
    text = path.read_text()
    known = generations(target)[0].head_hash
    path.write_text(text.replace(known, known[::-1]))
    assert "log-chain" in {p.code for p in restore(target, tmp_path / "new").problems}


async def test_the_backup_of_another_store_is_refused(
    world: World, target: FilePath, tmp_path: FilePath
) -> None:
    back_up(world, target)
    other = World(tmp_path / "other")
    other.edit("UPDATE store SET value = 'other' WHERE key = 'store_id'")
    with pytest.raises(errors.StoreExists, match="another store"):
        back_up(other, target)
    assert len(generations(target)) == 1
    await other.close()


async def test_what_is_no_backup_is_refused(world: World, tmp_path: FilePath) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/cat.jpg").write_bytes(b"miaow")
    with pytest.raises(errors.StoreExists, match="something else"):
        back_up(world, tmp_path / "photos")
    assert sizes(tmp_path / "photos") == {"cat.jpg": 5}
    for place in ("photos", "nowhere"):
        with pytest.raises(errors.StoreNotFound):
            restore(tmp_path / place, tmp_path / "new")
    assert not (tmp_path / "new").exists()


async def test_a_disk_that_was_just_formatted_is_empty(world: World, target: FilePath) -> None:
    (target / "lost+found").mkdir(parents=True)
    assert back_up(world, target).is_first
    assert not back_up(world, target).is_first


async def test_a_restore_goes_into_an_empty_directory_only(
    world: World, target: FilePath, tmp_path: FilePath
) -> None:
    back_up(world, target)
    (tmp_path / "empty").mkdir()
    assert restore(target, tmp_path / "empty").problems == []
    before = sizes(tmp_path / "empty")
    with pytest.raises(errors.StoreExists, match="not empty"):
        restore(target, tmp_path / "empty")
    assert sizes(tmp_path / "empty") == before


async def test_two_backups_at_once_are_one_and_a_refusal(world: World, target: FilePath) -> None:
    back_up(world, target)
    with (target / "backup.json").open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        with pytest.raises(errors.StoreBusy):
            back_up(world, target)
    assert back_up(world, target)


@pytest.mark.parametrize("name", ["backup.json", "generations/*.json"])
async def test_a_backup_by_a_newer_version_is_refused(
    world: World, target: FilePath, tmp_path: FilePath, name: str
) -> None:
    back_up(world, target)
    (path,) = target.glob(name)
    path.write_text(path.read_text().replace('"nexus_backup": 1', '"nexus_backup": 2'))
    with pytest.raises(errors.StoreVersion, match="upgrade"):
        restore(target, tmp_path / "new")
    with pytest.raises(errors.StoreVersion, match="upgrade"):
        back_up(world, target)


async def test_a_generation_of_a_newer_format_is_refused(
    world: World, target: FilePath, tmp_path: FilePath
) -> None:
    back_up(world, target)
    (path,) = target.glob("generations/*.json")
    path.write_text(path.read_text().replace('"schema_version": ', '"schema_version": 9'))
    with pytest.raises(errors.StoreVersion, match="upgrade"):
        restore(target, tmp_path / "new")


async def test_a_clock_that_was_set_back_does_not_make_the_newest_the_oldest(
    world: World, target: FilePath
) -> None:
    back_up(world, target)
    world.clock.now_ns -= 3600 * SECOND
    await world.write("new", b"new")
    back_up(world, target, keep=1)
    assert [manifest.head for manifest in generations(target)] == [world.head]


async def test_a_log_that_does_not_go_on_where_the_last_backup_ended_is_told(
    world: World, target: FilePath, tmp_path: FilePath
) -> None:
    """Restored from an older generation, or rewritten."""
    first = back_up(world, target)
    await world.write("new", b"new")
    second = back_up(world, target)
    assert (first.diverged, second.diverged) == (None, None)
    restore(target, tmp_path / "old", first.manifest.generation)
    copy = Reopened(tmp_path / "old")
    await copy.write("other", b"x")
    assert back_up(copy, target).diverged == second.manifest.generation
    await copy.close()


async def test_damaged_metadata_does_not_become_a_generation(
    world: World, target: FilePath
) -> None:
    back_up(world, target)
    connection = Connection(str(world.path / DATABASE_NAME))
    connection.run("PRAGMA writable_schema = 1")
    connection.run(
        "UPDATE sqlite_schema SET rootpage = (SELECT rootpage FROM sqlite_schema"
        " WHERE name = 'inode') WHERE name = 'dentry_ino'"
    )
    connection.run("PRAGMA writable_schema = 0")
    connection.close()
    with pytest.raises(errors.CorruptMetadata, match="as they were"):
        back_up(world, target)
    assert len(generations(target)) == 1


async def test_what_lives_only_in_a_living_process_is_not_in_it(
    world: World, target: FilePath, tmp_path: FilePath
) -> None:
    """Its open files without a name, its unfinished writes: the backup is the log's end."""
    handle = await world.engine.open(world.inode("docs/b").ino, os.O_RDWR, ALICE)
    await world.engine.write(handle, 0, b"not in the log")
    await world.engine.flush(handle)
    head = world.head
    back_up(world, target)
    await check_restored(target, tmp_path / "new", world, head)
    await world.unlink("docs/b")
    head = world.head
    back_up(world, target)
    await check_restored(target, tmp_path / "again", world, head)
    await world.engine.release(handle)


async def test_a_reader_that_stays_does_not_make_writers_wait(world: World) -> None:
    """A copy of the database keeps the write-ahead log from beginning anew: nobody insists."""
    path = str(world.path / DATABASE_NAME)
    reader = Connection(path)
    reader.run("BEGIN")
    reader.all("SELECT count(*) FROM oplog")
    await world.write("more", b"more")
    began_s = monotonic()
    Connection(path).checkpoint(restart=True)
    assert monotonic() - began_s < RESTART_WAIT_MS / 1000
    assert reader.wal_bytes() > 0
    reader.run("ROLLBACK")
    Connection(path).checkpoint(restart=True)
    assert reader.wal_bytes() == 0
