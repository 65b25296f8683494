"""The set-user-ID and set-group-ID bits, and capabilities: who clears them, who inherits them.

What happens on a mount must be what happens on ext4, for every user, call and mode.
"""

from __future__ import annotations

import mmap
import os
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mount.conftest import serving
from tests.mount.linux import ROOT, Calls, User, acting_as, kind, plain

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be somebody else")

ALICE, BOB, TEAM = 4001, 4002, 4100
USERS = {
    "root": ROOT,
    "owner": User(ALICE, ALICE, (TEAM,)),
    "owner outside the group": User(ALICE, ALICE),
    "member": User(BOB, BOB, (TEAM,)),
    "other": User(BOB, BOB),
}
MODES = [0o4755, 0o2755, 0o2745, 0o6777, 0o2767, 0o5766]
CAPABILITY = bytes.fromhex("0100000200040000000000000000000000000000")
"""cap_net_bind_service, effective: struct vfs_cap_data of capabilities(7), version 2."""

CHANGES = """
    write(open('file', O_WRONLY), b'x')
    write(open('file', O_WRONLY), b'')
    write(open('file', O_WRONLY | O_APPEND), b'x')
    write(open('file', O_WRONLY | O_DIRECT), aligned)
    open('file', O_RDWR)
    open('file', O_WRONLY | O_TRUNC)
    open('file', O_RDONLY | O_TRUNC)
    truncate('file', 0)
    ftruncate(open('file', O_WRONLY), 0)
    write_mapped('file')
    copy_file_range(open('other', O_RDONLY), open('file', O_WRONLY), 7)
    sendfile(open('file', O_WRONLY), open('other', O_RDONLY), 0, 7)
    posix_fallocate(open('file', O_RDWR), 0, 100)
    chown('file', -1, 4100)
    chown('file', 4001, -1)
    chown('file', 4002, -1)
    chown('file', 4002, 4002)
    lchown('file', -1, 4001)
    chmod('file', 0o6755)
    chmod('file', 0o2745)
    fchmod(open('file', O_RDONLY), 0o2644)
    link('file', 'new')
    rename('file', 'new')
    utime('file')
    setxattr('file', 'user.x', b'')
"""

CREATIONS = """
    open('new', O_CREAT, 0o644)
    open('new', O_CREAT, 0o6755)
    open('new', O_CREAT, 0o2745)
    open('new', O_CREAT | O_EXCL, 0o2711)
    mknod('new', S_IFREG | 0o6711)
    mknod('new', S_IFIFO | 0o2770)
    mknod('new', S_IFSOCK | 0o644)
    mknod('new', S_IFCHR | 0o2770, makedev(1, 3))
    mkdir('new', 0o755)
    mkdir('new', 0o2700)
    mkdir('new', 0o1777)
    mkdir('new', 0o7000)
    symlink('x', 'new')
    link('file', 'new')
    rename('file', 'new')
    rename('sub', 'new')
    (mkdir('sub'), chmod('sub', 0o6700), rename('sub', 'new'))
"""


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path]]:
    """Yield a directory of ext4, and one of a mount that lets other users in."""
    with (
        plain(tmp_path_factory.mktemp("ext4")) as ext4,
        serving(tmp_path_factory.mktemp("open"), "--allow-other") as mounted,
    ):
        yield ext4, mounted.path


def write_mapped(path: str) -> None:
    with (
        open(os.open(path, os.O_RDWR), "r+b") as file,
        mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ | mmap.PROT_WRITE) as memory,
    ):
        memory[0] = ord("x")
        memory.flush()


ALIGNED = mmap.mmap(-1, 4096)
CALLS = Calls(write_mapped=write_mapped, aligned=ALIGNED)


def rows(table: str) -> list[str]:
    return [line.strip() for line in table.strip().splitlines()]


def make(directory: Path, name: str, mode: int, *, capability: bool = False) -> None:
    path = directory / name
    path.unlink(missing_ok=True)
    path.write_text("content")
    os.chown(path, ALICE, TEAM)
    os.chmod(path, mode)
    if capability:
        os.setxattr(path, "security.capability", CAPABILITY)


def state(path: Path) -> tuple[str, int, int]:
    status = path.lstat()
    return oct(stat.S_IMODE(status.st_mode)), status.st_uid, status.st_gid


def changed(directory: Path, line: str, user: User, mode: int, *, capability: bool) -> str:
    """Return what a call on a file with a mode gives, and what is left of the file."""
    (directory / "new").unlink(missing_ok=True)
    make(directory, "file", mode, capability=capability)
    outcome = CALLS.outcome(directory, line, user)
    path = directory / ("new" if "new" in line and outcome == "None" else "file")
    return f"{outcome} {state(path)} {os.listxattr(path)}"


def prepare(directory: Path) -> Path:
    directory = directory / "set-ids"
    directory.mkdir(exist_ok=True)
    directory.chmod(0o777)
    make(directory, "other", 0o644)
    return directory


@pytest.mark.parametrize("user", USERS)
def test_who_loses_the_bits_by_which_call(places: tuple[Path, Path], user: str) -> None:
    """write(2), truncate(2), chown(2), chmod(2), inode(7): they are for one content and owner."""
    ext4, mount = map(prepare, places)
    found = []
    for mode in MODES:
        for line in rows(CHANGES):
            if "mapped" in line:
                continue  # a page that comes later may be anybody's: on a mount the bits go
            expected = changed(ext4, line, USERS[user], mode, capability=False)
            outcome = changed(mount, line, USERS[user], mode, capability=False)
            if outcome != expected:
                found.append(f"{mode:o} {line}: {outcome}, on ext4 {expected}")
    assert not found, "\n".join(found)


