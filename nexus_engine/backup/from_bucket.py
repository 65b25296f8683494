"""Make a store anew from the bucket that has its packs, and a copy of its metadata."""

from __future__ import annotations

import hashlib
import os
from contextlib import closing
from pathlib import Path as FilePath
from typing import NamedTuple

import zstandard

from nexus_engine import errors
from nexus_engine.backends.bucket import Bucket
from nexus_engine.backends.files import translate
from nexus_engine.backends.urls import open_bucket
from nexus_engine.backup.layout import Progress
from nexus_engine.backup.restoring import check_log, new_store, restore_settings
from nexus_engine.check.fsck import Problem, check
from nexus_engine.clock import SystemClock
from nexus_engine.meta import schema
from nexus_engine.meta.connection import Connection, migrate
from nexus_engine.meta.database import Database
from nexus_engine.metadata_copy import Latest, read_latest
from nexus_engine.placing import take_over
from nexus_engine.store import Store

_PIECE = 8 << 20


class Taken(NamedTuple):
    """What was made."""

    latest: Latest
    problems: list[Problem]
    """What is wrong with the new store; it is kept all the same."""


def restore_from_bucket(url: str, path: FilePath, *, progress: Progress) -> Taken:
    """Make a store of the latest copy of the metadata in a bucket; its packs stay there.

    The store that the copy was made of, should it still be somewhere, is refused the bucket from
    now on: two that change the same packs would destroy them for each other.

    Args:
        path: A new or empty directory.

    Raises:
        StoreNotFound: There is no such copy.
        StoreExists: There is something in the directory.
        CorruptMetadata: The copy is damaged; nothing was made.
        StoreVersion, NoSpace, StoreInaccessible, StoreHung, ObjectStoreFailed.
    """
    with closing(open_bucket(url)) as bucket:
        try:
            latest = read_latest(bucket)
        except errors.ObjectNotFound:
            raise errors.StoreNotFound(
                f"{bucket.url} has no copy of a store's metadata (meta/latest.json)"
            ) from None
        if latest.schema_version > schema.VERSION:
            raise errors.StoreVersion(
                f"the copy has format {latest.schema_version}, this Nexus knows up to"
                f" {schema.VERSION}: upgrade"
            )
        with new_store(path) as database:
            _fetch(bucket, latest, database, progress)
            problems = restore_settings(latest.settings, path)
            with closing(Connection(str(database), alone=True)) as connection:
                migrate(connection)
                problems += check_log(connection, latest.head, latest.head_hash, progress)
                take_over(Database(connection, SystemClock()), url)
    progress("checking the store", 0, None)
    store = Store.open(path)
    try:
        problems += check(store)
    finally:
        store.close()
    return Taken(latest, problems)


def _fetch(bucket: Bucket, latest: Latest, path: FilePath, progress: Progress) -> None:
    """Write the database that a copy holds to a file."""
    packed = path.with_name(path.name + ".zst")
    size = bucket.stat(latest.key).size
    digest = hashlib.sha256()
    written = 0
    try:
        with packed.open("xb") as file:
            for at in range(0, size, _PIECE):
                progress("fetching MiB of metadata", at >> 20, size >> 20)
                file.write(bucket.read(latest.key, at, _PIECE))
        with packed.open("rb") as source, path.open("r+b") as target:
            reader = zstandard.ZstdDecompressor().stream_reader(source)
            # No further than what was said, whatever it claims to be.
            while written <= latest.size and (piece := reader.read(_PIECE)):
                digest.update(piece)
                written += target.write(piece)
            target.flush()
            os.fsync(target.fileno())
    except zstandard.ZstdError as error:
        raise errors.CorruptMetadata(f"{latest.key} is damaged: {error}") from error
    except OSError as error:
        raise translate(error, f"write {path}") from error
    finally:
        packed.unlink(missing_ok=True)
    if written != latest.size or digest.hexdigest() != latest.sha256:
        raise errors.CorruptMetadata(f"{latest.key} is damaged: it is not what was put there")
