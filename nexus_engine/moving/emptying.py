"""Deleting what is in a place that packs do not live in any more."""

from __future__ import annotations

from contextlib import closing, suppress

from nexus_engine import errors
from nexus_engine.backends.bucket import Bucket
from nexus_engine.backends.home import MARK_KEY, require_mark
from nexus_engine.backends.remote import RemoteObjectStore
from nexus_engine.backends.urls import open_bucket
from nexus_engine.backup.layout import Progress, explained
from nexus_engine.cas.pack import pack_key
from nexus_engine.metadata_copy import LATEST_KEY
from nexus_engine.placing import Place, mark_of
from nexus_engine.store import Store

ASIDE_NAME = "packs.before"
"""In the store's directory: packs that were there before they were moved to a bucket."""


def empty(store: Store, place: Place, progress: Progress) -> None:
    """Delete a store's packs in a place, and all else that is the store's there. May be repeated.

    Raises:
        StoreInaccessible: It is another store's by now; nothing was deleted.
        StoreHung, ObjectStoreFailed: What is left can be deleted later.
    """
    if place.url is None:
        _empty_directory(store, progress)
        return
    with closing(open_bucket(place.url)) as bucket:
        try:
            bucket.stat(MARK_KEY)
        except errors.ObjectNotFound:
            return  # somebody emptied it
        require_mark(bucket, mark_of(store.reader, place))
        # First of all nobody can make a store of it any more; whose it is, goes last.
        bucket.delete(LATEST_KEY)
        keys = [*_keys(bucket, "meta/"), *_keys(bucket, "packs/")]
        for number, key in enumerate(keys):
            progress(f"deleting objects in {bucket.url}", number, len(keys))
            bucket.delete(key)
        bucket.delete(MARK_KEY)


def _keys(bucket: Bucket, prefix: str) -> list[str]:
    return [found.key for found in bucket.iter_objects(prefix) if not isinstance(found, str)]


def _empty_directory(store: Store, progress: Progress) -> None:
    aside = store.path / ASIDE_NAME
    objects = store.objects.current
    with explained(f"remove {aside}"):
        paths = sorted(aside.glob("*.pack"))
        for number, path in enumerate(paths):
            progress(f"removing packs from {aside}", number, len(paths))
            # They are in the bucket: what was here is as good as what would be fetched from there.
            if isinstance(objects, RemoteObjectStore):
                objects.keep_copy(pack_key(path.stem), path)
            else:
                path.unlink(missing_ok=True)
        with suppress(FileNotFoundError):
            aside.rmdir()
