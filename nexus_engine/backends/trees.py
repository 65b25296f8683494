"""Listing where there are directories, as if there were only keys."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from nexus_engine.backends.bucket import ObjectInfo
from nexus_engine.backends.keys import key_of, order_of, select


def walk(
    children: Callable[[str], Iterable[ObjectInfo | str]],
    prefix: str,
    start_after: str,
    delimiter: str,
) -> Iterator[ObjectInfo | str]:
    """Yield what `Bucket.iter_objects` promises, in order of keys.

    Args:
        children: Returns what is in a directory, which is empty or ends in a slash: files, and the
            keys of directories with a slash. None if there is no such directory.
    """
    folder = "".join(prefix.rpartition("/")[:2])
    return select(_walk(children, folder, prefix, start_after, delimiter), prefix, start_after)


def _walk(
    children: Callable[[str], Iterable[ObjectInfo | str]],
    folder: str,
    prefix: str,
    start_after: str,
    delimiter: str,
) -> Iterator[ObjectInfo | str]:
    for item in sorted(children(folder), key=lambda item: order_of(key_of(item))):
        key = key_of(item)
        if not isinstance(item, str):
            if key.startswith(prefix):
                yield from _grouped(item, prefix, delimiter)
            continue
        if not key.startswith(prefix) and not prefix.startswith(key):
            continue
        if order_of(key) <= order_of(start_after) and not start_after.startswith(key):
            continue  # all that is in it comes before
        below = _walk(children, key, prefix, start_after, delimiter)
        if delimiter == "/" and len(key) > len(prefix):
            # One is enough to know that it is not empty.
            yield from (key for _ in zip(range(1), below, strict=False))
        else:
            yield from below


def _grouped(info: ObjectInfo, prefix: str, delimiter: str) -> Iterator[ObjectInfo | str]:
    at = info.key.find(delimiter, len(prefix)) if delimiter else -1
    yield info if at < 0 else info.key[: at + len(delimiter)]
