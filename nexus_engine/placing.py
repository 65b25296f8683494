"""Where the packs of a store live: in its directory, or in a bucket that it has to itself."""

from __future__ import annotations

import fcntl
import logging
import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, nullcontext
from functools import partial
from pathlib import Path

import msgspec

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
PACKS_MOVE, PACKS_BEFORE = "packs_move", "packs_before"
"""Likewise, in JSON: the place that packs are being moved to; places that still have them."""
LOCK_NAME = "packs.lock"
_MIB = 1024 * 1024


class Place(msgspec.Struct, frozen=True, omit_defaults=True):
    """Where packs live: in a bucket, or else in the store's directory."""

    url: str | None = None
    holder: str | None = None
    """What the mark in the bucket says."""

    def __str__(self) -> str:
        return self.url or "the store's directory"


def find_place(reader: Reader) -> Place:
    """Return where a store's packs live."""
    url, holder = reader.store_value(PACKS_URL), reader.store_value(PACKS_HOLDER)
    return Place() if url is None else Place(str(url), str(holder))


def find_packs_url(reader: Reader) -> str | None:
    """Return the bucket that a store's packs live in; ``None``: its own directory."""
    return find_place(reader).url


def find_move(reader: Reader) -> Place | None:
    """Return where packs are being moved to."""
    value = reader.store_value(PACKS_MOVE)
    return None if value is None else msgspec.json.decode(value, type=Place)


def find_before(reader: Reader) -> list[Place]:
    """Return where packs lived before, and nobody has deleted them."""
    return msgspec.json.decode(reader.store_value(PACKS_BEFORE) or "[]", type=list[Place])


def mark_of(reader: Reader, place: Place) -> Mark:
    """Return what a bucket of this store's says."""
    return Mark(1, str(reader.store_value("store_id")), str(place.holder))


def require_bucket(reader: Reader) -> None:
    """Ask the bucket, if packs live in one, whether it is there, and this store's.

    Raises:
        StoreInaccessible, InvalidArgument, NotSupported, StoreHung, ObjectStoreFailed.
    """
    place = find_place(reader)
    if place.url is not None:
        with closing(open_bucket(place.url)) as bucket:
            require_mark(bucket, mark_of(reader, place))


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
    place: Place,
    config: StoreConfig,
    *,
    press: Callable[[bool], None] = lambda _: None,
    staying: Callable[[], AbstractContextManager[None]] = nullcontext,
    find_next: Callable[[str], str | None] = lambda _: None,
) -> ObjectStore:
    """Return where a store's packs are. Asks nobody yet.

    Args:
        path: The store's directory.
        press: Told whether more is waiting for the bucket than should.
        staying, find_next: As for `RemoteObjectStore`.
    """
    if place.url is None:
        return LocalObjectStore(path)
    return RemoteObjectStore(
        path,
        Home(place.url, partial(open_bucket, place.url), mark_of(reader, place)),
        Limits(
            cache_bytes=config.cache_mib * _MIB,
            backlog_bytes=config.upload_backlog_mib * _MIB,
            upload_limit_s=config.upload_limit_s,
        ),
        press=press,
        staying=staying,
        find_next=find_next,
    )


@contextmanager
def staying(path: Path, place: Place, find: Callable[[], Place]) -> Iterator[None]:
    """Keep packs from being moved meanwhile; others may do so too.

    Args:
        path: The store's directory.
        place: Where they are taken to live.
        find: Tells where they do.

    Raises:
        StoreBusy: They live elsewhere by now, or will in a moment.
    """
    try:
        with ExitStack() as locks:
            with _locked(path / "packs", fcntl.LOCK_SH | fcntl.LOCK_NB):  # see `not_sending`
                locks.enter_context(_locked(path / LOCK_NAME, fcntl.LOCK_SH | fcntl.LOCK_NB))
            if find() != place:
                raise errors.StoreBusy(f"packs do not live in {place} any more")
            yield
    except BlockingIOError:
        raise errors.StoreBusy(f"packs are being moved from {place}") from None


@contextmanager
def not_sending(path: Path) -> Iterator[None]:
    """Keep everybody from sending packs to where they live, and wait for those who are at it."""
    # Two locks, or those who send would take turns at the one for ever, and never all let go.
    with (
        _locked(path / "packs", fcntl.LOCK_EX),
        _locked(path / LOCK_NAME, fcntl.LOCK_EX),
    ):
        yield


@contextmanager
def _locked(path: Path, how: int) -> Iterator[None]:
    is_directory = path.is_dir()
    flags = os.O_RDONLY if is_directory else os.O_RDWR | os.O_CREAT
    fd = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(fd, how)
        yield
    finally:
        os.close(fd)


def send_orphans(path: Path, objects: ObjectStore, reader: Reader, own: Mapping[str, bool]) -> None:
    """Have what lies on this disk sent to where it is to stay: processes left it when they died,
    or it came here before packs were moved.

    Args:
        own: Packs of this process, and whether they are complete.
    """
    for file in (path / "packs").glob("*.pack"):
        # Without a row, it is fsck's to report; with another owner, his to send, or recovery's.
        if not own.get(file.stem, file.stem not in own and reader.is_sealed(file.stem)):
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
    place = new_place(url)
    claim(database.reader, place)
    note_place(database, place)


def take_over(database: Database, url: str) -> None:
    """Have a copy of a store go on with its packs; the original is refused them from now on.

    Raises: as `move_in`.
    """
    place = new_place(url)
    note_place(database, place)
    with closing(open_bucket(url)) as bucket:
        take_prefix(bucket, mark_of(database.reader, place))


def move_out(database: Database) -> None:
    """Have a copy of a store live in its own directory: all buckets are the original's."""
    note_place(database, Place())
    database.drop_store_value(PACKS_MOVE)
    database.drop_store_value(PACKS_BEFORE)


def new_place(url: str) -> Place:
    return Place(url, secrets.token_hex(8))


def claim(reader: Reader, place: Place) -> None:
    """Make the empty prefix of a bucket this store's; raises as `move_in`."""
    with closing(open_bucket(str(place.url))) as bucket:
        if any(True for _ in bucket.iter_objects("packs/")):
            raise errors.StoreInaccessible(f"{bucket.url} holds packs already: give another prefix")
        claim_prefix(bucket, mark_of(reader, place))


def note_place(database: Database, place: Place) -> None:
    """Enter where packs live."""
    for key, value in ((PACKS_URL, place.url), (PACKS_HOLDER, place.holder)):
        if value is None:
            database.drop_store_value(key)
        else:
            database.set_store_value(key, value)


def note_move(database: Database, place: Place | None) -> None:
    """Enter where packs are being moved to."""
    if place is None:
        database.drop_store_value(PACKS_MOVE)
    else:
        database.set_store_value(PACKS_MOVE, msgspec.json.encode(place).decode())


def note_before(database: Database, places: list[Place]) -> None:
    """Enter where packs lived before."""
    if places:
        database.set_store_value(PACKS_BEFORE, msgspec.json.encode(places).decode())
    else:
        database.drop_store_value(PACKS_BEFORE)
