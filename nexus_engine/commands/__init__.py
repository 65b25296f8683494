"""What can be asked of a store, whoever asks: command line, control file, other front ends.

A ``Request`` names a verb and its arguments; ``execute`` checks them, has the engine do it and
returns a reply that JSON can carry. Nothing here knows how a request was typed or how a reply is
shown.

Importing this package is cheap: what a verb needs is imported when it is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Container
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from nexus_engine.store import Store
    from nexus_engine.types import Actor, Ino

Reply = dict[str, Any]
"""What JSON can carry. Paths in it are text, bytes that are not UTF-8 as lone surrogates."""

Progress = Callable[[str, int, int | None], None]
"""Told now and then: what is being done, how much of it is done, of how much (if known)."""


class Request(NamedTuple):
    """A verb with its arguments, as ``nexus_engine.commands.arguments`` describes them."""

    verb: str
    args: dict[str, Any]


class Work(NamedTuple):
    """What a verb is given besides its arguments; fields as ``execute`` describes them."""

    store: Store
    actor: Actor
    progress: Progress
    keep: Container[Ino]


def execute(
    store: Store,
    request: Request,
    actor: Actor,
    progress: Progress,
    *,
    keep: Container[Ino] = (),
) -> Reply:
    """Do what is asked.

    Args:
        store: Open, and used by nobody else meanwhile. Long work blocks the calling thread.
        actor: Who asks: bears the operations that come of it, and is held to its permissions.
        keep: Inodes that stay usable without a name, because they are open.

    Raises:
        InvalidCommand: No such verb, or arguments that do not fit it.
        CorruptMetadata: A row holds what no row can hold.
        EngineError: As the verb has it.
    """
    from nexus_engine.commands.verbs import carry_out

    return carry_out(Work(store, actor, progress, keep), request)


def can_change(request: Request) -> bool:
    """Return whether a request is of a kind that can change the store."""
    from nexus_engine.commands.verbs import VERBS

    entry = VERBS.get(request.verb)
    return entry is not None and entry.changes


def ignore_progress(what: str, done: int, total: int | None) -> None:
    """For callers that show no progress."""
