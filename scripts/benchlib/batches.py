"""What a batch of files saves: the engine's `write_batch` beside writing the same files one by one.

In one process, without a mount. Each way in turn, in directories of its own; the best of several
rounds counts, as noise only ever adds.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import trio
from trio.testing import wait_all_tasks_blocked

from benchlib.inprocess import measure_and_print
from nexus_engine.engine import Engine
from nexus_engine.fs.batches import NewFile
from nexus_engine.services import Services
from nexus_engine.store import Store
from nexus_engine.types import ROOT_INO, Actor, Name

CONTENT_BYTES = 4096
_ACTOR = Actor(os.getuid(), os.getgid(), os.getpid(), command="bench")
_DIRECTORY = stat.S_IFDIR | 0o755


class Cost(NamedTuple):
    """µs for each file."""

    cpu: float
    wall: float


class Costs(NamedTuple):
    single: Cost
    batch: Cost


class Rounds:
    """The least that each way of doing something took."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._best: dict[str, list[Cost]] = {}

    async def single(self, what: str, files: Sequence[NewFile]) -> None:
        """Make or overwrite each file as programs do."""
        engine = self._engine
        began = _clocks()
        for parent, name, content, mode in files:
            inode = await engine.lookup(parent, name)
            if inode is None:
                handle, _ = await engine.create(parent, name, mode, _ACTOR)
            else:
                handle = await engine.open(inode.ino, os.O_WRONLY | os.O_TRUNC, _ACTOR)
            await engine.write(handle, 0, content)
            await engine.flush(handle)
            await engine.release(handle)
        self._note(f"single {what}", began, len(files))

    async def batch(self, what: str, files: Sequence[NewFile]) -> None:
        began = _clocks()
        await self._engine.write_batch(files, _ACTOR)
        self._note(f"batch {what}", began, len(files))

    def _note(self, what: str, began: tuple[int, int], count: int) -> None:
        self._engine.store.settle()  # operations share a COMMIT: it is part of what they cost
        ended = _clocks()
        spent = Cost(
            *((end - begin) / 1000 / count for begin, end in zip(began, ended, strict=True))
        )
        self._best.setdefault(what, []).append(spent)

    def least(self, what: str) -> Costs:
        ways = (self._best[f"single {what}"], self._best[f"batch {what}"])
        return Costs(*(Cost(*map(min, zip(*costs, strict=True))) for costs in ways))


async def measure(directory: Path, count: int, rounds: int) -> dict[str, Costs]:
    """Return what new files, and other content for old ones, cost: both with shared COMMITs.

    Then the same without, as in a process that is not alone with the store.

    Args:
        directory: For a store.
    """
    Store.create(directory / "store", _ACTOR).close()
    engine = Engine.start(directory / "store")
    best = Rounds(engine)
    for commits in ("shared COMMITs", "a COMMIT each"):
        async with trio.open_nursery() as nursery:
            if commits == "shared COMMITs":
                nursery.start_soon(Services(engine).run_settling)
                await wait_all_tasks_blocked()
            for number in range(rounds):
                await _round(engine, best, commits, f"{commits} {number}", count)
            nursery.cancel_scope.cancel()
    kinds = [f"{what}, {c}" for c in ("shared COMMITs", "a COMMIT each") for what in ("new", "old")]
    await engine.close()
    return {kind: best.least(kind) for kind in kinds}


async def _round(engine: Engine, best: Rounds, commits: str, label: str, count: int) -> None:
    for way, write in (("single", best.single), ("batch", best.batch)):
        name = Name(f"{label} {way}".encode())
        parent = (await engine.make(ROOT_INO, name, _DIRECTORY, _ACTOR)).ino
        for what in ("new", "old"):
            # Each content is new to the store.
            contents = [f"{label} {way} {what} {number} " for number in range(count)]
            files = [
                NewFile(
                    parent, Name(b"name-%06d" % number), text.encode().ljust(CONTENT_BYTES, b".")
                )
                for number, text in enumerate(contents)
            ]
            await write(f"{what}, {commits}", files)
    await trio.to_thread.run_sync(engine.store.checkpoint)


def _clocks() -> tuple[int, int]:
    return time.process_time_ns(), time.perf_counter_ns()


def table(costs: dict[str, Costs]) -> str:
    lines = [f"{'µs for each file':<22}{'one by one':>16}{'write_batch':>16}{'times':>12}"]
    lines.append(f"{'':<22}{'CPU':>8}{'wall':>8}{'CPU':>8}{'wall':>8}{'CPU':>6}{'wall':>6}")
    for what, (single, batch) in costs.items():
        figures = f"{single.cpu:8.1f}{single.wall:8.1f}{batch.cpu:8.1f}{batch.wall:8.1f}"
        times = f"{single.cpu / batch.cpu:6.1f}{single.wall / batch.wall:6.1f}"
        lines.append(f"{what:<22}{figures}{times}")
    return "\n".join(lines)


def main(argv: Sequence[str]) -> int:
    return measure_and_print(
        argv, "batches", __doc__, measure, table,
        count=1000, counted="files in a round",
    )  # fmt: skip
