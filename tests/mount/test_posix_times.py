"""Which times a call changes, and of what.

Each line is done on a mount and on ext4, in the same tree. Before it stands what must have changed
on both: ``file:mc`` is the mtime and ctime of ``file``, ``new:amc`` something that was not there
before, ``-`` nothing at all. Times change to the present, unless the call says otherwise.
"""

from __future__ import annotations

import mmap
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mount.linux import Calls, lines, plain

NAMES = ". dir dir/entry void file empty link dirlink dangling fifo program".split()
HOUR_NS = 3600 * 10**9
CLOCK_REALTIME_COARSE = 5

CHANGES = {
    "open(2)": """
        .:mc,new:amc            open('new', O_CREAT)
        .:mc,new:amc            open('new', O_CREAT | O_EXCL | O_RDWR | O_TRUNC)
        -                       open('file', O_RDWR)
        -                       open('file', O_RDWR | O_CREAT | O_APPEND)
        -                       open('file', O_RDONLY)
        -                       open('dir', O_RDONLY)
        -                       open('file', O_CREAT | O_EXCL)
        -                       open('dir', O_WRONLY | O_TRUNC)
        -                       open('file', O_PATH)
        file:mc                 open('file', O_WRONLY | O_TRUNC)
        file:mc                 open('file', O_RDONLY | O_TRUNC)
        file:mc                 open('file', O_WRONLY | O_TRUNC | O_CREAT)
        empty:mc                open('empty', O_WRONLY | O_TRUNC)
        link:a                  open('link', O_RDONLY)
        dangling:a,dir:mc,new:amc  open('dangling', O_CREAT)
        -                       open('link', O_PATH | O_NOFOLLOW)
        -                       (open('file', O_RDWR), stat('file'), access('file', R_OK))
    """,
    "write(2)": """
        file:mc                 write(open('file', O_WRONLY), b'x')
        file:mc                 write(open('file', O_WRONLY | O_APPEND), b'x')
        file:mc                 pwrite(open('file', O_WRONLY), b'x', 10000)
        file:mc                 writev(open('file', O_WRONLY), [b'x', b'y'])
        empty:mc                write(open('empty', O_WRONLY | O_SYNC), b'x')
        -                       write(open('file', O_WRONLY), b'')
        -                       pwrite(open('file', O_WRONLY), b'', 10000)
        -                       write(open('file', O_RDONLY), b'x')
        -                       fsync(open('file', O_RDWR))
    """,
    "truncate(2)": """
        file:mc                 truncate('file', 0)
        file:mc                 truncate('file', 100)
        file:mc                 truncate('file', 7)
        file:mc                 ftruncate(open('file', O_WRONLY), 0)
        file:mc                 ftruncate(open('file', O_WRONLY), 100)
        file:mc                 ftruncate(open('file', O_WRONLY), 7)
        -                       truncate('file', -1)
        -                       ftruncate(open('file', O_RDONLY), 0)
        -                       limited(10, lambda: truncate('file', 11))
        link:a,file:mc          truncate('link', 1)
    """,
    "read(2)": """
        file:a                  read(open('file', O_RDONLY), 1)
        file:a                  pread(open('file', O_RDWR), 1, 3)
        file:a                  readv(open('file', O_RDONLY), [bytearray(1)])
        -                       read(open('file', O_RDONLY), 0)
        -                       read(open('file', O_WRONLY), 1)
        -                       read(open('file', O_RDONLY | O_NOATIME), 1)
        -                       lseek(open('file', O_RDONLY), 3, SEEK_SET)
        file:a                  map_memory('file', READ)
        file:amc                map_memory('file', READ | WRITE)
        dir:a                   listdir('dir')
        dir:a                   listdir(open('dir', O_RDONLY))
        link:a                  readlink('link')
        link:a                  stat('link')
        dirlink:a               stat('dirlink/entry')
        -                       lstat('link')
        -                       stat('dir/entry')
        -                       chdir('dir')
        program:a               run('program')
        file:a,empty:mc         sendfile(open('empty', O_WRONLY), open('file', O_RDONLY), 0, 7)
        file:a,empty:mc         copy_file_range(open('file', O_RDONLY), open('empty', O_WRONLY), 7)
        -                       copy_file_range(open('file', O_RDONLY), open('empty', O_WRONLY), 0)
        file:a,empty:mc         shutil.copyfile('file', 'empty')
    """,
    "chmod(2), chown(2)": """
        file:c                  chmod('file', 0o600)
        file:c                  chmod('file', 0o644)
        file:c                  fchmod(open('file', O_RDONLY), 0o7777)
        dir:c                   chmod('dir', 0o700)
        file:c,link:a           chmod('link', 0o600)
        fifo:c                  chmod('fifo', 0o600)
        file:c                  chown('file', -1, -1)
        file:c                  chown('file', getuid(), getgid())
        dir:c                   chown('dir', -1, -1)
        link:c                  lchown('link', -1, -1)
        file:c                  fchown(open('file', O_RDONLY), -1, -1)
        -                       chmod('missing', 0)
    """,
    "utimensat(2)": """
        file:amc                utime('file')
        file:amc                utimensat('file', (0, UTIME_NOW), (0, UTIME_NOW))
        file:ac                 utimensat('file', (0, UTIME_NOW), (0, UTIME_OMIT))
        file:mc                 utimensat('file', (0, UTIME_OMIT), (0, UTIME_NOW))
        -                       utimensat('file', (0, UTIME_OMIT), (0, UTIME_OMIT))
        -                       utimensat('file', (0, 10**9), (0, 0))
        link:amc                utime('link', follow_symlinks=False)
        dir:amc                 utime('dir')
    """,
    "link(2), unlink(2)": """
        file:c,dir:mc           link('file', 'dir/new')
        file:c,.:mc             link('file', 'new')
        dir/entry:c,.:mc        link('dir/entry', 'new')
        link:c,.:mc             link('link', 'new')
        -                       link('file', 'empty')
        -                       link('dir', 'new')
        file:c,.:mc             unlink('file')
        empty:c,.:mc            unlink('empty')
        dir/entry:c,dir:mc      unlink('dir/entry')
        link:c,.:mc             unlink('link')
        fifo:c,.:mc             unlink('fifo')
        dirlink:a,dir/entry:c,dir:mc  unlink('dirlink/entry')
        -                       unlink('missing')
        -                       unlink('dir')
    """,
    "mkdir(2), rmdir(2)": """
        .:mc,new:amc            mkdir('new')
        dir:mc,new:amc          mkdir('dir/new')
        -                       mkdir('dir')
        -                       rmdir('dir')
        void:c,.:mc             rmdir('void')
    """,
    "symlink(2), mknod(2)": """
        .:mc,new:amc            symlink('x', 'new')
        dir:mc,new:amc          symlink('x', 'dir/new')
        -                       symlink('x', 'file')
        .:mc,new:amc            mknod('new')
        .:mc,new:amc            mkfifo('new')
        dir:mc,new:amc          mknod('dir/new', S_IFSOCK | 0o600)
        -                       mkfifo('fifo')
    """,
    "rename(2)": """
        file:c,.:mc             rename('file', 'new')
        file:c,.:mc,dir:mc      rename('file', 'dir/new')
        file:c,empty:c,.:mc     rename('file', 'empty')
        file:c,dir/entry:c,.:mc,dir:mc  rename('file', 'dir/entry')
        link:c,.:mc             rename('link', 'new')
        void:c,.:mc             rename('void', 'new')
        void:c,.:mc,dir:mc      rename('void', 'dir/new')
        dir:c,void:c,.:mc       rename('dir', 'void')
        dir:c,.:mc,void:mc      rename('dir', 'void/new')
        -                       rename('file', 'file')
        -                       rename('file', 'hard')
        -                       rename('void', 'dir')
        -                       rename('dir', 'dir/new')
        -                       rename('missing', 'new')
    """,
    "renameat2(2)": """
        file:c,.:mc             renameat2('file', 'new', RENAME_NOREPLACE)
        -                       renameat2('file', 'empty', RENAME_NOREPLACE)
        file:c,empty:c,.:mc     renameat2('file', 'empty', RENAME_EXCHANGE)
        file:c,dir/entry:c,.:mc,dir:mc  renameat2('file', 'dir/entry', RENAME_EXCHANGE)
        file:c,void:c,.:mc      renameat2('file', 'void', RENAME_EXCHANGE)
        void:c,dir/entry:c,.:mc,dir:mc  renameat2('void', 'dir/entry', RENAME_EXCHANGE)
        -                       renameat2('file', 'hard', RENAME_EXCHANGE)
        -                       renameat2('file', 'missing', RENAME_EXCHANGE)
    """,
    "xattr(7)": """
        file:c                  setxattr('file', 'user.x', b'1')
        file:c                  setxattr('file', 'user.there', b'2')
        file:c                  removexattr('file', 'user.there')
        dir:c                   setxattr('dir', 'user.x', b'1')
        -                       setxattr('file', 'user.there', b'', XATTR_CREATE)
        -                       setxattr('file', 'user.x', b'', XATTR_REPLACE)
        -                       removexattr('file', 'user.x')
        -                       getxattr('file', 'user.there')
        -                       listxattr('file')
    """,
}

