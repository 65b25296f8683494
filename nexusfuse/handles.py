"""File handles: numbers that the kernel gives back with each request on something open."""

from __future__ import annotations

from typing import Generic, TypeVar

T = TypeVar("T")


class HandleTable(Generic[T]):
    """Numbers for open things. A number is not used again."""

    def __init__(self) -> None:
        self._open: dict[int, T] = {}
        self._next = 1

    def __len__(self) -> int:
        return len(self._open)

    def add(self, thing: T) -> int:
        fh = self._next
        self._next += 1
        self._open[fh] = thing
        return fh

    def get(self, fh: int) -> T:
        return self._open[fh]

    def pop(self, fh: int) -> T:
        return self._open.pop(fh)

    def values(self) -> list[T]:
        return list(self._open.values())
