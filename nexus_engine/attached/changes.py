"""What is found at a source, to be made a part of the tree: plain values."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from nexus_engine.meta.attachment_queries import SourceObject
from nexus_engine.types import Actor, Digest, Inode, Path, Seq

Progress = Callable[[str, int, int | None], None]
"""Told now and then: what is being done, how much of it is done, of how much (if known)."""
AGENT = "external"
"""In the log, whoever changed something at a source; which of its users that was, it does not
say."""


class Found(NamedTuple):
    """An object that is new, or another version by now."""

    key: bytes
    path: Path
    """Where it is shown, relative to the attachment's directory."""
    etag: str
    size: int
    mtime_ns: int
    known: SourceObject | None
    """What it was."""
    is_directory: bool = False
    """It only says that there is a directory."""
    chunks: list[Digest] | None = None
    """All of its content, where the size was not known before it was read."""
    same_as: Seq | None = None
    """A content of the file that is here which was found to be the same."""
    is_program: bool = False
    """Its owner can execute it there."""


class Gone(NamedTuple):
    """An object that is not there any more."""

    known: SourceObject


class Moved(NamedTuple):
    """An object that must be shown elsewhere: there are others now whose directory has its name."""

    known: SourceObject
    path: Path


Item = Found | Gone | Moved


class Imported(NamedTuple):
    """What became of what was found."""

    added: int = 0
    changed: int = 0
    removed: int = 0
    conflicts: int = 0

    def plus(self, other: Imported) -> Imported:
        return Imported(*map(sum, zip(self, other, strict=True)))

    @property
    def any(self) -> bool:
        return any(self)


def actor_of(root: Inode) -> Actor:
    """Return who bears what others did at a source: what is new belongs to the directory's owner.

    Args:
        root: The attachment's directory.
    """
    return Actor(root.uid, root.gid, command=AGENT, agent=AGENT)


def ignore_progress(what: str, done: int, total: int | None) -> None:
    """For those who show none."""
