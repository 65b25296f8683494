"""File handles: numbers that the kernel gives back with each request on something open."""

from __future__ import annotations

from typing import Generic, TypeVar

T = TypeVar("T")


class HandleTable(Generic[T]):
    """Numbers for open things. A number is not used again."""

    def __init__(self) -> None:
        self._open: dict[int, T] = {}
        self._numbers: dict[int, int] = {}
        self._next = 1

    def __len__(self) -> int:
        return len(self._open)

    def add(self, thing: T, number: int) -> int:
        """Return the handle of something opened, whose inode number is this."""
        fh = self._next
        self._next += 1
        self._open[fh] = thing
        self._numbers[fh] = number
        return fh

    def number(self, fh: int) -> int | None:
        """Return the inode number of something open."""
        return self._numbers.get(fh)

    def get(self, fh: int) -> T:
        return self._open[fh]

    def pop(self, fh: int) -> T:
        del self._numbers[fh]
        return self._open.pop(fh)

    def values(self) -> list[T]:
        return list(self._open.values())
