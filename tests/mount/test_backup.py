"""Backups of a store that is mounted and written to, as a person makes them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from nexus_engine.backup.restoring import restore_store
from nexus_engine.commands import ignore_progress
from nexus_engine.meta.connection import DATABASE_NAME, Connection
from tests.conftest import CTL, TIMEOUT_S, Mount
from tests.mount import trees
from tests.mount.conftest import serving

MIB = 1 << 20


def ctl(*arguments: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run nexus-ctl, whatever comes of it."""
    return subprocess.run(
        [*CTL, *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )


def reply(*arguments: str | Path, cwd: Path | None = None) -> dict[str, Any]:
    done = ctl("--json", *arguments, cwd=cwd)
    assert done.returncode == 0, done.stderr
    value: dict[str, Any] = json.loads(done.stdout)
    return value


@contextmanager
def restored(backup: Path, directory: Path, *options: str) -> Iterator[Mount]:
    """Restore a store and mount it."""
    directory.mkdir()
    reply("restore-store", backup, directory / "store", *options)
    with serving(directory) as mounted:
        yield mounted


class Writers:
    """Threads that change a tree in every way there is, until they are told to stop."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._work, args=(n,)) for n in range(3)]
        self.rounds = [0] * len(self._threads)

    def __enter__(self) -> Writers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(TIMEOUT_S)

    def _work(self, number: int) -> None:
        while not self._stop.is_set():
            round_ = self.rounds[number]
            home = self._root / f"{number}-{round_ % 5}"
            home.mkdir(exist_ok=True)
            with (home / "log").open("ab") as file:
                file.write(os.urandom(20_000))
            (home / "new").write_text(f"{round_}\n")
            (home / "new").replace(home / "current")
            os.setxattr(home, "user.round", b"%d" % round_)
            if round_ % 5 == 4:
                (home / "log").unlink()
            self.rounds[number] += 1


def test_a_backup_beside_writers_is_one_moment_of_the_tree_with_all_its_past(
    mount: Mount, tmp_path: Path
) -> None:
    trees.plant(mount.path)
    mount.sh("echo one > note", agent="alice")
    mount.ctl("snapshot", "create", "planted")
    trees.disturb(mount.path)
    backup = tmp_path / "backup"
    with Writers(mount.path) as writers:
        made = [reply("backup", backup, cwd=mount.path) for _ in range(2)]
        rounds = list(writers.rounds)
    assert min(rounds) > 0
    assert made[0]["operations"] < made[1]["operations"]
    assert (made[0]["first"], made[1]["first"]) == (True, False)
    for number, generation in enumerate(made):
        options = ("--generation", generation["generation"])
        with restored(backup, tmp_path / f"restored{number}", *options) as copy:
            head = f"op-{generation['operations']}"
            then = mount.path / ".nexus/history" / head
            assert trees.look(copy.path) == trees.look(then)
            assert trees.look(copy.path / ".nexus/history/planted") == trees.look(
                mount.path / ".nexus/history/planted"
            )
            assert copy.json("verify-log")[0]["head_hash"] == generation["head_hash"]
            copy.ctl("undo", "--agent", "alice")
            assert not (copy.path / "note").exists()


@pytest.mark.parametrize("with_store", [False, True])
def test_what_is_open_and_written_to_is_in_the_backup(
    mount: Mount, tmp_path: Path, with_store: bool
) -> None:
    """As for a snapshot: write sessions are put into the log first."""
    backup = tmp_path / "backup"
    with (mount.path / "open").open("wb") as file:
        file.write(b"not closed yet")
        file.flush()
        if with_store:
            reply("--store", mount.store, "backup", backup, cwd=tmp_path)
        else:
            reply("backup", backup, cwd=mount.path)
    with restored(backup, tmp_path / "restored") as copy:
        assert (copy.path / "open").read_bytes() == b"not closed yet"


def test_a_second_backup_copies_only_what_is_new(mount: Mount, tmp_path: Path) -> None:
    backup = tmp_path / "backup"
    (mount.path / "big").write_bytes(os.urandom(5 * MIB))
    first = reply("backup", backup, cwd=mount.path)
    assert first["copied_bytes"] >= 5 * MIB
    (mount.path / "more").write_bytes(os.urandom(MIB))
    second = reply("backup", backup, cwd=mount.path)
    assert MIB <= second["copied_bytes"] < MIB + 10_000
    assert second["packs_bytes"] == first["packs_bytes"] + second["copied_bytes"]
    lines = ctl("backup", "--list", backup).stdout.splitlines()
    assert [line.split()[0] for line in lines[1:]] == [first["generation"], second["generation"]]


def test_a_backup_that_is_killed_leaves_the_one_before_and_is_gone_on_with(
    mount: Mount, tmp_path: Path
) -> None:
    """kill -9, once it has begun, and once it has copied a pack, or a part of one."""
    backup = tmp_path / "backup"
    (mount.path / "old").write_bytes(b"old")
    before = reply("backup", backup, cwd=mount.path)
    for number in range(8):
        (mount.path / f"big{number}").write_bytes(os.urandom(10 * MIB))
    mount.expected_log.append("took over from process")

    def has_begun() -> bool:
        return any((backup / "generations").glob("*.new*"))

    def packs_bytes() -> int:
        return sum(path.stat().st_size for path in (backup / "packs").iterdir())

    def has_copied() -> bool:
        return packs_bytes() > copied

    for number, is_under_way in enumerate((has_begun, has_copied)):
        copied = packs_bytes()
        backing_up = subprocess.Popen(
            [*CTL, "backup", backup], cwd=mount.path, stdout=subprocess.DEVNULL
        )
        while not is_under_way():
            assert backing_up.poll() is None
        backing_up.kill()
        assert backing_up.wait(TIMEOUT_S) == -signal.SIGKILL
        copy = tmp_path / f"restored{number}"
        done = restore_store(backup, copy, generation=None, progress=ignore_progress)
        assert done.problems == []
        assert done.manifest.head_hash == before["head_hash"]
    reply("backup", backup, cwd=mount.path)
    with restored(backup, tmp_path / "restored") as whole:
        assert trees.look(whole.path) == trees.look(mount.path)


def test_a_full_disk_and_other_refusals_are_one_line_each(mount: Mount, tmp_path: Path) -> None:
    """Exit codes: docs/USAGE.md."""
    (mount.path / "big").write_bytes(os.urandom(3 * MIB))
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/cat").write_bytes(b"miaow")
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", disk], check=True)
    try:
        for arguments, code, hint in (
            (["backup", disk / "b"], 7, "No space left"),
            (["backup", tmp_path / "photos"], 6, "something else"),
            (["backup", mount.path / "inside"], 1, "another disk"),
            (["backup", mount.store / "inside"], 1, "another disk"),
            (["backup", "--keep", "0", tmp_path / "b"], 2, "--keep"),
            (["backup", "--list", tmp_path / "nothing"], 6, "no backup"),
            (["restore-store", tmp_path / "photos", tmp_path / "new"], 6, "no backup"),
            (["restore-store", tmp_path / "photos"], 2, "NEW_STORE"),
            (["load"], 2, "NEW_STORE"),
            (["fsck", "--rebuild-index"], 1, "unmount it"),
            (["--store", mount.store, "fsck", "--rebuild-index"], 8, "unmount it"),
        ):
            done = ctl(*arguments, cwd=mount.path)
            assert done.returncode == code, done
            assert hint in done.stderr
            assert done.stderr.startswith("nexus-ctl: ")
            assert done.stderr.count("\n") == 1
            assert done.stdout == ""
        assert not (mount.path / "inside").exists()
        assert os.listdir(disk / "b/packs") == []
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def test_damage_is_told_by_the_names_of_files(mount: Mount, tmp_path: Path) -> None:
    backup = tmp_path / "backup"
    (mount.path / "docs").mkdir()
    (mount.path / "docs/bad").write_bytes(os.urandom(5000))
    (mount.path / "good").write_bytes(b"good")
    reply("backup", backup, cwd=mount.path)
    (pack,) = (backup / "packs").iterdir()
    with pack.open("r+b") as file:
        file.seek(1000)
        file.write(b"\0" * 10)
    done = ctl("restore-store", backup, tmp_path / "new")
    assert done.returncode == 4
    assert "damaged  /docs/bad\n" in done.stdout
    assert "with damage" in done.stdout.splitlines()[-1]
    good = ctl("--store", tmp_path / "new", "cat", "good@now")
    assert good.stdout == "good"

    copied = reply("backup", "--verify", backup, cwd=mount.path)
    assert copied["copied_packs"] == 1
    assert reply("restore-store", backup, tmp_path / "mended")["problems"] == []


def test_a_purge_and_a_backup_that_keeps_nothing_older_destroy_content(
    mount: Mount, tmp_path: Path
) -> None:
    backup = tmp_path / "backup"
    secret = os.urandom(4000)
    (mount.path / "secret").write_bytes(secret)
    reply("backup", backup, cwd=mount.path)
    assert any(secret in path.read_bytes() for path in (backup / "packs").iterdir())
    mount.ctl("purge", "--yes", "secret")
    reply("backup", "--keep", "1", backup, cwd=mount.path)
    assert not any(secret in path.read_bytes() for path in (backup / "packs").iterdir())


def test_a_dump_of_a_mounted_store_makes_the_same_store(mount: Mount, tmp_path: Path) -> None:
    trees.plant(mount.path)
    trees.disturb(mount.path)
    with (mount.path / "open").open("wb") as file:
        file.write(b"not closed yet")
        file.flush()
        with (tmp_path / "dump.jsonl").open("wb") as output:
            subprocess.run(
                [*CTL, "dump"], cwd=mount.path, stdout=output, timeout=TIMEOUT_S, check=True
            )
    head = json.loads((tmp_path / "dump.jsonl").read_text().partition("\n")[0])["head"]
    (tmp_path / "loaded").mkdir()
    with (tmp_path / "dump.jsonl").open("rb") as file:
        done = subprocess.run(
            [*CTL, "load", "--packs", mount.store / "packs", tmp_path / "loaded/store"],
            stdin=file,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=True,
        )
    assert done.stdout.startswith(f"Loaded op-{head} into ")
    with serving(tmp_path / "loaded") as copy:
        assert trees.look(copy.path) == trees.look(mount.path / f".nexus/history/op-{head}")
        assert copy.json("verify-log")[0]["records"] == head


def test_the_index_is_made_anew_by_fsck(mount: Mount) -> None:
    trees.plant(mount.path)
    before = trees.look(mount.path)
    mount.umount()
    connection = Connection(str(mount.store / DATABASE_NAME))
    connection.run("DELETE FROM chunk")
    connection.close()
    assert ctl("--store", mount.store, "fsck").returncode == 4
    done = ctl("--store", mount.store, "fsck", "--rebuild-index", "--deep")
    assert done.returncode == 0, done
    assert done.stdout.splitlines()[-1] == "Clean."
    mount.mount()
    assert trees.look(mount.path) == before
