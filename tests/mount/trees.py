"""Trees to compare: one of everything, every way to change it, and all one can see of it."""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path
from typing import NamedTuple

from tests.mount.linux import RENAME_EXCHANGE, renameat2


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
