"""POSIX ACLs, compared with those of the file system that the tests run on. Source: acl(5)."""

from __future__ import annotations

import errno
import os
import shlex
import stat
import struct
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import Mount
from tests.mount.conftest import serving
from tests.mount.linux import NOBODY, refused, run_as

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to be somebody else")

ACCESS, DEFAULT = "system.posix_acl_access", "system.posix_acl_default"
OWNER, USER, GROUP, MASK, OTHER, ANYBODY = 1, 2, 4, 16, 32, 0xFFFFFFFF


def acl(owner: int, group: int, other: int, *, nobody: int | None = None, mask: int = 7) -> bytes:
    """Return an ACL in the kernel's form; ``nobody`` is a named user."""
    entries = [(OWNER, owner, ANYBODY), (GROUP, group, ANYBODY), (OTHER, other, ANYBODY)]
    if nobody is not None:
        entries.insert(1, (USER, nobody, NOBODY))
        entries.insert(3, (MASK, mask, ANYBODY))
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


@pytest.fixture(scope="module")
def open_mount(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mount]:
    with serving(tmp_path_factory.mktemp("acls"), "--allow-other") as mounted:
        yield mounted


@pytest.fixture
def both(open_mount: Mount, tmp_path: Path) -> list[Path]:
    """Return a directory on the mount and one beside it, open to everybody."""
    here, plain = (Path(tempfile.mkdtemp(dir=at)) for at in (open_mount.path, tmp_path))
    for directory in (here, plain):
        directory.chmod(0o777)
    for above in (open_mount.path, *open_mount.path.parents, tmp_path, *tmp_path.parents):
        if above.stat().st_mode & 0o005 != 0o005:
            above.chmod(above.stat().st_mode | 0o755)
    try:
        os.setxattr(plain, DEFAULT, acl(7, 5, 5))
        os.removexattr(plain, DEFAULT)
    except OSError:
        pytest.skip("the file system of the temporary directory has no ACLs to compare with")
    return [here, plain]


def state(path: Path) -> dict[str, object]:
    names = [name for name in os.listxattr(path) if name.startswith("system.")]
    return {"mode": oct(path.stat().st_mode)} | {n: os.getxattr(path, n) for n in sorted(names)}


def seen(both: list[Path], action: Callable[[Path], object]) -> object:
    """Do something in both directories; return what it gave, which must be the same."""
    ours, theirs = (action(directory) for directory in both)
    assert ours == theirs
    return ours


@pytest.mark.parametrize("mode", [0o600, 0o664, 0o707, 0o2755])
@pytest.mark.parametrize(
    "value",
    [acl(6, 4, 0), acl(7, 5, 1, nobody=6), acl(6, 0, 0, nobody=7, mask=4)],
    ids=["minimal", "named", "masked"],
)
def test_an_acl_and_the_mode_follow_each_other(both: list[Path], mode: int, value: bytes) -> None:
    """setfacl(1), chmod(1): the group's bits are the mask; a list that is no more is not kept."""

    def change(directory: Path) -> list[dict[str, object]]:
        file = directory / "file"
        file.touch()
        os.setxattr(file, ACCESS, value)
        states = [state(file)]
        file.chmod(mode)
        states.append(state(file))
        os.setxattr(file, ACCESS, value)
        os.removexattr(file, ACCESS)
        os.removexattr(file, ACCESS)  # what is not there may be removed
        return [*states, state(file)]

    seen(both, change)


