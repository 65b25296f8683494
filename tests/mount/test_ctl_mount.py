"""``nexus-ctl`` around the mount: each error is one clear line that says what to do."""

from __future__ import annotations

import errno
import os
import signal
import socket
import sqlite3
import subprocess
import time
from pathlib import Path

from tests.conftest import CTL, TIMEOUT_S, Mount
from tests.mount.linux import refused
from tests.mount.waiting import runs, wait_until


def ctl(*arguments: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run nexus-ctl without a working directory in a mount."""
    return subprocess.run(
        [*CTL, *map(str, arguments)],
        cwd=cwd or "/",
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
        env={**os.environ, "PYTHONPATH": os.getcwd()},
    )


def require_one_line(
    done: subprocess.CompletedProcess[str], *expected: str, code: int | None = None
) -> None:
    """A failed command says one line, which names the thing and the way out."""
    assert done.returncode != 0
    if code is not None:
        assert done.returncode == code, done
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert done.stderr.startswith("nexus-ctl: ")
    assert "Traceback" not in done.stderr
    for part in expected:
        assert part in done.stderr


def test_mount_refuses_what_is_no_empty_directory(tmp_path: Path) -> None:
    """Nothing may be hidden by a mount."""
    store = tmp_path / "store"
    (tmp_path / "file").touch()
    (tmp_path / "full").mkdir()
    (tmp_path / "full/x").touch()
    for name, reason in [
        ("missing", "mkdir -p"),
        ("file", "not a directory"),
        ("full", "not empty"),
    ]:
        done = ctl("mount", "--store", store, tmp_path / name)
        require_one_line(done, str(tmp_path / name), reason)
        assert not os.path.ismount(tmp_path / name)
    assert not store.exists(), "a failed mount leaves nothing behind"


def test_mount_refuses_a_store_inside_the_mountpoint_and_the_reverse(tmp_path: Path) -> None:
    """A mount that hid its own store would hang."""
    (tmp_path / "mount").mkdir()
    done = ctl("mount", "--store", tmp_path / "mount/store", tmp_path / "mount")
    require_one_line(done, "apart")
    require_one_line(ctl("mount", "--store", tmp_path, tmp_path / "mount"), "apart")


def test_mount_refuses_a_directory_that_is_no_store(tmp_path: Path) -> None:
    """Somebody's files are not a store."""
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/one.jpg").touch()
    (tmp_path / "mount").mkdir()
    done = ctl("mount", "--store", tmp_path / "photos", tmp_path / "mount")
    require_one_line(done, "photos", code=6)
    assert os.listdir(tmp_path / "photos") == ["one.jpg"]


def test_a_second_daemon_on_one_mountpoint_is_refused(mount: Mount, tmp_path: Path) -> None:
    """Also with another store; the first one goes on."""
    require_one_line(ctl("mount", "--store", mount.store, mount.path), "already mounted")
    done = ctl("mount", "--store", tmp_path / "other", mount.path)
    require_one_line(done, "another store", "umount")
    (mount.path / "file").write_text("x")
    assert (mount.path / "file").read_text() == "x"


def test_a_dead_mount_is_freed_and_mounted_again(mount: Mount) -> None:
    """After kill -9 the mountpoint says ENOTCONN until somebody cleans up: mount does."""
    (mount.path / "file").write_text("kept")
    os.kill(int(mount.status()["pid"]), signal.SIGKILL)
    wait_until(lambda: _errno(mount.path) == errno.ENOTCONN, "the mount is dead")
    done = ctl("status", mount.path)
    require_one_line(done, "dead", "nexus-ctl mount")
    mount.expected_log = ["which died"]
    done = ctl("mount", "--store", mount.store, mount.path)
    assert done.returncode == 0, done
    assert (mount.path / "file").read_text() == "kept"


def test_a_dead_mount_can_be_unmounted(mount: Mount) -> None:
    """umount works when there is no daemon to wait for."""
    os.kill(int(mount.status()["pid"]), signal.SIGKILL)
    wait_until(lambda: _errno(mount.path) == errno.ENOTCONN, "the mount is dead")
    done = ctl("umount", mount.path)
    assert done.returncode == 0, done
    assert not os.path.ismount(mount.path)
    mount.expected_log = ["which died"]


def _errno(path: Path) -> int:
    try:
        os.statvfs(path)
    except OSError as error:
        return error.errno or 0
    return 0


def test_a_store_of_a_newer_version_is_refused(mount: Mount) -> None:
    """An older program must not guess at what a newer one wrote."""
    mount.umount()
    with sqlite3.connect(mount.store / "meta.db") as database:
        version = database.execute("PRAGMA user_version").fetchone()[0]
        database.execute(f"PRAGMA user_version = {version + 1}")
    database.close()
    require_one_line(ctl("mount", "--store", mount.store, mount.path), "upgrade", code=6)
    require_one_line(ctl("--store", mount.store, "log"), "upgrade", code=6)
    with sqlite3.connect(mount.store / "meta.db") as database:
        database.execute(f"PRAGMA user_version = {version}")
    database.close()
    mount.mount()


def test_foreground_serves_until_sigterm(tmp_path: Path) -> None:
    """For a service manager: READY=1 once it serves, STOPPING=1, exit 0."""
    (tmp_path / "mount").mkdir()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notifications:
        notifications.settimeout(TIMEOUT_S)
        notifications.bind(f"\0nexus-test-{os.getpid()}")
        daemon = subprocess.Popen(
            [*CTL, "mount", "--foreground", "--store", tmp_path / "store", tmp_path / "mount"],
            env={**os.environ, "NOTIFY_SOCKET": f"@nexus-test-{os.getpid()}"},
            stderr=subprocess.PIPE,
            text=True,
        )
        assert b"READY=1" in notifications.recv(4096)
        assert os.path.ismount(tmp_path / "mount")
        (tmp_path / "mount/file").write_text("x")
        daemon.send_signal(signal.SIGTERM)
        assert b"STOPPING=1" in notifications.recv(4096)
        _, output = daemon.communicate(timeout=TIMEOUT_S)
    assert daemon.returncode == 0, output
    assert "Traceback" not in output
    assert not os.path.ismount(tmp_path / "mount")
    assert ctl("--store", tmp_path / "store", "cat", "file@now").stdout == "x"


def test_umount_says_who_is_in_the_way(mount: Mount) -> None:
    """A busy mount stays; the message names the process; afterwards it works and waits."""
    with (mount.path / "open").open("w") as file:
        done = ctl("umount", mount.path)
        require_one_line(done, "in use", f"[{os.getpid()}]", "open file")
        assert os.path.ismount(mount.path)
        file.write("still works")
    user = subprocess.Popen(["sleep", "60"], cwd=mount.path)
    require_one_line(ctl("umount", mount.path), f"sleep[{user.pid}]", "working directory")
    user.kill()
    user.wait(10)
    pid = int(mount.status()["pid"])
    assert ctl("umount", mount.path).returncode == 0
    assert not runs(pid), "umount returns when the daemon is gone"
    require_one_line(ctl("umount", mount.path), "not a Nexus mount")
    mount.mount()
    assert (mount.path / "open").read_text() == "still works"


def test_umount_from_inside_the_mount_does_not_accuse_itself(mount: Mount) -> None:
    """What counts is who else is there."""
    done = subprocess.run(
        [*CTL, "umount", mount.path], cwd=mount.path, capture_output=True, text=True,
        timeout=TIMEOUT_S, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_lazy_umount_lets_users_finish(mount: Mount) -> None:
    """--lazy detaches now; the daemon ends when nobody uses it any more."""
    pid = int(mount.status()["pid"])
    with (mount.path / "open").open("w") as file:
        assert ctl("umount", "--lazy", mount.path).returncode == 0
        assert not os.path.ismount(mount.path)
        file.write("finished")
    wait_until(lambda: not runs(pid), "the daemon ends")
    mount.mount()
    assert (mount.path / "open").read_text() == "finished"


def test_read_only_mounts_refuse_every_change(mount: Mount) -> None:
    """mount(2), MS_RDONLY: EROFS."""
    (mount.path / "file").write_text("x")
    mount.umount()
    mount.mount("--read-only")
    assert (mount.path / "file").read_text() == "x"
    with refused(errno.EROFS):
        (mount.path / "new").touch()
    with refused(errno.EROFS):
        (mount.path / "file").unlink()
    with refused(errno.EROFS):
        (mount.path / "file").write_text("y")
    try:
        assert mount.json("log", "--limit", "1")[0]["path"] == "file"
        reply = mount.ctl("snapshot", "create", "s", check=False)
        assert "keeps the moment" not in reply
    finally:
        mount.remount()


def test_status_and_stats_have_the_figures(mount: Mount) -> None:
    """For people and, with --json, for programs; found from the path or the working directory."""
    (mount.path / "file").write_text("x")
    status = mount.status()
    assert status["mountpoint"] == str(mount.path)
    assert status["store"] == str(mount.store)
    assert int(status["operations"]) == 3
    assert f"store {mount.store}" in mount.ctl("status")
    stats = mount.json("stats")[0]
    assert stats["operations"] == 3
    assert stats["packs_bytes"] > 0
    require_one_line(ctl("status", "/"), "not in a Nexus mount", code=1)


def test_exit_codes_tell_the_kinds_of_failure_apart(mount: Mount, tmp_path: Path) -> None:
    """0 done, 1 not done, 2 usage, 3 conflicts, 6 no store."""
    mount.sh("echo 1 > file")
    cases: list[tuple[int, list[str]]] = [
        (0, ["log"]),
        (1, ["restore", "never-there", "op-1"]),
        (2, ["log", "--no-such-option"]),
        (2, ["no-such-command"]),
        (2, ["log", "--since", "not-a-moment"]),
        (2, ["undo", "op-999999"]),
        (6, ["--store", str(tmp_path / "nowhere"), "log"]),
    ]
    for code, arguments in cases:
        done = ctl(*arguments, cwd=mount.path)
        assert done.returncode == code, (arguments, done.stderr)
        if code:
            require_one_line(done)


def test_mounting_returns_quickly(mount: Mount) -> None:
    """nexus-ctl mount returns when the mount serves, not before and not long after."""
    mount.umount()
    begin = time.monotonic()
    mount.mount()
    assert os.path.ismount(mount.path)
    assert os.listdir(mount.path) == []
    assert time.monotonic() - begin < 30
