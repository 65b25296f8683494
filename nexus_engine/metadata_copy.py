"""A copy of the metadata, in the bucket that has the packs: both together are the store.

::

    PREFIX/meta/latest.json      which copy counts, and what is in it
    PREFIX/meta/HEAD-TIME.db.zst a copy of meta.db, compressed

Whatever a copy names is in the bucket before the copy is. What gc deletes there, the copy that
counts names no more.
"""

from __future__ import annotations

import hashlib
import logging
import os
import secrets
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from functools import partial
from pathlib import Path

import msgspec
import zstandard

from nexus_engine import __version__, errors
from nexus_engine.backends.bucket import Bucket
from nexus_engine.backends.files import lock_within, translate
from nexus_engine.backends.home import Home
from nexus_engine.backends.remote import RemoteObjectStore
from nexus_engine.config import CONFIG_NAME
from nexus_engine.meta import backup_queries
from nexus_engine.meta.connection import DATABASE_NAME, Connection
from nexus_engine.store import Store

log = logging.getLogger(__name__)

LATEST_KEY = "meta/latest.json"
LATEST_MAX = 1 << 20
KEEP = 3
"""Copies, the latest included."""
_LEVEL = 3
_NEW = "meta.copy"
LOCK_NAME = "meta.copy.lock"
"""Holds the last operation of the latest copy, in digits, and the holder of the prefix it is in."""
_NOTE_BYTES = 200
_OTHERS_S = 600.0


class Latest(msgspec.Struct, frozen=True):
    """The copy that counts."""

    nexus_metadata: int
    nexus_version: str
    store_id: str
    time_ns: int
    head: int
    """The last operation in it."""
    head_hash: str
    schema_version: int
    key: str
    size: int
    """Of the database, bytes."""
    sha256: str
    """Likewise."""
    settings: str | None
    """``store.yaml``."""


def read_latest(bucket: Bucket) -> Latest:
    """Return what is said of the copy that counts.

    Raises:
        ObjectNotFound: There is none yet.
        CorruptMetadata: It cannot be understood.
    """
    content = bucket.read(LATEST_KEY, 0, LATEST_MAX)
    try:
        return msgspec.json.decode(content, type=Latest)
    except msgspec.DecodeError as error:
        raise errors.CorruptMetadata(f"{bucket.url}: {LATEST_KEY} is damaged: {error}") from error


def put_metadata(store: Store, *, keep: int = KEEP, always: bool = False) -> bool:
    """Put a copy of the metadata of now into the bucket, if there is news; from any thread.

    Args:
        keep: How many copies to leave there, this one included.
        always: Also where the log says nothing new: the index of chunks changed.

    Returns:
        Whether one was put. Where packs are local, or the settings say so, none is.

    Raises:
        StoreHung, StoreInaccessible, ObjectStoreFailed, NoSpace: The one before counts.
    """
    objects = store.objects.current
    if not isinstance(objects, RemoteObjectStore) or not store.config.metadata_interval_s:
        return False
    with _one_at_a_time(store.path) as note:
        with closing(Connection(str(store.path / DATABASE_NAME))) as connection:
            head = backup_queries.head_record(connection)[0]
        # What is noted here spares asking the bucket.
        if not always and os.pread(note, _NOTE_BYTES, 0) == _note(head, objects.home):
            return False
        copied = _put(store, objects.home, keep=keep)
        os.pwrite(note, _note(copied, objects.home), 0)
        return True


def _note(head: int, home: Home) -> bytes:
    return b"%020d %s" % (head, home.holder.encode())


@contextmanager
def _one_at_a_time(path: Path) -> Iterator[int]:
    """Keep others from putting a copy: an older one must not come to count after a newer one.

    Yields a file that has the last operation of the latest copy.

    Raises:
        StoreBusy: Another process is at it, and for long.
    """
    fd = os.open(path / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        if not lock_within(fd, _OTHERS_S):
            raise errors.StoreBusy("another process is copying the metadata")
        yield fd
    finally:
        os.close(fd)


def _put(store: Store, home: Home, *, keep: int) -> int:
    """Put a copy; return the last operation in it."""
    copy = store.path / f"{_NEW}.{secrets.token_hex(4)}"
    try:
        latest, packs = _copy(store, copy)
        # What it names, in the bucket first, whoever wrote it.
        store.secure(packs)
        packed = _compress(copy)
        home.require_mark()
        home.ask(lambda bucket: bucket.put(latest.key, packed))
        home.ask(lambda bucket: bucket.put(LATEST_KEY, msgspec.json.encode(latest)))
    finally:
        for path in store.path.glob(f"{copy.name}*"):
            path.unlink(missing_ok=True)
    home.ask(partial(_drop_older, latest.key, keep))
    return latest.head


def _copy(store: Store, path: Path) -> tuple[Latest, list[str]]:
    """Copy the database, as of one moment; nobody is kept from writing.

    Returns:
        What to say of it, and the packs that it names.
    """
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    with closing(Connection(str(path), alone=True)) as copy:
        with closing(Connection(str(store.path / DATABASE_NAME))) as source:
            source.copy_to(copy, lambda _done, _of: None)
        uses = backup_queries.used_packs(copy)
        backup_queries.detach(copy, uses)
        head, head_hash = backup_queries.head_record(copy)
        version = backup_queries.version(copy)
    time_ns = store.clock.time_ns()
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        size = file.tell()
    settings = None
    with suppress(FileNotFoundError):
        settings = (store.path / CONFIG_NAME).read_text()
    latest = Latest(
        nexus_metadata=1,
        nexus_version=__version__,
        store_id=str(store.reader_value("store_id")),
        time_ns=time_ns,
        head=head,
        head_hash=head_hash.hex(),
        schema_version=version,
        key=f"meta/{head:020d}-{time_ns:020d}.db.zst",
        size=size,
        sha256=digest,
        settings=settings,
    )
    return latest, [use.name for use in uses if use.name]


def _compress(path: Path) -> Path:
    packed = path.with_name(path.name + ".zst")
    try:
        fd = os.open(packed, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with path.open("rb") as source, os.fdopen(fd, "wb") as target:
            zstandard.ZstdCompressor(level=_LEVEL).copy_stream(
                source, target, size=path.stat().st_size
            )
    except OSError as error:
        raise translate(error, f"write {packed}") from error
    return packed


def _drop_older(latest: str, keep: int, bucket: Bucket) -> None:
    """Leave so many copies, the latest one among them."""
    items = bucket.iter_objects("meta/")
    keys = [item.key for item in items if not isinstance(item, str)]
    copies = sorted(key for key in keys if key.endswith(".db.zst"))
    for key in copies[:-keep]:
        if key != latest:
            bucket.delete(key)
