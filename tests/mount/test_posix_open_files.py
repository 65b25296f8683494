"""Open files: mapped, executed, without a name, synced, locked."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import subprocess
from pathlib import Path

from nexusfuse.ctl.checking import mount_status
from tests.conftest import Mount
from tests.mount.linux import refused

GIB = 1 << 30
CHUNK = 1 << 20


def test_mapped_writes_are_seen_by_read(place: Path) -> None:
    """mmap(2), msync(2): MAP_SHARED updates are visible to others and carried to the file."""
    path = place / "mapped"
    path.write_bytes(b"\0" * 3 * mmap.PAGESIZE)
    fd = os.open(path, os.O_RDWR)
    with mmap.mmap(fd, 0) as memory:
        memory[10:15] = b"hello"
        memory[-4:] = b"tail"
        memory.flush()
        assert os.pread(fd, 5, 10) == b"hello"
        with path.open("rb") as other:
            assert other.read()[-4:] == b"tail"
        os.pwrite(fd, b"WORLD", 20)
        assert memory[20:25] == b"WORLD"
        os.close(fd)
        memory[0:5] = b"after"
    content = path.read_bytes()
    assert content[:25] == b"after" + b"\0" * 5 + b"hello" + b"\0" * 5 + b"WORLD"
    assert path.stat().st_size == 3 * mmap.PAGESIZE


def test_private_mapping_leaves_the_file_alone(place: Path) -> None:
    """mmap(2): MAP_PRIVATE updates are not carried to the file."""
    path = place / "mapped"
    path.write_bytes(b"original")
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) as memory:
        memory[:4] = b"copy"
    assert path.read_bytes() == b"original"


def test_a_program_on_the_mount_runs(place: Path) -> None:
    """execve(2): maps the file; writing to it meanwhile is ETXTBSY."""
    program = place / "program"
    program.write_bytes(Path("/bin/sleep").read_bytes())
    program.chmod(0o755)
    running = subprocess.Popen([program, "60"])
    with refused(errno.ETXTBSY):
        os.open(program, os.O_WRONLY)
    running.kill()
    running.wait(10)


def test_unlinked_file_works_until_it_is_closed(place: Path) -> None:
    """unlink(2): the file lives until its last descriptor is closed; its name is free at once."""
    path = place / "file"
    path.write_bytes(b"first")
    fd = os.open(path, os.O_RDWR)
    path.unlink()
    path.write_bytes(b"another file")
    assert os.fstat(fd).st_nlink == 0
    assert os.fstat(fd).st_ino != path.stat().st_ino
    assert os.read(fd, 100) == b"first"
    os.pwrite(fd, b"more" * CHUNK, 5)
    assert os.fstat(fd).st_size == 4 * CHUNK + 5
    assert os.pread(fd, 9, 0) == b"firstmore"
    os.ftruncate(fd, 7)
    assert os.pread(fd, 100, 0) == b"firstmo"
    os.fchmod(fd, 0o600)
    assert os.fstat(fd).st_mode & 0o777 == 0o600
    os.utime(fd, ns=(5, 6))
    assert os.fstat(fd).st_mtime_ns == 6
    os.fsync(fd)
    os.setxattr(fd, "user.late", b"yes")
    assert os.getxattr(fd, "user.late") == b"yes"
    os.close(fd)
    assert path.read_bytes() == b"another file"


def test_replaced_file_works_until_it_is_closed(place: Path) -> None:
    """rename(2): open descriptors for newpath are unaffected."""
    (place / "old").write_bytes(b"old")
    fd = os.open(place / "old", os.O_RDWR)
    (place / "new").write_bytes(b"new")
    os.rename(place / "new", place / "old")
    os.pwrite(fd, b"OLD", 0)
    assert os.pread(fd, 3, 0) == b"OLD"
    assert os.fstat(fd).st_nlink == 0
    os.close(fd)
    assert (place / "old").read_bytes() == b"new"


def test_sync_calls_succeed_on_files_and_directories(place: Path) -> None:
    """fsync(2), fdatasync(2), sync(2); fsync of a directory makes its entries durable."""
    fd = os.open(place / "file", os.O_RDWR | os.O_CREAT)
    os.write(fd, b"durable")
    os.fdatasync(fd)
    os.fsync(fd)
    os.close(fd)
    fd = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
    os.fsync(fd)
    os.fdatasync(fd)
    os.close(fd)
    subprocess.run(["sync", "-f", place], check=True, timeout=60)
    assert (place / "file").read_bytes() == b"durable"


def test_locks_exclude_other_processes(place: Path) -> None:
    """flock(2), fcntl(2): the kernel keeps them for one mount."""
    path = place / "file"
    path.touch()
    with path.open("r+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        done = subprocess.run(["flock", "-n", path, "true"], check=False, timeout=60)
        assert done.returncode == 1
    subprocess.run(["flock", "-n", path, "true"], check=True, timeout=60)


def test_copies_within_the_mount_are_equal(place: Path) -> None:
    """copy_file_range(2), sendfile(2): work, by whichever way the kernel takes."""
    content = os.urandom(2 * CHUNK + 5)
    (place / "source").write_bytes(content)
    with (place / "source").open("rb") as source, (place / "target").open("wb") as target:
        copied = 0
        while copied < len(content):
            copied += os.copy_file_range(source.fileno(), target.fileno(), len(content))
    assert (place / "target").read_bytes() == content
    subprocess.run(["cp", "-a", place / "source", place / "second"], check=True, timeout=60)
    subprocess.run(["cmp", place / "source", place / "second"], check=True, timeout=60)


def test_what_was_cached_is_read_again_after_direct_writes(mount: Mount) -> None:
    """open(2), O_DIRECT by io_submit(2): readers beside it may have cached the bytes before."""
    path = mount.path / "file"
    path.write_bytes(b"a" * 16 * CHUNK)

    def reads() -> int:
        return int(mount_status(os.fsencode(mount.path)).get("requests_read", 0))

    def reads_to_see_the_last_page() -> int:
        before = reads()
        with path.open("rb", buffering=0) as file:
            os.pread(file.fileno(), mmap.PAGESIZE, 16 * CHUNK - mmap.PAGESIZE)
        return reads() - before

    reads_to_see_the_last_page()
    cached = reads_to_see_the_last_page()
    times = path.stat().st_atime_ns, path.stat().st_mtime_ns
    with mmap.mmap(-1, mmap.PAGESIZE) as page:
        fd = os.open(path, os.O_WRONLY | os.O_DIRECT)
        os.pwritev(fd, [page], 0)
        os.utime(fd, ns=times)  # a new mtime would have the kernel drop its pages
        os.close(fd)
    assert reads_to_see_the_last_page() > cached
    assert reads_to_see_the_last_page() == cached
