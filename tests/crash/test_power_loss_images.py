"""Power loss: disks that have what was synced and any part of the rest, down to the sector."""

from __future__ import annotations

import logging
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from nexus_engine.engine import Engine
from nexus_engine.store import Store
from nexus_engine.types import Actor, Seq
from tests.crash.power.events import Note, Recording, Unnamed
from tests.crash.power.images import Disk
from tests.crash.power.judging import Promises, judge

ACTOR = Actor(0, 0, 1, command="test", agent="test")
KINDS = ("small", "held", "append", "tree", "replace")
SLOW_IMAGES = 300
"""Of each run of the long test; another seed, other images."""


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    """Each image has its complaints; and other tests read the log."""
    caplog.set_level(logging.CRITICAL, "nexus_engine")


def record(directory: Path, seed: int, steps: int, *, runs: int = 1) -> Recording:
    """Have a process write and die, again and again; return what was asked of the disk."""
    store, path = directory / "store", directory / "recording"
    store.mkdir()
    (store / "store.yaml").write_text("reserve_mib: 1\n")  # each image has it
    Store.create(store, ACTOR).close()
    for _ in range(runs):
        command = [sys.executable, "-m", "tests.crash.power.workload", str(store), str(path)]
        done = subprocess.run(
            [*command, str(seed), str(steps), *KINDS],
            check=False, timeout=300, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    return Recording.load(path)


def files_of(directory: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file() and not path.name.endswith("-shm")
    }


async def recover_and_judge(
    image: Path, recording: Recording, end: int, rng: random.Random
) -> None:
    """Twice: the second time there is nothing left to recover."""
    promises = Promises(recording.events[:end])
    heads = []
    for _ in range(2):
        engine = Engine.start(image)
        heads.append(engine.reader.head())
        problems = await judge(engine, promises, [Seq(rng.randint(1, heads[0]))])
        assert problems == [], f"{image}, power lost at event {end}: " + "\n".join(problems[:20])
        await engine.close()
    assert heads[0] == heads[1]


async def lose_power_often(directory: Path, seed: int, *, images: int, steps: int) -> None:
    """Stop the machine at any event, build a disk, recover it, judge it."""
    recording = record(directory, seed, steps, runs=2)
    rng = random.Random(seed)
    torn = lost = 0
    for number in range(images):
        end = rng.randint(1, len(recording.events))
        disk, image = Disk(recording, end), directory / f"image{number}"
        disk.build(image, rng)
        await recover_and_judge(image, recording, end, rng)
        torn, lost = torn + disk.torn, lost + disk.lost
        shutil.rmtree(image)
    begun = sum(isinstance(e, Note) and e.done and e.step == ["gc"] for e in recording.events)
    gone = sum(isinstance(e, Unnamed) and e.name[0] == "packs" for e in recording.events)
    print(  # noqa: T201 - shown with -s or when it fails
        f"{images} images of {len(recording.events)} events, with {begun} packs that gc began to"
        f" empty and {gone} that went: {torn} writes torn, {lost} lost"
    )
    assert torn > images
    assert lost > images
    assert begun


def test_the_recorder_misses_nothing(tmp_path: Path, seed: int) -> None:
    """With every event applied, the image is the directory."""
    recording = record(tmp_path, seed, 30, runs=2)
    image = tmp_path / "image"
    Disk(recording, len(recording.events)).build(image, None)
    real, built = files_of(tmp_path / "store"), files_of(image)
    assert {path for path in real if real[path] != built.get(path)} == set()
    assert built.keys() == real.keys()


@pytest.mark.parametrize("losing", ["packs", "."])
async def test_the_disk_has_one_half_and_not_the_other(
    tmp_path: Path, seed: int, losing: str
) -> None:
    """Packs without the log that names what is in them, and the log without the packs."""
    recording = record(tmp_path, seed, 20, runs=2)
    rng = random.Random(seed)
    for end in range(1, len(recording.events), len(recording.events) // 20):
        image = tmp_path / f"image{end}"
        disk = Disk(recording, end)
        disk.build(image, None, lambda name: "nothing" if name[0] == losing else "all")
        await recover_and_judge(image, recording, end, rng)


async def test_any_disk_that_a_power_loss_leaves_is_recovered(tmp_path: Path, seed: int) -> None:
    await lose_power_often(tmp_path, seed, images=30, steps=40)


@pytest.mark.slow
@pytest.mark.timeout(880)
async def test_power_losses_many_times(tmp_path: Path, seed: int) -> None:
    await lose_power_often(tmp_path, seed, images=SLOW_IMAGES, steps=150)
