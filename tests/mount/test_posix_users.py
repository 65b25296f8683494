"""Who may do what: every class of user, every permission bit, every call, as on ext4."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.mount.conftest import serving
from tests.mount.linux import ROOT, Calls, User, acting_as, lines, listing, plain

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be somebody else")

ALICE, BOB, TEAM = 4001, 4002, 4100
OWNER, OTHER, CAROL = User(ALICE, ALICE), User(BOB, BOB), User(4003, 4003)
MEMBER, MEMBER_FIRST = User(BOB, BOB, (4999, TEAM)), User(BOB, TEAM)
SHIFTS = {OWNER: 6, MEMBER: 3, MEMBER_FIRST: 3, OTHER: 0, ROOT: 0}

LOOKING_AT_A_FILE = """
    open('file', O_RDONLY)
    open('file', O_WRONLY)
    open('file', O_RDWR)
    open('file', O_RDONLY | O_NOATIME)
    open('file', O_PATH)
    run('file')
    stat('file').st_size
    [access('file', mode) for mode in (F_OK, R_OK, W_OK, X_OK, R_OK | X_OK)]
    getxattr('file', 'user.there')
    listxattr('file')
"""

CHANGING_A_FILE = """
    open('file', O_WRONLY | O_APPEND | O_CREAT)
    open('file', O_RDONLY | O_TRUNC)
    open('file', O_CREAT | O_EXCL)
    truncate('file', 3)
    chmod('file', 0o600)
    chown('file', -1, 4100)
    chown('file', -1, 4999)
    chown('file', 4002, -1)
    utime('file')
    utime('file', (1, 1))
    utimensat('file', (0, UTIME_NOW), (0, UTIME_OMIT))
    utimensat('file', (0, UTIME_NOW), (1, 0))
    utimensat('file', (0, UTIME_OMIT), (0, UTIME_OMIT))
    setxattr('file', 'user.new', b'')
    removexattr('file', 'user.there')
    link('file', 'new')
    rename('file', 'new')
    unlink('file')
"""

LOOKING_AT_A_DIRECTORY = """
    open('dir', O_RDONLY)
    sorted(listdir('dir'))
    chdir('dir')
    stat('dir/.').st_nlink
    open('dir/..', O_RDONLY)
    [access('dir', mode) for mode in (R_OK, W_OK, X_OK)]
    open('dir/file', O_RDONLY)
    open('dir/missing', O_RDONLY)
    stat('dir/file').st_size
    stat('dir/full/deep').st_nlink
    readlink('dir/link')
    open('through/file', O_RDONLY)
    listxattr('dir')
"""

CHANGING_A_DIRECTORY = """
    open('dir/file', O_RDWR | O_CREAT)
    open('dir/new', O_CREAT)
    open('dir/file', O_CREAT | O_EXCL)
    truncate('dir/file', 3)
    mkdir('dir/new')
    mkdir('dir/full')
    mkfifo('dir/new')
    symlink('x', 'dir/new')
    symlink('x', 'dir/file')
    link('mine', 'dir/new')
    link('dir/file', 'new')
    unlink('dir/file')
    unlink('dir/missing')
    unlink('dir/full')
    rmdir('dir/empty')
    rmdir('dir/full')
    rmdir('dir/missing')
    rename('dir/file', 'dir/new')
    rename('dir/file', 'new')
    rename('dir/file', 'dir/empty')
    rename('dir/empty', 'new')
    rename('mine', 'dir/new')
    rename('mine', 'dir/file')
    rename('mine', 'dir/full')
    rename('minedir', 'dir/new')
    rename('minedir', 'dir/empty')
    rename('dir/missing', 'new')
    rename('dir', 'new')
    rename('dir', 'minedir')
    renameat2('mine', 'dir/file', RENAME_EXCHANGE)
    renameat2('mine', 'dir/file', RENAME_NOREPLACE)
    setxattr('dir', 'user.new', b'')
    utime('dir')
    chmod('dir', 0o777)
    rmdir('dir')
