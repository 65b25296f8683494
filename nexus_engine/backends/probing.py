"""What a server can do, found out by trying: some ignore conditions without a word."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from contextlib import suppress

from nexus_engine.backends.bucket import Bucket, Capability
from nexus_engine.backends.keys import key_of
from nexus_engine.errors import BackendError, NotSupported, ObjectChanged

_NAME = ".nexus-probe"


class Tested:
    """What a server was found to do, and what not; before `note`, nothing is known of it."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._can = self._lacks = Capability(0)

    def forget(self) -> None:
        """Know nothing again, so that everything can be tried."""
        self._can = self._lacks = Capability(0)

    def note(self, found: Capability) -> Capability:
        self._can, self._lacks = found, ~found
        return found

    def can(self, capability: Capability) -> bool:
        """Tell whether the server is known to."""
        return capability in self._can

    def require(self, capability: Capability) -> None:
        """Refuse what the server is known not to do: it would say that all is well.

        Raises:
            NotSupported: it is known not to.
        """
        if capability in self._lacks:
            raise NotSupported(f"{self._url} ignores conditions ({capability.name})")


def probe(bucket: Bucket, *, put_in_parts: Callable[[str], object]) -> Capability:
    """Try conditions and copies on objects of its own, and remove them.

    Args:
        put_in_parts: Stores something under a key, in parts, if there is no such object.
    """
    mine = uuid.uuid4().hex
    # "." comes before "/", but a server that has a tree of directories lists the other first.
    # Such a server may also keep the directory: one name for all, so that it is only one.
    key, other = f"{_NAME}.{mine}", f"{_NAME}/{mine}"
    found = Capability(0)
    try:
        old = bucket.put(key, b"1").etag
        bucket.put(key, b"2")
        if _reads(bucket, key, old, b"1"):
            found |= Capability.VERSIONS
        if (
            _is_refused(lambda: bucket.put(key, b"3", if_absent=True))
            and _is_refused(lambda: bucket.put(key, b"3", if_match=old))
            and _is_accepted(
                lambda: bucket.put(key, b"4", if_match=bucket.stat(key).etag),
                lambda: bucket.put(other, b"4", if_absent=True),
            )
        ):
            found |= Capability.CONDITIONAL_PUT
            if _is_refused(lambda: put_in_parts(key)):
                found |= Capability.CONDITIONAL_PARTS
        if _is_accepted(lambda: bucket.copy(key, other)):
            found |= Capability.COPY
        bucket.put(other, b"5")
        listed = [key_of(item) for item in bucket.iter_objects(_NAME)]
        if [name for name in listed if name in (key, other)] == [key, other]:
            found |= Capability.ORDERED_LISTING
        if _is_refused(lambda: bucket.delete(key, if_match=old)):
            found |= Capability.CONDITIONAL_DELETE
    finally:
        with suppress(BackendError):
            bucket.delete(key)
            bucket.delete(other)
    return found


def _reads(bucket: Bucket, key: str, etag: str, content: bytes) -> bool:
    try:
        return bucket.read(key, 0, len(content), etag=etag) == content
    except ObjectChanged:
        return False


def _is_refused(call: Callable[[], object]) -> bool:
    """Tell whether a condition that does not hold was found not to hold."""
    try:
        call()
    except ObjectChanged:
        return True
    except NotSupported:
        return False
    return False


def _is_accepted(*calls: Callable[[], object]) -> bool:
    try:
        for call in calls:
            call()
    except (NotSupported, ObjectChanged):
        return False
    return True
