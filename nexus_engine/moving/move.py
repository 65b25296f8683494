"""The steps of a move, each of which can be repeated.

::

    note       in the store: the place that packs go to
    copy       what is missing there, and read it back; again, until little is missing
    close      nobody sends packs or collects garbage; copy the rest
    switch     one transaction: from now on they live there, and everybody goes after them
    set aside  the files of a store whose packs were in its own directory
    delete     what is in the old place, if that is wanted

Until the switch the old place has everything, and from then on the new one. Packs that wait for the
bucket are in neither and stay where they are: they are sent to wherever packs live.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from nexus_engine import errors
from nexus_engine.backends.files import lock_within, sync_directory
from nexus_engine.backends.home import read_mark, require_mark
from nexus_engine.backends.remote import CACHE_NAME, RemoteObjectStore
from nexus_engine.backends.urls import open_bucket, parse
from nexus_engine.backup.layout import Progress, explained
from nexus_engine.cas.pack import pack_key
from nexus_engine.meta import check_content_queries
from nexus_engine.metadata_copy import put_metadata
from nexus_engine.moving.emptying import ASIDE_NAME, empty
from nexus_engine.moving.ends import (
    MOVING_NAME,
    BucketPacks,
    OwnPacks,
    ToBucket,
    ToDirectory,
)
from nexus_engine.oplog.peers import announce
from nexus_engine.placing import (
    Place,
    claim,
    find_before,
    find_move,
    find_place,
    mark_of,
    new_place,
    not_sending,
    note_before,
    note_move,
    note_place,
)
from nexus_engine.retention.turns import alone
from nexus_engine.store import Store

LOCAL = "local"
"""Stands for the store's own directory."""
_THREADS = 2
_FEW = 2
"""So many packs may be missing when senders are told to wait."""
_ROUNDS = 20
_TURN_S = 3600.0
"""How long gc may take, before a move is closed."""
_MARGIN_BYTES = 64 << 20


class Moved(NamedTuple):
    """What was done."""

    place: Place
    """Where packs live now."""
    packs: int
    """Copied by this run."""
    copied_bytes: int
    before: list[Place]
    """Places that still have what was there when they were left."""


def move_packs(store: Store, to: str | None, *, delete: bool, progress: Progress) -> Moved:
    """Move a store's packs, beside whoever uses it; go on with what an earlier run began.

    Args:
        to: A URL, or `LOCAL`. ``None``: wherever a move is under way to.
        delete: Delete what is in the places where they lived before.

    Raises:
        InvalidArgument: A move to another place is under way; no such URL.
        StoreBusy: Another process moves them, or collects garbage and does not end.
        MissingChunk: The old place does not have everything: nothing was switched.
        StoreInaccessible, NotSupported, NoSpace, StoreHung, ObjectStoreFailed: The next run goes
            on.
    """
    with _one_at_a_time(store.path) as directory:
        packs = copied_bytes = 0
        place = _begin(store, to, directory)
        if place is not None:
            packs, copied_bytes = _run(store, place, directory, progress)
            _tidy_up(directory)
        announce(store)
        put_metadata(store, always=place is not None)
        if store.packs_url is None:
            _forget_cache(store.path / CACHE_NAME)
        before = find_before(store.reader)
        while delete and before:
            empty(store, before[0], progress)
            del before[0]
            _change(store, lambda: note_before(store.database, before))
        return Moved(find_place(store.reader), packs, copied_bytes, before)


def cancel_move(store: Store, progress: Progress) -> Place:
    """Give a move up, and delete what it brought to the place where packs were to live.

    Raises:
        InvalidArgument: There is none.
        StoreBusy, StoreInaccessible, StoreHung, ObjectStoreFailed.
    """
    with _one_at_a_time(store.path) as directory:
        place = find_move(store.reader)
        if place is None:
            raise errors.InvalidArgument("no move is under way")
        if place.url is not None and place not in find_before(store.reader):
            empty(store, place, progress)
        _tidy_up(directory)
        _change(store, lambda: note_move(store.database, None))
        return place


