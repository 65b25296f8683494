"""Random reads, writes and truncates of one file, on a mount, and on tmpfs to test the exerciser.

The seeds are the same every time; ``--slow`` draws others and does thousands of operations.
``NEXUS_MODEL_SEED`` and ``NEXUS_MODEL_STEPS`` override both, ``NEXUS_MODEL_SHRINK=0`` leaves a
failure as it is.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from nexus_engine.commands import Request, ignore_progress
from nexus_engine.fs.extents import CHUNK_BYTES
from nexusfuse.ctl import control
from tests.conftest import Mount

from .byte_ranges import PAGE, Exerciser, Mismatch, Operation, Shape, drawn, smallest
from .conftest import Restarts
from .running import LONGEST_S, Effort

KIB, GIB = 1 << 10, 1 << 30

PAGES = Shape((0,), 192 * KIB, 64 * KIB)
CHUNKS = Shape((0,), 3 * CHUNK_BYTES, CHUNK_BYTES + 300 * KIB, (PAGE, CHUNK_BYTES, CHUNK_BYTES))
HOLES = Shape((0, 700 * CHUNK_BYTES - 64 * KIB, 4 * GIB - 128 * KIB, 5 * GIB), 256 * KIB, 64 * KIB)
SHAPES = [
    pytest.param(PAGES, 800, id="pages"),
    pytest.param(CHUNKS, 250, id="chunks"),
    pytest.param(HOLES, 500, id="holes"),
]

NewExerciser = Callable[[], Exerciser]


@pytest.mark.timeout(LONGEST_S)
@pytest.mark.parametrize("unlinked", [False, True], ids=["named", "unlinked"])
@pytest.mark.parametrize(("shape", "quick"), SHAPES)
def test_a_file_on_a_mount_is_its_image(
    shared_mount: Mount, request: pytest.FixtureRequest, shape: Shape, quick: int, unlinked: bool
) -> None:
    """Through several descriptors and mappings, after remounts, and in the past."""
    mount, count, restarts = shared_mount, itertools.count(), Restarts(shared_mount)
    directory = mount.path / f"{request.node.callspec.id}"
    directory.mkdir()

    def new() -> Exerciser:
        path = directory / f"file-{next(count)}"

        def remember() -> Path:
            status = control.ask(os.fsencode(mount.path), Request("status", {}), ignore_progress)
            return directory / f".nexus/history/op-{status['operations']}" / path.name

        return Exerciser(
            path,
            shape,
            unlinked,
            remount=restarts.remount,
            kill=restarts.kill,
            remember=remember,
        )

    exercise(request, new, quick=quick, slow=10_000)


@pytest.mark.timeout(LONGEST_S)
@pytest.mark.parametrize("unlinked", [False, True], ids=["named", "unlinked"])
@pytest.mark.parametrize(("shape", "quick"), SHAPES)
def test_a_file_of_tmpfs_is_its_image(
    memory_path: Path, request: pytest.FixtureRequest, shape: Shape, quick: int, unlinked: bool
) -> None:
    """What fails here is wrong in the exerciser."""
    exercise(request, lambda: Exerciser(memory_path / "file", shape, unlinked),
             quick=quick, slow=50_000)  # fmt: skip


def test_a_wrong_byte_is_found_and_what_made_it(memory_path: Path) -> None:
    """A file system that shifts what is written across a page's end, now and then."""

    class Broken(Exerciser):
        def _write(self, operation: Operation) -> str | None:
            done = super()._write(operation)
            end = operation.place + operation.length
            if done and operation.length > PAGE and end == self.image.size:
                with self.path.open("r+b") as file:
                    file.seek(end - 3)
                    file.write(b"\1\2\3")
            return done

    def fails(operations: list[Operation]) -> bool:
        try:
            Broken(memory_path / "file", PAGES).run(operations)
        except Mismatch:
            return True
        return False

    operations = drawn(PAGES, 1, 300)
    assert fails(operations)
    assert [operation.kind for operation in smallest(operations, fails)] == ["write"]


def exercise(request: pytest.FixtureRequest, new: NewExerciser, *, quick: int, slow: int) -> None:
    """Run a seed; on failure say which operations it takes."""
    effort = Effort.of(request, quick=1, slow=1)
    steps = int(os.environ.get("NEXUS_MODEL_STEPS", quick if effort.seed is None else slow))
    exerciser = new()
    operations = drawn(exerciser.shape, effort.seed or 0, steps)
    try:
        exerciser.run(operations)
    except (OSError, AssertionError) as error:
        done = exerciser.report(error.at if isinstance(error, Mismatch) else 0)
        error.add_note(f"seed {effort.seed or 0}, of {steps} operations:\n{done}")
        if os.environ.get("NEXUS_MODEL_SHRINK", "1") != "0":
            needed = smallest(operations[: len(exerciser.done)], lambda part: _fails(new, part))
            error.add_note("enough is:\n" + "\n".join(f"    {one}," for one in needed))
        raise


def _fails(new: NewExerciser, operations: list[Operation]) -> bool:
    try:
        new().run(operations)
    except (OSError, AssertionError):
        return True
    return False
