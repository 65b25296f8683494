"""Attributes: modes, owners, times, extended attributes, space."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.mount.linux import NOBODY, UTIME_NOW, UTIME_OMIT, refused, utimensat

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
CREATE, REPLACE = os.XATTR_CREATE, os.XATTR_REPLACE


@pytest.fixture
def path(place: Path) -> Path:
    file = place / "file"
    file.write_text("content")
    return file


@pytest.mark.parametrize("mode", [0, 0o7777, 0o640, 0o1755])
def test_chmod_sets_the_bits_and_nothing_else(path: Path, mode: int) -> None:
    """chmod(2): all twelve bits, on files and directories; ctime changes, mtime does not."""
    for target in (path, path.parent):
        before = target.stat()
        target.chmod(mode)
        after = target.stat()
        assert after.st_mode == stat.S_IFMT(before.st_mode) | mode
        assert after.st_ctime_ns > before.st_ctime_ns
        assert after.st_mtime_ns == before.st_mtime_ns
    path.parent.chmod(0o755)


@as_root
def test_chown_changes_what_is_given(path: Path) -> None:
    """chown(2): -1 leaves an id alone; lchown is for the link itself."""
    os.chown(path, 1234, -1)
    os.chown(path, -1, 2**32 - 2)
    assert (path.stat().st_uid, path.stat().st_gid) == (1234, 2**32 - 2)
    os.symlink("file", path.parent / "link")
    os.lchown(path.parent / "link", 7, 8)
    assert os.lstat(path.parent / "link").st_uid == 7
    assert path.stat().st_uid == 1234


@as_root
def test_chown_and_write_drop_the_set_id_bits(path: Path) -> None:
    """chown(2): set-user-ID and executable set-group-ID are cleared when the owner changes."""
    path.chmod(0o6755)
    os.chown(path, NOBODY, NOBODY)
    assert stat.S_IMODE(path.stat().st_mode) & 0o6000 == 0


@pytest.mark.parametrize(
    "time_ns",
    [
        pytest.param(0, id="epoch"),
        pytest.param(1_234_567_890_123_456_789, id="nanoseconds"),
        pytest.param(-1, id="just before 1970"),
        pytest.param(-2_208_988_800_000_000_001, id="1900"),
        pytest.param(4_102_444_800_999_999_999, id="2100"),
        pytest.param(2**31 * 10**9 + 5, id="after 2038"),
    ],
)
def test_times_are_kept_to_the_nanosecond(path: Path, time_ns: int) -> None:
    """utimensat(2): any time that 64 bits hold, for files, directories and links."""
    os.symlink("file", path.parent / "link")
    for target in (path, path.parent, path.parent / "link"):
        os.utime(target, ns=(time_ns, time_ns + 1), follow_symlinks=False)
        found = os.lstat(target)
        assert (found.st_atime_ns, found.st_mtime_ns) == (time_ns, time_ns + 1)


def test_utime_now_and_omit(path: Path) -> None:
    """utimensat(2): UTIME_NOW is the present, UTIME_OMIT leaves a time alone."""
    os.utime(path, ns=(1, 2))
    utimensat(path, (0, UTIME_OMIT), (77, 5))
    assert (path.stat().st_atime_ns, path.stat().st_mtime_ns) == (1, 77 * 10**9 + 5)
    before_ns = time.time_ns()
    utimensat(path, (0, UTIME_NOW), (0, UTIME_OMIT))
    assert before_ns - 10**8 < path.stat().st_atime_ns <= time.time_ns()
    assert path.stat().st_mtime_ns == 77 * 10**9 + 5
    unchanged = path.stat()
    utimensat(path, (0, UTIME_OMIT), (0, UTIME_OMIT))
    assert path.stat() == unchanged
    os.utime(path)
    assert path.stat().st_mtime_ns > before_ns - 10**8


@pytest.mark.parametrize(
    "now",
    [
        lambda path: os.utime(path),
        lambda path: utimensat(path, (0, 0), (0, UTIME_NOW)),
        lambda path: os.truncate(path, 3),
        lambda path: path.open("wb").close(),
    ],
    ids=["NULL", "UTIME_NOW", "truncate", "O_TRUNC"],
)
def test_now_is_not_before_what_was_done_before(place: Path, now: Callable[[Path], None]) -> None:
    """utimensat(2), truncate(2): a file touched at once is not older than when it was made."""
    for count in range(20):
        path = place / f"new{count}"
        path.write_bytes(b"four")
        made_ns = path.stat().st_mtime_ns
        now(path)
        assert path.stat().st_mtime_ns >= made_ns
        copied_ns = time.time_ns()
        os.utime(path, ns=(copied_ns, copied_ns))
        assert path.stat().st_mtime_ns == copied_ns


def test_utime_on_an_open_written_file_lasts_after_close(path: Path) -> None:
    """futimens(3), as tar and cp -p use it: write, set the times, close."""
    fd = os.open(path, os.O_WRONLY)
    os.write(fd, b"new")
    os.utime(fd, ns=(10, 20))
    assert os.fstat(fd).st_mtime_ns == 20
    os.fchmod(fd, 0o604)
    os.close(fd)
    found = path.stat()
    assert (found.st_atime_ns, found.st_mtime_ns) == (10, 20)
    assert path.read_text() == "newtent"


def test_chmod_between_writes_of_one_descriptor_keeps_both(path: Path) -> None:
    """write(2), fchmod(2) in turns."""
    with path.open("r+b", buffering=0) as file:
        file.write(b"CON")
        os.fchmod(file.fileno(), 0o600)
        file.write(b"TENT")
        os.fchmod(file.fileno(), 0o644)
    assert path.read_text() == "CONTENT"
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


def test_xattrs_are_set_replaced_listed_and_removed(path: Path) -> None:
    """setxattr(2), listxattr(2), removexattr(2): any bytes, also none."""
    for target in (path, path.parent):
        assert os.listxattr(target) == []
        values = {"user.a": b"one", "user.empty": b"", "user.bytes": bytes(range(256))}
        for name, value in values.items():
            os.setxattr(target, name, value)
        os.setxattr(target, "user.a", b"two")
        assert {name: os.getxattr(target, name) for name in os.listxattr(target)} == {
            **values,
            "user.a": b"two",
        }
        os.removexattr(target, "user.a")
        assert sorted(os.listxattr(target)) == ["user.bytes", "user.empty"]
        for call in (os.getxattr, os.removexattr):
            with refused(errno.ENODATA):
                call(target, "user.a")


def test_xattr_create_and_replace_flags(path: Path) -> None:
    """setxattr(2): XATTR_CREATE fails with EEXIST, XATTR_REPLACE with ENODATA."""
    with refused(errno.ENODATA):
        os.setxattr(path, "user.x", b"1", REPLACE)
    assert os.listxattr(path) == []
    os.setxattr(path, "user.x", b"1", CREATE)
    with refused(errno.EEXIST):
        os.setxattr(path, "user.x", b"2", CREATE)
    assert os.getxattr(path, "user.x") == b"1"
    os.setxattr(path, "user.x", b"3", REPLACE)
    assert os.getxattr(path, "user.x") == b"3"


def test_xattr_sizes(path: Path) -> None:
    """xattr(7): 255 bytes of name, 64 KiB of value; getxattr(2) ERANGE for a small buffer."""
    import ctypes

    long_name = "user." + "n" * 250
    os.setxattr(path, long_name, b"v" * 65536)
    assert os.getxattr(path, long_name) == b"v" * 65536
    libc = ctypes.CDLL(None, use_errno=True)
    buffer = ctypes.create_string_buffer(10)
    arguments = (os.fsencode(path), long_name.encode(), buffer, ctypes.c_size_t(10))
    assert libc.getxattr(*arguments) == -1
    assert ctypes.get_errno() == errno.ERANGE
    assert libc.listxattr(os.fsencode(path), buffer, ctypes.c_size_t(10)) == -1
    assert ctypes.get_errno() == errno.ERANGE
    with refused(errno.ERANGE, errno.ENAMETOOLONG):
        os.setxattr(path, "user." + "n" * 251, b"")
    with refused(errno.E2BIG):
        os.setxattr(path, "user.big", b"v" * 65537)


def test_xattr_changes_only_the_ctime(path: Path) -> None:
    """inode(7): an attribute is metadata."""
    before = path.stat()
    os.setxattr(path, "user.x", b"1")
    after = path.stat()
    assert after.st_ctime_ns > before.st_ctime_ns
    assert after.st_mtime_ns == before.st_mtime_ns


def test_xattrs_follow_the_file_not_the_name(path: Path) -> None:
    """xattr(7): attributes belong to the inode."""
    os.setxattr(path, "user.x", b"1")
    os.link(path, path.parent / "link")
    os.rename(path, path.parent / "renamed")
    assert os.getxattr(path.parent / "link", "user.x") == b"1"
    path.write_text("a new one")
    assert os.listxattr(path) == []


def test_cp_keeps_everything(place: Path) -> None:
    """cp(1) -a: modes, times, links, attributes."""
    source = place / "source"
    (source / "directory").mkdir(parents=True)
    (source / "file").write_text("x")
    os.setxattr(source / "file", "user.key", b"value")
    os.link(source / "file", source / "directory/hard")
    os.symlink("file", source / "soft")
    os.utime(source / "file", ns=(1, 2))
    os.chmod(source / "directory", 0o2711)
    subprocess.run(["cp", "-a", source, place / "copy"], check=True, timeout=60)
    copy = place / "copy"
    assert os.getxattr(copy / "file", "user.key") == b"value"
    assert (copy / "file").stat().st_mtime_ns == 2
    assert (copy / "file").stat().st_ino == (copy / "directory/hard").stat().st_ino
    assert os.readlink(copy / "soft") == "file"
    assert stat.S_IMODE((copy / "directory").stat().st_mode) == 0o2711


def test_statvfs_tells_the_space_of_the_disk_below(place: Path) -> None:
    """statvfs(3): plausible figures, names of 255 bytes."""
    found = os.statvfs(place)
    assert found.f_namemax == 255
    assert 0 < found.f_bavail <= found.f_blocks
    assert found.f_bsize > 0
    assert found.f_frsize > 0
    assert 0 < found.f_ffree <= found.f_files
    disk = os.statvfs(place.parent.parent)
    total = found.f_blocks * found.f_frsize
    assert abs(total - disk.f_blocks * disk.f_frsize) < total / 100
    subprocess.run(["df", place], check=True, capture_output=True, timeout=60)
