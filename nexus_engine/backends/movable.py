"""Objects that may come to live elsewhere while they are in use: a store that goes after them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Generic, TypeVar

from nexus_engine import errors
from nexus_engine.backends.base import ObjectStore, View

P = TypeVar("P")
R = TypeVar("R")

_ELSEWHERE = (errors.ObjectNotFound, errors.StoreInaccessible)
"""What is said of objects that were moved away, and of a place that is no more."""


class MovableObjectStore(Generic[P]):
    """The `ObjectStore` of the place where the objects are now.

    Whoever moves them leaves the old place as it is until everybody may know of the new one: what
    is read there until then is right. What is not found there is looked for in the new one.

    Args:
        find_place: Tells where they are; called in any thread.
        open_place: Makes the store of a place.
    """

    def __init__(self, find_place: Callable[[], P], open_place: Callable[[P], ObjectStore]) -> None:
        self._find_place = find_place
        self._open_place = open_place
        self._moving = threading.RLock()
        self._former: list[ObjectStore] = []
        """Kept open: somebody may be reading."""
        self.place = find_place()
        self.current = open_place(self.place)

    def follow(self) -> bool:
        """Go where the objects are now; return whether that is another place."""
        place = self._find_place()
        if place == self.place:
            return False
        with self._moving:
            if place == self.place:
                return True
            before, self.current = self.current, self._open_place(place)
            self.place = place
            self._former.append(before)
            for key, path in before.leave():
                self.current.put_file(key, path)
        return True

    def prepare(self) -> None:
        self.current.prepare()

    def read(self, key: str, offset: int, length: int) -> View:
        try:
            return self.current.read(key, offset, length)
        except _ELSEWHERE:
            if not self.follow():
                raise
        return self.current.read(key, offset, length)

    def read_resident(self, key: str, offset: int, length: int) -> View | None:
        return self.current.read_resident(key, offset, length)

    def read_stored(self, key: str, offset: int, length: int) -> View:
        return self._ask(lambda objects: objects.read_stored(key, offset, length))

    def distrust(self, key: str) -> bool:
        return self.current.distrust(key)

    def size(self, key: str) -> int:
        return self._ask(lambda objects: objects.size(key))

    def put_file(self, key: str, path: Path) -> None:
        while True:
            current = self.current
            current.put_file(key, path)
            # It may have been left meanwhile, and taken care of nothing any more.
            if self._is_left(current) and path.exists():
                continue
            return

    def is_waiting(self, key: str) -> bool:
        return self.current.is_waiting(key)

    def secure(self, others: Iterable[str] = ()) -> None:
        others = list(others)
        self._until_it_stays(lambda objects: objects.secure(others))

    def drain(self) -> None:
        self._until_it_stays(lambda objects: objects.drain())

    def await_room(self) -> None:
        self._until_it_stays(lambda objects: objects.await_room())

    def sync(self, key: str) -> None:
        self.current.sync(key)

    def iter_keys(self, prefix: str) -> Iterator[str]:
        self.follow()
        yield from self.current.iter_keys(prefix)

    def iter_sizes(self, prefix: str) -> Iterator[tuple[str, int]]:
        self.follow()
        yield from self.current.iter_sizes(prefix)

    def is_near(self, key: str) -> bool:
        return self.current.is_near(key)

    def delete(self, key: str) -> None:
        # What stays behind in the old place goes with it, and nothing here knows of it any more.
        self.follow()
        self.current.delete(key)

    def forget_deleted(self) -> None:
        self.current.forget_deleted()

    def figures(self) -> dict[str, int]:
        return self.current.figures()

    def leave(self) -> list[tuple[str, Path]]:
        return self.current.leave()

    def close(self) -> None:
        for objects in (self.current, *self._former):
            objects.close()

    def _ask(self, question: Callable[[ObjectStore], R]) -> R:
        try:
            return question(self.current)
        except _ELSEWHERE:
            if not self.follow():
                raise
        return question(self.current)

    def _until_it_stays(self, wait: Callable[[ObjectStore], None]) -> None:
        """Wait for the current place; where it was left meanwhile, for the next one too."""
        while True:
            current = self.current
            wait(current)
            if not self._is_left(current):
                return

    def _is_left(self, objects: ObjectStore) -> bool:
        with self._moving:
            return self.current is not objects
