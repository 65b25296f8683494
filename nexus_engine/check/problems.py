"""What a check reports."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from nexus_engine.store import Store


class Problem(NamedTuple):
    """One violated invariant."""

    code: str
    """Names the invariant, for programs; docs list them."""
    where: str
    message: str
    """What is wrong and what to do about it."""


class Invariant(NamedTuple):
    """Something that holds in every sound store."""

    name: str
    find: Callable[[Store], Iterator[Problem]]


RESTORE_BACKUP = "keep a copy of the store, then restore meta.db from a backup"
USE_HISTORY = "its content from before can be had with nexus-ctl versions and restore"


def show(name: bytes) -> str:
    """Return a name as one line of text."""
    return name.decode(errors="backslashreplace").encode("unicode_escape").decode()