@pytest.mark.parametrize("umask", [0, 0o022, 0o077])
@pytest.mark.parametrize("mode", [0o666, 0o777, 0o600, 0o640])
@pytest.mark.parametrize(
    "value",
    [acl(7, 7, 7), acl(7, 5, 0, nobody=7), acl(6, 6, 1, nobody=2)],
    ids=["minimal", "named", "narrow"],
)
def test_a_default_acl_takes_the_place_of_the_umask(
    both: list[Path], mode: int, umask: int, value: bytes
) -> None:
    """acl(5), "OBJECT CREATION AND DEFAULT ACLs"; umask(2)."""

    def make(directory: Path) -> list[dict[str, object]]:
        os.setxattr(directory, DEFAULT, value)
        os.close(os.open(directory / "file", os.O_CREAT | os.O_WRONLY, mode))
        (directory / "directory").mkdir(mode)
        os.mkfifo(directory / "fifo", mode)
        os.mknod(directory / "node", mode | stat.S_IFREG)
        (directory / "link").symlink_to("file")
        made = [state(directory / name) for name in ("file", "directory", "fifo", "node", "link")]
        assert os.listxattr(directory / "link", follow_symlinks=False) == []
        return made

    before = os.umask(umask)
    try:
        seen(both, make)
    finally:
        os.umask(before)


@pytest.mark.parametrize("perm", range(8))
@pytest.mark.parametrize("mask", [7, 4, 0])
def test_a_named_user_gets_what_entry_and_mask_grant(
    both: list[Path], perm: int, mask: int
) -> None:
    """acl(5), "ACCESS CHECK ALGORITHM"."""

    def try_all(directory: Path) -> list[int]:
        file = directory / "file"
        file.write_text("#!/bin/sh\n")
        os.setxattr(file, ACCESS, acl(7, 0, 0, nobody=perm, mask=mask))
        actions: list[Callable[[], object]] = [
            file.read_bytes,
            lambda: os.close(os.open(file, os.O_WRONLY)),
            lambda: os.execv(file, [str(file)]),
        ]
        return [run_as(NOBODY, NOBODY, action) for action in actions]

    seen(both, try_all)


def test_changes_of_an_acl_hold_at_once(both: list[Path]) -> None:
    """What the kernel knows of permissions must not outlive them."""

    def toggle(directory: Path) -> list[int]:
        file = directory / "file"
        file.touch(0o600)
        results = []
        for perm in (4, 0, 4):
            os.setxattr(file, ACCESS, acl(6, 0, 0, nobody=perm))
            results.append(run_as(NOBODY, NOBODY, file.read_bytes))
        file.chmod(0o600)
        return [*results, run_as(NOBODY, NOBODY, file.read_bytes)]

    assert seen(both, toggle) == [0, errno.EACCES, 0, errno.EACCES]


def test_what_is_no_acl_is_refused(both: list[Path]) -> None:
    """setxattr(2), acl(5)."""

    def refuse(directory: Path) -> None:
        file = directory / "file"
        file.touch()
        for value in (b"no list", acl(6, 4, 0)[:-3], acl(9, 4, 0)):
            with refused(errno.EINVAL, errno.EOPNOTSUPP):
                os.setxattr(file, ACCESS, value)
        with refused(errno.EACCES):
            os.setxattr(file, DEFAULT, acl(6, 4, 0))
        with refused(errno.EOPNOTSUPP):
            os.setxattr(file, "system.other", b"")
        with refused(errno.ENODATA):
            os.getxattr(file, ACCESS)
        assert run_as(NOBODY, NOBODY, lambda: os.setxattr(file, ACCESS, acl(7, 7, 7))) == 1

    seen(both, refuse)


def test_acls_are_in_history_and_undo(mount: Mount) -> None:
    """The mode that a list shows and the list come back together."""
    file = mount.path / "file"
    file.write_text("secret")
    file.chmod(0o640)
    head = mount.status()["head"]
    value = acl(6, 4, 4, nobody=6, mask=6)
    script = f"import os; os.setxattr('file', '{ACCESS}', {value!r})"
    mount.sh(f"python3 -c {shlex.quote(script)}", agent="alice")
    assert state(file) == {"mode": "0o100664", ACCESS: value}
    mount.ctl("undo", "--agent", "alice")
    assert state(file) == {"mode": "0o100640"}
    past = mount.path / ".nexus/history"
    assert state(past / f"op-{head}" / "file") == {"mode": "0o100640"}
    assert state(past / f"op-{head + 1}" / "file") == {"mode": "0o100664", ACCESS: value}
    mount.ctl("redo")
    mount.remount()
    assert state(file) == {"mode": "0o100664", ACCESS: value}
