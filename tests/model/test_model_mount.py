"""The machine on a real mount: operations, time travel, undo and redo, then fsck."""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from typing import Protocol

import pytest

from .drivers import MountDriver
from .running import LONGEST_S, Effort, run_machine


class Mount(Protocol):
    """What is needed of the ``mount`` fixture."""

    path: Path

    def ctl(self, *arguments: str) -> object: ...
    def remount(self) -> None: ...
    def check(self) -> list[str]: ...


@pytest.mark.timeout(LONGEST_S)
def test_a_mount_agrees_with_the_reference(mount: Mount, request: pytest.FixtureRequest) -> None:
    """Same results and errnos, same trees; the past stays as it was; undo brings it back."""
    count = itertools.count()

    def new_driver() -> MountDriver:
        root = mount.path / f"example-{next(count)}"
        root.mkdir()
        return MountDriver(
            os.fsencode(root), ctl=mount.ctl, check=mount.check, remount=mount.remount
        )

    run_machine(request, new_driver, Effort.of(request, quick=20, slow=500))
    assert mount.check() == []
