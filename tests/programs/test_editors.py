"""Editors: how they save is by rename, by backup or in place; each leaves the file it should."""

from __future__ import annotations

import os
import pty
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.programs.programs import TIMEOUT_S, needs, run

BEFORE, AFTER = "one\ntwo\n", "1ne\ntwo\n"


def by_rename(path: Path) -> None:
    """A new file beside it, with the old one's mode, synced, takes its place."""
    new = path.with_name(f".{path.name}.tmp")
    fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    os.fchmod(fd, stat.S_IMODE(path.stat().st_mode))
    os.write(fd, AFTER.encode())
    os.fsync(fd)
    os.close(fd)
    os.rename(new, path)
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    os.fsync(directory)
    os.close(directory)


def by_backup(path: Path) -> None:
    """The old file is renamed, a new one made, then the old one unlinked: vim, backupcopy=no."""
    mode = stat.S_IMODE(path.stat().st_mode)
    os.rename(path, f"{path}~")
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    os.write(fd, AFTER.encode())
    os.fsync(fd)
    os.fchmod(fd, mode)
    os.close(fd)
    os.unlink(f"{path}~")


def by_hard_link(path: Path) -> None:
    """The old content keeps a second name, as Emacs does with vc-style backups."""
    os.link(path, f"{path}~")
    by_rename(path)
    os.unlink(f"{path}~")


def in_place(path: Path) -> None:
    """Truncated and written anew through one descriptor, beside a lock that is a symlink."""
    lock = path.with_name(f".#{path.name}")
    lock.symlink_to("me@host.1:2")
    with path.open("r+") as file:
        assert file.read() == BEFORE
        file.seek(0)
        file.truncate()
        file.write(AFTER)
        file.flush()
        os.fdatasync(file.fileno())
    lock.unlink()


def by_vim(*settings: str) -> Callable[[Path], None]:
    def save(path: Path) -> None:
        commands = [f"set {setting}" for setting in ("backupskip=", *settings)] + ["1s/o/1/", "wq"]
        options = [part for command in commands for part in ("-c", command)]
        run("vim", "-es", "-u", "NONE", "-i", "NONE", *options, path, cwd=path.parent)

    return save


def by_nano(path: Path) -> None:
    """Driven through a terminal: delete a character, type one, save, leave."""
    ours, its = pty.openpty()
    nano = subprocess.Popen(
        ["nano", "-I", "-B", path.name],
        cwd=path.parent,
        stdin=its,
        stdout=its,
        stderr=its,
        start_new_session=True,
        env={**os.environ, "TERM": "vt100"},
    )
    os.close(its)
    os.read(ours, 1)  # it draws: from now on control characters are its own
    os.write(ours, b"\x041\x13\x18")  # ^D deletes, ^S saves, ^X leaves
    try:
        while os.read(ours, 4096):  # until it has closed the terminal
            pass
    except OSError:
        pass
    finally:
        os.close(ours)
    assert nano.wait(TIMEOUT_S) == 0
    path.with_name(f"{path.name}~").unlink()


SAVES = {
    "rename": (by_rename, False),
    "backup": (by_backup, False),
    "hard link": (by_hard_link, False),
    "in place": (in_place, True),
    "vim, a new file": (by_vim("backupcopy=no", "writebackup"), False),
    "vim, the same file": (by_vim("backupcopy=yes", "writebackup"), True),
    "vim, swap and undo files": (
        by_vim("swapfile", "updatecount=1", "undofile", "undodir=."),
        None,
    ),
    "vim, no backup": (by_vim("nobackup", "nowritebackup", "fsync"), True),
    "nano": (by_nano, True),
}


@pytest.mark.parametrize(
    "how",
    [
        pytest.param(how, marks=[needs(each, each) for each in ("vim", "nano") if each in how])
        for how in SAVES
    ],
)
def test_a_saved_file_has_the_new_content_the_old_mode_and_its_past(place: Path, how: str) -> None:
    """rename(2), open(2): nothing is left behind; the versions hold what was there before."""
    save, same_inode = SAVES[how]
    path = place / "file"
    path.write_text(BEFORE)
    path.chmod(0o640)
    ino = path.stat().st_ino
    save(path)
    assert path.read_text() == AFTER
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    if same_inode is not None:
        assert (path.stat().st_ino == ino) == same_inode
    assert [name for name in os.listdir(place) if name != "file"] == [
        name for name in [".file.un~"] if "undo" in how
    ]
    versions = [version.read_text() for version in (place / ".nexus/versions/file").iterdir()]
    assert {BEFORE, AFTER} <= set(versions)


@needs("vim", "vim")
def test_vim_keeps_attributes_and_links(place: Path) -> None:
    """vim, backupcopy=auto: what has other names or attributes is written in place."""
    path = place / "file"
    path.write_text(BEFORE)
    os.link(path, place / "link")
    os.setxattr(path, "user.k", b"v")
    by_vim("backupcopy=auto")(path)
    assert (place / "link").read_text() == AFTER
    assert os.getxattr(path, "user.k") == b"v"
