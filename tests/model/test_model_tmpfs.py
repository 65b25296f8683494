"""The machine on filesystems of the kernel: what fails here is wrong in the reference."""

from __future__ import annotations

import itertools
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from .drivers import PathDriver
from .running import LONGEST_S, Effort, run_machine

SHARED_MEMORY = Path("/dev/shm")


@pytest.fixture
def memory_path() -> Iterator[Path]:
    if _filesystem_type(SHARED_MEMORY) != "tmpfs" or not os.access(SHARED_MEMORY, os.W_OK):
        pytest.skip(f"{SHARED_MEMORY} is not a tmpfs that we may write")
    path = Path(tempfile.mkdtemp(prefix="nexus-model-", dir=SHARED_MEMORY))
    yield path
    shutil.rmtree(path)


@pytest.mark.timeout(LONGEST_S)
def test_the_reference_agrees_with_tmpfs(memory_path: Path, request: pytest.FixtureRequest) -> None:
    """tmpfs is the kernel's own VFS and little else."""
    run_below(memory_path, request)


@pytest.mark.timeout(LONGEST_S)
def test_the_reference_agrees_with_the_temporary_directory(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Mostly ext4: what a disk filesystem does otherwise than tmpfs is no promise."""
    run_below(tmp_path, request)


def run_below(directory: Path, request: pytest.FixtureRequest) -> None:
    count = itertools.count()

    def new_driver() -> PathDriver:
        root = directory / str(next(count))
        root.mkdir()
        return PathDriver(os.fsencode(root))

    run_machine(request, new_driver, Effort.of(request, quick=30, slow=2_000))


def _filesystem_type(path: Path) -> str | None:
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    return next((kind for _, where, kind, *_ in reversed(mounts) if where == str(path)), None)
