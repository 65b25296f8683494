"""Names: making, removing, linking, renaming."""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Mount
from tests.mount.linux import (
    kind,
    refused,
)

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def test_new_file_has_its_mode_without_the_umask(place: Path) -> None:
    """open(2): the mode is mode & ~umask."""
    old = os.umask(0o027)
    try:
        os.close(os.open(place / "file", os.O_CREAT | os.O_WRONLY, 0o666))
        os.mkdir(place / "directory", 0o777)
    finally:
        os.umask(old)
    assert stat.S_IMODE(os.stat(place / "file").st_mode) == 0o640
    assert stat.S_IMODE(os.stat(place / "directory").st_mode) == 0o750


def test_exclusive_create_refuses_what_exists(place: Path) -> None:
    """open(2): O_EXCL fails with EEXIST, also on a dangling symlink."""
    path = place / "lock"
    os.close(os.open(path, os.O_CREAT | os.O_EXCL))
    os.symlink("nowhere", place / "dangling")
    for name in ("lock", "dangling"):
        with refused(errno.EEXIST):
            os.open(place / name, os.O_CREAT | os.O_EXCL)
    assert not os.path.lexists(place / "nowhere")


def test_create_follows_a_dangling_symlink(place: Path) -> None:
    """open(2): without O_EXCL and O_NOFOLLOW the target is made."""
    os.symlink("target", place / "link")
    (place / "link").write_text("through")
    assert (place / "target").read_text() == "through"
    with refused(errno.ELOOP):
        os.open(place / "link", os.O_RDONLY | os.O_NOFOLLOW)


@pytest.mark.parametrize("name", [b"n" * 255, "ü".encode() * 127, b"\xff\xfe\x80", b" \n\t\\'\""])
def test_names_are_bytes(place: Path, name: bytes) -> None:
    """path_resolution(7): a name is any 1 to 255 bytes but NUL and slash."""
    path = os.fsencode(place) + b"/" + name
    with open(path, "wb") as file:
        file.write(name)
    assert os.listdir(os.fsencode(place)) == [name]
    os.rename(path, path[:-1])
    assert os.listdir(os.fsencode(place)) == [name[:-1]]
    os.mkdir(path)
    os.rmdir(path)
    os.unlink(path[:-1])
    assert os.listdir(place) == []


def test_a_name_of_256_bytes_is_too_long_for_every_call(place: Path) -> None:
    """path_resolution(7), errno(3): ENAMETOOLONG, also where the name is only looked up."""
    long, file = place / ("n" * 256), place / "file"
    file.touch()
    calls: list[Callable[[], object]] = [
        lambda: os.stat(long),
        lambda: os.open(long, os.O_CREAT | os.O_WRONLY),
        lambda: os.mkdir(long),
        lambda: os.symlink("x", long),
        lambda: os.link(file, long),
        lambda: os.rename(file, long),
        lambda: os.rename(long, file),
        lambda: os.unlink(long),
        lambda: os.rmdir(long),
        lambda: os.mkfifo(long),
    ]
    for call in calls:
        with refused(errno.ENAMETOOLONG):
            call()


def test_symlink_targets_are_any_bytes_up_to_4095(place: Path) -> None:
    """symlink(2), readlink(2): the target is kept as it is; its length is the size."""
    link = os.fsencode(place / "link")
    target = (b"\xff/" * 2048)[:4095]
    os.symlink(target, link)
    assert os.readlink(link) == target
    assert os.lstat(link).st_size == 4095
    assert stat.S_IMODE(os.lstat(link).st_mode) == 0o777
    with refused(errno.ENAMETOOLONG):
        os.symlink(b"t" * 4096, link + b"2")
    with refused(errno.ENOENT):
        os.symlink(b"", link + b"2")
    with refused(errno.EINVAL):
        os.readlink(place)


def test_unlink_and_rmdir_tell_files_from_directories(place: Path) -> None:
    """unlink(2): EISDIR on Linux; rmdir(2): ENOTDIR, ENOTEMPTY, EINVAL for the dot."""
    (place / "directory").mkdir()
    (place / "directory" / "file").touch()
    with refused(errno.EISDIR):
        os.unlink(place / "directory")
    with refused(errno.ENOTDIR):
        os.rmdir(place / "directory" / "file")
    with refused(errno.ENOTEMPTY):
        os.rmdir(place / "directory")
    with refused(errno.EINVAL):
        os.rmdir(f"{place}/directory/.")
    with refused(errno.ENOENT):
        os.unlink(place / "missing")
    with refused(errno.ENOTDIR):
        os.stat(place / "directory" / "file" / "below")


