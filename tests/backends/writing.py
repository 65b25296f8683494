"""A program that writes files beside trouble, and notes outside the mount what it was told.

``python -m tests.backends.writing DIRECTORY NOTES SEED``: each file has a name of its own. A line
of the notes is ``closed`` or ``synced``, the name, the SHA-256 of what is in it; or ``failed``, the
name and the call. The longest call so far is ``longest``, a number of seconds.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from hashlib import sha256
from pathlib import Path

SIZES = (10, 5_000, 300_000)
_PAUSE_S = 0.02


class Writer:
    """The program, as a test sees it."""

    def __init__(self, directory: Path, notes: Path, seed: int) -> None:
        self._directory = directory
        self._path = notes
        words = [str(directory), str(notes), str(seed)]
        self._process = subprocess.Popen([sys.executable, "-m", __name__, *words])

    def count(self, word: str) -> int:
        return sum(line.startswith(word) for line in self._lines())

    def stop(self) -> None:
        assert self._process.poll() is None
        self._process.terminate()
        self._process.wait(60)

    @property
    def longest_s(self) -> float:
        return max(float(line.split()[1]) for line in self._lines() if "longest" in line)

    def require_all(self) -> None:
        """Each file that was closed, or synced, holds what was written."""
        told = [line.split() for line in self._lines() if line.startswith(("closed", "synced"))]
        assert told
        for _, name, digest in told:
            content = (self._directory / name).read_bytes()
            assert sha256(content).hexdigest() == digest, name

    def _lines(self) -> list[str]:
        return self._path.read_text().splitlines() if self._path.exists() else []


def _write_on(directory: Path, notes: int, rng: random.Random) -> None:
    longest_s = 0.0
    for number in range(10**9):
        name, content = f"file{number}", rng.randbytes(rng.choice(SIZES))
        digest = sha256(content).hexdigest()
        calls: list[tuple[str, Callable[[int], object]]] = [("write", partial(_all, content))]
        if number % 3 == 0:
            calls.append(("synced", os.fsync))
        calls.append(("closed", os.close))
        fd = os.open(directory / name, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        for word, call in calls:
            begun_s = time.monotonic()
            try:
                call(fd)
                line = f"{word} {name} {digest}\n" if word != "write" else ""
            except OSError as error:
                line = f"failed {name} {word} {error.strerror}\n"
            took_s = time.monotonic() - begun_s
            if took_s > longest_s:
                longest_s = took_s
                line += f"longest {took_s:.1f} {word} {name}\n"
            os.write(notes, line.encode())
            if line.startswith("failed"):
                break
        time.sleep(_PAUSE_S)


def _all(content: bytes, fd: int) -> None:
    while content:
        content = content[os.write(fd, content) :]


if __name__ == "__main__":
    _write_on(
        Path(sys.argv[1]),
        os.open(sys.argv[2], os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o600),
        random.Random(int(sys.argv[3])),
    )
