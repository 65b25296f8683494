"""fsck --repair, beside programs that use the mount, and on a database that cannot be opened."""

from __future__ import annotations

import errno
import json
import os
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


def damage_type(mount: Mount, table: str, change: str) -> None:
    """Have a row hold what its column cannot, as where a bit of its header flipped."""
    loose = f"UPDATE sqlite_schema SET sql = replace(sql, 'STRICT', '') WHERE name = '{table}'"
    strict = f"UPDATE sqlite_schema SET sql = sql || 'STRICT' WHERE name = '{table}'"
    damage(mount, "PRAGMA writable_schema = ON", loose)
    damage(mount, change)
    damage(mount, "PRAGMA writable_schema = ON", strict)


def test_a_row_of_garbage_is_eio_and_a_line_that_says_what_mends_it(mount: Mount) -> None:
    """No traceback, which would be for a bug; what is beside it goes on, and a repair mends it."""
    mount.sh("mkdir d e; echo one > d/one; echo two > d/two; echo three > e/three")
    inos = {name: (mount.path / "d" / name).stat().st_ino for name in ("one", "two")}
    mount.remount()
    damage_type(mount, "inode", f"UPDATE inode SET mode = 'x' WHERE ino = {inos['one']}")
    mount.expected_log = ["holds garbage"]
    with refused(errno.EIO):
        (mount.path / "d/one").stat()
    with refused(errno.EIO):
        os.listdir(mount.path / "d")
    with refused(errno.EIO):
        os.listdir(mount.path / "d/.nexus/history/now")
    assert (mount.path / "d/two").read_text() == "two\n"
    assert mount.sh("cat e/three; ls e") == "three\nthree\n"
    told = mount.log.read_text()
    assert "Traceback" not in told
    assert told.count(f"/d/one (inode {inos['one']}): a row of table inode holds garbage") == 3
    assert "fsck --repair mends it" in told
    done = subprocess.run(
        [*CTL, "diff", "op-1"], cwd=mount.path, capture_output=True, text=True, timeout=TIMEOUT_S,
        check=False,
    )  # fmt: skip
    assert done.returncode == 4, done
    assert "/d/one" in done.stderr
    mount.umount()
    mount.ctl("--store", str(mount.store), "fsck", "--repair", check=False)
    mount.mount()
    assert mount.sh("cat d/two e/three") == "two\nthree\n"
    mended = [path for path in mount.path.rglob("*") if path.is_file()]
    assert "one\n" in [path.read_text() for path in mended]


def test_a_record_of_garbage_is_an_error_that_names_it(mount: Mount) -> None:
    mount.sh("mkdir d e f")
    damage(mount, "CREATE TABLE before AS SELECT seq, path FROM oplog")
    damage_type(mount, "oplog", "UPDATE oplog SET path = 5 WHERE seq = 3")
    mount.expected_log = ["op-3: a row of table oplog holds garbage"]
    with refused(errno.EIO):
        (mount.path / ".nexus/log").read_text()
    done = subprocess.run(
        [*CTL, "log"], cwd=mount.path, capture_output=True, text=True, timeout=TIMEOUT_S,
        check=False,
    )  # fmt: skip
    assert done.returncode == 4, done
    assert "op-3: a row of table oplog holds garbage" in done.stderr
    assert "Traceback" not in mount.log.read_text()
    damage(
        mount,
        "UPDATE oplog SET path = b.path FROM before b WHERE b.seq = oplog.seq",
        "DROP TABLE before",
    )


@pytest.mark.parametrize("details", ["'no json'", "CAST(x'ff7b' AS TEXT)", "'[1]'", "''"])
def test_a_record_that_is_no_json_ends_no_listing(mount: Mount, details: str) -> None:
    """It is shown as far as it can be read; fsck and verify-log say that it was changed."""
    mount.sh("echo one > file; echo two > file; mkdir d; mv file d/file; echo 3 > d/other")
    head = mount.json("log", "--limit", "1")[0]["seq"]
    damage(
        mount,
        "CREATE TABLE before AS SELECT seq, details FROM oplog",
        f"UPDATE oplog SET details = {details} WHERE seq > 1",
    )
    assert len(mount.json("log")) == head
    assert len(mount.sh("cat .nexus/log").splitlines()) == head
    assert mount.json("history", "d/file")
    assert mount.json("versions", "d/file")
    assert "d/file" in mount.ctl("diff", "op-2")
    assert os.listdir(mount.path / ".nexus/history")
    assert mount.ctl("undo", "--last", "2").startswith("Undid 2 operations")
    mount.ctl("redo")
    assert (mount.path / "d/file").read_text() == "two\n"
    mount.ctl("prune", check=False)
    assert "Traceback" not in mount.log.read_text()
    assert "log-chain" in problem_codes(mount)
    damage(
        mount,
        "UPDATE oplog SET details = b.details FROM before b WHERE b.seq = oplog.seq",
        "DROP TABLE before",
    )


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
