"""Content: reading, writing, sizes, mapping, files without a name."""

from __future__ import annotations

import errno
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from tests.mount.linux import refused

GIB = 1 << 30
CHUNK = 1 << 20

_APPEND = """
import os, sys
fd = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND)
for number in range(200):
    os.write(fd, b"%s %06d\\n" % (sys.argv[2].encode(), number))
"""


def test_two_processes_append_without_losing_a_line(place: Path) -> None:
    """open(2), O_APPEND: each write goes to the end of the file, as one step."""
    path = place / "log"
    path.touch()
    writers = [subprocess.Popen([sys.executable, "-c", _APPEND, path, name]) for name in "ab"]
    assert [writer.wait(60) for writer in writers] == [0, 0]
    lines = path.read_text().splitlines()
    expected = [f"{name} {number:06d}" for name in "ab" for number in range(200)]
    assert sorted(lines) == expected
    assert [line for line in lines if line.startswith("a")] == expected[:200]


def test_append_ignores_the_file_position(place: Path) -> None:
    """open(2), O_APPEND; pwrite(2): on Linux it appends as well."""
    path = place / "file"
    path.write_bytes(b"12345")
    fd = os.open(path, os.O_RDWR | os.O_APPEND)
    os.lseek(fd, 0, os.SEEK_SET)
    os.write(fd, b"67")
    os.pwrite(fd, b"89", 0)
    assert os.pread(fd, 100, 0) == b"123456789"
    os.truncate(path, 3)
    os.write(fd, b"x")
    os.close(fd)
    assert path.read_bytes() == b"123x"


def test_truncating_open_empties_the_file(place: Path) -> None:
    """open(2), O_TRUNC: size 0, new mtime; a reader that has it open sees it at once."""
    path = place / "file"
    path.write_bytes(b"long content")
    before = path.stat()
    with path.open("rb") as reader:
        assert reader.read(4) == b"long"
        fd = os.open(path, os.O_WRONLY | os.O_TRUNC)
        assert os.fstat(fd).st_size == 0
        assert os.fstat(reader.fileno()).st_size == 0
        assert os.pread(reader.fileno(), 10, 0) == b""
        os.close(fd)
    assert path.stat().st_size == 0
    assert path.stat().st_mtime_ns > before.st_mtime_ns


def test_access_mode_of_a_descriptor_is_kept(place: Path) -> None:
    """read(2), write(2): EBADF for what the descriptor was not opened for."""
    path = place / "file"
    path.write_text("x")
    with path.open("rb") as reader, refused(errno.EBADF):
        os.write(reader.fileno(), b"y")
    with path.open("r+b") as both:
        assert os.read(both.fileno(), 1) == b"x"
    fd = os.open(path, os.O_WRONLY)
    with refused(errno.EBADF):
        os.read(fd, 1)
    os.close(fd)
    with refused(errno.EISDIR):
        os.open(place, os.O_WRONLY)
    with refused(errno.ENOTDIR):
        os.open(path, os.O_DIRECTORY)