@pytest.mark.parametrize("user", USERS)
def test_who_removes_the_capabilities_of_a_program(places: tuple[Path, Path], user: str) -> None:
    """capabilities(7), xattr(7): they go with a write and with a chown, root's as well."""
    ext4, mount = map(prepare, places)
    found = []
    for line in rows(CHANGES):
        expected = changed(ext4, line, USERS[user], 0o777, capability=True)
        outcome = changed(mount, line, USERS[user], 0o777, capability=True)
        if outcome != expected:
            found.append(f"{line}: {outcome}, on ext4 {expected}")
    assert not found, "\n".join(found)


def test_a_chown_costs_the_bits_of_what_is_no_file_too(places: tuple[Path, Path]) -> None:
    """chown(2): of all but directories, by root as well."""
    found = []
    for directory in map(prepare, places):
        fifo, below = directory / "fifo", directory / "below"
        fifo.unlink(missing_ok=True)
        below.mkdir(exist_ok=True)
        os.mkfifo(fifo)
        for path in (fifo, below):
            path.chmod(0o6755)
            os.chown(path, ALICE, TEAM)
        found.append([state(fifo), state(below)])
    assert found[0] == found[1]


def test_a_capability_that_comes_between_two_writes_goes_with_the_second(
    places: tuple[Path, Path],
) -> None:
    """capabilities(7): though the kernel has just learned that there was none."""
    for directory in map(prepare, places):
        make(directory, "file", 0o755)
        with (directory / "file").open("wb", buffering=0) as file:
            file.write(b"x")
            os.setxattr(file.fileno(), "security.capability", CAPABILITY)
            assert os.listxattr(directory / "file") == ["security.capability"]
            file.write(b"x")
            assert os.listxattr(directory / "file") == []


def test_the_comparison_sees_what_the_pages_say(places: tuple[Path, Path]) -> None:
    """The same pages, in a few lines: so that ext4 and the mount are not wrong together."""
    ext4, mount = map(prepare, places)
    cases = [
        ("other", 0o6777, "write(open('file', O_WRONLY), b'x')", "1 ('0o777', 4001, 4100) []"),
        ("root", 0o6777, "write(open('file', O_WRONLY), b'x')", "1 ('0o6777', 4001, 4100) []"),
        ("other", 0o2767, "write(open('file', O_WRONLY), b'x')", "1 ('0o767', 4001, 4100) []"),
        ("member", 0o2767, "write(open('file', O_WRONLY), b'x')", "1 ('0o2767', 4001, 4100) []"),
        ("owner", 0o6777, "chown('file', -1, 4001)", "None ('0o777', 4001, 4001) []"),
        (
            "owner outside the group",
            0o777,
            "chmod('file', 0o2755)",
            "None ('0o755', 4001, 4100) []",
        ),
        ("owner", 0o777, "chmod('file', 0o2755)", "None ('0o2755', 4001, 4100) []"),
        ("member", 0o777, "chmod('file', 0o755)", "EPERM ('0o777', 4001, 4100) []"),
        ("other", 0o777, "chown('file', 4002, -1)", "EPERM ('0o777', 4001, 4100) []"),
    ]
    for user, mode, line, expected in cases:
        for directory in (ext4, mount):
            assert changed(directory, line, USERS[user], mode, capability=False) == expected


def test_a_set_user_id_program_runs_as_its_owner(
    places: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """execve(2): where root has mounted for all."""
    for directory in map(prepare, places):
        make(directory, "id", 0o755)
        (directory / "id").write_bytes(Path("/usr/bin/id").read_bytes())
        os.chmod(directory / "id", 0o6755)
        with monkeypatch.context() as patch:
            patch.chdir(directory)
            with acting_as(USERS["other"]):
                found = [
                    subprocess.check_output(["./id", option], text=True) for option in ("-u", "-g")
                ]
        assert found == [f"{ALICE}\n", f"{TEAM}\n"]


@pytest.mark.parametrize(
    ("mode", "umask"), [(0o777, 0), (0o2777, 0), (0o3777, 0o022), (0o2707, 0o077)]
)
def test_what_is_made_has_the_mode_and_group_of_its_directory(
    places: tuple[Path, Path], mode: int, umask: int
) -> None:
    """open(2), mkdir(2), mknod(2), inode(7): groups as System V has them, and with S_ISGID."""
    found = []
    for place in places:
        prepare(place)
    for line in rows(CREATIONS):
        for name, user in USERS.items():
            expected, outcome = (created(place, line, user, mode, umask) for place in places)
            if outcome != expected:
                found.append(f"{name}: {line}: {outcome}, on ext4 {expected}")
    assert not found, "\n".join(found)


def created(place: Path, line: str, user: User, mode: int, umask: int) -> str:
    """Return what a call gives in a directory with a mode, and what it made there."""
    directory = place / "set-ids"
    for name in ("new", "sub", "file"):
        if os.path.lexists(directory / name):
            (os.rmdir if kind(directory / name) == stat.S_IFDIR else os.unlink)(directory / name)
    os.chown(directory, ALICE, TEAM)
    directory.chmod(0o777)
    if "sub" in line:
        (directory / "sub").mkdir()
    elif "file" in line:
        make(directory, "file", 0o666)
    directory.chmod(mode)
    old = os.umask(umask)
    try:
        outcome = CALLS.outcome(directory, line, user)
    finally:
        os.umask(old)
    path = directory / "new"
    return f"{outcome} {state(path) if os.path.lexists(path) else None}"
