"""A store after a power loss and recovery, held to what its programs were promised."""

from __future__ import annotations

import stat
from collections.abc import Sequence

from nexus_engine.check.fsck import check
from nexus_engine.engine import Engine
from nexus_engine.meta.reader import View
from nexus_engine.oplog.verify import verify_log
from nexus_engine.types import ROOT_INO, Ino, Seq
from tests.crash.campaign.steps import Step
from tests.crash.campaign.tree import Entry, Tree
from tests.crash.power.events import Event, Note

_DURABLE = ("fsync", "sync")
"""Steps that promise all names of before; fsync promises the content of its file as well."""


class Promises:
    """What the programs had been told when the machine stopped."""

    def __init__(self, events: Sequence[Event]) -> None:
        notes = [(at, event) for at, event in enumerate(events) if isinstance(event, Note)]
        self._steps: dict[str, list[Step]] = {}
        self._ended: dict[str, list[int]] = {}
        self.in_flight: dict[str, Step] = {}
        begun: dict[str, int] = {}
        self._synced = 0
        self.writers = [note.writer for _, note in notes if note.writer]
        for at, note in notes:
            if not note.done:
                begun[note.writer], self.in_flight[note.writer] = at, note.step
            elif note.writer:
                del self.in_flight[note.writer]
                self._steps.setdefault(note.writer, []).append(note.step)
                self._ended.setdefault(note.writer, []).append(at)
                if note.step[0] in _DURABLE:
                    self._synced = max(self._synced, begun[note.writer])

    def count(self) -> int:
        return sum(len(steps) for steps in self._steps.values())

    def problems(self, writer: str, found: dict[str, Entry]) -> list[str]:
        """Return how a writer's directory is none of those that a power loss may leave.

        The names are those after some step since the last that was synced. A file has the content
        of its last fsync, or what was written on top of that up to some point.
        """
        steps = list(self._steps.get(writer, []))
        kept = sum(end < self._synced for end in self._ended.get(writer, []))
        latest = Tree(("fsync",))
        for step in steps:
            latest.apply(step)
        in_flight = self.in_flight.get(writer)
        if in_flight is not None and in_flight[0] not in _DURABLE:
            latest.apply(in_flight)
            steps.append(in_flight)
        tree = Tree(("fsync",))
        fewest: list[str] | None = None
        for count in range(len(steps) + 1):
            if count >= kept:
                problems = tree.problems(found, latest.made)
                if not problems:
                    return []
                if fewest is None or len(problems) < len(fewest):
                    fewest = [f"after step {count} of {len(steps)}, {kept} synced", *problems]
            if count < len(steps):
                tree.apply(steps[count])
        return fewest or []


async def look(engine: Engine, view: View, ino: Ino = ROOT_INO) -> dict[str, Entry]:
    """Read all there is below a directory."""
    found: dict[str, Entry] = {}
    for _, name, inode in view.list_children(ino, 0, 100_000):
        path, content, value = name.decode(), b"", None
        if stat.S_ISREG(inode.mode):
            content = await engine.read_at(view, inode, 0, inode.size)
            raw = view.find_xattr(inode.ino, b"user.campaign")
            value = None if raw is None else raw.decode()
        elif inode.target is not None:
            content = inode.target
        found[path] = Entry(inode.mode, inode.ino, content, value)
        if stat.S_ISDIR(inode.mode):
            for below, entry in (await look(engine, view, inode.ino)).items():
                found[f"{path}/{below}"] = entry
    return found


async def judge(engine: Engine, promises: Promises, moments: Sequence[Seq]) -> list[str]:
    """Return what is wrong with a recovered store."""
    problems = []
    found = await look(engine, engine.reader)
    for writer in sorted(set(promises.writers)):
        inside = {
            path.removeprefix(writer + "/"): entry
            for path, entry in found.items()
            if path.startswith(writer + "/")
        }
        problems += [f"{writer}: {line}" for line in promises.problems(writer, inside)]
    for seq in moments:
        await look(engine, engine.as_of(seq))  # raises where something cannot be read
    problems += [str(problem) for problem in check(engine.store, deep=True)]
    if not verify_log(engine.store.database).holds:
        problems.append("the chain of the log is broken")
    return problems