"""

STICKY = """
    unlink('dir/alices')
    unlink('dir/bobs')
    rmdir('dir/alices directory')
    rmdir('dir/bobs directory')
    rename('dir/alices', 'dir/new')
    rename('dir/bobs', 'dir/new')
    rename('dir/alices', 'new')
    rename('dir/bobs', 'new')
    rename('dir/alices', 'dir/bobs')
    rename('dir/bobs', 'dir/alices')
    rename('mine', 'dir/alices')
    rename('mine', 'dir/bobs')
    rename('mine', 'dir/new')
    rename('dir/alices directory', 'dir/new')
    rename('dir/bobs directory', 'dir/new')
    rename('dir/alices directory', 'new')
    rename('dir/bobs directory', 'new')
    rename('dir/alices directory', 'dir/bobs directory')
    renameat2('dir/alices', 'dir/bobs', RENAME_EXCHANGE)
    renameat2('mine', 'dir/alices', RENAME_EXCHANGE)
    renameat2('mine', 'dir/bobs', RENAME_EXCHANGE)
    open('dir/alices', O_CREAT | O_WRONLY)
    open('dir/bobs', O_CREAT | O_WRONLY)
    link('dir/alices', 'dir/new')
    link('dir/bobs', 'new')
    link('mine', 'dir/new')
    mkdir('dir/new')
    setxattr('dir', 'user.x', b'')
    removexattr('dir', 'user.x')
    chmod('dir/alices', 0o600)
"""

ATTRIBUTES = """
    setxattr('file', 'trusted.x', b'')
    getxattr('file', 'trusted.there')
    getxattr('file', 'trusted.missing')
    removexattr('file', 'trusted.there')
    sorted(listxattr('file'))
    sorted(listxattr('dir'))
    setxattr('file', 'security.x', b'')
    getxattr('file', 'security.there')
    removexattr('file', 'security.there')
    setxattr('file', 'security.capability', b'wrong')
    setxattr('file', 'security.capability', bytes.fromhex('0100000200040000') + bytes(12))
    removexattr('file', 'security.capability')
    setxattr('dir', 'security.capability', bytes.fromhex('0100000200040000') + bytes(12))
    setxattr('file', 'system.x', b'')
    getxattr('file', 'system.x')
    setxattr('file', 'user.x', b'')
    setxattr('sticky', 'user.x', b'')
    setxattr('dir', 'user.x', b'')
    setxattr('fifo', 'user.x', b'')
    setxattr('fifo', 'trusted.x', b'')
    getxattr('fifo', 'user.x')
    getxattr('fifo', 'trusted.x')
    setxattr('link', 'trusted.x', b'', follow_symlinks=False)
    setxattr('link', 'user.x', b'', follow_symlinks=False)
    getxattr('link', 'trusted.x', follow_symlinks=False)
    setxattr('readonly', 'user.x', b'')
    getxattr('hidden', 'user.there')
    sorted(listxattr('hidden'))
