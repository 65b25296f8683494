"""``nexus-ctl doctor``: each trouble is provoked, found, and its absence says nothing."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import time
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path

import pytest

from nexus_engine.meta.connection import DATABASE_NAME
from nexus_engine.owners import claim
from nexus_engine.store import Store
from nexus_engine.types import Actor
from nexusfuse.ctl import store_troubles, troubles
from nexusfuse.ctl.mounts import Mount
from nexusfuse.ctl.troubles import Finding
from tests.conftest import CTL, TIMEOUT_S

USER = 1000
GIB = 1 << 30


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Return the directory of a store that nobody has open."""
    Store.create(tmp_path / "store", Actor(0, 0)).close()
    return tmp_path / "store"


def checks(findings: Iterable[Finding]) -> list[str]:
    """Return the names of what was found; each finding must say why, in one line."""
    found = list(findings)
    for finding in found:
        assert finding.what
        assert finding.why
        assert "\n" not in finding.what + finding.why + finding.command
    return [finding.check for finding in found]


def test_a_missing_device_is_found(tmp_path: Path) -> None:
    """fuse(4): everything goes through /dev/fuse."""
    (tmp_path / "file").touch()
    assert checks(troubles.check_device(tmp_path / "fuse")) == ["device"]
    assert checks(troubles.check_device(tmp_path / "file")) == ["device"]
    assert checks(troubles.check_device(Path("/dev/null"))) == []


def test_a_fusermount_that_is_missing_or_not_setuid_is_found(tmp_path: Path) -> None:
    """fusermount3(1): it is what lets users mount; root does without."""
    program = tmp_path / "fusermount3"
    program.touch(0o755)
    for path in (None, str(program)):
        (finding,) = troubles.check_fusermount(path, uid=USER)
        assert finding.severity == troubles.ERROR
        (finding,) = troubles.check_fusermount(path, uid=0)
        assert finding.severity == troubles.NOTE
    program.chmod(0o4755)
    assert checks(troubles.check_fusermount(str(program), uid=USER)) == []


@pytest.mark.parametrize(
    ("text", "found"), [("user_allow_other\n", []), ("# user_allow_other\n", ["allow-other"])]
)
def test_a_missing_user_allow_other_is_a_note(tmp_path: Path, text: str, found: list[str]) -> None:
    """fuse.conf(5), as fusermount3(1) has it; a comment does not count; root needs none."""
    conf = tmp_path / "fuse.conf"
    conf.write_text(text)
    assert checks(troubles.check_fuse_conf(conf, uid=USER)) == found
    assert checks(troubles.check_fuse_conf(conf, uid=0)) == []


def test_libraries_that_are_too_old_or_missing_are_found() -> None:
    """Of what an optional feature wants nothing is said."""
    wanted = ["apsw>=3.1", "click>=999.1", "no-such-package>=1", "boto3>=99; extra == 's3'"]
    found = list(troubles.check_versions(wanted, version))
    assert [finding.what.split()[0] for finding in found] == ["click", "no-such-package"]


@pytest.mark.parametrize(
    ("status", "found"),
    [
        ({"version": "0.0.1", "supervisor": "17"}, ["old-daemon"]),
        ({"supervisor": "none"}, ["unsupervised"]),
        ({"supervisor": "17", "restarts": "3", "restarted_after": "signal 9"}, ["restarts"]),
        ({"supervisor": "systemd", "restarts": "0"}, []),
    ],
)
def test_what_a_daemon_tells_of_itself_is_looked_at(
    status: dict[str, str], found: list[str]
) -> None:
    """Another version than installed, nobody who starts it again, deaths before."""
    mount = Mount(b"/mnt", b"/", b"fuse.nexus", b"nexus:/store", 0)
    assert checks(troubles.check_daemon(mount, status)) == found


def test_a_store_of_somebody_else_is_found(store: Path) -> None:
    """A store is its owner's; root may use every one."""
    os.chown(store, os.geteuid(), os.getegid())
    assert checks(store_troubles.check_owner(store, uid=os.geteuid() + 1)) == ["owner"]
    assert checks(store_troubles.check_owner(store, uid=os.geteuid())) == []
    assert checks(store_troubles.check_owner(store, uid=0)) == []


@pytest.mark.parametrize(
    ("fstype", "found"),
    [
        ("nfs4", ["filesystem"]),
        ("fuse.sshfs", ["filesystem"]),
        ("overlay", ["filesystem"]),
        ("tmpfs", ["filesystem"]),
        ("ext4", []),
        ("xfs", []),
        ("btrfs", []),
    ],
)
def test_a_store_on_no_local_disk_is_found(fstype: str, found: list[str]) -> None:
    """sqlite.org/wal.html: all processes must be on the same machine; flock(2), NFS details."""
    mount = Mount(b"/data", b"/", fstype.encode(), b"x", 0)
    assert checks(store_troubles.check_filesystem(Path("/data/store"), mount)) == found


