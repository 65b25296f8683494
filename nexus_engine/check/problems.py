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
    """What is affected: a path, where there is one."""
    message: str
    """What is wrong and what to do about it."""


PROBLEMS_MAX = 100
"""Of one invariant; where everything is broken, more of the same tells nothing."""


class Invariant(NamedTuple):
    """Something that holds in every sound store."""

    name: str
    find: Callable[[Store], Iterator[Problem]]
    most: int | None = None
    """Problems that are told; ``None``: ``PROBLEMS_MAX``."""


REPAIR = "fsck --repair mends it"
RESTORE_BACKUP = "keep a copy of the store, then restore meta.db from a backup"
