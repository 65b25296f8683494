"""One mount for a module's tests, where a mount of their own would tell nothing more."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from nexus_engine.commands import Request, ignore_progress
from nexusfuse.ctl import control
from tests.conftest import TIMEOUT_S, Mount


@contextmanager
def serving(directory: Path, *options: str) -> Iterator[Mount]:
    """Mount a fresh store; afterwards it must stop cleanly, silently and sound."""
    mounted = Mount(directory, *options)
    try:
        yield mounted
        assert mounted.check() == []
        mounted.umount()
        assert mounted.unexpected_log_lines() == []
    finally:
        mounted.detach()


@contextmanager
def small_disk(directory: Path, kind: str, size_bytes: int) -> Iterator[Path]:
    """Mount an empty file system of its own, a tmpfs or an ext4 in a file; needs root."""
    path = directory / "disk"
    path.mkdir()
    options = ["-t", "tmpfs", "-o", f"size={size_bytes}", "tmpfs"]
    if kind == "ext4":
        image = directory / "image"
        with image.open("wb") as file:
            file.truncate(size_bytes)
        subprocess.run(["mkfs.ext4", "-q", "-m", "0", image], check=True, timeout=TIMEOUT_S)
        options = ["-o", "loop", str(image)]
    made = subprocess.run(["mount", *options, path], check=False, capture_output=True, timeout=60)
    if made.returncode != 0:
        pytest.skip(f"cannot mount: {made.stderr.decode()}")
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", path], check=True, timeout=TIMEOUT_S)


@pytest.fixture(scope="module")
def shared_mount(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mount]:
    """Yield a mount that the tests of a module share."""
    with serving(tmp_path_factory.mktemp("shared")) as mounted:
        yield mounted


@pytest.fixture
def place(shared_mount: Mount, request: pytest.FixtureRequest) -> Iterator[Path]:
    """Yield an empty directory of the shared mount; afterwards fsck must find nothing."""
    directory = shared_mount.path / request.node.name[:100].replace("/", "_")
    directory.mkdir()
    yield directory
    mountpoint = os.fsencode(shared_mount.path)
    assert control.ask(mountpoint, Request("fsck", {}), ignore_progress)["problems"] == []