def test_nothing_can_be_made_in_a_removed_directory(place: Path) -> None:
    """rmdir(2), openat(2): ENOENT through a descriptor that is still open."""
    (place / "gone").mkdir()
    fd = os.open(place / "gone", os.O_RDONLY)
    os.rmdir(place / "gone")
    assert os.fstat(fd).st_nlink == 0
    assert os.listdir(fd) == []
    with refused(errno.ENOENT):
        os.mkdir("new", dir_fd=fd)
    with refused(errno.ENOENT):
        os.open("new", os.O_CREAT | os.O_WRONLY, dir_fd=fd)
    os.close(fd)


def test_hard_links_are_one_file(place: Path) -> None:
    """link(2): the same inode, data, mode; nlink counts the names."""
    first, second = place / "first", place / "second"
    first.write_text("one")
    os.link(first, second)
    second.write_text("both")
    os.chmod(second, 0o600)
    assert first.read_text() == "both"
    assert os.stat(first) == os.stat(second)
    assert os.stat(first).st_nlink == 2
    first.unlink()
    assert os.stat(second).st_nlink == 1
    assert second.read_text() == "both"
    with refused(errno.EPERM):
        os.link(place, place / "directory-link")
    with refused(errno.EEXIST):
        os.link(second, second)


def test_links_to_symlinks_are_symlinks(place: Path) -> None:
    """link(2): oldpath is not followed."""
    os.symlink("target", place / "link")
    os.link(place / "link", place / "other", follow_symlinks=False)
    assert os.readlink(place / "other") == "target"
    assert os.lstat(place / "link").st_nlink == 2


@as_root
def test_special_files_keep_type_and_device_number(place: Path) -> None:
    """mknod(2): fifo, devices, socket, also a plain file."""
    device = os.makedev(259, 300)
    for name, mode in (("char", stat.S_IFCHR), ("block", stat.S_IFBLK)):
        os.mknod(place / name, mode | 0o640, device)
        assert kind(place / name) == mode
        assert os.stat(place / name).st_rdev == device
    os.mknod(place / "plain", stat.S_IFREG | 0o600)
    (place / "plain").write_text("usable")
    assert (place / "plain").read_text() == "usable"
    os.mkfifo(place / "fifo", 0o600)
    assert kind(place / "fifo") == stat.S_IFIFO


def test_fifo_and_socket_carry_data(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """fifo(7), unix(7): the kernel connects the ends; the filesystem has only the name."""
    os.mkfifo(place / "fifo")
    reader = os.open(place / "fifo", os.O_RDONLY | os.O_NONBLOCK)
    writer = os.open(place / "fifo", os.O_WRONLY)
    os.write(writer, b"through")
    assert os.read(reader, 10) == b"through"
    os.close(writer)
    os.close(reader)
    monkeypatch.chdir(place)
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        server.bind("socket")
        server.listen()
        client.connect("socket")
        assert kind("socket") == stat.S_IFSOCK
    os.unlink("socket")


@as_root
def test_setgid_directories_pass_on_their_group(place: Path) -> None:
    """inode(7): new entries get the group, new directories also the bit."""
    os.chown(place, -1, 4242)
    os.chmod(place, 0o2775)
    (place / "file").touch()
    (place / "directory").mkdir()
    os.symlink("x", place / "link")
    os.mkfifo(place / "fifo")
    for name in ("file", "directory", "link", "fifo"):
        assert os.lstat(place / name).st_gid == 4242
    assert (place / "directory").stat().st_mode & stat.S_ISGID
    assert not (place / "file").stat().st_mode & stat.S_ISGID


def test_inode_numbers_are_not_used_again(place: Path, shared_mount: Mount) -> None:
    """A number is that of one file for ever: history depends on it."""
    seen = set()
    for _ in range(20):
        (place / "file").write_text("x")
        seen.add((place / "file").stat().st_ino)
        (place / "file").unlink()
    assert len(seen) == 20
