"""A newer version takes over from an older one that is in use."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import CTL, TIMEOUT_S, Mount
from tests.mount.test_ctl_mount import ctl, require_one_line
from tests.mount.waiting import runs, wait_until

ROOT = Path(__file__).parents[2]
FORMAT_1 = "211ea1a"
"""The last commit whose stores have format 1."""

_WRITER = """
import os, sys
name, root, stop, manifest = sys.argv[1:]
promises = os.open(manifest, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
number = 0
while not os.path.exists(stop):
    number += 1
    path = f"{name}-{number}"
    try:
        if not os.path.ismount(root):
            continue
        with open(f"{root}/{path}", "w") as file:
            file.write(path * 300)
    except OSError:
        continue
    os.write(promises, (path + "\\n").encode())
"""


class Writers:
    """Programs that write all the time, and note what was promised to them."""

    def __init__(self, mountpoint: Path, directory: Path) -> None:
        self._mountpoint = mountpoint
        self._stop = directory / "stop"
        self._manifest = directory / "manifest"
        self._manifest.touch()
        arguments = [mountpoint, self._stop, self._manifest]
        self._programs = [
            subprocess.Popen([sys.executable, "-c", _WRITER, f"writer-{n}", *arguments])
            for n in range(3)
        ]

    def promised(self) -> list[str]:
        return self._manifest.read_text().splitlines()

    def wait_for_more(self) -> None:
        before = len(self.promised())
        wait_until(lambda: len(self.promised()) > before + 30, "more promises")

    def stop(self) -> None:
        self._stop.touch()
        for program in self._programs:
            assert program.wait(TIMEOUT_S) == 0

    def check(self) -> None:
        for name in self.promised():
            assert (self._mountpoint / name).read_text() == name * 300


@pytest.fixture
def writers(mount: Mount, tmp_path: Path) -> Iterator[Writers]:
    mount.umount()
    mount.mount(restart=True)
    running = Writers(mount.path, tmp_path)
    yield running
    running.stop()


def test_restart_replaces_the_daemon_of_a_mount_in_use(mount: Mount, writers: Writers) -> None:
    """In order, and nothing that close had returned for is lost; then it ends as any other."""
    mount.expected_log = ["starting it again"]
    writers.wait_for_more()
    before = mount.status()
    done = ctl("restart", mount.path)
    assert done.returncode == 0, done.stderr
    after = mount.status()
    assert after["pid"] != before["pid"]
    assert after["supervisor"] == before["supervisor"]
    assert after["restarted_after"] == "exit 0"
    writers.wait_for_more()
    writers.stop()
    writers.check()
    assert "which died" not in mount.log.read_text()


def test_a_daemon_that_nobody_supervises_is_not_restarted(mount: Mount) -> None:
    """It would be gone for good."""
    pid = mount.status()["pid"]
    require_one_line(ctl("restart", mount.path), "systemctl restart", "unmount and mount again")
    assert mount.status()["pid"] == pid


@pytest.fixture
def old(tmp_path: Path) -> dict[str, str]:
    """Return the environment in which nexus-ctl is of the version with format 1."""
    archive = ["git", "-C", str(ROOT), "archive", FORMAT_1]
    done = subprocess.run(archive, capture_output=True, check=False)
    if done.returncode != 0:
        pytest.skip("the history of this repository is not here")
    (tmp_path / "old").mkdir()
    subprocess.run(["tar", "-x", "-C", tmp_path / "old"], input=done.stdout, check=True)
    return {**os.environ, "PYTHONPATH": str(tmp_path / "old")}


@pytest.mark.slow
def test_a_store_of_format_1_in_use_is_taken_over(tmp_path: Path, old: dict[str, str]) -> None:
    """Its format is left alone while an older daemon has it open, and brought up to date then."""

    def old_ctl(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
        # -P: not our modules, which are in the working directory.
        command = [sys.executable, "-P", *CTL[1:], *map(str, arguments)]
        return subprocess.run(
            command, env=old, cwd="/", capture_output=True, text=True, timeout=60, check=False
        )

    mountpoint, store = tmp_path / "mount", tmp_path / "store"
    mountpoint.mkdir()
    assert old_ctl("mount", "--store", store, mountpoint).returncode == 0
    writers = Writers(mountpoint, tmp_path)
    try:
        writers.wait_for_more()
        require_one_line(ctl("--store", store, "log"), "has format 1 and is in use by process")
        pid = int(old_ctl("--json", "status", mountpoint).stdout.split('"pid": ')[1].split(",")[0])
        os.kill(pid, signal.SIGTERM)
        wait_until(lambda: not runs(pid), "the old daemon ends")
        assert ctl("mount", "--no-restart", "--store", store, mountpoint).returncode == 0
        writers.wait_for_more()
    finally:
        writers.stop()
        ctl("umount", "--lazy", mountpoint)
    require_one_line(old_ctl("mount", "--store", store, mountpoint), "this Nexus knows up to 1")
    assert ctl("--store", store, "fsck").returncode == 0
    assert ctl("--store", store, "verify-log").returncode == 0
    assert ctl("mount", "--no-restart", "--store", store, mountpoint).returncode == 0
    writers.check()
    assert ctl("umount", mountpoint).returncode == 0
