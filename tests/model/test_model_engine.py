"""The machine on the engine: all that a mount is, but for the kernel and FUSE."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from .engine_driver import EngineDriver
from .running import LONGEST_S, Effort, run_machine


@pytest.mark.timeout(LONGEST_S)
def test_the_engine_agrees_with_the_reference(
    memory_path: Path, request: pytest.FixtureRequest
) -> None:
    """Same results and errnos, same trees; the past stays as it was; undo brings it back."""
    count = itertools.count()
    run_machine(
        request,
        lambda: EngineDriver(memory_path / f"store-{next(count)}"),
        Effort.of(request, quick=20, slow=2_000),
    )
