"""One agent at work in a mount: writes, renames, deletes, looks at the past, undoes; checks it all.

usage: NEXUS_AGENT=NAME python -m tests.soak.worker DIRECTORY SEED SECONDS

Works in DIRECTORY/NAME; prints how often it did what, as JSON.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

NAMES = 200
"""Files that an agent has at the most: the tree stays small, the past does not."""
SIZES = (0, 100, 4096, 30_000, 200_000, 1_500_000)
UNDO_EVERY = 150
STEPS_PER_S = 20
"""Paced: what a store keeps for a minute depends on how much is done in one."""


class Agent:
    """Does one thing after another, and knows what must be there."""

    def __init__(self, directory: Path, name: str, seed: int) -> None:
        self._home = directory / name
        self._home.mkdir(exist_ok=True)
        self._name = name
        self._random = random.Random(seed)
        self._expected: dict[str, bytes] = {}
        self.done: Counter[str] = Counter()

    def step(self) -> None:
        doing = self._random.choices(
            (self.write, self.append, self.rename, self.delete, self.read, self.list, self.past),
            weights=(30, 15, 10, 12, 20, 5, 4),
        )[0]
        doing()
        self.done[doing.__name__] += 1
        if sum(self.done.values()) % UNDO_EVERY == 0:
            self.undo()
            self.done["undo"] += 1

    def write(self) -> None:
        name, content = self._name_of(), self._bytes(self._random.choice(SIZES))
        (self._home / name).write_bytes(content)
        self._expected[name] = content

    def append(self) -> None:
        name, content = self._name_of(), self._bytes(300)
        with (self._home / name).open("ab") as file:
            file.write(content)
            if self._random.random() < 0.2:
                os.fsync(file.fileno())
        self._expected[name] = self._expected.get(name, b"") + content

    def rename(self) -> None:
        old, new = self._existing(), self._name_of()
        if old is None or old == new:
            return
        (self._home / old).rename(self._home / new)
        self._expected[new] = self._expected.pop(old)

    def delete(self) -> None:
        name = self._existing()
        if name is not None:
            (self._home / name).unlink()
            del self._expected[name]

    def read(self) -> None:
        name = self._existing()
        if name is not None:
            self._check(name)

    def list(self) -> None:
        found = set(os.listdir(self._home))
        assert found == self._expected.keys(), found ^ self._expected.keys()

    def past(self) -> None:
        """A walk through a moment that is on its way out must not see anything half."""
        history = self._home / ".nexus/history"
        for moment in self._random.sample(os.listdir(history), 1):
            for name in os.listdir(history / moment)[:5]:
                (history / moment / name).read_bytes()

    def undo(self) -> None:
        name = self._existing()
        if name is None:
            return
        (self._home / name).unlink()
        command = (
            sys.executable,
            *("-m", "nexusfuse.ctl.main"),
            *("undo", "--last", "1", "--agent", self._name),
        )
        subprocess.run(command, cwd=self._home, check=True, capture_output=True, timeout=60)
        self._check(name)

    def check_all(self) -> None:
        self.list()
        for name in self._expected:
            self._check(name)

    def _check(self, name: str) -> None:
        assert (self._home / name).read_bytes() == self._expected[name], name

    def _name_of(self) -> str:
        return f"file-{self._random.randrange(NAMES)}"

    def _existing(self) -> str | None:
        return self._random.choice(list(self._expected)) if self._expected else None

    def _bytes(self, size: int) -> bytes:
        return self._random.randbytes(size)


def main() -> None:
    directory, seed, seconds = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    agent = Agent(directory, os.environ["NEXUS_AGENT"], seed)
    begun, steps = time.monotonic(), 0
    while (passed := time.monotonic() - begun) < seconds:
        agent.step()
        steps += 1
        time.sleep(max(0.0, steps / STEPS_PER_S - passed))
    agent.check_all()
    json.dump(agent.done, sys.stdout)


if __name__ == "__main__":
    main()
