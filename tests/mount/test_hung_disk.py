"""A disk that stops answering gives errors in time, and is used again when it answers.

The disk is a FUSE filesystem (another Nexus) whose daemon is stopped: whoever asks it then waits,
in the kernel, and no signal ends that.
"""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from time import monotonic

import pytest

from tests.conftest import CTL, TIMEOUT_S, Mount
from tests.mount.linux import refused
from tests.mount.waiting import wait_until

LIMIT_S = 2
AT_ONCE_S = 1
SETTINGS = f"read_limit_s: {LIMIT_S}\nsync_limit_s: {LIMIT_S}\n"
SILENT = "the store's disk did not answer for 2 s"
AGAIN = "answers again"


class FarDisk:
    """A disk that can be made to hang."""

    def __init__(self, mount: Mount) -> None:
        self.mount = mount
        self.path = mount.path
        self.pid = int(mount.status()["pid"])

    def hang(self) -> None:
        os.kill(self.pid, signal.SIGSTOP)

    def answer(self) -> None:
        os.kill(self.pid, signal.SIGCONT)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[FarDisk]:
    (tmp_path / "disk").mkdir()
    far = FarDisk(Mount(tmp_path / "disk", "--hang-limit", "0"))
    try:
        yield far
    finally:
        far.answer()
        with suppress(subprocess.TimeoutExpired):
            subprocess.run([*CTL, "umount", far.path], check=False, timeout=TIMEOUT_S, cwd="/")
        far.mount.detach()


@pytest.fixture
def mount(tmp_path: Path, disk: FarDisk) -> Iterator[Mount]:
    """Yield a mount whose packs lie on the disk; metadata and log are on another."""
    (disk.path / "packs").mkdir()
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "packs").symlink_to(disk.path / "packs")
    (tmp_path / "store" / "store.yaml").write_text(SETTINGS)
    mounted = Mount(tmp_path)
    mounted.expected_log = [SILENT, AGAIN]
    try:
        yield mounted
        disk.answer()
        if os.path.ismount(mounted.path):
            assert mounted.check() == []
            mounted.umount()
        assert mounted.unexpected_log_lines() == []
        mounted.ctl("--store", str(mounted.store), "fsck")
    finally:
        disk.answer()
        mounted.detach()


@contextmanager
def within(limit_s: float) -> Iterator[None]:
    begun_s = monotonic()
    try:
        yield
    finally:
        assert monotonic() - begun_s < limit_s


def test_what_the_disk_does_not_give_fails_and_the_rest_is_served(
    mount: Mount, disk: FarDisk
) -> None:
    """ETIMEDOUT in time, then at once; names, attributes and what is in memory go on."""
    (mount.path / "warm").write_text("warm")
    (mount.path / "cold").write_text("cold")
    mount.remount()
    assert (mount.path / "warm").read_text() == "warm"
    mount.umount()
    mount.mount()
    disk.hang()
    with refused(errno.ETIMEDOUT), within(2 * LIMIT_S):
        (mount.path / "cold").read_text()
    with refused(errno.ETIMEDOUT), within(AT_ONCE_S):
        (mount.path / "warm").read_text()
    (mount.path / "directory").mkdir()
    (mount.path / "cold").rename(mount.path / "moved")
    assert sorted(os.listdir(mount.path)) == ["directory", "moved", "warm"]
    assert int(mount.status()["disk_silent_s"]) > 0
    assert mount.log.read_text().count(SILENT) == 1
    disk.answer()
    wait_until(lambda: AGAIN in mount.log.read_text(), "the disk is used again")
    assert (mount.path / "moved").read_text() == "cold"
    assert "disk_silent_s" not in mount.status()


def test_what_was_written_while_the_disk_hung_is_kept(mount: Mount, disk: FarDisk) -> None:
    """close and fsync say that it is not durable; it stays in memory, and gets there later."""
    (mount.path / "file").write_text("before")
    disk.hang()
    fd = os.open(mount.path / "file", os.O_RDWR)
    os.pwrite(fd, b"after!", 0)
    with refused(errno.ETIMEDOUT), within(2 * LIMIT_S):
        os.fsync(fd)
    os.pwrite(fd, b"!", 6)
    assert os.pread(fd, 10, 0) == b"after!!"
    with refused(errno.ETIMEDOUT), within(AT_ONCE_S):
        os.close(fd)
    disk.answer()
    wait_until(lambda: mount.status()["write_sessions"] == 0, "the file is in the log")
    mount.remount()
    assert (mount.path / "file").read_bytes() == b"after!!"


_READER = """
import errno, sys
try:
    open(sys.argv[1]).read()
except OSError as error:
    assert error.errno == errno.ETIMEDOUT, error
"""


def test_many_who_wait_keep_nobody_from_what_is_healthy(mount: Mount, disk: FarDisk) -> None:
    """The threads that wait for the disk are not those that others use."""
    names = [f"file-{number}" for number in range(60)]
    for name in names:
        (mount.path / name).write_text(name)
    mount.remount()
    disk.hang()
    readers = [
        subprocess.Popen([sys.executable, "-c", _READER, mount.path / name]) for name in names
    ]
    (mount.path / "directory").mkdir()
    assert "file-59" in mount.ctl("log", "file-59")
    for reader in readers:
        assert reader.wait(TIMEOUT_S) == 0
    disk.answer()
    wait_until(lambda: AGAIN in mount.log.read_text(), "the disk is used again")
    for name in names:
        assert (mount.path / name).read_text() == name
