"""Writes to a store and records all of it: ``python -m … STORE RECORDING SEED STEPS KINDS``.

The last of the kinds has the store open a second time: two processes would leave the same. Where
there is a recording already, of a process that was killed, it goes on.
"""

from __future__ import annotations

import os
import random
import sys
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import trio

from nexus_engine import errors
from nexus_engine.engine import Engine
from nexus_engine.fs.attributes import NewAttributes
from nexus_engine.fs.batches import NewFile
from nexus_engine.fs.files import Handle
from nexus_engine.services import Services
from nexus_engine.types import ROOT_INO, Actor, Ino, Name
from tests.crash.campaign.steps import Step, content_of
from tests.crash.campaign.writer import WRITERS
from tests.crash.emptying import empty_some_pack
from tests.crash.power.events import Note, Recording
from tests.crash.power.recorder import Recorder
from tests.crash.small_limits import use_small_limits

ACTOR = Actor(uid=0, gid=0, pid=os.getpid(), command="writer", agent="writer")
RECOVERED = ["recovered"]
"""A note: the store is open, and what a process that died had left is finished."""
FLAGS = {"create": os.O_CREAT, "open": os.O_RDWR, "open-truncate": os.O_RDWR | os.O_TRUNC}


class Enough(Exception):
    """The writer has done its steps."""


class EngineHands:
    """Does what a writer wants done, without a mount; called in a thread of the writer's."""

    def __init__(
        self, engine: Engine, recorder: Recorder, top: str, rng: random.Random, steps: int
    ) -> None:
        self._engine = engine
        self._recorder = recorder
        self._top = top
        self._rng = rng
        self._left = steps
        self._handles: dict[str, Handle] = {}

    def do(self, *step: str | int) -> None:
        self._noted(list(step))
        chance = self._rng.random()
        if chance < 0.03:
            self._noted(["sync"])
        elif chance < 0.05:
            self._noted(["gc"])

    def put(self, path: str, seed: int, length: int) -> None:
        if self._rng.random() < 0.5:
            self.do("put", path, seed, length)
            return
        self.do("create", path)
        self.do("write", path, 0, seed, length)
        self.do("close", path)

    def _noted(self, step: Step) -> None:
        if self._left == 0:
            raise Enough
        self._left -= 1
        self._recorder.note(self._top, step, done=False)
        trio.from_thread.run(self._call, step)
        self._recorder.note(self._top, step, done=True)

    async def _call(self, step: Step) -> None:
        engine = self._engine
        match step:
            case ["sync"]:
                await engine.sync()
            case ["gc"]:
                with suppress(errors.StoreBusy):  # somebody does not answer in time
                    await engine.in_peer(partial(empty_some_pack, self._rng))
            case ["create", path]:
                parent, name = await self._split(path)
                self._handles[path], _ = await engine.create(parent, name, 0o644, ACTOR)
            case ["put", path, seed, length]:
                file = NewFile(*await self._split(path), content_of(seed, length))
                await engine.write_batch([file], ACTOR)
            case ["open" | "open-truncate" as how, path]:
                self._handles[path] = await engine.open(await self._ino(path), FLAGS[how], ACTOR)
            case ["write", path, offset, seed, length]:
                await engine.write(self._handles[path], offset, content_of(seed, length))
            case ["truncate", path, size]:
                await engine.setattr(self._handles[path].file.ino, NewAttributes(size=size), ACTOR)
            case ["fsync", path]:
                await engine.fsync(self._handles[path])
            case ["flush", path]:
                await engine.flush(self._handles[path])
            case ["close", path]:
                await engine.flush(self._handles[path])
                await engine.release(self._handles.pop(path))
            case _:
                await self._change_names(step)

    async def _change_names(self, step: Step) -> None:
        engine = self._engine
        match step:
            case ["mkdir", path, mode]:
                await engine.make(*await self._split(path), 0o040000 | mode, ACTOR)
            case ["symlink", target, path]:
                place = await self._split(path)
                await engine.make(*place, 0o120777, ACTOR, target=target.encode())
            case ["link", path, new]:
                await engine.link(await self._ino(path), *await self._split(new), ACTOR)
            case ["unlink", path]:
                await engine.unlink(*await self._split(path), ACTOR)
            case ["rmdir", path]:
                await engine.rmdir(*await self._split(path), ACTOR)
            case ["rename", path, new]:
                await engine.rename(*await self._split(path), *await self._split(new), 0, ACTOR)
            case ["chmod", path, mode]:
                await engine.setattr(
                    await self._ino(path), NewAttributes(mode=0o100000 | mode), ACTOR
                )
            case ["setxattr", path, value]:
                await engine.setxattr(
                    await self._ino(path), b"user.campaign", value.encode(), ACTOR
                )
            case _:
                raise ValueError(step)

    async def _ino(self, path: str) -> Ino:
        ino = ROOT_INO
        for name in f"{self._top}/{path}".split("/"):
            inode = await self._engine.lookup(ino, Name(name.encode()))
            assert inode is not None, path
            ino = inode.ino
        return ino

    async def _split(self, path: str) -> tuple[Ino, Name]:
        directory, _, name = f"{self._top}/{path}".rpartition("/")
        parent = await self._ino(directory.partition("/")[2]) if "/" in directory else None
        if parent is None:
            found = await self._engine.lookup(ROOT_INO, Name(directory.encode()))
            assert found is not None
            parent = found.ino
        return parent, Name(name.encode())


async def work(store: Path, recorder: Recorder, seed: int, steps: int, kinds: list[str]) -> None:
    # Every other time one process has the store to itself, and its operations share COMMITs.
    alone = seed % 2 == 1
    first = Engine.start(store)
    engines = [first, first if alone else Engine.start(store)]
    run = sum(isinstance(e, Note) and e.step == RECOVERED for e in recorder.recording.events)
    recorder.note("", RECOVERED, done=True)
    async with trio.open_nursery() as services:
        for engine in {*engines}:
            services.start_soon(Services(engine).run_upkeep)
            services.start_soon(Services(engine).run_settling)
        await write_all(engines, recorder, seed, steps, [(kind, f"{kind}{run}") for kind in kinds])
        services.cancel_scope.cancel()


async def write_all(
    engines: list[Engine], recorder: Recorder, seed: int, steps: int, writers: list[tuple[str, str]]
) -> None:
    """Have each kind of writer work in a directory of its own, until all are done."""
    async with trio.open_nursery() as nursery:
        for number, (kind, top) in enumerate(writers):
            engine = engines[number == len(writers) - 1]
            await engine.make(ROOT_INO, Name(top.encode()), 0o040755, ACTOR)
            await engine.sync()
            rng = random.Random(f"{seed} {top}")
            hands = EngineHands(engine, recorder, top, rng, steps)
            nursery.start_soon(trio.to_thread.run_sync, _write, kind, hands, rng)


def _write(kind: str, hands: Any, rng: random.Random) -> None:
    with suppress(Enough):
        WRITERS[kind](hands, rng)


def main(store: str, recording: str, seed: str, steps: str, *kinds: str) -> None:
    use_small_limits()
    path = Path(recording)
    recorder = Recorder(Path(store), Recording.load(path) if path.exists() else None)
    recorder.install()
    trio.run(work, Path(store), recorder, int(seed), int(steps), list(kinds))
    recorder.recording.save(path)
    os._exit(0)  # as one that is killed: nobody takes leave


if __name__ == "__main__":
    main(*sys.argv[1:])
