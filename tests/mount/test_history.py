"""``.nexus/history``: any moment is a directory, the same as the tree was then."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Mount
from tests.mount.linux import NOBODY, refused
from tests.mount.trees import Seen, disturb, look, plant


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


def test_computed_attributes_answer_now_and_then_and_are_not_listed(mount: Mount) -> None:
    """user.nexus.sha256 is of the whole content, user.nexus.version the operation it is from."""
    file = mount.path / "file"
    big = os.urandom(3_000_000)
    seqs = []
    for content in (b"first", big, b"last"):
        file.write_bytes(content)
        sha256 = hashlib.sha256(content).hexdigest().encode()
        assert os.getxattr(file, "user.nexus.sha256") == sha256
        seqs.append(int(os.getxattr(file, "user.nexus.version")))
    assert seqs == sorted(set(seqs))
    for seq, content in zip(seqs, (b"first", big, b"last"), strict=True):
        past = mount.path / f".nexus/history/op-{seq}/file"
        sha256 = hashlib.sha256(content).hexdigest().encode()
        assert os.getxattr(past, "user.nexus.sha256") == sha256
        assert int(os.getxattr(past, "user.nexus.version")) == seq
    assert os.listxattr(file) == []
    with file.open("r+b") as open_file:
        open_file.write(b"LA")
        open_file.flush()
        sha256 = hashlib.sha256(b"LAst").hexdigest().encode()
        assert os.getxattr(file, "user.nexus.sha256") == sha256
    for name in ("user.nexus.sha256", "user.nexus.version"):
        with refused(errno.EPERM):
            os.setxattr(file, name, b"")
        with refused(errno.ENODATA):
            os.getxattr(mount.path, name)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_set_user_id_programs_run_now_and_not_in_the_past(mount: Mount) -> None:
    """Who took the bit away, or the program, must be able to rely on it."""
    program = mount.path / "id"
    shutil.copy(shutil.which("id") or "", program)
    program.chmod(0o4755)
    os.chown(program, NOBODY, NOBODY)
    program.chmod(0o4755)
    assert mount.sh("./id -u").strip() == str(NOBODY)
    program.chmod(0o755)
    past = mount.path / f".nexus/history/op-{mount.status()['head'] - 1}/id"
    assert past.stat().st_mode & 0o7777 == 0o4755
    with refused(errno.EACCES):
        subprocess.run([past], check=False)
    assert past.read_bytes() == program.read_bytes()
