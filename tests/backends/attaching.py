"""A mount to attach things in, and what is on either side."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nexus_engine.backends.bucket import Bucket, ObjectInfo
from tests.conftest import Mount

_MAX = 64 << 20


@contextmanager
def serving(directory: Path) -> Iterator[Mount]:
    """Mount a fresh store; afterwards it must stop cleanly, silently and sound."""
    mounted = Mount(directory)
    try:
        yield mounted
        if os.path.ismount(mounted.path):
            assert mounted.check() == []
            mounted.umount()
        assert mounted.unexpected_log_lines() == []
        mounted.ctl("--store", str(mounted.store), "fsck", "--deep")
    finally:
        mounted.detach()


def files(path: Path) -> dict[str, bytes]:
    """Return the content of all files below a directory."""
    return {
        str(file.relative_to(path)): file.read_bytes()
        for file in sorted(path.rglob("*"))
        if file.is_file()
    }


def keys(bucket: Bucket) -> list[str]:
    found = list(bucket.iter_objects())
    return sorted(each.key for each in found if isinstance(each, ObjectInfo))


def objects(bucket: Bucket) -> dict[str, bytes]:
    """Return the content of all objects."""
    return {key: bytes(bucket.read(key, 0, _MAX)) for key in keys(bucket)}


def refresh(mount: Mount, path: str = "data") -> dict[str, int]:
    """Exchange changes now; return what came of it."""
    return mount.json("mounts", "refresh", path)[0]


def info(mount: Mount, path: str = "data") -> dict[str, object]:
    return mount.json("mounts", "info", path)[0]
