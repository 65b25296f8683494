"""The seam below the chunk store: where finished packs live."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
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

    def prepare(self) -> None:
        """Do what the first who reads or writes would wait for; from a background thread."""
        ...

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

    def read_stored(self, key: str, offset: int, length: int) -> View:
        """Like `read`, from where the object is to stay: no copy of it that is nearer.

        For who wants to know whether it decayed. Cheap only for one reader after the other, each
        going on where the last one ended.
        """
        ...

    def distrust(self, key: str) -> bool:
        """Drop copies of an object that turned out to be wrong.

        Returns:
            Whether there were any: then another `read` may give better ones.
        """
        ...

    def size(self, key: str) -> int:
        """Return the object's length in bytes.

        Raises:
            ObjectNotFound: there is no such object.
        """
        ...

    def put_file(self, key: str, path: Path) -> None:
        """Take over a finished local file as the object; durable on this machine when it returns.

        The file at ``path`` belongs to the store from here on, which may move or remove it.
        An object of that key is replaced. Idempotent: a repeat after a failure finishes the
        job, however far the first attempt came.
        """
        ...

    def is_waiting(self, key: str) -> bool:
        """Tell whether an object is not where it is to stay yet, whoever wrote it."""
        ...

    def secure(self, others: Iterable[str] = ()) -> None:
        """Wait until all that came through `put_file` is where it is to stay.

        Args:
            others: Objects of other processes, likewise.

        Raises:
            StoreHung, ObjectStoreFailed: It is not, yet; nothing of it is lost.
        """
        ...

    def drain(self) -> None:
        """Like `secure`, for as long as that gets on.

        Raises:
            EngineError: It does not. Whoever opens the store next goes on.
        """
        ...

    def await_room(self) -> None:
        """Wait until another object may be begun: not too many are on their way.

        Raises:
            NoSpace: It took too long.
        """
        ...

    def sync(self, key: str) -> None:
        """Make durable what any process has written to the object so far.

        Matters where another process is still appending to an object of a shared disk;
        objects that came through `put_file` are durable already.

        Raises:
            ObjectNotFound: there is no such object, and that can be told without asking far away.
        """
        ...

    def iter_keys(self, prefix: str) -> Iterator[str]:
        """Yield the keys that begin with ``prefix`` (any string), in no particular order."""
        ...

    def iter_sizes(self, prefix: str) -> Iterator[tuple[str, int]]:
        """Yield likewise each key with its object's length in bytes."""
        ...

    def is_near(self, key: str) -> bool:
        """Tell whether all of an object is on this machine: a look at a part of it costs little."""
        ...

    def delete(self, key: str) -> None:
        """Remove the object; no error if there is none. Durable when it returns.

        A process that hears of a deletion by another should delete too: it lets go of what
        it keeps open, and so of the space.
        """
        ...

    def forget_deleted(self) -> None:
        """Let go of objects that another process deleted: until then their space is not free."""
        ...

    def figures(self) -> dict[str, int]:
        """Return gauges, for a status."""
        ...

    def leave(self) -> list[tuple[str, Path]]:
        """Take no more: the objects live elsewhere from now on. Reading goes on for a while.

        Returns:
            Key and file of what `put_file` took over and is not where it was to stay.
        """
        ...

    def close(self) -> None:
        """Let go of everything that is open, whoever still refers to this."""
        ...