# relatime: an atime that is younger than mtime and ctime, and than a day, stays as it is.
FRESH = """
    -        read(open('file', O_RDONLY), 1)
    -        map_memory('file', READ)
    file:mc  map_memory('file', READ | WRITE)
    -        listdir('dir')
    -        readlink('link')
    -        stat('link')
    -        run('program')
    empty:mc sendfile(open('empty', O_WRONLY), open('file', O_RDONLY), 0, 7)
    file:mc  write(open('file', O_RDWR), b'x')
"""


def make_tree(directory: Path, *, age_ns: int) -> None:
    """Make what the lines are about; its atimes are so old, and mtimes an hour."""
    shutil.rmtree(directory, ignore_errors=True)
    (directory / "dir").mkdir(parents=True)
    (directory / "void").mkdir()
    for name in ("file", "dir/entry"):
        (directory / name).write_text("content")
    (directory / "empty").touch()
    os.link(directory / "file", directory / "hard")
    for name, target in {"link": "file", "dirlink": "dir", "dangling": "dir/nowhere"}.items():
        os.symlink(target, directory / name)
    os.mkfifo(directory / "fifo")
    (directory / "program").write_text(f"#!{os.path.realpath('/bin/true')}\n")
    (directory / "program").chmod(0o755)
    os.setxattr(directory / "file", "user.there", b"old")
    now_ns = time.time_ns()
    for path in (directory / name for name in NAMES):
        os.utime(path, ns=(now_ns - age_ns, now_ns - HOUR_NS), follow_symlinks=False)
    made_ns = max((directory / name).lstat().st_ctime_ns for name in NAMES)
    # The clock of the file system may tick only every few milliseconds.
    while time.clock_gettime_ns(CLOCK_REALTIME_COARSE) <= made_ns:
        pass


