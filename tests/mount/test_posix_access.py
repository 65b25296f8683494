"""What other users may do, and what root's rights do not cover."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import Mount
from tests.mount.conftest import serving
from tests.mount.linux import NOBODY, run_as

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be somebody else")

ALICE, BOB, TEAM = 4001, 4002, 4100


@pytest.fixture(scope="module")
def open_mount(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mount]:
    """Yield a mount that lets other users in."""
    with serving(tmp_path_factory.mktemp("open")) as mounted:
        mounted.umount()
        mounted.mount("--allow-other")
        yield mounted


@pytest.fixture
def shared(
    open_mount: Mount, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    """Yield an empty directory as the working directory.

    A user who could not reach the path of the mount can use it from here.
    """
    directory = open_mount.path / request.node.name
    directory.mkdir()
    with monkeypatch.context() as patch:
        patch.chdir(directory)
        yield directory


def write(name: str) -> Callable[[], object]:
    return lambda: os.write(os.open(name, os.O_WRONLY | os.O_CREAT, 0o644), b"x")


def read(name: str) -> Callable[[], object]:
    return lambda: os.read(os.open(name, os.O_RDONLY), 10)


def test_other_users_stay_out_unless_asked_in(
    mount: Mount, monkeypatch: pytest.MonkeyPatch
) -> None:
    """fuse(8): without allow_other the mount is its owner's alone."""
    with monkeypatch.context() as patch:
        patch.chdir(mount.path)
        assert run_as(NOBODY, NOBODY, lambda: os.stat("x")) == errno.EACCES


def test_mode_bits_decide_who_reads_and_writes(shared: Path) -> None:
    """inode(7), path_resolution(7): owner, group and others have their bits each."""
    cases = [
        (0o600, ALICE, TEAM, 0, 0),
        (0o600, BOB, TEAM, errno.EACCES, errno.EACCES),
        (0o640, BOB, TEAM, 0, errno.EACCES),
        (0o604, BOB, BOB, 0, errno.EACCES),
        (0o060, ALICE, TEAM, errno.EACCES, errno.EACCES),
        (0o066, BOB, TEAM, 0, 0),
    ]
    (shared / "file").write_text("content")
    os.chown("file", ALICE, TEAM)
    for mode, uid, gid, reading, writing in cases:
        os.chmod("file", mode)
        assert run_as(uid, gid, read("file")) == reading, oct(mode)
        assert run_as(uid, gid, write("file")) == writing, oct(mode)


def test_access_answers_for_the_caller(shared: Path) -> None:
    """access(2): the real uid counts; root still needs an execute bit to execute."""
    (shared / "file").touch(0o640)
    os.chmod("file", 0o640)

    def require(mode: int) -> Callable[[], object]:
        def ask() -> None:
            if not os.access("file", mode):
                raise PermissionError(errno.EACCES, "refused")

        return ask

    assert run_as(NOBODY, NOBODY, require(os.F_OK)) == 0
    assert run_as(NOBODY, NOBODY, require(os.R_OK)) == errno.EACCES
    assert run_as(NOBODY, 0, require(os.R_OK)) == 0
    assert run_as(NOBODY, 0, require(os.W_OK)) == errno.EACCES
    assert os.access("file", os.R_OK | os.W_OK)
    assert not os.access("file", os.X_OK)


def test_directories_need_search_and_write(shared: Path) -> None:
    """path_resolution(7), unlink(2): names are the directory's to give."""
    os.mkdir("directory")
    os.chown("directory", ALICE, TEAM)
    os.chmod("directory", 0o754)
    assert run_as(ALICE, TEAM, write("directory/file")) == 0
    assert os.stat("directory/file").st_uid == ALICE
    assert os.stat("directory/file").st_gid == TEAM
    assert run_as(BOB, TEAM, read("directory/file")) == 0
    assert run_as(BOB, TEAM, lambda: os.unlink("directory/file")) == errno.EACCES
    assert run_as(BOB, TEAM, lambda: os.mkdir("directory/new")) == errno.EACCES
    assert run_as(BOB, BOB, read("directory/file")) == errno.EACCES
    assert run_as(BOB, BOB, lambda: os.listdir("directory")) == 0
    os.chmod("directory", 0o751)
    assert run_as(BOB, BOB, lambda: os.listdir("directory")) == errno.EACCES
    assert run_as(BOB, BOB, read("directory/file")) == 0


