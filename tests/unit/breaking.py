"""A store with some of everything in it, present and past, for tests that break it."""

from __future__ import annotations

from nexus_engine.history import snapshots
from tests.unit.worlds import ALICE, World


async def fill(world: World) -> None:
    """Put some of everything into a store, present and past."""
    await world.mkdir("dir")  # 2
    await world.mkdir("dir/sub")  # 3
    await world.write("dir/file", b"one " * 1000)  # 4
    await world.write("dir/file", b"two " * 1000)
    await world.link("dir/file", "link")
    await world.symlink("sym", b"dir/file")  # 5
    await world.setxattr("dir/file", b"user.a", b"1")
    await world.setxattr("dir/file", b"user.a", b"2")
    await world.write("gone", b"gone")  # 6
    await world.unlink("gone")
    await world.rename("link", "dir/link")
    snapshots.create(world.store, "kept", ALICE)
    await world.mkdir("empty")  # 7
    await world.rename("empty", "dir/sub/empty")
