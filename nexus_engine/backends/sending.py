"""Bringing a pack to a bucket, and keeping others from doing so at the same time."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from nexus_engine import errors
from nexus_engine.backends.bucket import Bucket, ObjectInfo
from nexus_engine.backends.content import opened
from nexus_engine.backends.files import lock_within, translate

log = logging.getLogger(__name__)

_PIECE = 8 << 20


def put_pack(bucket: Bucket, *, key: str, path: Path, conditional: bool) -> bool:
    """Store a pack where there is none; return whether it took another's place.

    Its name is 128 random bits, so that what is there already is ours: from an attempt that came to
    its end unnoticed, or a pack that decayed and of which somebody put a good copy into the spool.
    """
    if conditional:
        with suppress(errors.ObjectChanged):
            bucket.put(key, path, if_absent=True)
            return False
    try:
        there = bucket.stat(key)
    except errors.ObjectNotFound:
        bucket.put(key, path)
        return False
    if is_same(bucket, key, path, there):
        return False
    log.warning("%s had other bytes under %s: they are replaced", bucket.url, key)
    bucket.put(key, path, if_match=there.etag if conditional else "")
    return True


def is_same(bucket: Bucket, key: str, path: Path, there: ObjectInfo) -> bool:
    """Tell whether an object has the bytes of a file: all of them are read."""
    with opened(path) as content:
        if content.size != there.size:
            return False
        for at in range(0, content.size, _PIECE):
            piece = content.read(at, min(_PIECE, content.size - at))
            if bucket.read(key, at, len(piece)) != piece:
                return False
    return True


@contextmanager
def locked(path: Path, limit_s: float) -> Iterator[int | None]:
    """Keep others from sending or deleting a file; yields its descriptor if it is there.

    Raises:
        StoreBusy: Somebody else is at it, and for longer than may be waited for.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        yield None
        return
    except OSError as error:
        raise translate(error, f"open {path}") from error
    try:
        if not lock_within(fd, limit_s):
            raise errors.StoreBusy(f"another process is sending {path.name}")
        yield fd if is_still(path, fd) else None
    finally:
        os.close(fd)


def is_still(path: Path, fd: int) -> bool:
    """Tell whether a path names the file that was opened."""
    try:
        return os.path.samestat(path.stat(), os.fstat(fd))
    except FileNotFoundError:
        return False