def map_memory(path: str, protection: int) -> None:
    """Read, and where permitted write, the file through a mapping."""
    flags = os.O_RDWR if protection & mmap.PROT_WRITE else os.O_RDONLY
    with (
        open(os.open(path, flags), "rb") as file,
        mmap.mmap(file.fileno(), 0, prot=protection) as memory,
    ):
        first = memory[0]
        if protection & mmap.PROT_WRITE:
            memory[0] = first + 1
            memory.flush()


def run(path: str) -> None:
    os.waitpid(os.posix_spawn(path, ["x"], {}), 0)


CALLS = Calls(
    map_memory=map_memory, run=run, shutil=shutil, READ=mmap.PROT_READ, WRITE=mmap.PROT_WRITE
)


def times(target: int | Path) -> dict[str, int]:
    status = os.fstat(target) if isinstance(target, int) else target.lstat()
    return {"a": status.st_atime_ns, "m": status.st_mtime_ns, "c": status.st_ctime_ns}


def changed(directory: Path, line: str) -> str:
    """Return whose times a line changes, in the words of the tables."""
    before_ns = time.clock_gettime_ns(CLOCK_REALTIME_COARSE)
    kept = {name: os.open(directory / name, os.O_PATH | os.O_NOFOLLOW) for name in NAMES}
    before = {name: times(fd) for name, fd in kept.items()}
    CALLS.outcome(directory, line)
    after = {name: times(fd) for name, fd in kept.items()}
    inodes = {os.fstat(fd).st_ino for fd in kept.values()}
    for path in (directory / name for name in ("new", "dir/new", "dir/nowhere")):
        if os.path.lexists(path) and path.lstat().st_ino not in inodes:
            before["new"], after["new"] = dict.fromkeys("amc", 0), times(path)
    for fd in kept.values():
        os.close(fd)
    found = []
    for name, new in after.items():
        letters = "".join(letter for letter in "amc" if new[letter] != before[name][letter])
        if letters:
            found.append(f"{name}:{letters}")
        late = [x for x in letters if not before_ns <= new[x] <= time.time_ns()]
        assert not late, f"{line}: {name} got {new}, which is not the present"
    return ",".join(sorted(found)) or "-"


