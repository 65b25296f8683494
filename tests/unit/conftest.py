"""What several unit tests share; a module may have a ``world`` of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path as FilePath

import pytest

from tests.unit import breaking
from tests.unit.undoing import fill
from tests.unit.worlds import World


@pytest.fixture
async def world(tmp_path: FilePath) -> AsyncIterator[World]:
    world = World(tmp_path / "store")
    await fill(world)
    yield world
    assert world.problems(deep=True) == []
    await world.close()


@pytest.fixture
async def breakable(tmp_path: FilePath) -> AsyncIterator[World]:
    """Yield a store with some of everything, in whatever state a test leaves it."""
    world = World(tmp_path / "store")
    await breaking.fill(world)
    yield world
    world.store.chunks.close()
    world.database.close()
