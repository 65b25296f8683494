"""The usual troubles of a store whose packs live in a bucket."""

from __future__ import annotations

import os
import select
import shlex
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

from nexus_engine import errors, owners
from nexus_engine.cas.pack import PACK_HEADER_SIZE
from nexus_engine.meta.connection import DATABASE_NAME, Connection
from nexus_engine.meta.reader import Reader
from nexus_engine.placing import find_packs_url, require_bucket
from nexusfuse.ctl import mounts
from nexusfuse.ctl.render import size
from nexusfuse.ctl.troubles import ERROR, WARNING, Finding

UNSENT_AGE_S = 600.0
"""Longer than a pack waits for a bucket that answers."""


def check_bucket(store: Path, limit_s: float) -> Iterator[Finding]:
    """Whether the bucket that packs live in can be used, and has them."""
    url = _url(store)
    if url is None:
        return
    said = _ask(store, limit_s)
    if said:
        yield Finding(
            ERROR,
            "bucket",
            f"{url} cannot be used: {said}",
            "what is in the cache can be read; what is written waits on this disk, and fsync fails",
            f"nexus-ctl --store {shlex.quote(str(store))} fsck",
        )
    waiting, oldest_s = unsent(store)
    if waiting and time.time() - oldest_s > UNSENT_AGE_S:
        lives = any(True for _ in owners.living(store / "peers"))
        yield Finding(
            WARNING,
            "unsent",
            f"{size(waiting)} are not in {url} yet",
            "they are on this disk alone; "
            + ("its mount sends them when it can" if lives else "the next mount sends them"),
            f"nexus-ctl --store {shlex.quote(str(store))} status",
        )


def unsent(store: Path) -> tuple[int, float]:
    """Return (bytes of packs that the bucket does not have, when the oldest was last written)."""
    found = []
    for path in (store / "packs").glob("*.pack"):
        with suppress(FileNotFoundError):  # it has just been sent
            found.append(path.stat())
    found = [status for status in found if status.st_size > PACK_HEADER_SIZE]
    times = [status.st_mtime for status in found]
    return sum(status.st_size for status in found), min(times, default=0.0)


def _url(store: Path) -> str | None:
    try:
        (store / DATABASE_NAME).stat()
        with closing(Connection(str(store / DATABASE_NAME))) as connection:
            return find_packs_url(Reader(connection))
    except (errors.EngineError, OSError):
        return None  # check_database says why


def _ask(store: Path, limit_s: float) -> str:
    """Return what is wrong with the bucket; empty if nothing is."""
    reading, writing = os.pipe()

    def ask() -> int:
        try:
            with closing(Connection(str(store / DATABASE_NAME))) as connection:
                require_bucket(Reader(connection))
        except errors.EngineError as error:
            os.write(writing, str(error).encode(errors="backslashreplace")[: select.PIPE_BUF])
        return 0

    try:
        answered = mounts.in_time(ask, limit_s) is not None
    finally:
        os.close(writing)
    with os.fdopen(reading, "rb") as said:
        text = said.read().decode()
    return text if answered else f"no answer within {limit_s:g} s"