def test_sticky_directories_protect_the_names_of_others(shared: Path) -> None:
    """inode(7), unlink(2), rename(2): S_ISVTX, as in /tmp."""
    os.mkdir("tmp")
    os.chmod("tmp", 0o1777)
    assert run_as(ALICE, ALICE, write("tmp/hers")) == 0
    assert run_as(BOB, BOB, lambda: os.unlink("tmp/hers")) in (errno.EPERM, errno.EACCES)
    assert run_as(BOB, BOB, lambda: os.rename("tmp/hers", "tmp/x")) in (errno.EPERM, errno.EACCES)
    assert run_as(BOB, BOB, write("tmp/his")) == 0
    assert run_as(BOB, BOB, lambda: os.rename("tmp/his", "tmp/hers")) in (
        errno.EPERM,
        errno.EACCES,
    )
    assert run_as(ALICE, ALICE, lambda: os.unlink("tmp/hers")) == 0


def test_only_the_owner_changes_attributes(shared: Path) -> None:
    """chmod(2), chown(2), utimensat(2): EPERM for others; writers may set the present time."""
    (shared / "file").touch()
    os.chown("file", ALICE, TEAM)
    os.chmod("file", 0o666)
    assert run_as(BOB, TEAM, lambda: os.chmod("file", 0o777)) == errno.EPERM
    assert run_as(BOB, TEAM, lambda: os.chown("file", BOB, -1)) == errno.EPERM
    assert run_as(ALICE, ALICE, lambda: os.chown("file", BOB, -1)) == errno.EPERM
    assert run_as(BOB, BOB, lambda: os.utime("file", (1, 1))) == errno.EPERM
    assert run_as(BOB, BOB, lambda: os.utime("file")) == 0
    assert run_as(ALICE, ALICE, lambda: os.chmod("file", 0o600)) == 0
    assert run_as(ALICE, ALICE, lambda: os.utime("file", (1, 1))) == 0
    assert os.stat("file").st_mtime == 1


def test_writing_by_others_drops_the_set_id_bits(shared: Path) -> None:
    """write(2), inode(7): S_ISUID and S_ISGID are cleared when an unprivileged user writes."""
    (shared / "program").write_text("old")
    os.chown("program", ALICE, TEAM)
    os.chmod("program", 0o6777)
    assert run_as(BOB, BOB, write("program")) == 0
    assert os.stat("program").st_mode & 0o6000 == 0


def test_the_past_needs_the_present_permission_too(shared: Path) -> None:
    """What was closed to somebody since is closed in history as well."""
    (shared / "secret").write_text("x")
    os.chmod("secret", 0o644)
    os.sync()
    seq = int((shared / ".nexus/log").read_text().splitlines()[-1].split('"seq":')[1].split(",")[0])
    past = f".nexus/history/op-{seq}/secret"
    assert run_as(NOBODY, NOBODY, read(past)) == 0
    os.chmod("secret", 0o600)
    assert run_as(NOBODY, NOBODY, read(past)) == errno.EACCES
    assert Path(past).read_text() == "x"


def test_others_cannot_make_things_in_nexus_of_a_directory_not_theirs(shared: Path) -> None:
    """A directory's ``.nexus`` has the permissions of the directory."""
    assert run_as(NOBODY, NOBODY, lambda: os.mkdir(".nexus/workflows")) == errno.EACCES
    assert run_as(NOBODY, NOBODY, lambda: os.mkdir(".nexus/snapshots/s")) == errno.EACCES
    assert run_as(NOBODY, NOBODY, lambda: os.listdir(".nexus/history")) == 0
