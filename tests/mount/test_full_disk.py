"""The store's disk is full, to the last block: honest errors, nothing lost, and a way out."""

from __future__ import annotations

import errno
import os
import random
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from nexusfuse.ctl import exit_codes
from tests.conftest import CTL, TIMEOUT_S, Mount
from tests.mount.conftest import small_disk
from tests.mount.linux import refused
from tests.mount.waiting import wait_until

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to mount a small disk")

MIB = 1 << 20
DISK_MIB = 48


class Disk:
    """A small disk with a mounted store on it, which others can fill."""

    def __init__(self, directory: Path) -> None:
        self.path = directory
        self._other = directory / "other"

    @property
    def free_bytes(self) -> int:
        found = os.statvfs(self.path)
        return found.f_bfree * found.f_frsize

    def fill(self) -> None:
        """Take every block that there is."""
        assert os.path.ismount(self.path), "this would fill the machine's own disk"
        fd = os.open(self._other, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        try:
            size = MIB
            while size:
                try:
                    os.write(fd, bytes(size))
                    os.fsync(fd)
                except OSError as error:
                    if error.errno != errno.ENOSPC:
                        raise
                    size //= 2
        finally:
            os.close(fd)

    def make_room(self) -> None:
        self._other.unlink()


@pytest.fixture(params=["tmpfs", "ext4"])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Disk]:
    """Yield a disk that is smaller than a pack."""
    with small_disk(tmp_path, request.param, DISK_MIB * MIB) as path:
        yield Disk(path)


@pytest.fixture
def full(disk: Disk) -> Iterator[Mount]:
    """Yield a mount on a disk that a test fills; afterwards it is sound, and works again."""
    mount = Mount(disk.path)
    mount.expected_log = ["ERROR", "WARNING"]
    try:
        yield mount
        if os.path.ismount(mount.path):
            assert mount.check() == []
            mount.umount()
        told = mount.log.read_text()
        assert "Traceback" not in told, told[told.index("Traceback") :]
        mount.ctl("--store", str(mount.store), "fsck")
    finally:
        mount.detach()


def put(path: Path, content: bytes) -> int:
    """Write a file in pieces and close it; return how many bytes write(2) took."""
    taken = 0
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    try:
        while taken < len(content):
            taken += os.write(fd, content[taken : taken + 100_000])
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        os.close(fd)
        return taken
    os.close(fd)
    return taken


def works_again(mount: Mount) -> bool:
    try:
        (mount.path / "again").write_bytes(b"again")
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        return False
    return True


def test_what_close_returned_for_is_there_and_the_rest_is_a_prefix(disk: Disk, full: Mount) -> None:
    """write(2) or close(2) says ENOSPC; also a daemon that is killed then loses no promise."""
    rng = random.Random(7)
    promised: dict[str, bytes] = {}
    refused_ones: dict[str, bytes] = {}
    number = 0
    while len(refused_ones) < 20:
        number += 1
        name, content = f"file-{number}", rng.randbytes(rng.choice((10, 5000, 400_000, 2_500_000)))
        try:
            taken = put(full.path / name, content)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            taken = -1
        if taken == len(content):
            promised[name] = content
        else:
            refused_ones[name] = content
            disk.fill()
    assert len(promised) > 3
    for name, content in promised.items():
        assert (full.path / name).read_bytes() == content, name
    os.kill(int(full.status()["pid"]), signal.SIGKILL)
    subprocess.run(["fusermount3", "-uz", full.path], check=True, timeout=TIMEOUT_S)
    full.mount()
    for name, content in promised.items():
        assert (full.path / name).read_bytes() == content, name
    for name, content in refused_ones.items():
        if (full.path / name).exists():
            assert content.startswith((full.path / name).read_bytes()), name
    disk.make_room()
    wait_until(lambda: works_again(full), "room is noticed")


def test_what_frees_space_works_on_a_full_disk_and_the_rest_says_enospc(
    disk: Disk, full: Mount
) -> None:
    """Each by itself, with not a block left."""
    top = full.path
    for name in ("gone", "old", "new", "kept", "cut", "open"):
        (top / name).write_bytes(name.encode() * 1000)
    (top / "directory").mkdir()
    disk.fill()
    with refused(errno.ENOSPC):  # what SQLite has room for already may still succeed
        for number in range(1000):
            (top / f"new-{number}").mkdir()
    with (top / "open").open("rb") as file:
        (top / "gone").unlink()
        disk.fill()
        os.rename(top / "old", top / "new")
        (top / "directory").rmdir()
        os.truncate(top / "cut", 3)
        (top / "open").unlink()
        assert file.read() == b"open" * 1000
    for take in (
        lambda: (top / "another").mkdir(),
        lambda: (top / "another").write_bytes(b"x"),
        lambda: os.link(top / "kept", top / "another"),
        lambda: os.symlink("kept", top / "another"),
        lambda: os.setxattr(top / "kept", "user.x", b"x"),
        lambda: (top / ".nexus/snapshots/another").mkdir(),
    ):
        with refused(errno.ENOSPC):
            take()
    assert os.statvfs(top).f_bavail == 0
    with (top / "kept").open("r+b", buffering=0) as file, refused(errno.ENOSPC):
        file.write(b"more")
    full.ctl("undo", "--last", "1")
    assert (top / "open").read_bytes() == b"open" * 1000
    before = full.json("log", "--kind", "unlink", "gone")[0]["seq"] - 1
    full.ctl("restore", "gone", f"op-{before}")
    full.ctl("gc")
    assert (top / "gone").read_bytes() == b"gone" * 1000
    assert (top / "new").read_bytes() == b"old" * 1000
    assert (top / "cut").read_bytes() == b"cut"
    assert (top / "kept").read_bytes() == b"kept" * 1000
    full.umount()
    disk.fill()
    full.mount()  # also that works
    assert (top / "kept").read_bytes() == b"kept" * 1000
    disk.make_room()
    wait_until(lambda: works_again(full), "room is noticed")
    assert os.statvfs(top).f_bavail > 0
    assert os.statvfs(top).f_bavail <= os.statvfs(disk.path).f_bavail