"""


def run(name: str) -> int:
    return os.waitpid(os.posix_spawn(name, ["x"], {}), 0)[1]


CALLS = Calls(run=run)


def rows(table: str) -> list[str]:
    return [line.strip() for line in table.strip().splitlines()]


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path]]:
    """Yield a directory of ext4, and one of a mount that lets other users in."""
    with (
        plain(tmp_path_factory.mktemp("ext4")) as ext4,
        serving(tmp_path_factory.mktemp("open"), "--allow-other") as mounted,
    ):
        yield ext4, mounted.path


def fresh(place: Path) -> Path:
    """Make an empty directory in which everybody may do everything."""
    directory = place / "users"
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    directory.chmod(0o777)
    return directory


def give(path: Path, user: User, mode: int) -> None:
    os.chown(path, user.uid, TEAM, follow_symlinks=False)
    if not path.is_symlink():
        path.chmod(mode)


def a_file(directory: Path, mode: int) -> None:
    (directory / "file").write_text("#!/bin/true\n")
    os.setxattr(directory / "file", "user.there", b"value")
    give(directory / "file", OWNER, mode)


def a_directory(directory: Path, user: User, mode: int) -> None:
    for name in ("dir/full/deep", "dir/empty", "minedir"):
        (directory / name).mkdir(parents=True)
        give(directory / name, user, 0o755)
    for name in ("mine", "dir/file"):
        (directory / name).write_text("content")
        give(directory / name, user, 0o644)
    os.symlink("file", directory / "dir/link")
    os.symlink("dir", directory / "through")
    give(directory / "dir/full", user, 0o755)
    give(directory / "dir", OWNER, mode)


def a_sticky_directory(directory: Path, user: User, owner: User) -> None:
    (directory / "dir").mkdir()
    for name, owner in (("alices", OWNER), ("bobs", OTHER)):
        (directory / "dir" / name).write_text(name)
        give(directory / "dir" / name, owner, 0o666)
        (directory / "dir" / f"{name} directory").mkdir()
        give(directory / "dir" / f"{name} directory", owner, 0o777)
    (directory / "mine").write_text("mine")
    give(directory / "mine", user, 0o644)
    give(directory / "dir", owner, 0o1777)


def differences(
    places: tuple[Path, Path],
    make: Callable[[Path], None],
    user: User,
    *,
    looking: str = "",
    changing: str,
) -> list[str]:
    """Do each line in both places; return those with different outcomes.

    Args:
        make: Makes what the lines are about, anew after each of ``changing`` that succeeds.
    """
    found = []
    for place in places:
        make(fresh(place))
    for line in rows(looking):
        expected, outcome = (CALLS.outcome(place / "users", line, user) for place in places)
        if outcome != expected:
            found.append(f"{line}: {outcome}, on ext4 {expected}")
    for line in rows(changing):
        outcomes = []
        for place in places:
            outcome = CALLS.outcome(place / "users", line, user)
            if outcome not in errno.errorcode.values():
                outcome += f" leaving {listing(place / 'users')}"
                make(fresh(place))
            outcomes.append(outcome)
        if outcomes[0] != outcomes[1]:
            found.append(f"{line}: {outcomes[1]}, on ext4 {outcomes[0]}")
    return found


def mode_of(bits: int, user: User) -> int:
    """Return a mode that has the bits for the user's class, and their opposite for the others."""
    return (0o777 ^ 0o111 * bits) & ~(7 << SHIFTS[user]) | bits << SHIFTS[user]


NAMES = {OWNER: "owner", MEMBER: "supplementary member", MEMBER_FIRST: "member", OTHER: "other"}
CASES = [
    pytest.param(user, bits, id=f"{NAMES.get(user, 'root')} {bits}")
    for user, all_bits in {
        OTHER: range(8),
        OWNER: (3, 5),
        MEMBER: (3, 6),
        MEMBER_FIRST: (2,),
        ROOT: (0,),
    }.items()
    for bits in all_bits
]
"""Who is not root has each bit once; that the bits of one class count is seen with a few."""


@pytest.mark.parametrize(("user", "bits"), CASES)
def test_a_file_opens_to_those_whom_its_mode_lets(
    places: tuple[Path, Path], user: User, bits: int
) -> None:
    """path_resolution(7), inode(7), and the page of each call: only the bits of one class count."""
    mode = mode_of(bits, user)
    found = differences(
        places,
        partial(a_file, mode=mode),
        user,
        looking=LOOKING_AT_A_FILE,
        changing=CHANGING_A_FILE,
    )
    assert not found, "\n".join(found)


@pytest.mark.parametrize(("user", "bits"), [*CASES[:9], CASES[10], CASES[-1]])
def test_a_directory_opens_to_those_whom_its_mode_lets(
    places: tuple[Path, Path], user: User, bits: int
) -> None:
    """path_resolution(7): read to list, execute to search, write and execute to change names."""
    make = partial(a_directory, user=user, mode=mode_of(bits, user))
    looking, changing = LOOKING_AT_A_DIRECTORY, CHANGING_A_DIRECTORY
    found = differences(places, make, user, looking=looking, changing=changing)
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("user", "owner"),
    [(OWNER, OWNER), (OTHER, OWNER), (CAROL, OWNER), (OWNER, ROOT), (ROOT, OTHER)],
)
def test_a_sticky_directory_keeps_names_for_their_owners(
    places: tuple[Path, Path], user: User, owner: User
) -> None:
    """inode(7), unlink(2), rename(2): only who owns the name's file or the directory removes it."""
    make = partial(a_sticky_directory, user=user, owner=owner)
    found = differences(places, make, user, changing=STICKY)
    assert not found, "\n".join(found)


