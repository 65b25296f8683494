"""Where the packs of a store live: in its directory, or in a bucket that it has to itself."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Container
from contextlib import closing
from functools import partial
from pathlib import Path

from nexus_engine import errors
from nexus_engine.backends.base import ObjectStore
from nexus_engine.backends.home import Home, Mark, claim_prefix, require_mark, take_prefix
from nexus_engine.backends.local import LocalObjectStore
from nexus_engine.backends.remote import Limits, RemoteObjectStore
from nexus_engine.backends.retrying import DEADLINE_S
from nexus_engine.backends.urls import open_bucket, parse
from nexus_engine.cas.pack import PACK_HEADER_SIZE, pack_key
from nexus_engine.config import StoreConfig
from nexus_engine.meta.database import Database
from nexus_engine.meta.reader import Reader

log = logging.getLogger(__name__)

PACKS_URL, PACKS_HOLDER = "packs_url", "packs_holder"
"""In the table ``store``: the URL of the bucket, if packs live in one, and the holder that its mark
names."""
_MIB = 1024 * 1024


def find_packs_url(reader: Reader) -> str | None:
    """Return the bucket that a store's packs live in; ``None``: its own directory."""
    url = reader.store_value(PACKS_URL)
    return None if url is None else str(url)


def require_bucket(reader: Reader) -> None:
    """Ask the bucket, if packs live in one, whether it is there, and this store's.

    Raises:
        StoreInaccessible, InvalidArgument, NotSupported, StoreHung, ObjectStoreFailed.
    """
    url = find_packs_url(reader)
    if url is not None:
        with closing(open_bucket(url)) as bucket:
            require_mark(bucket, _mark(reader))


def limit_s(url: str | None, config: StoreConfig) -> float:
    """Return how much longer than for a disk may be waited for where packs live."""
    if url is None:
        return 0.0
    try:
        deadline_s = parse(url, {}).deadline_s()
    except errors.InvalidArgument:
        deadline_s = DEADLINE_S  # who uses it is told
    return 2 * deadline_s + config.upload_limit_s


def open_objects(
    path: Path,
    reader: Reader,
    config: StoreConfig,
    *,
    press: Callable[[bool], None] = lambda _: None,
) -> ObjectStore:
    """Return where a store's packs are. Asks nobody yet.

    Args:
        path: The store's directory.
        press: Told whether more is waiting for the bucket than should.
    """
    url = find_packs_url(reader)
    if url is None:
        return LocalObjectStore(path)
    return RemoteObjectStore(
        path,
        Home(url, partial(open_bucket, url), _mark(reader)),
        Limits(
            cache_bytes=config.cache_mib * _MIB,
            backlog_bytes=config.upload_backlog_mib * _MIB,
            upload_limit_s=config.upload_limit_s,
        ),
        press=press,
    )


def send_orphans(path: Path, objects: ObjectStore, reader: Reader, own: Container[str]) -> None:
    """Have what processes that are gone left on this disk sent to where it is to stay.

    Args:
        own: Packs of this process, which it sends itself.
    """
    for file in (path / "packs").glob("*.pack"):
        # Without a row, it is fsck's to report; with an owner, his to send, or recovery's.
        if file.stem in own or not reader.is_sealed(file.stem):
            continue
        try:
            if file.stat().st_size > PACK_HEADER_SIZE:
                objects.put_file(pack_key(file.stem), file)
        except (FileNotFoundError, errors.ObjectStoreFailed):
            if file.exists():  # else somebody has just sent it
                raise


def move_in(database: Database, url: str) -> None:
    """Make an empty prefix of a bucket the place of a new store's packs.

    Raises:
        StoreInaccessible: It cannot be used, or is not empty.
        InvalidArgument, NotSupported: No such URL.
        StoreHung, ObjectStoreFailed.
    """
    mark = _note(database, url)
    with closing(open_bucket(url)) as bucket:
        if any(True for _ in bucket.iter_objects("packs/")):
            raise errors.StoreInaccessible(f"{bucket.url} holds packs already: give another prefix")
        claim_prefix(bucket, mark)


def take_over(database: Database, url: str) -> None:
    """Have a copy of a store go on with its packs; the original is refused them from now on.

    Raises: as `move_in`.
    """
    mark = _note(database, url)
    with closing(open_bucket(url)) as bucket:
        take_prefix(bucket, mark)


def move_out(database: Database) -> None:
    """Have a copy of a store live in its own directory: the bucket is the original's."""
    database.drop_store_value(PACKS_URL)
    database.drop_store_value(PACKS_HOLDER)


def _note(database: Database, url: str) -> Mark:
    database.set_store_value(PACKS_URL, url)
    database.set_store_value(PACKS_HOLDER, secrets.token_hex(8))
    return _mark(database.reader)


def _mark(reader: Reader) -> Mark:
    return Mark(1, str(reader.store_value("store_id")), str(reader.store_value(PACKS_HOLDER)))