@contextmanager
def _one_at_a_time(path: Path) -> Iterator[Path]:
    """Yield the directory of what is on its way; nobody else is at it."""
    directory = path / MOVING_NAME
    with explained(f"use {directory}"):
        directory.mkdir(mode=0o700, exist_ok=True)
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        if not lock_within(fd, 0):
            raise errors.StoreBusy("another process is moving the packs of this store")
        yield directory
        with suppress(OSError):
            directory.rmdir()
    finally:
        os.close(fd)


def _begin(store: Store, to: str | None, directory: Path) -> Place | None:
    """Return where packs are to go; ``None`` if they are there."""
    url = None if to == LOCAL else to
    now, going = find_place(store.reader), find_move(store.reader)
    if going is not None and (to is None or going.url == url):
        _require_claimed(store, going)
        return going
    if going is not None:
        raise errors.InvalidArgument(
            f"packs are being moved to {going}: let that come to its end first, or cancel it"
        )
    if to is None or url == now.url:
        return None
    _require_apart(url, now.url)
    known = [place for place in find_before(store.reader) if place.url == url]
    place = known[0] if known else Place() if url is None else new_place(url)
    _tidy_up(directory)
    _change(store, lambda: note_move(store.database, place))
    try:
        _require_claimed(store, place)
    except errors.EngineError:
        _change(store, lambda: note_move(store.database, None))
        raise
    return place


def _require_apart(url: str | None, other: str | None) -> None:
    if url is None or other is None:
        return
    ends = []
    for each in (url, other):
        parsed = parse(each, {})
        ends.append((parsed.scheme, parsed.host, parsed.options.get("endpoint"), parsed.prefix))
    (*server, prefix), (*other_server, other_prefix) = ends
    if server == other_server and (
        prefix.startswith(other_prefix) or other_prefix.startswith(prefix)
    ):
        raise errors.InvalidArgument(f"{url} is not apart from where packs live now, {other}")


def _require_claimed(store: Store, place: Place) -> None:
    """Make a bucket's prefix ours, unless it is."""
    if place.url is None:
        return
    with closing(open_bucket(place.url)) as bucket:
        try:
            read_mark(bucket)
        except errors.ObjectNotFound:
            claim(store.reader, place)
        else:
            require_mark(bucket, mark_of(store.reader, place))


def _run(store: Store, place: Place, directory: Path, progress: Progress) -> tuple[int, int]:
    """Move everything; return how many packs, and bytes, were copied."""
    if place.url is None:
        move = _Move(store, place, directory, ToDirectory(store, directory), progress)
        return move.run()
    with closing(open_bucket(place.url)) as bucket:
        return _Move(store, place, directory, ToBucket(bucket, directory), progress).run()