def all_kinds(directory: Path) -> None:
    (directory / "sticky").mkdir()
    for name, mode in (("file", 0o666), ("dir", 0o777), ("readonly", 0o444), ("hidden", 0o222)):
        (directory / name).mkdir() if name == "dir" else (directory / name).touch()
        for attribute in ("trusted.there", "security.there", "user.there"):
            os.setxattr(directory / name, attribute, b"value")
        give(directory / name, OWNER, mode)
    os.mkfifo(directory / "fifo")
    os.symlink("file", directory / "link")
    give(directory / "fifo", OWNER, 0o666)
    give(directory / "link", OWNER, 0o777)
    give(directory / "sticky", OWNER, 0o1777)


@pytest.mark.parametrize("user", [OWNER, OTHER, ROOT], ids=["owner", "other", "root"])
def test_a_namespace_of_attributes_is_for_those_of_its_page(
    places: tuple[Path, Path], user: User
) -> None:
    """xattr(7): user.* with the file's mode, of files and directories; trusted.* and security.*."""
    found = differences(places, all_kinds, user, changing=ATTRIBUTES)
    assert not found, "\n".join(found)


def test_what_the_pages_say_in_a_few_lines(places: tuple[Path, Path]) -> None:
    """The same pages, so that ext4 and the mount are not wrong together."""
    table = """
        EACCES  open('hidden', O_RDONLY)
        EACCES  open('readonly', O_WRONLY)
        EPERM   utime('file', (1, 1))
        None    utime('file')
        EACCES  utime('readonly')
        EPERM   chmod('file', 0o600)
        EPERM   chown('file', 4002, -1)
        EPERM   unlink('sticky/file')
        EPERM   setxattr('sticky', 'user.x', b'')
        ENODATA getxattr('file', 'trusted.there')
        EPERM   setxattr('file', 'trusted.x', b'')
        EPERM   setxattr('file', 'security.x', b'')
        EACCES  setxattr('readonly', 'user.x', b'')
        EACCES  getxattr('hidden', 'user.there')
        EPERM   open('file', O_RDONLY | O_NOATIME)
        EACCES  run('file')
    """
    found = []
    for directory in map(fresh, places):
        all_kinds(directory)
        (directory / "sticky/file").touch()
        for expected, line in lines(table):
            outcome = CALLS.outcome(directory, line, OTHER)
            if outcome != expected:
                found.append(f"{line}: {outcome}, expected {expected} ({directory})")
    assert not found, "\n".join(found)


@pytest.mark.parametrize("number", [0, 1], ids=["ext4", "mount"])
def test_a_change_of_rights_is_seen_by_the_next_call(
    places: tuple[Path, Path], number: int
) -> None:
    """chmod(2), chown(2), setgroups(2): whatever was looked up, listed or opened before."""
    directory = fresh(places[number])
    (directory / "dir").mkdir()
    (directory / "dir/file").write_text("content")

    def sees(user: User) -> list[bool]:
        calls = ("open('dir/file', O_RDONLY)", "open('dir/file', O_WRONLY)", "listdir('dir')")
        return ["EACCES" not in CALLS.outcome(directory, line, user) for line in calls]

    everything, nothing = [True] * 3, [False] * 3
    for path in ("dir", "dir/file"):
        give(directory / path, OWNER, 0o777)
    assert sees(OTHER) == everything
    fd = os.open(directory / "dir/file", os.O_RDWR)
    with acting_as(OWNER):
        os.fchmod(fd, 0o604)
    assert sees(OTHER) == [True, False, True]
    assert os.pwrite(fd, b"C", 0) == 1
    with acting_as(OWNER):
        os.fchmod(fd, 0o640)
    assert sees(OTHER) == [False, False, True]
    assert sees(MEMBER) == [True, False, True]
    os.fchown(fd, BOB, TEAM)
    assert sees(OTHER) == everything
    os.close(fd)
    give(directory / "dir/file", OWNER, 0o777)
    give(directory / "dir", OWNER, 0o770)
    assert sees(OTHER) == nothing
    assert sees(MEMBER) == everything
    assert sees(MEMBER._replace(groups=(4999,))) == nothing
    assert sees(MEMBER_FIRST) == everything
    os.chown(directory / "dir", ALICE, 4999)
    assert sees(MEMBER_FIRST) == nothing
    assert sees(MEMBER) == everything
    give(directory / "dir", OTHER, 0o700)
    assert sees(OTHER) == everything
    assert sees(OWNER) == nothing
