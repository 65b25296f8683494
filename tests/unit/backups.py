"""What tests of copies of a store share."""

from __future__ import annotations

from pathlib import Path as FilePath

from nexus_engine.engine import Engine
from nexus_engine.types import SIZE_MAX, Seq
from tests.unit.worlds import ALICE, StepClock, World


class Reopened(World):
    """A store that is there already."""

    def __init__(self, path: FilePath) -> None:
        self.path = path
        self.clock = StepClock()
        self.engine = Engine.start(path, clock=self.clock)
        self.store = self.engine.store
        self.database = self.store.database
        self.actor = ALICE


def past(world: World) -> list[object]:
    """Return the tree after each operation, from the first on."""
    return [world.tree(at=Seq(seq)) for seq in range(1, world.head + 1)]


def flip(world: World, path: str, packs: FilePath | None = None) -> None:
    """Flip a bit in the only chunk of a file, in the store's packs or in others."""
    (extent,) = world.store.reader.extents(world.inode(path).ino, 0, SIZE_MAX)
    place = world.store.reader.find_chunk(extent.digest)
    assert place is not None
    name, offset, length = place[:3]
    with ((packs or world.path / "packs") / f"{name}.pack").open("r+b") as file:
        file.seek(offset + length - 1)
        byte = file.read(1)[0]
        file.seek(offset + length - 1)
        file.write(bytes([byte ^ 1]))


def pack_of(world: World, path: str) -> FilePath:
    """Return the pack that a file's only chunk is in."""
    (extent,) = world.store.reader.extents(world.inode(path).ino, 0, SIZE_MAX)
    place = world.store.reader.find_chunk(extent.digest)
    assert place is not None
    return world.path / "packs" / f"{place[0]}.pack"
