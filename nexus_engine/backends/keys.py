"""Keys and listings, the same for every server."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from nexus_engine.backends.bucket import ObjectInfo
from nexus_engine.errors import InvalidName, NameTooLong, ObjectStoreFailed


def check_key(prefix: str, key: str, bytes_max: int) -> str:
    """Return the key as the server has it.

    Raises:
        InvalidName: no server takes it.
        NameTooLong: it is longer than this one allows.
    """
    try:
        length = len((prefix + key).encode())
    except UnicodeEncodeError as error:
        raise InvalidName(f"no key: {key!r} cannot be written in UTF-8") from error
    if not key or "\0" in key:
        raise InvalidName(f"no key: {key!r}")
    if length > bytes_max:
        raise NameTooLong(f"a key of {length} bytes; {bytes_max} at most: {key[:40]}…")
    return prefix + key


def key_of(item: ObjectInfo | str) -> str:
    """Return what a listing's item sorts by."""
    return item if isinstance(item, str) else item.key


def order_of(key: str) -> bytes:
    """Return what keys are ordered by; names of local files need not be UTF-8."""
    return key.encode(errors="surrogateescape")


def select(
    items: Iterable[ObjectInfo | str], prefix: str, start_after: str
) -> Iterator[ObjectInfo | str]:
    """Yield what comes after ``start_after``, a common prefix once.

    Raises:
        ObjectStoreFailed: the listing has what was not asked for.
    """
    last: ObjectInfo | str = ""
    for item in items:
        key = order_of(key_of(item))
        if not key.startswith(order_of(prefix)):
            raise ObjectStoreFailed(f"a listing of {prefix!r} names {key!r}")
        if item != last and key > order_of(start_after):
            yield item
        last = item
