"""System calls as data: a writer notes each before it makes it, and again when it returned.

A step is a JSON array, the name of the call and its arguments; paths are relative to the writer's
directory. A file that is open goes by the path that it was opened with, whatever it is called now.
"""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any, NamedTuple

Step = list[Any]


class Notes(NamedTuple):
    """A manifest: what a writer was promised."""

    done: list[Step]
    in_flight: Step | None
    """The call that had not returned when the daemon died."""
    error: str | None
    """What a call failed with while the daemon should have been alive."""


class Manifest:
    """The writer's end: one line before each call, one after it."""

    def __init__(self, path: str) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def about_to(self, step: Step) -> None:
        os.write(self._fd, b"? %s\n" % json.dumps(step).encode())

    def done(self) -> None:
        os.write(self._fd, b"!\n")

    def failed(self, error: Exception) -> None:
        os.write(self._fd, f"E {error!r}\n".encode())


def read_notes(path: Path) -> Notes:
    done: list[Step] = []
    in_flight, error = None, None
    for line in path.read_text().splitlines():
        if line == "!":
            assert in_flight is not None
            done.append(in_flight)
            in_flight = None
        elif line.startswith("?"):
            in_flight = json.loads(line[2:])
        else:
            error = f"{line[2:]} at {in_flight}"
    return Notes(done, in_flight, error)


def count_done(path: Path) -> int:
    try:
        return path.read_bytes().count(b"!\n")
    except FileNotFoundError:
        return 0


def content_of(seed: int, length: int) -> bytes:
    """Return the bytes that a seed stands for: every third shrinks, the others don't."""
    rng = random.Random(seed)
    if seed % 3:
        return rng.randbytes(length)
    line = b"%x " % rng.getrandbits(200)
    return (line * (length // len(line) + 1))[:length]
