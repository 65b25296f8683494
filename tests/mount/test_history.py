"""``.nexus/history``: any moment is a directory, the same as the tree was then."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import subprocess
import tarfile
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.conftest import Mount
from tests.mount.linux import RENAME_EXCHANGE, refused, renameat2


class Seen(NamedTuple):
    """What a program can see of one entry; inode numbers and change times aside."""

    mode: int
    owner: tuple[int, int]
    size: int
    mtime_ns: int
    nlink: int
    rdev: int
    content: bytes
    xattrs: dict[str, bytes]
    same_as: bytes
    """The first path, in order, that has the same inode number."""


def look(root: Path, *, skip: tuple[bytes, ...] = ()) -> dict[bytes, Seen]:
    """Return everything below a directory, itself included."""
    top = os.fsencode(root)
    first: dict[int, bytes] = {}
    seen = {}
    for directory, directories, files in os.walk(top):
        directories[:] = sorted(name for name in directories if name not in skip)
        for name in [b".", *sorted(directories), *sorted(files)]:
            path = os.path.normpath(os.path.join(directory, name))
            seen[os.path.relpath(path, top)] = _look_at(path, first, os.path.relpath(path, top))
    return seen


def _look_at(path: bytes, first: dict[int, bytes], name: bytes) -> Seen:
    status = os.lstat(path)
    content = b""
    if stat.S_ISLNK(status.st_mode):
        content = os.readlink(path)
    elif stat.S_ISREG(status.st_mode):
        with open(path, "rb") as file:
            content = file.read()
    names = [] if stat.S_ISLNK(status.st_mode) else os.listxattr(path)
    return Seen(
        mode=status.st_mode,
        owner=(status.st_uid, status.st_gid),
        # A directory's size is each filesystem's own affair.
        size=0 if stat.S_ISDIR(status.st_mode) else status.st_size,
        mtime_ns=status.st_mtime_ns,
        nlink=status.st_nlink,
        rdev=status.st_rdev,
        content=content,
        xattrs={key: os.getxattr(path, key) for key in names},
        same_as=first.setdefault(status.st_ino, name),
    )


def plant(root: Path) -> None:
    """Make one of everything."""
    (root / "docs/deep/deeper").mkdir(parents=True)
    (root / "docs/todo.md").write_text("one\ntwo\nthree\n")
    (root / "docs/deep/big").write_bytes(bytes(range(256)) * 10_000)
    (root / "docs/deep/deeper/leaf").write_text("needle in the leaf\n")
    (root / "docs/deep/empty").touch()
    os.chmod(root / "docs/deep/empty", 0o4711)
    os.link(root / "docs/todo.md", root / "hard")
    os.symlink("docs/todo.md", root / "soft")
    os.symlink("/nowhere", root / "dangling")
    os.mkfifo(root / "fifo")
    with open(os.fsencode(root) + b"/\xff bytes", "wb") as file:
        file.write(b"name is not UTF-8\n")
    os.setxattr(root / "docs/todo.md", "user.mood", b"fine\0")
    os.setxattr(root / "docs", "user.on-directory", b"")
    os.utime(root / "docs/deep/big", ns=(1, -5_000_000_001))
    os.utime(root / "docs/deep", ns=(3, 1_000_000_007))
    with open(root / "sparse", "wb") as file:
        file.truncate(3_000_000)
        os.pwrite(file.fileno(), b"island", 2_000_000)


def disturb(root: Path) -> None:
    """Change all of it, in every way there is."""
    (root / "docs/todo.md").write_text("overwritten")
    os.truncate(root / "docs/deep/big", 10)
    with open(root / "docs/deep/big", "ab") as file:
        file.write(b"appended")
    os.rename(root / "docs", root / "moved")
    os.rename(root / "moved/deep", root / "up")
    os.rename(root / "up/deeper/leaf", root / "up/leaf2")
    (root / "replacement").write_text("replaces")
    os.rename(root / "replacement", root / "up/leaf2")
    os.unlink(root / "hard")
    os.unlink(root / "soft")
    os.symlink("elsewhere", root / "soft")
    os.chmod(root / "up/empty", 0o600)
    if os.geteuid() == 0:
        os.chown(root / "up/empty", 1, 2)
    os.removexattr(root / "moved/todo.md", "user.mood")
    os.setxattr(root / "moved", "user.new", b"x")
    os.utime(root / "moved", ns=(9, 9))
    renameat2(root / "sparse", root / "up", RENAME_EXCHANGE)
    shutil.rmtree(root / "sparse")
    os.unlink(root / "fifo")
    (root / "docs").write_text("a file where a directory was")


def head(mount: Mount) -> int:
    return int(mount.json("log", "--limit", "1")[0]["seq"])


@pytest.fixture
def past(mount: Mount) -> tuple[Path, dict[bytes, Seen]]:
    """Return the moment before a tree was disturbed, and the tree as it was then."""
    root = mount.path / "tree"
    root.mkdir()
    plant(root)
    before = look(root)
    seq = head(mount)
    disturb(root)
    return root / f".nexus/history/op-{seq}", before


def test_a_past_tree_is_the_tree_as_it_was(
    mount: Mount, past: tuple[Path, dict[bytes, Seen]]
) -> None:
    """Names, types, modes, owners, sizes, mtimes, targets, bytes, xattrs, hard links."""
    moment, before = past
    assert look(moment) == before
    above = mount.path / ".nexus/history" / moment.name / "tree"
    assert look(above) == before
    assert look(above / "docs/deep") == look(moment / "docs/deep")


def test_a_past_tree_stays_after_its_directory_is_gone(
    mount: Mount, past: tuple[Path, dict[bytes, Seen]]
) -> None:
    """A deleted directory is found through its parent's history."""
    moment, before = past
    shutil.rmtree(mount.path / "tree")
    assert look(mount.path / ".nexus/history" / moment.name / "tree") == before


