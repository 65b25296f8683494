"""What lies at a server: objects in a bucket, below one prefix.

Packs can live in one, and one that is there already can be attached at a path.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, Protocol

from nexus_engine.backends.base import View


class Capability(enum.Flag):
    """What not every server can do. Nobody may rely on what is not said here."""

    CONDITIONAL_PUT = enum.auto()
    """``if_absent`` and ``if_match`` of `Bucket.put` are atomic."""
    CONDITIONAL_PARTS = enum.auto()
    """Also for files so large that they are sent in parts."""
    CONDITIONAL_DELETE = enum.auto()
    """So is ``if_match`` of `Bucket.delete`."""
    COPY = enum.auto()
    """`Bucket.copy` moves no bytes through us."""
    VERSIONS = enum.auto()
    """`Bucket.read` can ask for an older ``etag`` than the newest."""
    ORDERED_LISTING = enum.auto()
    """`Bucket.iter_objects` goes by the keys, in UTF-8."""
    CHANGE_FEED = enum.auto()
    """It is a `ChangeFeed` too."""
    PROGRAMS = enum.auto()
    """It is a `HasPrograms` too."""


class ObjectInfo(NamedTuple):
    """One object, as the server describes it."""

    key: str
    """Below the bucket's prefix."""
    size: int
    """Bytes; -1 in a listing where the server knows it only once somebody reads."""
    etag: str
    """Differs when the content does; opaque, and of this server only."""
    mtime_ns: int
    """By the server's clock; from `Bucket.put`, only about when."""
    is_program: bool = False
    """Its owner can execute it."""


class Bucket(Protocol):
    """Named byte strings at a server; synchronous, and safe to call from any thread.

    A key is any string that the server takes, not only one that could be a path. Every method
    ends within a deadline, retries of what may be retried included, and may raise:

    StoreInaccessible: Credentials, permissions, no such bucket: trying again does not help.
    StoreHung: No answer within the deadline.
    NoSpace: There is none left.
    NotSupported: The server does not know the function, or `probe` found that it does not do it.
    InvalidName, NameTooLong: A key that this kind of server does not take.
    ObjectStoreFailed: Everything else; also an answer that contradicts itself.
    """

    url: str
    """For people; without secrets."""

    def probe(self) -> Capability:
        """Find out, by trying where servers lie, what this one can do. Leaves nothing behind."""
        ...

    def read(self, key: str, offset: int, length: int, *, etag: str = "") -> View:
        """Return ``length`` bytes from ``offset``; fewer only where the object ends.

        Args:
            etag: The version that is meant; any, if empty.

        Raises:
            ObjectNotFound: there is none.
            ObjectChanged: it is another version by now.
        """
        ...

    def stat(self, key: str) -> ObjectInfo:
        """Raises ObjectNotFound."""
        ...

    def put(
        self, key: str, content: bytes | Path, *, if_absent: bool = False, if_match: str = ""
    ) -> ObjectInfo:
        """Store an object, whole or not at all; durable when it returns.

        Args:
            content: Bytes, or a local file, which is streamed and, if large, sent in parts.
            if_absent: Only where there is none.
            if_match: Only in place of this etag.

        Raises:
            ObjectChanged: the condition does not hold. A retry after a lost answer does not take
                its own object for another's.
        """
        ...

    def delete(self, key: str, *, if_match: str = "") -> None:
        """Remove an object; no error if there is none.

        Raises:
            ObjectChanged: it is another version by now.
        """
        ...

    def copy(self, source: str, target: str) -> ObjectInfo:
        """Store what one key has under another as well, without sending it.

        Raises:
            ObjectNotFound: there is no source.
        """
        ...

    def iter_objects(
        self, prefix: str = "", *, start_after: str = "", delimiter: str = ""
    ) -> Iterator[ObjectInfo | str]:
        """Yield the objects whose keys begin with a prefix; see `Capability.ORDERED_LISTING`.

        Args:
            start_after: Only what comes after this in order of keys (UTF-8), common prefixes
                included.
            delimiter: With ``/``: what has one after the prefix is yielded once, as a ``str``, the
                common prefix with its slash.
        """
        ...

    def close(self) -> None:
        """Let go of connections."""
        ...


class ChangeFeed(Protocol):
    """What some buckets have besides: they tell whether a listing could bring news."""

    def changes_end(self) -> str:
        """Return the position after all changes so far; opaque."""
        ...

    def changed_since(self, position: str) -> tuple[bool, str]:
        """Tell whether anything may have changed after a position, and return the next one."""
        ...


def executable(mode: int) -> int:
    """Return a mode with which those execute a file who may read it."""
    return mode | (mode & 0o444) >> 2


class HasPrograms(Protocol):
    """Where objects can be programs."""

    def make_program(self, key: str, *, if_match: str) -> ObjectInfo:
        """Let everybody execute an object who can read it; what replaces it is one, too.

        Raises:
            ObjectNotFound: there is none.
            ObjectChanged: it is another version by now.
        """
        ...
