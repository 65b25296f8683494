"""Descriptors: offsets, flags, mappings, locks, events, handles. What holds here holds on ext4."""

from __future__ import annotations

import array
import ctypes
import errno
import faulthandler
import fcntl
import mmap
import os
import select
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.mount.linux import AT_FDCWD, Calls, libc, lines, plain, refused

CHUNK = 1 << 20
PAGE = mmap.PAGESIZE
AT_EMPTY_PATH, AT_SYMLINK_FOLLOW = 0x1000, 0x400
RWF_DSYNC, RWF_APPEND = 2, 0x10
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.fixture(scope="module")
def ext4(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Yield a directory to compare with."""
    with plain(tmp_path_factory.mktemp("ext4")) as directory:
        yield directory


@pytest.fixture(params=["mount", "ext4"])
def spot(request: pytest.FixtureRequest) -> Iterator[Path]:
    """Yield an empty directory, once of the mount and once of ext4; close what is left open."""
    if request.param == "mount":
        directory: Path = request.getfixturevalue("place")
    else:
        directory = request.getfixturevalue("ext4") / request.node.name
        directory.mkdir()
    yield directory
    for fd in map(int, os.listdir("/proc/self/fd")):
        with suppress(OSError):
            if os.readlink(f"/proc/self/fd/{fd}").startswith(str(directory)):
                os.close(fd)


@pytest.fixture
def path(spot: Path) -> Path:
    """Return a file of ten bytes."""
    path = spot / "file"
    path.write_bytes(b"0123456789")
    return path


def opened(path: Path | str, flags: int = os.O_RDWR) -> int:
    return os.open(path, flags, 0o644)


def in_child(action: Callable[[], object]) -> int:
    """Do something in a child process; return 0, the errno, or the signal as a negative number."""
    child = os.fork()
    if child == 0:
        code = 255
        faulthandler.disable()  # a signal is a result here
        try:
            action()
            code = 0
        except OSError as error:
            code = error.errno or 255
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


# -- what a descriptor is --


def test_a_path_descriptor_names_a_file_without_opening_it(path: Path) -> None:
    """open(2), O_PATH; proc(5): it may be opened later, and follows renames."""
    fd = opened(path, os.O_PATH)
    os.rename(path, path.parent / "renamed")
    assert os.fstat(fd).st_size == 10
    again = opened(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_APPEND)
    os.write(again, b"x")
    os.close(again)
    assert (path.parent / "renamed").read_bytes() == b"0123456789x"
    os.symlink("nowhere", path)
    link = opened(path, os.O_PATH | os.O_NOFOLLOW)
    assert os.readlink("", dir_fd=link) == "nowhere"
    directory = opened(path.parent, os.O_PATH)
    assert os.stat("renamed", dir_fd=directory).st_size == 11


def test_an_unlinked_file_is_opened_again_through_proc(path: Path) -> None:
    """proc(5), /proc/self/fd: another open file of the same inode, as long as one is open."""
    first = opened(path)
    path.unlink()
    second = opened(f"/proc/self/fd/{first}")
    os.write(second, b"new")
    assert os.pread(first, 20, 0) == b"new3456789"
    os.close(first)
    third = opened(f"/proc/self/fd/{second}", os.O_RDONLY)
    os.close(second)
    assert os.read(third, 20) == b"new3456789"
    assert os.fstat(third).st_nlink == 0
    opened(f"/proc/self/fd/{third}", os.O_WRONLY | os.O_TRUNC)
    assert os.fstat(third).st_size == 0


@as_root
def test_a_descriptor_is_linked_to_a_name(path: Path) -> None:
    """linkat(2): AT_EMPTY_PATH, and /proc/self/fd with AT_SYMLINK_FOLLOW; ENOENT without links."""
    fd = opened(path)
    libc.linkat(fd, "", AT_FDCWD, path.parent / "second", AT_EMPTY_PATH)
    libc.linkat(AT_FDCWD, f"/proc/self/fd/{fd}", AT_FDCWD, path.parent / "third", AT_SYMLINK_FOLLOW)
    assert os.fstat(fd).st_nlink == 3
    assert os.path.samefile(path.parent / "third", path)
    for name in ("file", "second", "third"):
        os.unlink(path.parent / name)
    with refused(errno.ENOENT):
        libc.linkat(fd, "", AT_FDCWD, path, AT_EMPTY_PATH)


def test_children_inherit_descriptors_and_their_offset(path: Path) -> None:
    """fork(2), execve(2), dup(2): one offset for all copies; not with O_CLOEXEC."""
    fd = opened(path)
    copy = os.dup(fd)
    os.read(fd, 2)
    assert in_child(lambda: os.read(fd, 3)) == 0
    assert os.read(copy, 1) == b"5"
    script = "import os, sys; os.write(int(sys.argv[1]), b'abc')"
    subprocess.run([sys.executable, "-c", script, str(fd)], pass_fds=[fd], check=True, timeout=60)
    assert os.lseek(copy, 0, os.SEEK_CUR) == 9
    closed = subprocess.run(
        [sys.executable, "-c", script, str(fd)], check=False, timeout=60, capture_output=True
    )
    assert b"Bad file descriptor" in closed.stderr
    os.close(fd)
    os.close(copy)
    assert path.read_bytes() == b"012345abc9"


def test_a_descriptor_is_passed_over_a_socket(path: Path) -> None:
    """unix(7), SCM_RIGHTS: it works on after its opener has ended."""
    ours, theirs = socket.socketpair()

    def send() -> None:
        fd = opened(path)
        os.read(fd, 4)
        rights = array.array("i", [fd]).tobytes()
        theirs.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])

    assert in_child(send) == 0
    _, ancillary, _, _ = ours.recvmsg(1, socket.CMSG_SPACE(4))
    (fd,) = struct.unpack("i", ancillary[0][2])
    assert os.write(fd, b"xy") == 2
    os.close(fd)
    assert path.read_bytes() == b"0123xy6789"
    ours.close()
    theirs.close()


def test_flags_belong_to_the_open_file_and_can_change(path: Path) -> None:
    """fcntl(2), F_SETFL: O_APPEND comes and goes; other open files of it are as they were."""
    fd, other = opened(path), opened(path)
    fcntl.fcntl(fd, fcntl.F_SETFL, os.O_APPEND)
    os.write(fd, b"end")
    os.write(other, b"start")
    fcntl.fcntl(fd, fcntl.F_SETFL, 0)
    os.pwrite(fd, b"5", 5)
    assert path.read_bytes() == b"start56789end"
    flags = fcntl.fcntl(other, fcntl.F_GETFL)
    assert flags & os.O_ACCMODE == os.O_RDWR
    assert not flags & os.O_APPEND


def test_several_open_files_of_one_inode_agree(path: Path) -> None:
    """open(2): a reader, a writer, an appender, a truncater, each with its own offset."""
    reader, writer, appender = (
        opened(path, flags) for flags in (os.O_RDONLY, os.O_WRONLY, os.O_RDWR | os.O_APPEND)
    )
    assert os.read(reader, 2) == b"01"
    os.write(appender, b"A")
    os.write(writer, b"W")
    assert os.read(reader, 20) == b"23456789A"
    os.close(opened(path, os.O_WRONLY | os.O_TRUNC))
    assert os.read(reader, 1) == b""
    os.write(appender, b"B")
    os.write(writer, b"V")
    assert os.pread(reader, 10, 0) == b"BV"
    os.link(path, path.parent / "link")
    os.truncate(path.parent / "link", 1)
    assert [os.fstat(fd).st_size for fd in (reader, writer, appender)] == [1, 1, 1]


# -- reading and writing --


def test_vectors_cross_the_borders_of_chunks_and_pages(spot: Path) -> None:
    """readv(2), preadv(2), pwritev(2): buffers of any sizes, up to IOV_MAX of them."""
    fd = opened(spot / "file", os.O_RDWR | os.O_CREAT)
    pieces = [bytes([n % 251]) * (n * 37 % 5000) for n in range(1024)]
    whole = b"".join(pieces)
    assert os.pwritev(fd, pieces, CHUNK - 1000) == len(whole)
    buffers = [bytearray(len(piece)) for piece in reversed(pieces)]
    assert os.preadv(fd, buffers, CHUNK - 1000) == len(whole)
    assert b"".join(buffers) == whole
    assert os.readv(fd, [bytearray(10), bytearray(2 * CHUNK)]) == 10 + 2 * CHUNK
    assert os.writev(fd, [b"a" * CHUNK, b"", b"b"]) == CHUNK + 1
    assert os.pread(fd, 3, 3 * CHUNK + 9) == b"ab" + whole[2 * CHUNK + 1011 :][:1]


def test_single_writes_append_or_sync_on_request(path: Path) -> None:
    """pwritev2(2): RWF_APPEND, RWF_DSYNC; O_SYNC and O_DSYNC of open(2)."""
    fd = opened(path)
    assert os.pwritev(fd, [b"ab"], 0, RWF_APPEND) == 2
    assert os.pwritev(fd, [b"cd"], 0, RWF_DSYNC) == 2
    assert os.lseek(fd, 0, os.SEEK_CUR) == 0
    os.close(fd)
    for flags in (os.O_SYNC, os.O_DSYNC):
        fd = opened(path, os.O_WRONLY | os.O_APPEND | flags)
        assert os.write(fd, b"!") == 1
        os.close(fd)
    assert path.read_bytes() == b"cd23456789ab!!"


def test_direct_io_and_cached_io_see_the_same(spot: Path) -> None:
    """open(2), O_DIRECT: aligned transfers; what others cached is up to date."""
    path, memory = spot / "file", mmap.mmap(-1, 4 * PAGE)
    path.write_bytes(b"a" * 4 * PAGE)
    cached = opened(path)
    assert os.pread(cached, 1, PAGE) == b"a"
    fd = opened(path, os.O_RDWR | os.O_DIRECT)
    memory[: 2 * PAGE] = b"d" * 2 * PAGE
    assert os.pwritev(fd, [memoryview(memory)[: 2 * PAGE]], PAGE) == 2 * PAGE
    assert os.pread(cached, 3 * PAGE + 1, 1) == b"a" * (PAGE - 1) + b"d" * 2 * PAGE + b"a" * 2
    os.pwrite(cached, b"c", 5)
    assert os.preadv(fd, [memory], 0) == 4 * PAGE
    assert memory[:6] == b"aaaaac"
    assert memory[PAGE : 3 * PAGE] == b"d" * 2 * PAGE
    assert os.preadv(fd, [memory], 3 * PAGE) == PAGE
    assert os.preadv(fd, [memory], 4 * PAGE) == 0


def test_holes_and_data_are_found_so_that_copies_are_right(spot: Path) -> None:
    """lseek(2): what SEEK_DATA and SEEK_HOLE leave out is zeros; there is a hole at the end."""
    fd = opened(spot / "file", os.O_RDWR | os.O_CREAT)
    for offset in (CHUNK, 4 * CHUNK + 5000):
        os.pwrite(fd, b"data" * PAGE, offset)
    os.ftruncate(fd, 8 * CHUNK)
    content, rebuilt, position = os.pread(fd, 8 * CHUNK, 0), bytearray(8 * CHUNK), 0
    while position < len(content):
        try:
            start = os.lseek(fd, position, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            break
        position = os.lseek(fd, start, os.SEEK_HOLE)
        assert start < position <= len(content)
        rebuilt[start:position] = content[start:position]
    assert rebuilt == content
    assert os.lseek(fd, -1, os.SEEK_END) == 8 * CHUNK - 1
    assert os.lseek(fd, 5, os.SEEK_CUR) == 8 * CHUNK + 4
    assert os.read(fd, 1) == b""


def test_the_last_byte_that_an_offset_can_name(place: Path) -> None:
    """lseek(2), write(2): a file ends at 2^63-1 at the latest. (ext4 stops at 16 TiB.)"""
    path, last = place / "file", 2**63 - 2
    fd = opened(path, os.O_RDWR | os.O_CREAT)
    assert os.pwrite(fd, b"end", last - 2) == 3
    assert os.fstat(fd).st_size == 2**63 - 1
    assert os.lseek(fd, 0, os.SEEK_END) == 2**63 - 1
    with refused(errno.EINVAL):
        os.write(fd, b"x")
    assert os.pread(fd, 1, last) == b"d"
    assert os.pread(fd, 6, last - 5) == b"\0\0\0end"
    os.ftruncate(fd, last)
    os.ftruncate(fd, 2**63 - 1)
    assert os.pread(fd, 3, last - 2) == b"en\0"
    assert path.stat().st_blocks * 512 < CHUNK
    os.close(fd)


@pytest.mark.parametrize("size", [10, CHUNK + 10])
def test_bytes_go_to_and_from_pipes_and_sockets(spot: Path, size: int) -> None:
    """splice(2), sendfile(2)"""
    content = os.urandom(size)
    (spot / "source").write_bytes(content)
    source = opened(spot / "source", os.O_RDONLY)
    spliced = opened(spot / "spliced", os.O_WRONLY | os.O_CREAT)
    sent = opened(spot / "sent", os.O_WRONLY | os.O_CREAT)
    reader, writer = os.pipe()
    while count := os.splice(source, writer, 60_000):
        while count:
            count -= os.splice(reader, spliced, count)
    offset = 0
    while count := os.sendfile(sent, source, offset, size):
        offset += count
    ours, theirs = socket.socketpair()
    assert os.sendfile(ours.fileno(), source, size - 10, 10) == 10
    assert theirs.recv(100) == content[-10:]
    os.close(reader)
    os.close(writer)
    ours.close()
    theirs.close()
    assert (spot / "spliced").read_bytes() == content == (spot / "sent").read_bytes()


# -- mappings --


def test_mappings_and_calls_see_each_other_in_all_processes(path: Path) -> None:
    """mmap(2), MAP_SHARED: one page, whoever has it mapped, reads or writes."""
    fd = opened(path)
    with mmap.mmap(fd, 10) as memory:
        child_fd = opened(path)

        def write_in_child() -> None:
            with mmap.mmap(child_fd, 10) as theirs:
                theirs[0:1] = b"c"
            os.pwrite(child_fd, b"C", 1)

        assert in_child(write_in_child) == 0
        assert memory[:3] == b"cC2"
        memory[2:3] = b"m"
        assert os.pread(child_fd, 3, 0) == b"cCm"
        assert path.read_bytes() == b"cCm3456789"
        os.pwrite(fd, b"w", 3)
        assert memory[3:4] == b"w"
        os.close(child_fd)
        os.close(fd)
        path.unlink()
        memory[9:] = b"!"
        memory.flush()
        assert memory[:] == b"cCmw45678!"


def test_beyond_the_end_of_a_mapped_file(path: Path) -> None:
    """mmap(2): zeros to the end of the page, that are not written back; then SIGBUS."""
    fd = opened(path)
    os.ftruncate(fd, PAGE)
    memory = mmap.mmap(fd, PAGE)
    os.ftruncate(fd, 10)
    assert memory[10:20] == bytes(10)
    memory[10:13] = b"xyz"
    memory.flush()
    assert path.read_bytes() == b"0123456789"
    os.ftruncate(fd, 2 * PAGE + 1)
    memory.resize(3 * PAGE)
    assert memory[2 * PAGE] == 0
    os.ftruncate(fd, 5)
    assert memory[:10] == b"01234" + bytes(5)
    assert in_child(lambda: memory[PAGE]) == -signal.SIGBUS
    assert in_child(lambda: memory[2 * PAGE]) == -signal.SIGBUS
    os.ftruncate(fd, 3 * PAGE)
    assert memory[:] == b"01234".ljust(3 * PAGE, b"\0")
    memory[-1:] = b"e"
    memory.close()
    os.close(fd)
    assert path.read_bytes() == b"01234".ljust(3 * PAGE - 1, b"\0") + b"e"


def test_mappings_keep_what_is_written_at_any_place(spot: Path) -> None:
    """mmap(2), msync(2), madvise(2): at offsets, over chunk borders, read again from the file."""
    path = spot / "file"
    path.write_bytes(bytes(3 * CHUNK))
    fd = opened(path)
    with mmap.mmap(fd, 2 * PAGE, offset=CHUNK - PAGE) as memory:
        memory[PAGE - 2 : PAGE + 2] = b"both"
        memory.flush(0, PAGE)
        memory.madvise(mmap.MADV_DONTNEED)
        assert memory[PAGE - 2 : PAGE + 2] == b"both"
    assert os.pread(fd, 4, CHUNK - 2) == b"both"
    with mmap.mmap(fd, 0, mmap.MAP_PRIVATE) as private:
        private[:4] = b"mine"
        assert os.pread(fd, 4, 0) == bytes(4)
        assert private[CHUNK - 2 : CHUNK + 2] == b"both"
    os.close(fd)
    assert path.read_bytes().strip(b"\0") == b"both"


# -- locks --


def lock(
    fd: int, kind: int, start: int = 0, length: int = 0, command: int = fcntl.F_SETLK
) -> bytes:
    request = struct.pack("hhqqi4x", kind, os.SEEK_SET, start, length, 0)
    return fcntl.fcntl(fd, command, request)


def test_record_locks_exclude_ranges_and_go_with_any_close(path: Path) -> None:
    """fcntl(2), F_SETLK: by process and byte; F_GETLK names the holder; EBADF, EAGAIN."""
    fd, other = opened(path), opened(path)
    lock(fd, fcntl.F_WRLCK, 2, 3)
    lock(other, fcntl.F_WRLCK, 0, 10)  # of one process: no conflict
    lock(fd, fcntl.F_UNLCK, 5, 5)

    def taken(kind: int, start: int, length: int = 1) -> int:
        return in_child(lambda: lock(opened(path), kind, start, length))

    assert taken(fcntl.F_RDLCK, 4) == errno.EAGAIN
    assert taken(fcntl.F_WRLCK, 5, 100) == 0
    found = struct.unpack("hhqqi4x", in_reply(path))
    assert (found[0], found[2:5]) == (fcntl.F_WRLCK, (0, 5, os.getpid()))
    lock(fd, fcntl.F_RDLCK, 0, 10)
    assert taken(fcntl.F_RDLCK, 0, 10) == 0
    assert taken(fcntl.F_WRLCK, 9) == errno.EAGAIN
    os.close(other)
    assert taken(fcntl.F_WRLCK, 0, 10) == 0
    reader = opened(path, os.O_RDONLY)
    with refused(errno.EBADF):
        lock(reader, fcntl.F_WRLCK)
    os.close(reader)


def in_reply(path: Path) -> bytes:
    """Return what F_GETLK tells another process."""
    reader, writer = os.pipe()
    in_child(lambda: os.write(writer, lock(opened(path), fcntl.F_WRLCK, command=fcntl.F_GETLK)))
    os.close(writer)
    with open(reader, "rb") as file:
        return file.read()


def test_waiting_for_a_lock_is_interrupted_and_deadlock_refused(path: Path) -> None:
    """fcntl(2), F_SETLKW: EINTR by a signal with a handler, EDEADLK instead of waiting for ever."""
    fd = opened(path)
    lock(fd, fcntl.F_WRLCK, 0, 1)

    def interrupted() -> None:
        def stop(*_: object) -> None:
            raise InterruptedError(errno.EINTR, "as PEP 475 would not")

        signal.signal(signal.SIGALRM, stop)
        signal.setitimer(signal.ITIMER_REAL, 0.2, 0.2)
        lock(fd, fcntl.F_WRLCK, 0, 1, fcntl.F_SETLKW)

    assert in_child(interrupted) == errno.EINTR
    assert in_child(lambda: flock_interrupted(path)) == errno.EINTR

    reader, writer = os.pipe()

    def hold_and_wait() -> None:
        lock(fd, fcntl.F_WRLCK, 1, 1)
        os.write(writer, b"x")
        lock(fd, fcntl.F_WRLCK, 0, 1, fcntl.F_SETLKW)

    child = os.fork()
    if child == 0:
        try:
            hold_and_wait()
        finally:
            os._exit(0)
    os.read(reader, 1)
    # Until the child waits, asking for what it has only tells that it has it.
    found = 0
    while found != errno.EDEADLK:
        try:
            lock(fd, fcntl.F_WRLCK, 1, 1, fcntl.F_SETLKW if waits(child) else fcntl.F_SETLK)
        except OSError as error:
            found = error.errno or 0
            assert found in (errno.EAGAIN, errno.EDEADLK)
    lock(fd, fcntl.F_UNLCK)
    assert os.waitpid(child, 0)[1] == 0
    os.close(reader)


def waits(pid: int) -> bool:
    """Return whether a process sleeps in the kernel, in fcntl or flock."""
    return Path(f"/proc/{pid}/syscall").read_text().split()[0] in ("72", "73", "25", "32")


def flock_interrupted(path: Path) -> None:
    def stop(*_: object) -> None:
        raise InterruptedError(errno.EINTR, "as PEP 475 would not")

    first, second = opened(path), opened(path)
    fcntl.flock(first, fcntl.LOCK_EX)
    signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, 0.2, 0.2)
    fcntl.flock(second, fcntl.LOCK_EX)


def test_flock_is_of_the_open_file(path: Path) -> None:
    """flock(2): shared, exclusive, upgraded in place; kept by copies until the last close."""
    first, second = opened(path), opened(path, os.O_RDONLY)
    fcntl.flock(first, fcntl.LOCK_SH)
    fcntl.flock(second, fcntl.LOCK_SH | fcntl.LOCK_NB)
    with refused(errno.EAGAIN):
        fcntl.flock(first, fcntl.LOCK_EX | fcntl.LOCK_NB)
    fcntl.flock(second, fcntl.LOCK_UN)
    fcntl.flock(first, fcntl.LOCK_EX | fcntl.LOCK_NB)
    copy = os.dup(first)
    os.close(first)
    with refused(errno.EAGAIN):
        fcntl.flock(second, fcntl.LOCK_SH | fcntl.LOCK_NB)
    assert in_child(lambda: fcntl.flock(copy, fcntl.LOCK_EX | fcntl.LOCK_NB)) == 0
    assert (
        in_child(lambda: fcntl.flock(opened(path), fcntl.LOCK_SH | fcntl.LOCK_NB)) == errno.EAGAIN
    )
    lock(second, fcntl.F_RDLCK)  # record locks are another matter
    os.close(copy)
    fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_open_file_locks_conflict_within_a_process(path: Path) -> None:
    """fcntl(2), F_OFD_SETLK: of the open file, not of the process."""
    first, second = opened(path), opened(path)
    lock(first, fcntl.F_WRLCK, 0, 5, fcntl.F_OFD_SETLK)
    with refused(errno.EAGAIN):
        lock(second, fcntl.F_RDLCK, 4, 1, fcntl.F_OFD_SETLK)
    lock(second, fcntl.F_WRLCK, 5, 1, fcntl.F_OFD_SETLK)
    os.close(opened(path))
    with refused(errno.EAGAIN):
        lock(second, fcntl.F_RDLCK, 4, 1, fcntl.F_OFD_SETLK)
    os.close(first)
    lock(second, fcntl.F_RDLCK, 4, 1, fcntl.F_OFD_SETLK)


def test_a_lease_is_given_where_nobody_else_has_the_file_open(path: Path) -> None:
    """fcntl(2), F_SETLEASE, F_GETLEASE: EAGAIN where somebody has."""
    reader = opened(path, os.O_RDONLY)
    fcntl.fcntl(reader, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    assert fcntl.fcntl(reader, fcntl.F_GETLEASE) == fcntl.F_RDLCK
    fcntl.fcntl(reader, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    writer = opened(path, os.O_WRONLY)
    with refused(errno.EAGAIN):
        fcntl.fcntl(reader, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    os.close(writer)
    os.close(reader)


# -- events --


def test_inotify_tells_what_happens(spot: Path) -> None:
    """inotify(7): the kernel tells of what is done through the same mount."""
    queue = libc.inotify_init1(os.O_NONBLOCK)
    libc.inotify_add_watch(queue, spot, 0xFFF)
    (spot / "file").write_text("x")
    os.chmod(spot / "file", 0o600)
    os.rename(spot / "file", spot / "new")
    (spot / "new").read_text()
    os.truncate(spot / "new", 0)
    os.link(spot / "new", spot / "link")
    os.mkdir(spot / "dir")
    os.rmdir(spot / "dir")
    os.unlink(spot / "new")
    found, events = [], os.read(queue, 65536)
    while events:
        _, mask, _, length = struct.unpack_from("iIII", events)
        name = events[16 : 16 + length].rstrip(b"\0").decode()
        found.append(f"{name}:{mask & 0xFFFF:x}")
        events = events[16 + length :]
    os.close(queue)
    # made, opened, written, closed, chmod; moved from and to, opened, read, closed, truncated
    expected = "file:100 file:20 file:2 file:8 file:4 file:40 new:80 new:20 new:1 new:10 new:2"
    # linked; a directory came and went; unlinked
    expected += " link:100 dir:100 dir:200 new:200"
    assert found == expected.split()


def test_dnotify_signals_a_change(spot: Path) -> None:
    """fcntl(2), F_NOTIFY."""

    def wait_for_change() -> None:
        fd = opened(spot, os.O_RDONLY)
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGIO])
        fcntl.fcntl(fd, fcntl.F_NOTIFY, fcntl.DN_CREATE)
        (spot / "file").touch()
        if signal.sigtimedwait([signal.SIGIO], 10) is None:
            raise TimeoutError(errno.ETIMEDOUT, "no signal")

    # Threads of this process would take the signal.
    assert in_child(wait_for_change) == 0


def test_files_are_always_ready(path: Path) -> None:
    """poll(2), select(2)"""
    fd = opened(path)
    assert select.select([fd], [fd], [], 10) == ([fd], [fd], [])
    poll = select.poll()
    poll.register(fd)
    assert poll.poll(10_000)[0][1] & (select.POLLIN | select.POLLOUT)


# -- directories, numbers, handles --


def entries(fd: int, size: int) -> list[bytes]:
    """Return the names that one getdents64(2) with a buffer of a size gives."""
    buffer = ctypes.create_string_buffer(size)
    count, names, at = libc.getdents64(fd, buffer, size), [], 0
    while at < count:
        length = struct.unpack_from("H", buffer.raw, at + 16)[0]
        names.append(buffer.raw[at + 19 : at + length].split(b"\0")[0])
        at += length
    return names


def test_small_buffers_list_everything_once(spot: Path) -> None:
    """getdents(2): as many entries as fit; EINVAL when not one does."""
    expected = sorted([b".", b"..", *(b"%d" % n + b"n" * (n % 200) for n in range(200))])
    for name in expected[2:]:
        os.close(os.open(os.fsencode(spot) + b"/" + name, os.O_CREAT))
    for size in (280, 600, 5000):
        fd, found = opened(spot, os.O_RDONLY), []
        while names := entries(fd, size):
            found += names
        assert sorted(found) == expected
        assert entries(fd, size) == []
        os.close(fd)
    fd = opened(spot, os.O_RDONLY)
    with refused(errno.EINVAL):
        entries(fd, 20)


def test_copies_of_a_descriptor_share_the_position_in_a_listing(spot: Path) -> None:
    """dup(2), lseek(2): d_off values are positions; rewinding sees what is new."""
    for number in range(20):
        (spot / f"{number:02}").touch()
    fd = opened(spot, os.O_RDONLY)
    copy, other = os.dup(fd), opened(spot, os.O_RDONLY)
    first = entries(fd, 100)
    position = os.lseek(fd, 0, os.SEEK_CUR)
    rest = entries(copy, 5000)
    assert len({*first, *rest}) == len(first) + len(rest) == 22
    assert entries(other, 100) == first
    os.lseek(fd, position, os.SEEK_SET)
    assert entries(copy, 5000) == rest
    (spot / "new").touch()
    os.lseek(copy, 0, os.SEEK_SET)
    assert set(entries(fd, 5000)) == {*first, *rest, b"new"}


def statx(path: Path, mask: int, flags: int = 0) -> tuple[int, int, int]:
    """Return the mask, the size and the mode."""
    buffer = ctypes.create_string_buffer(256)
    libc.statx(AT_FDCWD, path, flags, mask, buffer)
    return (
        struct.unpack_from("I", buffer.raw, 0)[0],
        struct.unpack_from("Q", buffer.raw, 40)[0],
        struct.unpack_from("H", buffer.raw, 28)[0],
    )


def test_statx_gives_the_basic_fields(path: Path) -> None:
    """statx(2): whatever the mask asks for, and however fresh it is to be."""
    for flags in (0, 0x2000, 0x4000, 0x100):  # FORCE_SYNC, DONT_SYNC, SYMLINK_NOFOLLOW
        mask, size, mode = statx(path, 0x7FF, flags)
        assert mask & 0x7FF == 0x7FF
        assert (size, mode) == (10, path.stat().st_mode)
    with refused(errno.EINVAL):
        statx(path, 0x80000000)
    with refused(errno.EINVAL):
        statx(path, 0x7FF, 0x6000)


@as_root
def test_a_file_handle_opens_its_file_whatever_its_name(path: Path) -> None:
    """open_by_handle_at(2): across renames and links; ESTALE when the file is gone."""
    handle, mount_id = ctypes.create_string_buffer(struct.pack("I4x", 128), 136), ctypes.c_int()
    libc.name_to_handle_at(AT_FDCWD, path, handle, ctypes.byref(mount_id), 0)
    os.rename(path, path.parent / "renamed")
    root = opened(path.parent, os.O_RDONLY)
    fd = libc.open_by_handle_at(root, handle, os.O_RDWR)
    assert os.read(fd, 20) == b"0123456789"
    os.close(fd)
    os.unlink(path.parent / "renamed")
    with refused(errno.ESTALE):
        libc.open_by_handle_at(root, handle, os.O_RDWR)
    small = ctypes.create_string_buffer(struct.pack("I4x", 0), 136)
    with refused(errno.EOVERFLOW):
        libc.name_to_handle_at(AT_FDCWD, path.parent, small, ctypes.byref(mount_id), 0)


def test_what_is_not_to_be_had_says_so(place: Path) -> None:
    """fallocate(2), open(2), ioctl(2), ioctl_ficlonerange(2), rename(2): the promised errno."""
    table = """
        ENOTSUP    libc.fallocate(open('file', O_RDWR), 0, 0, 1)
        ENOTSUP    libc.fallocate(open('file', O_RDWR), 3, 0, 1)
        ENOTSUP    open('.', O_TMPFILE | O_RDWR)
        ENOTTY     libc.ioctl(open('file', O_RDONLY), 0x80086601, bytes(8))
        ENOTTY     libc.ioctl(open('file', O_RDONLY), 0x5401, bytes(64))
        ENOTSUP    libc.ioctl(open('file', O_RDWR), 0x40049409, open('other', O_RDONLY))
        EINVAL     renameat2('file', 'new', RENAME_WHITEOUT)
    """
    for name in ("file", "other"):
        (place / name).write_text("x")
    outcomes = {line: Calls().outcome(place, line) for _, line in lines(table)}
    assert outcomes == {line: expected for expected, line in lines(table)}
