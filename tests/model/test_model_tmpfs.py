"""The machine on filesystems of the kernel: what fails here is wrong in the reference."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import pytest

from .drivers import PathDriver
from .running import LONGEST_S, Effort, run_machine


@pytest.mark.timeout(LONGEST_S)
def test_the_reference_agrees_with_tmpfs(memory_path: Path, request: pytest.FixtureRequest) -> None:
    """tmpfs is the kernel's own VFS and little else."""
    run_below(memory_path, request)


@pytest.mark.timeout(LONGEST_S)
def test_the_reference_agrees_with_the_temporary_directory(
    disk_path: Path, request: pytest.FixtureRequest
) -> None:
    """Mostly ext4: what a disk filesystem does otherwise than tmpfs is no promise."""
    run_below(disk_path, request)


def run_below(directory: Path, request: pytest.FixtureRequest) -> None:
    count = itertools.count()

    def new_driver() -> PathDriver:
        root = directory / str(next(count))
        root.mkdir()
        return PathDriver(os.fsencode(root))

    run_machine(request, new_driver, Effort.of(request, quick=30, slow=2_000))