@pytest.fixture(scope="module")
def ext4(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Yield a directory to compare with."""
    with plain(tmp_path_factory.mktemp("ext4")) as directory:
        yield directory


def wrong(table: str, directory: Path, *, age_ns: int) -> list[str]:
    """Return the lines that change something else than the table says."""
    found, outcome = [], ""
    for expected, line in lines(table):
        if outcome != "-":
            make_tree(directory, age_ns=age_ns)
        outcome = changed(directory, line)
        if outcome != ",".join(sorted(expected.split(","))):
            found.append(f"{line}: changed {outcome}, expected {expected} ({directory})")
    return found


@pytest.mark.parametrize("page", CHANGES)
def test_each_call_changes_the_times_of_its_page(place: Path, ext4: Path, page: str) -> None:
    """inode(7), and the page that the table names."""
    found = wrong(CHANGES[page], ext4 / "tree", age_ns=2 * HOUR_NS)
    found += wrong(CHANGES[page], place / "tree", age_ns=2 * HOUR_NS)
    assert not found, "\n".join(found)


def test_reading_leaves_an_atime_that_is_newer_than_the_last_change(
    place: Path, ext4: Path
) -> None:
    """mount(8), relatime, which is the default."""
    found = wrong(FRESH, ext4 / "tree", age_ns=-HOUR_NS)
    found += wrong(FRESH, place / "tree", age_ns=-HOUR_NS)
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("seconds", "step_ns"),
    [
        pytest.param(1 - 2**31, 1, id="1901"),
        pytest.param(-1, 1, id="1969"),
        pytest.param(2**31, 1, id="2038"),
        pytest.param(2**32, 1, id="2106"),
        pytest.param(2**33, 1, id="2242"),
        pytest.param(9223372036, 10**9, id="2262, where 63 bits of nanoseconds end"),
        pytest.param(15032385534, 10**9, id="2446, the last that ext4 has"),
    ],
)
def test_every_time_that_ext4_has_is_kept(
    place: Path, ext4: Path, seconds: int, step_ns: int
) -> None:
    """utimensat(2), inode(7): to the nanosecond, later than 2262 to the second."""
    for directory in (ext4, place):
        path = directory / "times"
        path.touch()
        for ns in (0, 1, 999_999_999):
            wanted = (seconds * 10**9 + ns, seconds * 10**9 + 5)
            os.utime(path, ns=wanted)
            found = (path.stat().st_atime_ns, path.stat().st_mtime_ns)
            assert [time // step_ns for time in found] == [time // step_ns for time in wanted]


@pytest.mark.parametrize("seconds", [-(2**40), -62135596800, 16283376000, 253402300800, 2**40])
def test_a_time_out_of_range_becomes_the_nearest(place: Path, ext4: Path, seconds: int) -> None:
    """utimensat(2) does not refuse it; timestamps are clamped to what can be kept."""
    for directory in (ext4, place):
        path = directory / "times"
        path.touch()
        os.utime(path, (seconds, seconds))
        found = path.stat().st_mtime
        assert seconds <= found <= -(2**31) if seconds < 0 else 2**33 < found <= seconds
