"""What processes learn of each other: who has a file open, what became of it, who locks it."""

from __future__ import annotations

import ctypes
import os
import struct
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.programs.programs import TIMEOUT_S, join, needs, run, start_python

HOLDER = """
import mmap, sys
file = open(sys.argv[1], "r+")
with open(sys.argv[2], "r+") as closed:
    memory = mmap.mmap(closed.fileno(), 0)
print("open", flush=True)
sys.stdin.read()
"""
COUNTER = """
for i in $(seq 10); do
    flock counter sh -c 'n=$(cat counter.value); echo $((n + 1)) > counter.value'
done
"""
LOCKER = """
import fcntl, os, struct, sys
fd = os.open(sys.argv[1], os.O_RDWR)
for step in range(40):
    start = step % 4 * 8
    fcntl.lockf(fd, fcntl.LOCK_EX, 8, start)
    value = struct.unpack("<Q", os.pread(fd, 8, start))[0]
    os.pwrite(fd, struct.pack("<Q", value + 1), start)
    fcntl.lockf(fd, fcntl.LOCK_UN, 8, start)
"""


@pytest.fixture
def holder(place: Path) -> Iterator[subprocess.Popen[str]]:
    """Yield a process that has one file open and another one mapped."""
    (place / "opened").write_text("x")
    (place / "mapped").write_text("x")
    process = start_python(HOLDER, place / "opened", place / "mapped", cwd=Path("/"))
    assert process.stdout is not None
    assert process.stdout.readline() == "open\n"
    yield process
    process.communicate(timeout=TIMEOUT_S)


@pytest.mark.parametrize("name", ["opened", "mapped"])
@pytest.mark.parametrize(
    "program",
    [
        pytest.param(["lsof", "-t", "--"], marks=needs("lsof", "lsof")),
        pytest.param(["fuser"], marks=needs("fuser", "psmisc")),
    ],
    ids=["lsof", "fuser"],
)
def test_who_has_a_file_open_is_found(
    place: Path, holder: subprocess.Popen[str], program: list[str], name: str
) -> None:
    """lsof(8), fuser(1): by path, also a file that is only mapped; nobody when it is closed."""
    assert run(*program, place / name, cwd=Path("/")).split() == [str(holder.pid)]
    holder.communicate(timeout=TIMEOUT_S)
    done = subprocess.run([*program, place / name], capture_output=True, check=False, timeout=60)
    assert (done.returncode, done.stdout) == (1, b"")


@needs("lsof", "lsof")
def test_a_file_that_is_open_and_removed_is_shown_as_such(
    place: Path, holder: subprocess.Popen[str]
) -> None:
    """proc(5), lsof(8) +L1: its link count is 0, its path says that it is deleted."""
    (place / "opened").unlink()
    files = Path(f"/proc/{holder.pid}/fd")
    assert f"{place}/opened (deleted)" in {os.readlink(path) for path in files.iterdir()}
    found = run("lsof", "-a", "+L1", "-p", str(holder.pid), "-F", "kn", cwd=Path("/"))
    assert "k0\n" in found
    assert f"n{place}/opened (deleted)" in found


@needs("flock", "util-linux")
def test_flock_keeps_a_counter_right(place: Path) -> None:
    """flock(1): several shells count in a file, and no count is lost."""
    (place / "counter.value").write_text("0\n")
    shells = [subprocess.Popen(["sh", "-c", COUNTER], cwd=place) for _ in range(4)]
    assert [shell.wait(TIMEOUT_S) for shell in shells] == [0] * 4
    assert (place / "counter.value").read_text() == "40\n"


def test_record_locks_keep_four_counters_right(place: Path) -> None:
    """fcntl(2): ranges of one file are locked each by itself; SETLKW waits for its turn."""
    (place / "file").write_bytes(bytes(32))
    join([start_python(LOCKER, place / "file", cwd=place) for _ in range(3)])
    assert struct.unpack("<4Q", (place / "file").read_bytes()) == (30,) * 4


NAMES = {
    0x1: "ACCESS", 0x2: "MODIFY", 0x4: "ATTRIB", 0x8: "CLOSE_WRITE", 0x10: "CLOSE_NOWRITE",
    0x20: "OPEN", 0x40: "MOVED_FROM", 0x80: "MOVED_TO", 0x100: "CREATE", 0x200: "DELETE",
    0x400: "DELETE_SELF", 0x800: "MOVE_SELF", 0x8000: "IGNORED",
}  # fmt: skip


class Watch:
    """inotify(7) of one path."""

    def __init__(self, path: Path) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        self._fd = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        assert libc.inotify_add_watch(self._fd, os.fsencode(path), 0xFFF) > 0

    def close(self) -> None:
        os.close(self._fd)

    def take(self) -> list[str]:
        """Return the events since the last look, in their order, without who else looked."""
        events: list[str] = []
        try:
            data = os.read(self._fd, 1 << 16)
        except BlockingIOError:
            return events
        while data:
            _, mask, _, length = struct.unpack_from("iIII", data)
            name = data[16 : 16 + length].rstrip(b"\0").decode()
            kinds = "|".join(word for bit, word in NAMES.items() if mask & bit)
            events.append(f"{kinds} {name}".strip())
            data = data[16 + length :]
        return events


def _write(path: Path) -> None:
    with path.open("a") as file:
        file.write("x")


ACTIONS: dict[str, Callable[[Path], object]] = {
    "create": lambda top: (top / "new").touch(),
    "write": lambda top: _write(top / "file"),
    "read": lambda top: (top / "file").read_text(),
    "truncate": lambda top: os.truncate(top / "file", 3),
    "chmod": lambda top: (top / "file").chmod(0o600),
    "utime": lambda top: os.utime(top / "file", (1, 2)),
    "xattr": lambda top: os.setxattr(top / "file", "user.x", b"1"),
    "link": lambda top: os.link(top / "file", top / "hard"),
    "rename": lambda top: os.rename(top / "file", top / "renamed"),
    "replace": lambda top: os.rename(top / "other", top / "file"),
    "unlink": lambda top: os.unlink(top / "file"),
    "mkdir": lambda top: (top / "made").mkdir(),
    "rmdir": lambda top: (top / "directory").rmdir(),
    "symlink": lambda top: os.symlink("x", top / "soft"),
    "copy": lambda top: run("cp", "file", "copy", cwd=top),
    "list": lambda top: os.listdir(top),
}


def events_of(top: Path, action: Callable[[Path], object]) -> list[list[str]]:
    """Return what watchers of a directory, of a file and of a directory below it are told."""
    (top / "directory").mkdir(parents=True)
    for name in ("file", "other"):
        (top / name).write_text("content")
    watched = [top, top / "file", top / "directory"]
    with (
        closing(Watch(watched[0])) as a,
        closing(Watch(watched[1])) as b,
        closing(Watch(watched[2])) as c,
    ):
        action(top)
        return [watch.take() for watch in (a, b, c)]


@pytest.mark.parametrize("name", ACTIONS)
def test_watchers_are_told_what_they_are_told_on_the_disk(
    place: Path, tmp_path: Path, name: str
) -> None:
    """inotify(7): the same events in the same order."""
    expected = events_of(tmp_path / "top", ACTIONS[name])
    assert events_of(place / "top", ACTIONS[name]) == expected
    assert any(expected)