def disk(*, total: int, free: int, inodes: int = 1 << 20) -> os.statvfs_result:
    blocks = (4096, 4096, total // 4096, free // 4096, free // 4096)
    return os.statvfs_result((*blocks, 1 << 20, inodes, inodes, 0, 255))


@pytest.mark.parametrize(
    ("space", "found"),
    [
        (disk(total=100 * GIB, free=0), ["space"]),
        (disk(total=100 * GIB, free=3 * GIB), ["space"]),
        (disk(total=4000 * GIB, free=100 * GIB), []),
        (disk(total=10 * GIB, free=GIB), []),
        (disk(total=100 * GIB, free=50 * GIB, inodes=10), ["inodes"]),
    ],
)
def test_a_full_disk_is_found(space: os.statvfs_result, found: list[str]) -> None:
    """statvfs(3): bytes and inodes; of a very large disk a small share is much."""
    assert checks(store_troubles.check_space(Path("/data/store"), space)) == found


def test_a_clock_that_was_set_back_is_found(store: Path) -> None:
    """Times in the log never decrease: the newest record is then in the future."""
    now_ns, hour_ns = time.time_ns(), 3600 * 10**9
    assert checks(store_troubles.check_database(store, now_ns=now_ns - hour_ns)) == ["clock"]
    assert checks(store_troubles.check_database(store, now_ns=now_ns)) == []


def test_stores_that_cannot_be_used_are_told_apart(store: Path, tmp_path: Path) -> None:
    """None, one of a newer version, something else, rubbish."""
    now_ns = time.time_ns()
    assert checks(store_troubles.check_database(tmp_path / "none", now_ns=now_ns)) == ["no-store"]
    with sqlite3.connect(store / DATABASE_NAME) as database:
        database.execute("PRAGMA user_version = 9999")
    database.close()
    assert checks(store_troubles.check_database(store, now_ns=now_ns)) == ["newer-store"]
    with sqlite3.connect(store / DATABASE_NAME) as database:
        database.execute("PRAGMA application_id = 1")
    database.close()
    assert checks(store_troubles.check_database(store, now_ns=now_ns)) == ["unreadable"]
    (store / DATABASE_NAME).write_bytes(b"rubbish" * 4096)
    assert checks(store_troubles.check_database(store, now_ns=now_ns)) == ["unreadable"]


def test_dead_processes_that_nobody_took_over_from_are_found(store: Path) -> None:
    """docs/decisions/0008: who holds no lock does not live."""
    lock = claim(store / "peers")
    assert checks(store_troubles.check_owners(store / "peers")) == []
    (store / "peers/4711-0123.lock").touch()
    (finding,) = store_troubles.check_owners(store / "peers")
    assert (finding.check, "4711" in finding.what) == ("dead-owners", True)
    lock.release()
    subprocess.run(finding.command, shell=True, check=True, timeout=TIMEOUT_S, env=environment())
    assert checks(store_troubles.check_owners(store / "peers")) == [], "the command mends it"


def environment() -> dict[str, str]:
    """Return an environment in which ``nexus-ctl`` is the one that is tested."""
    return {**os.environ, "PATH": f"{Path(CTL[0]).parent}:{os.environ['PATH']}"}


def test_a_large_write_ahead_log_is_found(store: Path) -> None:
    """sqlite.org/wal.html: without checkpoints it grows for ever."""
    assert checks(store_troubles.check_wal(store)) == []
    with (store / f"{DATABASE_NAME}-wal").open("wb") as file:
        file.truncate(GIB)
    assert checks(store_troubles.check_wal(store)) == ["wal"]


def test_errors_of_the_last_day_are_found(tmp_path: Path) -> None:
    """Of older ones, and of warnings, nothing is said."""
    log = tmp_path / "daemon.log"
    now_s = 1_795_000_000.0
    log.write_text(
        _line(now_s - 90_000, "ERROR", "old") + _line(now_s - 10, "WARNING", "took over")
    )
    assert checks(store_troubles.check_log(log, now_s=now_s)) == []
    with log.open("a") as file:
        file.write(_line(now_s - 10, "ERROR", "write failed") + "Traceback …\n")
    (finding,) = store_troubles.check_log(log, now_s=now_s)
    assert "1 error of" in finding.what
    assert "write failed" in finding.what
    assert checks(store_troubles.check_log(tmp_path / "none", now_s=now_s)) == []


def _line(time_s: float, level: str, message: str) -> str:
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(time_s))
    return f'time={stamp}.000Z level={level} source=x message="{message}"\n'


def doctor(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [*CTL, "doctor", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)


OF_THIS_MACHINE = {"filesystem", "space", "inodes", "device", "fusermount3", "allow-other"}


def test_a_sound_store_has_nothing_wrong(store: Path) -> None:
    """Exit code 0, and versions to tell whoever helps."""
    done = doctor("--store", store, "--json")
    reply = json.loads(done.stdout)
    assert reply["stores"] == [str(store)]
    assert {finding["check"] for finding in reply["findings"]} <= OF_THIS_MACHINE
    assert {"nexus", "sqlite", "pyfuse3", "linux"} <= reply["versions"].keys()
    assert done.returncode == any(f["severity"] != "note" for f in reply["findings"])


def test_what_is_wrong_is_said_with_the_command_that_mends_it(tmp_path: Path) -> None:
    """And exit code 1, for scripts."""
    done = doctor("--store", tmp_path / "nowhere")
    assert done.returncode == 1
    assert f"error: there is no store at {tmp_path}/nowhere" in done.stdout
    assert "  $ ls -la" in done.stdout