def test_a_past_tree_stays_after_a_remount(
    mount: Mount, past: tuple[Path, dict[bytes, Seen]]
) -> None:
    """History is in the store, not in the daemon."""
    moment, before = past
    now = look(mount.path / "tree")
    mount.remount()
    assert look(moment) == before
    assert look(mount.path / "tree") == now
    assert look(mount.path / "tree/.nexus/history/now") == now


def test_every_operation_is_a_moment_of_its_own(mount: Mount) -> None:
    """op-N is the state after it, before-op-N the one before."""
    root, states = mount.path / "steps", {}
    root.mkdir()
    steps: list[Callable[[], object]] = [
        lambda: (root / "a").write_text("1"),
        lambda: (root / "a").write_text("22"),
        lambda: os.link(root / "a", root / "b"),
        lambda: os.mkdir(root / "d"),
        lambda: os.rename(root / "a", root / "d/a"),
        lambda: os.chmod(root / "d", 0o700),
        lambda: os.truncate(root / "b", 1),
        lambda: os.unlink(root / "b"),
        lambda: os.rename(root / "d", root / "e"),
        lambda: os.unlink(root / "e/a"),
        lambda: os.rmdir(root / "e"),
    ]
    for step in steps:
        begin = look(root)
        first = head(mount) + 1
        step()
        states[first, head(mount)] = begin, look(root)
    for (first, last), (begin, end) in states.items():
        assert look(root / f".nexus/history/before-op-{first}") == begin
        assert look(root / f".nexus/history/op-{last}") == end


