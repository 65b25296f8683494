"""A program that uses a mount until it dies: ``python -m … KIND DIRECTORY MANIFEST SEED``."""

from __future__ import annotations

import errno
import itertools
import os
import random
import sqlite3
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tests.crash.campaign.databases import make_database, payload_of
from tests.crash.campaign.steps import Manifest, Step, content_of

DEAD = (errno.ENOTCONN, errno.ECONNABORTED)
"""What calls fail with when the daemon is killed."""
KIB, MIB = 1 << 10, 1 << 20
COMMON = [(seed, 3000 + 9000 * seed) for seed in range(8)]
"""Content, as seed and length, that several files have: it is stored once."""


class Hands:
    """Makes the calls, in the current directory."""

    def __init__(self, manifest: Manifest) -> None:
        self._manifest = manifest
        self._fds: dict[str, int] = {}

    def do(self, *step: str | int) -> None:
        with self.noting(*step):
            self._call(list(step))

    @contextmanager
    def noting(self, *step: str | int) -> Iterator[None]:
        self._manifest.about_to(list(step))
        yield
        self._manifest.done()

    def put(self, path: str, seed: int, length: int) -> None:
        """Make a file and close it."""
        self.do("create", path)
        self.do("write", path, 0, seed, length)
        self.do("close", path)

    def _call(self, step: Step) -> None:
        match step:
            case ["create", path]:
                self._fds[path] = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
            case ["open", path]:
                self._fds[path] = os.open(path, os.O_RDWR)
            case ["open-truncate", path]:
                self._fds[path] = os.open(path, os.O_RDWR | os.O_TRUNC)
            case ["write", path, offset, seed, length]:
                data = content_of(seed, length)
                while data:
                    count = os.pwrite(self._fds[path], data, offset)
                    data, offset = data[count:], offset + count
            case ["truncate", path, size]:
                os.ftruncate(self._fds[path], size)
            case ["fsync", path]:
                os.fsync(self._fds[path])
            case ["flush", path]:
                os.close(os.dup(self._fds[path]))
            case ["close", path]:
                os.close(self._fds.pop(path))
            case ["setxattr", path, value]:
                os.setxattr(path, "user.campaign", value.encode())
            case [("mkdir" | "rmdir" | "unlink" | "rename" | "link" | "symlink" | "chmod"), *_]:
                getattr(os, step[0])(*step[1:])
            case _:
                raise ValueError(step)


def small_files(hands: Hands, rng: random.Random) -> None:
    """Files of some bytes: made, linked, changed, renamed, replaced, removed."""
    live: list[str] = []
    for number in itertools.count():
        choice = rng.random()
        name = f"f{number}"
        seed = rng.getrandbits(32)
        old = rng.choice(live) if live else ""
        if choice < 0.4 or len(live) < 4:
            alone = (seed, rng.choice((0, 1, 100, 5000, 70_000)))
            hands.put(name, *rng.choice((alone, alone, rng.choice(COMMON))))
            live.append(name)
        elif choice < 0.5:
            hands.do("open-truncate", old)
            hands.do("write", old, 0, seed, rng.randrange(1, 9000))
            hands.do("close", old)
        elif choice < 0.6:
            hands.do("open", old)
            for _ in range(rng.randrange(1, 4)):
                offset = rng.randrange(8000)
                hands.do("write", old, offset, rng.getrandbits(32), rng.randrange(1, 6000))
            hands.do("truncate", old, rng.randrange(9000))
            hands.do("close", old)
        elif choice < 0.7:
            hands.do("rename", old, name)
            live[live.index(old)] = name
        elif choice < 0.76:
            other = rng.choice(live)
            if other != old:
                hands.do("rename", old, other)
                live.remove(old)
        elif choice < 0.82:
            hands.do("unlink", old)
            live.remove(old)
        elif choice < 0.87:
            hands.do("link", old, name)
            live.append(name)
        elif choice < 0.91:
            hands.do("symlink", f"to-{seed}", name)
            hands.do("unlink", name)
        elif choice < 0.96:
            hands.do("chmod", old, rng.choice((0o600, 0o644, 0o755)))
        else:
            hands.do("setxattr", old, f"value {seed}")


def appends(hands: Hands, rng: random.Random) -> None:
    """Logs that grow: some calls end with an fsync, some with nothing."""
    for number in itertools.count():
        name, size = f"log{number}", 0
        hands.do("create", name)
        for _ in range(rng.randrange(5, 60)):
            length = rng.choice((10, 100, 4000, 60_000))
            hands.do("write", name, size, rng.getrandbits(32), length)
            size += length
            choice = rng.random()
            if choice < 0.4:
                hands.do("fsync", name)
            elif choice < 0.5:
                hands.do("flush", name)
        hands.do("close", name)


