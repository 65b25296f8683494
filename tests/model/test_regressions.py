"""What the machine and the exerciser found, as small as it could be made."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.conftest import Mount


@pytest.fixture
def place(shared_mount: Mount, request: pytest.FixtureRequest) -> Path:
    """Return an empty directory of the shared mount."""
    directory: Path = shared_mount.path / request.node.name[:100].replace("/", "_")
    directory.mkdir()
    return directory


def test_regression_a_file_that_undo_removed_is_changed_through_its_descriptor(
    shared_mount: Mount, place: Path
) -> None:
    """As unlink(2) has it: the file lives until its last descriptor is closed."""
    with open(place / "file", "x+b", buffering=0) as file:
        file.write(b"content")
        os.fsync(file)
        shared_mount.ctl("undo", "--last", "2")
        assert not (place / "file").exists()
        fd = file.fileno()
        os.fchmod(fd, 0o600)
        os.fchown(fd, -1, os.getegid())
        os.utime(fd, ns=(1, 2))
        os.setxattr(fd, "user.a", b"1")
        os.close(os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_APPEND))
        found = os.fstat(fd)
        assert (found.st_mode & 0o7777, found.st_mtime_ns, found.st_nlink) == (0o600, 2, 0)
        assert (os.getxattr(fd, "user.a"), os.pread(fd, 10, 0)) == (b"1", b"content")
