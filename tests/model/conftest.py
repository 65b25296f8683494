"""A mount for a module; a tmpfs, on which the reference and the exerciser are tested themselves."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.conftest import TIMEOUT_S, Mount
from tests.mount.conftest import serving

RECOVERED = "took over from process"
SHARED_MEMORY = Path("/dev/shm")
OPTIONS = ("--allow-other",) if os.geteuid() == 0 else ()


@pytest.fixture(scope="module")
def shared_mount() -> Iterator[Mount]:
    """Yield a mount that the tests of a module share; root lets everybody in."""
    with open_directory() as directory, serving(directory, *OPTIONS) as mounted:
        yield mounted


class Restarts:
    """Stops and starts a shared mount."""

    def __init__(self, mount: Mount) -> None:
        self._mount = mount
        self._pid = mount.status()["pid"]

    def remount(self) -> None:
        self._mount.umount()
        self._start()

    def kill(self) -> None:
        """Kill the daemon at once, whatever it is doing, and start another."""
        self._mount.expected_log = [RECOVERED]
        os.kill(self._pid, signal.SIGKILL)
        subprocess.run(["fusermount3", "-uz", self._mount.path], check=True, timeout=TIMEOUT_S)
        self._start()

    def _start(self) -> None:
        self._mount.mount(*OPTIONS)
        self._pid = self._mount.status()["pid"]


@pytest.fixture
def memory_path() -> Iterator[Path]:
    """Yield an empty directory of a tmpfs."""
    if _filesystem_type(SHARED_MEMORY) != "tmpfs" or not os.access(SHARED_MEMORY, os.W_OK):
        pytest.skip(f"{SHARED_MEMORY} is not a tmpfs that we may write")
    with open_directory(SHARED_MEMORY) as directory:
        yield directory


@pytest.fixture
def disk_path() -> Iterator[Path]:
    """Yield an empty directory where temporary files are."""
    with open_directory() as directory:
        yield directory


@contextmanager
def open_directory(where: Path | None = None) -> Iterator[Path]:
    """Make a directory that other users reach: pytest closes its own to them."""
    with tempfile.TemporaryDirectory(prefix="nexus-model-", dir=where) as name:
        directory = Path(name)
        for above in (directory, *directory.parents):
            found = above.stat()
            if found.st_uid == os.geteuid() and not found.st_mode & 0o001:
                above.chmod(found.st_mode | 0o011)
        yield directory


def _filesystem_type(path: Path) -> str | None:
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    return next((kind for _, where, kind, *_ in reversed(mounts) if where == str(path)), None)