def replacements(hands: Hands, rng: random.Random) -> None:
    """What editors do: a new file beside the old one, synced or not, renamed over it."""
    for number in itertools.count():
        alone = (rng.getrandbits(32), rng.randrange(1, 200 * KIB))
        hands.do("create", "new")
        hands.do("write", "new", 0, *rng.choice((alone, alone, rng.choice(COMMON))))
        if number % 2:
            hands.do("fsync", "new")
        hands.do("close", "new")
        hands.do("rename", "new", f"document{rng.randrange(3)}")


def big_files(hands: Hands, rng: random.Random) -> None:
    """Some MiB in pieces; synced in the middle, changed in the middle."""
    for number in itertools.count():
        name, size = f"big{number % 4}", 0
        hands.do("create" if number < 4 else "open-truncate", name)
        for _ in range(rng.randrange(2, 8)):
            length = rng.choice((130 * KIB, MIB, 3 * MIB // 2))
            hands.do("write", name, size, rng.getrandbits(32), length)
            size += length
        if rng.random() < 0.5:
            hands.do("fsync", name)
        for _ in range(3):
            hands.do("write", name, rng.randrange(size), rng.getrandbits(32), 3000)
        hands.do("close", name)


def trees(hands: Hands, rng: random.Random) -> None:
    """Directories that come, move as a whole, and go."""
    for number in itertools.count():
        top = f"t{number}"
        hands.do("mkdir", top, 0o755)
        paths = [top]
        for i in range(rng.randrange(1, 6)):
            paths.append(f"{rng.choice(paths)}/d{i}")
            hands.do("mkdir", paths[-1], 0o755)
        files = [f"{directory}/file" for directory in paths]
        for path in files:
            hands.put(path, rng.getrandbits(32), rng.choice((0, 50, 3000)))
        moved = f"m{number}"
        hands.do("rename", top, moved)
        if number % 3 == 2:
            for path in files:
                hands.do("unlink", path.replace(top, moved, 1))
            for path in sorted(paths, key=len, reverse=True):
                hands.do("rmdir", path.replace(top, moved, 1))


def held_files(hands: Hands, rng: random.Random) -> None:
    """Files that stay open: flushed and written on, replaced or removed while they are in use."""
    for number in itertools.count():
        name = f"h{number}"
        hands.do("create", name)
        for _ in range(rng.randrange(1, 4)):
            hands.do("write", name, rng.randrange(5000), rng.getrandbits(32), 2000)
        hands.do(rng.choice(("flush", "fsync")), name)
        hands.do("write", name, 0, rng.getrandbits(32), 4000)
        fate = number % 4
        if fate == 0:
            hands.do("unlink", name)
            hands.do("write", name, 0, rng.getrandbits(32), 100)
        elif fate == 1:
            hands.do("rename", name, f"{name}-moved")
            hands.do("write", name, 5000, rng.getrandbits(32), 2000)
        if fate != 3 or number > 40:
            hands.do("close", name)


def database(hands: Hands, rng: random.Random, journal: str) -> None:
    """Rows, in transactions of several; those before the commit returned are promised."""
    connection = make_database("db", journal)
    count = 0
    while True:
        for _ in range(rng.randrange(1, 6)):
            count += 1
            connection.execute("INSERT INTO entry VALUES (?, ?)", (count, payload_of(count)))
        with hands.noting("commit", count):
            connection.commit()


WRITERS: dict[str, Callable[[Hands, random.Random], None]] = {
    "small": small_files,
    "append": appends,
    "replace": replacements,
    "big": big_files,
    "tree": trees,
    "held": held_files,
    "sqlite-delete": lambda hands, rng: database(hands, rng, "DELETE"),
    "sqlite-wal": lambda hands, rng: database(hands, rng, "WAL"),
}


def main(kind: str, directory: str, manifest_path: str, seed: str) -> None:
    manifest = Manifest(manifest_path)
    try:
        os.chdir(directory)
        WRITERS[kind](Hands(manifest), random.Random(seed))
    except (OSError, sqlite3.Error) as error:
        if not _is_dead(error):
            manifest.failed(error)


def _is_dead(error: Exception) -> bool:
    """Tell whether the daemon is gone; if not, what failed was a promise."""
    if isinstance(error, OSError) and error.errno != errno.EIO:
        return error.errno in DEAD
    # SQLite says "disk I/O error", whatever it was. And the kernel says EIO to whose request the
    # daemon was just being handed when it was killed: fuse_dev_do_read() in fs/fuse/dev.c.
    try:
        os.statvfs(".")  # which no cache answers
    except OSError as now:
        return now.errno in DEAD
    return False


if __name__ == "__main__":
    main(*sys.argv[1:])