class _Move:
    def __init__(
        self,
        store: Store,
        place: Place,
        directory: Path,
        target: ToBucket | ToDirectory,
        progress: Progress,
    ) -> None:
        self._store = store
        self._place = place
        self._target = target
        self._progress = progress
        self._from = find_place(store.reader)
        self._source = self._find_source(directory)
        self._packs = 0
        self._bytes = 0

    def _find_source(self, directory: Path) -> OwnPacks | BucketPacks:
        store, objects = self._store, self._store.objects.current
        if isinstance(objects, RemoteObjectStore):
            copies = (store.path / ASIDE_NAME, store.path / CACHE_NAME)
            return BucketPacks(objects.home, directory, copies)
        return OwnPacks(store)

    def run(self) -> tuple[int, int]:
        for _ in range(_ROUNDS):
            missing = self._missing()
            if len(missing) <= _FEW:
                break
            self._copy(missing)
        with alone(self._store, wait_s=_TURN_S), not_sending(self._store.path):
            self._copy(self._missing())
            self._drop_deleted()
            self._require_all()
            self._switch()
        return self._packs, self._bytes

    def _missing(self) -> dict[str, int]:
        present = self._target.present()
        sizes = self._source.sizes()
        return {name: size for name, size in sizes.items() if present.get(name) != size}

    def _copy(self, packs: dict[str, int]) -> None:
        total_bytes = self._bytes + sum(packs.values())
        if isinstance(self._target, ToDirectory):
            free_bytes = self._store.reserve.free_bytes() - _MARGIN_BYTES
            if sum(packs.values()) > free_bytes:
                raise errors.NoSpace(
                    f"{sum(packs.values()):,} bytes of packs do not fit on the store's disk:"
                    f" {max(0, free_bytes):,} are free"
                )
        with ThreadPoolExecutor(_THREADS) as pool:
            copies = {pool.submit(self._copy_one, *pack): pack[1] for pack in packs.items()}
            try:
                for copy in as_completed(copies):
                    if copy.result():
                        self._packs += 1
                        self._bytes += copies[copy]
                    self._progress("moving MiB of packs", self._bytes >> 20, total_bytes >> 20)
            finally:
                pool.shutdown(cancel_futures=True)

    def _copy_one(self, name: str, size: int) -> bool:
        try:
            with self._source.fetched(name, size) as path:
                self._target.take(name, path)
        except errors.ObjectNotFound:
            return False  # gc removed it; if not, somebody will miss it
        return True

    def _drop_deleted(self) -> None:
        """Remove what was copied, and that gc removed since from where it was."""
        for name in self._target.listed() - self._source.sizes().keys():
            if not check_content_queries.is_registered(self._store.database.connection, name):
                self._target.drop(name)

    def _require_all(self) -> None:
        present = self._target.present()
        lost = [
            name
            for name, _, end in check_content_queries.iter_packs(self._store.database.connection)
            if end and name not in present and not (self._store.path / pack_key(name)).exists()
        ]
        if lost:
            raise errors.MissingChunk(
                f"{self._from} does not have all packs that the index names, {lost[0]} for one:"
                " nexus-ctl fsck tells more; packs were not moved"
            )

    def _switch(self) -> None:
        store = self._store
        if isinstance(self._target, ToDirectory):
            self._target.put_in_place()
        moved = list(self._target.present()) if self._from.url is None else []
        left = [self._from] if moved or self._from.url is not None else []
        _change(store, lambda: self._enter(left))
        # Or a power loss takes the row back, when what follows has been sent to the new place.
        store.sync()
        store.objects.follow()
        if self._from.url is None:
            _set_aside(store.path, moved)

    def _enter(self, left: list[Place]) -> None:
        database = self._store.database
        before = [p for p in find_before(database.reader) if p not in (self._place, self._from)]
        note_place(database, self._place)
        note_before(database, [*before, *left])
        note_move(database, None)


def _set_aside(path: Path, names: Iterable[str]) -> None:
    """Keep packs, that a bucket has by now, where they are not taken for packs that it has not."""
    aside = path / ASIDE_NAME
    with explained(f"write {aside}"):
        aside.mkdir(mode=0o700, exist_ok=True)
        for name in names:
            # Where it was killed here, the rest is found to be in the bucket, and becomes cache.
            (path / pack_key(name)).replace(aside / f"{name}.pack")
        sync_directory(aside)
        sync_directory(path / "packs")


def _forget_cache(cache: Path) -> None:
    """Remove copies of what is on this disk now."""
    with suppress(OSError):
        for path in cache.iterdir():
            path.unlink(missing_ok=True)


def _tidy_up(directory: Path) -> None:
    with explained(f"remove what is in {directory}"):
        for path in directory.iterdir():
            path.unlink(missing_ok=True)


def _change(store: Store, action: Callable[[], None]) -> None:
    store.upkeep(store.database.in_transaction, lambda _: action())
