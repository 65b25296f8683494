"""Whether the disks of a store answer: asked in a child process, before anybody who cannot wait."""

from __future__ import annotations

import errno
import mmap
import os
from pathlib import Path

from nexus_engine import errors
from nexus_engine.meta.connection import DATABASE_NAME
from nexusfuse.ctl import mounts


def answer(store: Path, limit_s: float) -> bool:
    """Tell whether the disks of metadata and packs answer in time, with an error even."""
    return mounts.in_time(lambda: _ask(store), limit_s) is not None


def require_answer(store: Path) -> None:
    """Refuse a store whose disk hangs.

    Raises:
        StoreHung: Whoever opened it would wait for as long as that takes.
    """
    if not answer(store, mounts.ANSWER_LIMIT_S):
        raise errors.StoreHung(
            f"the disk of {store} did not answer within {mounts.ANSWER_LIMIT_S:g} s; see"
            f" `nexus-ctl doctor --store {store}`, and try again when it answers"
        )


def _ask(store: Path) -> int:
    try:
        _read(store / DATABASE_NAME)
        with os.scandir(store / "packs") as entries:
            pack = next(entries, None)
        if pack is not None:
            _read(Path(pack.path))
    except OSError as error:
        return error.errno or errno.EIO
    return 0


def _read(path: Path) -> None:
    """Read a page, from the disk and not from memory, where that can be told."""
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        fd = os.open(path, flags | os.O_DIRECT)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        fd = os.open(path, flags)
    try:
        os.preadv(fd, [mmap.mmap(-1, mmap.PAGESIZE)], 0)
    finally:
        os.close(fd)
