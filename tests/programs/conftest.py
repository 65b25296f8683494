"""Mounts for programs: one for a module's tests, and one that other users may enter."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import Mount
from tests.mount.conftest import serving, shared_mount

__all__ = ["open_mount", "place", "shared_mount"]


@pytest.fixture
def place(shared_mount: Mount, request: pytest.FixtureRequest) -> Path:
    """Return an empty directory of the mount that the module's tests share.

    What a program left behind is checked once, when the module ends: it is much.
    """
    directory = shared_mount.path / re.sub(r"\W+", "-", request.node.name).strip("-")[:100]
    directory.mkdir()
    return directory


@pytest.fixture
def open_mount() -> Iterator[Mount]:
    """Yield a mount that other users can reach and enter, and may write to."""
    directory = Path(tempfile.mkdtemp(prefix="nexus-"))
    directory.chmod(0o755)  # pytest's own directories are their owner's alone
    try:
        with serving(directory) as mounted:
            mounted.umount()
            mounted.mount("--allow-other")
            mounted.path.chmod(0o1777)
            yield mounted
    finally:
        shutil.rmtree(directory, ignore_errors=True)
