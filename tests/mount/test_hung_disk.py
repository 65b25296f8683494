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

from nexusfuse.ctl.exit_codes import TRY_AGAIN
from tests.conftest import CTL, TIMEOUT_S, Mount
from tests.mount.linux import refused
from tests.mount.test_ctl_mount import ctl, require_one_line
from tests.mount.test_supervision import answers
from tests.mount.waiting import runs, wait_until

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


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FarDisk]:
    far = FarDisk(Mount(tmp_path_factory.mktemp("disk"), "--hang-limit", "0"))
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
    packs = disk.path / f"packs-{tmp_path.name}"
    packs.mkdir()
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "packs").symlink_to(packs)
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


@pytest.mark.slow
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


def test_umount_ends_while_the_disk_hangs(mount: Mount, disk: FarDisk) -> None:
    """It says which process is left behind; the next mount finishes what that could not."""
    (mount.path / "file").write_text("kept")
    pid = int(mount.status()["pid"])
    disk.hang()
    (mount.path / "directory").mkdir()
    done = ctl("umount", "--limit", "2", mount.path)
    assert done.returncode == 1
    assert f"process {pid} is still at it" in done.stderr
    assert not os.path.ismount(mount.path)
    done = ctl("doctor", "--limit", "1", "--store", mount.store)
    assert done.returncode == 1
    assert "did not answer within 1 s" in done.stdout
    disk.answer()
    wait_until(lambda: not runs(pid), "the daemon ends")
    mount.expected_log += ["next mount finishes it", "which died"]
    mount.mount()
    assert (mount.path / "file").read_text() == "kept"
    assert (mount.path / "directory").is_dir()


@pytest.mark.slow
@pytest.mark.parametrize("command", ["mount", "status"])
def test_who_would_wait_for_the_disk_is_told(mount: Mount, disk: FarDisk, command: str) -> None:
    """Instead of waiting as long as it does."""
    mount.umount()
    disk.hang()
    done = ctl(command, "--store", mount.store, *[mount.path] * (command == "mount"))
    require_one_line(done, "did not answer within 10 s", code=TRY_AGAIN)
    disk.answer()
    mount.mount()


@pytest.mark.slow
def test_programs_that_wait_for_a_loop_that_hangs_get_errors(tmp_path: Path, disk: FarDisk) -> None:
    """With all of the store on the disk, SQLite hangs: the supervisor cuts the connection."""
    (disk.path / "store").mkdir(mode=0o700)
    (tmp_path / "store").symlink_to(disk.path / "store")
    log = tmp_path / "log"
    mounted = Mount(tmp_path, "--hang-limit", "2", "--log-file", str(log), restart=True)
    try:
        (mounted.path / "file").write_text("kept")
        before = int(mounted.status()["pid"])
        disk.hang()
        with refused(errno.ENOTCONN, errno.ECONNABORTED), within(20):
            (mounted.path / "directory").mkdir()
        done = ctl("doctor", "--limit", "1", mounted.path)
        assert done.returncode == 1
        assert "is dead" in done.stdout
        assert "did not answer within 1 s" in done.stdout
        disk.answer()
        wait_until(lambda: not runs(before) and answers(mounted), "it serves again")
        assert (mounted.path / "file").read_text() == "kept"
        mounted.umount()
    finally:
        disk.answer()
        mounted.detach()