def test_a_file_whose_bytes_found_no_room_can_be_deleted(disk: Disk, full: Mount) -> None:
    """What write(2) took is in memory, and close said ENOSPC: rm is no reason to wait for room."""
    fd = os.open(full.path / "late", os.O_WRONLY | os.O_CREAT)
    os.fsync(fd)  # a COMMIT on a full disk borrows of the reserve, and the content might slip in
    os.write(fd, os.urandom(300_000))
    disk.fill()
    with refused(errno.ENOSPC):
        os.fsync(fd)
    with refused(errno.ENOSPC):
        os.close(fd)
    os.unlink(full.path / "late")
    assert os.listdir(full.path) == []
    disk.make_room()
    wait_until(lambda: works_again(full), "room is noticed")
    assert int(full.status()["write_sessions"]) <= 1


def test_umount_names_what_could_not_be_written_and_the_next_mount_finishes_it(
    disk: Disk, full: Mount
) -> None:
    """Exit code 9; what close or fsync had returned for is kept, and the rest was refused."""
    (full.store / "store.yaml").write_text("reserve_mib: 0\n")
    full.remount()
    for name in ("synced", "refused"):
        (full.path / name).write_bytes(b"before")
    with (full.path / "synced").open("r+b", buffering=0) as synced:
        synced.write(b"kept, as fsync said")
        os.fsync(synced.fileno())
        refused_one = (full.path / "refused").open("r+b", buffering=0)
        refused_one.write(os.urandom(300_000))
        disk.fill()
    with refused(errno.ENOSPC):
        refused_one.close()
    done = subprocess.run(
        [*CTL, "umount", full.path], capture_output=True, text=True, check=False, timeout=TIMEOUT_S
    )
    assert done.returncode == exit_codes.UNFINISHED, done
    assert not os.path.ismount(full.path)
    (line,) = done.stderr.splitlines()
    kept, _, lost = line.partition("lost, because")
    assert "no space left" in kept.lower()
    # Its session ends in the journal, which has its room, and for a COMMIT there is none.
    assert re.search(r"the next mount finishes (what is in the journal|/synced|inode \d+)", kept)
    # By number where not even its name can be read before the COMMIT.
    assert re.search(r"(/refused|inode \d+)$", lost)
    assert line.partition("but ")[2] in full.log.read_text()
    disk.make_room()
    full.mount()
    assert (full.path / "synced").read_bytes() == b"kept, as fsync said"
    assert (full.path / "refused").read_bytes() == b"before"


def test_a_daemon_that_is_told_to_end_says_what_it_could_not_write(disk: Disk, full: Mount) -> None:
    """SIGTERM, as systemd sends it: an exit code of its own, and a line on stderr."""
    full.umount()
    command = [*CTL, "--store", str(full.store), "mount", "--foreground", str(full.path)]
    daemon = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    wait_until(lambda: os.path.ismount(full.path), "it serves")
    file = (full.path / "open").open("wb", buffering=0)
    file.write(os.urandom(300_000))
    disk.fill()
    daemon.terminate()
    _, told = daemon.communicate(timeout=TIMEOUT_S)
    assert daemon.returncode == exit_codes.UNFINISHED, told
    assert told.splitlines()[-1].endswith("what was last written to /open")
    with refused(errno.ENOTCONN):
        file.close()
    disk.make_room()
    full.mount()
    assert (full.path / "open").read_bytes() == b""


def test_pruning_begins_early_where_it_may_make_room(disk: Disk, full: Mount) -> None:
    """``make_room``: what the policy lets go of goes when the disk is nearly full, not before."""
    (full.store / "store.yaml").write_text(
        "retention: {keep_all: 0s, interval: 52w, make_room: true}\n"
    )
    full.remount()
    content = os.urandom(MIB)
    (full.path / "kept").write_bytes(content)
    for _ in range(8):
        (full.path / "passing").write_bytes(os.urandom(3 * MIB))
    (full.path / "passing").unlink()
    assert "pruning early" not in full.log.read_text()
    before = disk.free_bytes
    disk.fill()
    wait_until(lambda: "gave back" in full.log.read_text(), "pruning")
    assert "bytes are left on the disk: pruning early" in full.log.read_text()
    wait_until(lambda: works_again(full), "room is noticed")
    disk.make_room()
    assert disk.free_bytes > before + 20 * MIB
    assert (full.path / "kept").read_bytes() == content
    full.remount()
    assert (full.path / "kept").read_bytes() == content
