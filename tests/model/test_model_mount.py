"""The machine on a real mount: operations, time travel, undo and redo, then fsck."""

from __future__ import annotations

import itertools
import os

import pytest

from tests.conftest import Mount

from .conftest import Restarts
from .drivers import MountDriver
from .running import LONGEST_S, Effort, run_machine


@pytest.mark.timeout(LONGEST_S)
def test_a_mount_agrees_with_the_reference(
    shared_mount: Mount, request: pytest.FixtureRequest
) -> None:
    """Same results and errnos, same trees; the past stays as it was; undo brings it back."""
    count, restarts = itertools.count(), Restarts(shared_mount)

    def new_driver() -> MountDriver:
        root = shared_mount.path / f"example-{next(count)}"
        root.mkdir()
        return MountDriver(
            os.fsencode(root),
            os.fsencode(shared_mount.path),
            remount=restarts.remount,
            kill=restarts.kill,
        )

    run_machine(request, new_driver, Effort.of(request, quick=20, slow=500))
    assert shared_mount.check() == []
