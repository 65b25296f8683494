"""Renaming, and what changes of names do to times and link counts."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.mount.linux import (
    RENAME_EXCHANGE,
    RENAME_NOREPLACE,
    RENAME_WHITEOUT,
    refused,
    renameat2,
)

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.mark.parametrize("size", [0, 10, 300_000])
def test_rename_replaces_a_file_and_keeps_the_inode(place: Path, size: int) -> None:
    """rename(2): newpath is atomically replaced."""
    new, old = place / "new", place / "old"
    new.write_bytes(b"n" * size)
    old.write_bytes(b"old")
    ino = new.stat().st_ino
    os.rename(new, old)
    assert old.read_bytes() == b"n" * size
    assert old.stat().st_ino == ino
    assert os.listdir(place) == ["old"]


def test_rename_between_two_names_of_one_file_does_nothing(place: Path) -> None:
    """rename(2): if both are hard links to the same file, it returns success and does nothing."""
    (place / "a").write_text("same")
    os.link(place / "a", place / "b")
    os.rename(place / "a", place / "b")
    assert sorted(os.listdir(place)) == ["a", "b"]


def test_rename_of_directories(place: Path) -> None:
    """rename(2): EINVAL into itself, ENOTEMPTY, ENOTDIR, EISDIR; empty ones are replaced."""
    for path in ("full/inner/deep", "empty", "moved"):
        (place / path).mkdir(parents=True)
    (place / "file").touch()
    (place / "moved" / "content").write_text("kept")
    with refused(errno.EINVAL):
        os.rename(place / "full", place / "full/inner/deep/again")
    with refused(errno.ENOTEMPTY, errno.EEXIST):
        os.rename(place / "moved", place / "full")
    with refused(errno.ENOTDIR):
        os.rename(place / "moved", place / "file")
    with refused(errno.EISDIR):
        os.rename(place / "file", place / "empty")
    os.rename(place / "moved", place / "empty")
    assert (place / "empty" / "content").read_text() == "kept"
    os.rename(place / "full/inner", place / "up")
    assert os.listdir(place / "full") == []
    assert os.stat(place / "up/..").st_ino == place.stat().st_ino


def test_rename_noreplace_refuses_an_existing_target(place: Path) -> None:
    """rename(2): RENAME_NOREPLACE fails with EEXIST."""
    (place / "a").write_text("a")
    (place / "b").write_text("b")
    with refused(errno.EEXIST):
        renameat2(place / "a", place / "b", RENAME_NOREPLACE)
    renameat2(place / "a", place / "c", RENAME_NOREPLACE)
    assert (place / "b").read_text() == "b"
    assert (place / "c").read_text() == "a"


def test_rename_exchange_swaps_also_unlike_types(place: Path) -> None:
    """rename(2): RENAME_EXCHANGE, both must exist, any types; not into one's own descendant."""
    (place / "file").write_text("file")
    (place / "there/directory").mkdir(parents=True)
    (place / "there/directory/inside").touch()
    renameat2(place / "file", place / "there/directory", RENAME_EXCHANGE)
    assert (place / "there/directory").read_text() == "file"
    assert os.listdir(place / "file") == ["inside"]
    assert place.stat().st_nlink == 4
    assert (place / "there").stat().st_nlink == 2
    assert os.stat(place / "file/..").st_ino == place.stat().st_ino
    with refused(errno.ENOENT):
        renameat2(place / "file", place / "missing", RENAME_EXCHANGE)
    with refused(errno.EINVAL):
        renameat2(place / "there", place / "there/directory", RENAME_EXCHANGE | RENAME_NOREPLACE)
    (place / "there/sub").mkdir()
    with refused(errno.EINVAL):
        renameat2(place / "there", place / "there/sub", RENAME_EXCHANGE)


def test_unknown_rename_flags_are_refused(place: Path) -> None:
    """rename(2): EINVAL when the filesystem does not support a flag."""
    (place / "a").touch()
    with refused(errno.EINVAL, errno.EPERM):
        renameat2(place / "a", place / "b", RENAME_WHITEOUT)
    assert os.listdir(place) == ["a"]


def test_every_change_of_names_touches_its_directory(place: Path) -> None:
    """inode(7): mtime and ctime of the directory change with its entries; those of others don't."""
    source, target = place / "source", place / "target"
    source.mkdir()
    target.mkdir()
    steps: list[tuple[Path, Callable[[], object]]] = [
        (source, lambda: (source / "a").touch()),
        (source, lambda: os.link(source / "a", source / "b")),
        (source, lambda: os.symlink("x", source / "s")),
        (source, lambda: os.mkdir(source / "d")),
        (source, lambda: os.mkfifo(source / "f")),
        (source, lambda: os.rename(source / "b", target / "b")),
        (target, lambda: os.rename(source / "f", target / "b")),
        (source, lambda: os.rmdir(source / "d")),
        (target, lambda: os.unlink(target / "b")),
    ]
    for touched, step in steps:
        before, now_ns = os.stat(touched), time.time_ns()
        other = os.stat(place)
        step()
        after = os.stat(touched)
        assert after.st_mtime_ns > before.st_mtime_ns
        assert after.st_mtime_ns >= now_ns
        assert after.st_ctime_ns == after.st_mtime_ns
        assert os.stat(place).st_mtime_ns == other.st_mtime_ns


def test_link_and_unlink_change_only_the_ctime_of_the_file(place: Path) -> None:
    """inode(7): ctime records the change of nlink, mtime that of the content."""
    path = place / "file"
    path.touch()
    before = path.stat()
    os.link(path, place / "other")
    linked = path.stat()
    assert linked.st_mtime_ns == before.st_mtime_ns
    assert linked.st_ctime_ns > before.st_ctime_ns
    (place / "other").unlink()
    assert path.stat().st_ctime_ns > linked.st_ctime_ns
    unlinked = path.stat()
    os.rename(path, place / "renamed")
    assert (place / "renamed").stat().st_mtime_ns == unlinked.st_mtime_ns
    assert (place / "renamed").stat().st_ctime_ns > unlinked.st_ctime_ns


def test_directories_count_their_subdirectories(place: Path) -> None:
    """stat(2): find's leaf optimisation trusts nlink == 2 + subdirectories."""
    assert place.stat().st_nlink == 2
    (place / "a/x").mkdir(parents=True)
    (place / "b").mkdir()
    (place / "file").touch()
    assert place.stat().st_nlink == 4
    os.rename(place / "a/x", place / "b/x")
    assert ((place / "a").stat().st_nlink, (place / "b").stat().st_nlink) == (2, 3)
    os.rmdir(place / "a")
    assert place.stat().st_nlink == 3
    (place / "empty").mkdir()
    os.rename(place / "b/x", place / "empty")
    assert place.stat().st_nlink == 4
    assert (place / "b").stat().st_nlink == 2
