"""fsck --repair, beside programs that use the mount, and on a database that cannot be opened."""

from __future__ import annotations

import errno
import json
import random
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.conftest import CTL, TIMEOUT_S, Mount
from tests.mount.linux import refused

PAGE = 4096


def damage(mount: Mount, *statements: str) -> None:
    with closing(sqlite3.connect(mount.store / "meta.db", isolation_level=None)) as database:
        for statement in statements:
            database.execute(statement)


def test_a_mounted_store_is_mended_and_the_mount_shows_it(mount: Mount) -> None:
    mount.sh("mkdir d; echo one > d/one; echo two > d/two; ln d/one d/link")
    mount.remount()  # nothing is cached
    inos = {name: (mount.path / "d" / name).stat().st_ino for name in ("one", "two")}
    mount.remount()
    damage(
        mount,
        f"DELETE FROM inode WHERE ino = {inos['one']}",
        f"DELETE FROM dentry WHERE ino = {inos['two']}",
        "UPDATE inode SET nlink = 77 WHERE ino = 1",
    )
    with refused(errno.ENOENT):
        (mount.path / "d/one").read_text()
    codes = problem_codes(mount)
    assert {"dentry-dangling", "file-links", "directory-links"} <= codes
    printed = mount.ctl("fsck", "--repair")
    assert "mended  dentry-dangling  /d/one: its inode is made anew" in printed
    assert f"/d/two (inode {inos['two']}): lost its name; it is /lost+found/#" in printed
    assert printed.endswith("mended. Clean.\n")
    assert (mount.path / "d/one").read_text() == "one\n"
    assert (mount.path / f"lost+found/#{inos['two']}").read_text() == "two\n"
    assert mount.path.stat().st_nlink == 4
    assert mount.ctl("fsck", "--repair") == "Clean.\n"
    mount.sh("echo more > d/two; rm -r lost+found")
    assert mount.check() == []


def test_a_repair_is_in_the_log_and_is_nothing_to_undo(mount: Mount) -> None:
    mount.sh("echo one > file")
    damage(mount, "UPDATE inode SET nlink = 77 WHERE ino = 1")
    mount.ctl("fsck", "--repair")
    (record,) = mount.json("log", "--kind", "repair")
    assert record["details"]["lines"] == [
        "directory-links: / (inode 1): counts 2 links, as is in it"
    ]
    mount.ctl("undo", "--last", "1")
    assert not (mount.path / "file").exists() or (mount.path / "file").read_text() == ""


def test_what_is_mounted_read_only_is_not_repaired(mount: Mount) -> None:
    mount.umount()
    mount.mount("--read-only")
    refusal = run(mount.path, "fsck", "--repair")
    assert refusal.returncode == 1
    assert "mounted read-only" in refusal.stderr


@pytest.fixture
def lasting_damage(tmp_path: Path) -> Iterator[Mount]:
    """Yield a mount that need not be sound when the test ends."""
    mounted = Mount(tmp_path)
    try:
        yield mounted
        mounted.umount()
        assert mounted.unexpected_log_lines() == []
    finally:
        mounted.detach()


def test_rows_of_a_damaged_database_are_salvaged(lasting_damage: Mount) -> None:
    """Pages of garbage: what is on the others comes back, and what was lost is told."""
    mount = lasting_damage
    mount.sh("mkdir d; for i in $(seq 300); do echo $i > d/f$i; done")
    mount.umount()
    path = mount.store / "meta.db"
    rng = random.Random(11)
    content = bytearray(path.read_bytes())
    for page in rng.sample(range(2, len(content) // PAGE), 3):
        content[page * PAGE : page * PAGE + 64] = rng.randbytes(64)
    path.write_bytes(content)
    refusal = run(mount.path, "--store", str(mount.store), "fsck", "--deep")
    assert refusal.returncode == 4
    assert "Traceback" not in refusal.stderr
    assert "salvaged" in mount.ctl("--store", str(mount.store), "fsck", "--repair", check=False)
    (kept,) = mount.store.glob("meta.db.damaged-*Z")
    assert kept.read_bytes() == bytes(content)
    mount.mount()
    names = {f"f{i}": f"{i}\n" for i in range(1, 301)}
    # The directory may be the one that lost its name.
    found = [entry for entry in mount.path.rglob("f*") if entry.name in names]
    assert len(found) > 150
    for entry in found:
        assert entry.read_text() == names[entry.name]
    assert problem_codes(mount) <= {"log-chain", "log-gap", "content-lost", "content-lost-past"}


def problem_codes(mount: Mount) -> set[str]:
    (reply,) = run(mount.path, "--json", "fsck").stdout.splitlines()
    return {problem["code"] for problem in json.loads(reply)["problems"]}


def run(cwd: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*CTL, *arguments], cwd=cwd, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )
