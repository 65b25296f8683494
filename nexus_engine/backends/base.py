"""The seam below the chunk store: where finished packs live."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol, TypeAlias

View: TypeAlias = bytes | memoryview
"""Bytes that nobody changes any more; a ``memoryview`` where that saves a copy."""


class ObjectStore(Protocol):
    """Named, immutable byte strings; synchronous, and safe to call from any thread.

    A key is a relative path of one or more components, such as ``packs/0f3a.pack``; one with
    an empty, ``.`` or ``..`` component, a NUL or a leading slash is a bug of the caller and
    raises ``ValueError``.

    Every method may raise ``StoreInaccessible`` (permissions), ``NoSpace`` and
    ``ObjectStoreFailed`` (everything else that goes wrong below).
    """

    def read(self, key: str, offset: int, length: int) -> View:
        """Return ``length`` bytes from ``offset``; fewer only where the object ends.

        Raises:
            ObjectNotFound: there is no such object.
        """
        ...

    def read_resident(self, key: str, offset: int, length: int) -> View | None:
        """Like `read`, but only what can be had without waiting for a disk or a network.

        Returns:
            ``None`` where it would have to wait, or cannot tell; also for an object that is
            not there, so that `read` is the one to say so.
        """
        ...

    def size(self, key: str) -> int:
        """Return the object's length in bytes.

        Raises:
            ObjectNotFound: there is no such object.
        """
        ...

    def put_file(self, key: str, path: Path) -> None:
        """Take over a finished local file as the object; durable when it returns.

        The file at ``path`` belongs to the store from here on, which may move or remove it.
        An object of that key is replaced. Idempotent: a repeat after a failure finishes the
        job, however far the first attempt came.
        """
        ...

    def sync(self, key: str) -> None:
        """Make durable what any process has written to the object so far.

        Matters where another process is still appending to an object of a shared disk;
        objects that came through `put_file` are durable already.

        Raises:
            ObjectNotFound: there is no such object.
        """
        ...

    def iter_keys(self, prefix: str) -> Iterator[str]:
        """Yield the keys that begin with ``prefix`` (any string), in no particular order."""
        ...

    def delete(self, key: str) -> None:
        """Remove the object; no error if there is none. Durable when it returns.

        A process that hears of a deletion by another should delete too: it lets go of what
        it keeps open, and so of the space.
        """
        ...