def test_moments_can_be_written_as_ages_times_words_and_snapshots(mount: Mount) -> None:
    """A moment is the state after the last operation at or before it."""
    path = mount.path / "file"
    path.write_text("old")
    (mount.path / ".nexus/snapshots/kept").mkdir()
    written_ns = mount.json("log", "--limit", "1", "file")[0]["time_ns"]
    at = datetime.fromtimestamp(written_ns // 10**9).astimezone() + timedelta(seconds=1)
    mount.sh(f'until [ "$(date +%s)" -gt {at.timestamp():.0f} ]; do sleep 0.05; done')
    path.write_text("new")
    history = mount.path / ".nexus/history"
    forms = [
        "kept",
        at.strftime("%Y-%m-%dT%H:%M:%S"),
        at.strftime("%Y-%m-%d %H:%M:%S"),
        at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S%z"),
        at.strftime("%Y-%m-%dT%H:%M:%S.500"),
    ]
    for form in forms:
        assert (history / form / "file").read_text() == "old", form
    for form in ("now", "0s", "2999-01-01"):
        assert (history / form / "file").read_text() == "new", form
    for form in ("1h", "yesterday", "2001", "op-0", "op-99999999", "no", "-1h", "1x", "2026-13-01"):
        assert not (history / form).exists(), form


def test_an_age_in_seconds_moves_with_the_clock(mount: Mount) -> None:
    """``2s`` is two seconds ago each time it is looked up."""
    path = mount.path / "file"
    path.write_text("old")
    mount.sh("sleep 2.1")
    path.write_text("new")
    aged = mount.path / ".nexus/history/2s/file"
    assert aged.read_text() == "old"
    mount.sh(f"until [ $(cat {aged}) = new ]; do sleep 0.1; done")


def test_history_lists_snapshots_and_the_latest_moments(mount: Mount) -> None:
    """Each listed name can be entered and shows a state in which something changed."""
    (mount.path / "d").mkdir()
    for number in range(3):
        (mount.path / "d/file").write_text(f"{number}")
        (mount.path / ".nexus/snapshots" / f"s{number}").mkdir()
    listed = os.listdir(mount.path / "d/.nexus/history")
    assert {"s0", "s1", "s2"} <= set(listed)
    assert len(listed) > 3
    assert len(set(listed)) == len(listed)
    contents = set()
    for name in listed:
        found = mount.path / "d/.nexus/history" / name / "file"
        contents.add(found.read_text() if found.exists() else None)
    assert {"0", "1", "2"} <= contents


def test_a_past_tree_works_with_ordinary_programs(
    mount: Mount, past: tuple[Path, dict[bytes, Seen]], tmp_path: Path
) -> None:
    """diff -r, grep -r, cp -a, tar, find, du, sha256sum."""
    moment, before = past
    done = subprocess.run(["diff", "-rq", "--no-dereference", moment, mount.path / "tree"],
                          capture_output=True, text=True, timeout=60, check=False)  # fmt: skip
    assert done.returncode == 1
    assert "Only in" in done.stdout
    assert "differ" in done.stdout or "while file" in done.stdout
    assert "needle" in mount.sh(f"grep -rI --exclude=fifo needle {moment}/docs")
    for copy in (tmp_path / "copy", mount.path / "copy"):
        subprocess.run(["cp", "-a", moment, copy], check=True, timeout=60)
        assert look(copy) == before
    archive = tmp_path / "past.tar"
    subprocess.run(["tar", "-C", moment, "-cf", archive, "."], check=True, timeout=60)
    with tarfile.open(archive, errors="surrogateescape") as tar:
        names = {os.path.normpath(os.fsencode(member.name)) for member in tar}
    assert names == before.keys()
    (tmp_path / "out").mkdir()
    subprocess.run(["tar", "-C", tmp_path / "out", "-xpf", archive], check=True, timeout=60)
    subprocess.run(["diff", "-r", "--no-dereference", "--exclude=fifo", moment, tmp_path / "out"],
                   check=True, timeout=60)  # fmt: skip
    subprocess.run(["find", moment, "-ls"], check=True, capture_output=True, timeout=60)
    subprocess.run(["du", "-s", moment], check=True, capture_output=True, timeout=60)


def test_nothing_in_the_past_can_be_changed(past: tuple[Path, dict[bytes, Seen]]) -> None:
    """Every write there says EROFS, whoever asks."""
    moment, before = past
    file, directory = moment / "docs/todo.md", moment / "docs"
    calls: list[Callable[[], Any]] = [
        lambda: os.open(file, os.O_WRONLY),
        lambda: os.open(file, os.O_RDWR),
        lambda: os.open(file, os.O_RDONLY | os.O_TRUNC),
        lambda: os.open(directory / "new", os.O_CREAT | os.O_WRONLY),
        lambda: os.truncate(file, 0),
        lambda: os.chmod(file, 0o777),
        lambda: os.chown(file, 1, 1),
        lambda: os.utime(file),
        lambda: os.setxattr(file, "user.x", b""),
        lambda: os.removexattr(file, "user.mood"),
        lambda: os.unlink(file),
        lambda: os.rmdir(moment / "docs/deep/deeper"),
        lambda: os.mkdir(directory / "new"),
        lambda: os.symlink("x", directory / "new"),
        lambda: os.mkfifo(directory / "new"),
        lambda: os.link(file, directory / "new"),
        lambda: os.rename(file, directory / "new"),
        lambda: os.rename(file, directory / "deep/empty"),
        lambda: os.mkdir(moment.parent / "new"),
        lambda: os.rmdir(moment),
    ]
    for call in calls:
        with refused(errno.EROFS):
            call()
    root = moment.parents[2]
    with refused(errno.EROFS, errno.EXDEV):
        os.link(file, root / "out")
    with refused(errno.EROFS, errno.EXDEV):
        os.rename(root / "dangling", directory / "in")
    assert look(moment) == before


def test_the_past_of_an_open_file_does_not_move(mount: Mount) -> None:
    """A descriptor into the past reads the same bytes whatever happens now."""
    path = mount.path / "file"
    path.write_bytes(b"a" * 3_000_000)
    seq = head(mount)
    with open(mount.path / f".nexus/history/op-{seq}/file", "rb") as past_file:
        assert past_file.read(10) == b"a" * 10
        path.write_bytes(b"b" * 3_000_000)
        path.unlink()
        assert past_file.read() == b"a" * (3_000_000 - 10)
