"""A small disk is filled again and again: nothing kept is lost, and the space comes back."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.conftest import Mount
from tests.mount.conftest import serving, small_disk
from tests.mount.waiting import wait_until

DISK_BYTES = 200 << 20
LIVE_BYTES = 4_000_000
"""What each round leaves in the tree; of the round before, it goes into a snapshot's past."""
POLICY = "retention:\n  keep_all: 1s\n  keep_log: 1s\n  interval: 1d\nsync_interval_s: 1.0\n"
SNAPSHOTS = 4
"""Older ones are deleted."""
MANY = [pytest.mark.slow, pytest.mark.timeout(3600)]

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to mount a small disk")


class Disk(NamedTuple):
    path: Path
    room_bytes: int
    """When nothing was on it: ext4 has some of it for itself."""


def free_bytes(path: Path) -> int:
    found = os.statvfs(path)
    return found.f_bavail * found.f_frsize


@pytest.fixture
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Disk]:
    with small_disk(tmp_path, request.param, DISK_BYTES) as path:
        yield Disk(path, free_bytes(path))


@pytest.fixture
def mount(tmp_path: Path, disk: Disk) -> Iterator[Mount]:
    """Yield a mount whose store is on the small disk, and keeps next to nothing."""
    (disk.path / "store").mkdir()
    (tmp_path / "store").symlink_to(disk.path / "store")
    (disk.path / "store/store.yaml").write_text(POLICY)
    with serving(tmp_path) as mounted:
        yield mounted


def fill(directory: Path) -> int:
    """Write files, over some of them too, until the disk is full; return how many were made."""
    for number in range(100_000):
        size_bytes = (1000, 50_000, 3_000_000)[number % 3]
        try:
            path = directory / f"file{number}"
            path.write_bytes(os.urandom(size_bytes))
            if number % 5 == 0:
                path.write_bytes(os.urandom(size_bytes))
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            return number
    raise AssertionError("the disk was never full")


def prepare(mount: Mount) -> None:
    mount.sh("touch old1 old2")


def wait_until_old(mount: Mount) -> None:
    """Wait until what was done is older than everything that the policy keeps.

    By removing what `prepare` made: on a full disk nothing else is possible.
    """
    mount.sh("sleep 1.2; rm old1; sleep 1.2; rm old2")


@pytest.mark.parametrize(
    ("disk", "rounds"),
    [("tmpfs", 2), pytest.param("tmpfs", 24, marks=MANY), pytest.param("ext4", 24, marks=MANY)],
    indirect=["disk"],
)
def test_space_comes_back_round_after_round(mount: Mount, disk: Disk, rounds: int) -> None:
    """Fill the store, delete, undo, delete again, prune, gc."""
    mount.expected_log += ["No space left", "no space left", "not all that was written"]
    mount.expected_log += ["the disk is full", "there is room again"]
    pinned: dict[str, bytes] = {}
    live = b""
    freed = 0
    for number in range(rounds):
        prepare(mount)
        trash = mount.path / "trash"
        trash.mkdir()
        assert fill(trash) > 20
        listed = sorted(os.listdir(trash))
        mount.sh("rm -r trash")
        mount.ctl("undo", "--last", str(len(listed) + 1), "trash")
        assert sorted(os.listdir(trash)) == listed
        mount.sh("rm -r trash")
        wait_until_old(mount)
        foreseen = mount.json("prune", "--dry-run")[0]
        done = mount.json("prune")[0]
        assert done["freed_bytes"] == pytest.approx(foreseen["freed_bytes"], rel=0.05)
        freed += done["freed_bytes"]
        wait_until(
            lambda: not (mount.store / "reserve.in-use").exists(), "the reserve is full again"
        )

        if live:
            (mount.path / f".nexus/snapshots/round{number}").mkdir()
            pinned[f"round{number}"] = live
        if len(pinned) > SNAPSHOTS:
            oldest = next(iter(pinned))
            (mount.path / ".nexus/snapshots" / oldest).rmdir()
            del pinned[oldest]
        live = os.urandom(LIVE_BYTES)
        (mount.path / "kept").write_bytes(live)
        assert mount.check() == []
        for name, content in pinned.items():
            assert (mount.path / f".nexus/snapshots/{name}/kept").read_bytes() == content
        assert (mount.path / "kept").read_bytes() == live
    assert freed > rounds * DISK_BYTES * 0.7

    prepare(mount)
    wait_until_old(mount)
    mount.ctl("prune")
    wanted = len(live) + sum(map(len, pinned.values()))

    reserve = sum(path.stat().st_blocks * 512 for path in mount.store.glob("reserve*"))
    used = disk.room_bytes - free_bytes(disk.path) - reserve
    assert used < wanted * 1.1, f"{rounds} rounds: {used} bytes used, {wanted} live or kept"