@pytest.mark.parametrize("size", [0, 1, 4095, 4097, CHUNK - 1, CHUNK, CHUNK + 1, 5 * CHUNK + 7])
def test_bytes_come_back_as_written(place: Path, size: int) -> None:
    """read(2), write(2), whichever way the content is cut into pieces."""
    content = random.Random(size).randbytes(size)
    path = place / "file"
    path.write_bytes(content)
    assert path.read_bytes() == content
    assert path.stat().st_size == size
    fd = os.open(path, os.O_RDONLY)
    for offset in (0, size // 2, max(0, size - 3), size, size + 100):
        assert os.pread(fd, 5000, offset) == content[offset : offset + 5000]
    os.close(fd)


def test_random_writes_and_truncates_match_a_model(place: Path) -> None:
    """pwrite(2), ftruncate(2): overlapping, across chunks, through two descriptors."""
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")  # noqa: T201 - shown when it fails
    rng, model = random.Random(seed), bytearray()
    first = os.open(place / "file", os.O_RDWR | os.O_CREAT)
    second = os.open(place / "file", os.O_RDWR)
    for _ in range(150):
        fd = rng.choice((first, second))
        offset, length = rng.randrange(3 * CHUNK), rng.choice((1, 100, 5000, 200_000))
        match rng.randrange(6):
            case 0:
                size = rng.randrange(3 * CHUNK)
                os.ftruncate(fd, size)
                model = model[:size].ljust(size, b"\0")
            case 1:
                assert os.pread(fd, length, offset) == model[offset : offset + length]
            case 2:
                os.fsync(fd)
            case _:
                data = rng.randbytes(length)
                os.pwrite(fd, data, offset)
                model = model.ljust(offset, b"\0")
                model[offset : offset + length] = data
    os.close(first)
    assert os.fstat(second).st_size == len(model)
    os.close(second)
    assert (place / "file").read_bytes() == model


def test_a_hole_reads_as_zeros(place: Path) -> None:
    """lseek(2): a gap after the end reads as null bytes."""
    path = place / "sparse"
    with path.open("wb") as file:
        file.write(b"start")
        file.seek(3 * CHUNK + 17)
        file.write(b"end")
    content = path.read_bytes()
    assert content == b"start".ljust(3 * CHUNK + 17, b"\0") + b"end"


def test_offsets_beyond_4_gib(place: Path) -> None:
    """lseek(2): 64-bit offsets; a sparse file costs what was written to it."""
    path = place / "huge"
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    os.pwrite(fd, b"far", 5 * GIB)
    os.pwrite(fd, b"near", 0)
    assert os.fstat(fd).st_size == 5 * GIB + 3
    assert os.pread(fd, 10, 5 * GIB - 2) == b"\0\0far"
    os.close(fd)
    assert path.stat().st_size == 5 * GIB + 3
    with path.open("rb") as file:
        assert file.read(6) == b"near\0\0"
        file.seek(-3, os.SEEK_END)
        assert file.read() == b"far"
    assert int(subprocess.check_output(["du", "-k", path]).split()[0]) < 10_000


def test_du_counts_what_is_stored_of_a_sparse_file(place: Path) -> None:
    """stat(2): st_blocks is less than st_size/512 where there are holes."""
    (place / "sparse").touch()
    os.truncate(place / "sparse", GIB)
    (place / "full").write_bytes(os.urandom(CHUNK))
    assert int(subprocess.check_output(["du", "-k", place / "sparse"]).split()[0]) < 1024
    assert (place / "full").stat().st_blocks * 512 >= CHUNK


def test_offsets_that_no_file_can_have_are_refused(place: Path) -> None:
    """truncate(2), write(2): EFBIG or EINVAL, and the file stays as it was."""
    path = place / "file"
    path.write_bytes(b"x")
    fd = os.open(path, os.O_RDWR)
    with refused(errno.EINVAL):
        os.ftruncate(fd, -1)
    with refused(errno.EFBIG, errno.EINVAL):
        os.pwrite(fd, b"abc", 2**63 - 2)
    os.close(fd)
    assert path.read_bytes() == b"x"


def test_truncate_up_and_down_leaves_zeros_not_old_bytes(place: Path) -> None:
    """truncate(2): the extended part reads as null bytes, also where there was something once."""
    path = place / "file"
    path.write_bytes(b"x" * (2 * CHUNK + 10))
    os.truncate(path, 5)
    os.truncate(path, CHUNK + 5)
    assert path.read_bytes() == b"x" * 5 + b"\0" * CHUNK
    with path.open("r+b") as file:
        file.write(b"abc")
        file.truncate(2)
        file.truncate(4)
        assert os.pread(file.fileno(), 10, 0) == b"ab\0\0"
    assert path.read_bytes() == b"ab\0\0"
    with refused(errno.EISDIR):
        os.truncate(place, 0)


def test_changed_content_changes_mtime_and_ctime(place: Path) -> None:
    """inode(7): write and truncate update both; reading neither; there is an atime."""
    path = place / "file"
    path.write_text("x")
    os.utime(path, ns=(1, 2))
    before = path.stat()
    path.read_text()
    assert (path.stat().st_mtime_ns, path.stat().st_ctime_ns) == (2, before.st_ctime_ns)
    assert path.stat().st_atime_ns > 0
    with path.open("r+") as file:
        file.write("y")
    written = path.stat()
    assert written.st_mtime_ns > before.st_ctime_ns
    assert written.st_ctime_ns >= written.st_mtime_ns
    os.truncate(path, 0)
    assert path.stat().st_mtime_ns > written.st_mtime_ns


def test_an_open_writer_and_stat_agree(place: Path) -> None:
    """stat(2): size and mtime include what write(2) returned for, before close."""
    path = place / "file"
    with path.open("wb", buffering=0) as file:
        for size in (10, 20, CHUNK):
            file.write(b"x" * (size - file.tell()))
            assert path.stat().st_size == size
            assert len(path.read_bytes()) == size
        mtime_ns = path.stat().st_mtime_ns
    assert path.stat().st_mtime_ns == mtime_ns
