"""What a process asked of its disk, in order, and what it was told in return."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

FileId: TypeAlias = int
Name: TypeAlias = tuple[str, str]
"""A directory, relative to the store (``.`` is the store itself), and a name in it."""


@dataclass(frozen=True, slots=True)
class Write:
    file: FileId
    offset: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Truncate:
    file: FileId
    size: int


@dataclass(frozen=True, slots=True)
class Sync:
    """fsync(2) or fdatasync(2) of a file returned."""

    file: FileId
    covers: int
    """Events before this one: those that had happened when it was called."""


@dataclass(frozen=True, slots=True)
class Named:
    """A name came to mean a file."""

    name: Name
    file: FileId


@dataclass(frozen=True, slots=True)
class Unnamed:
    name: Name


@dataclass(frozen=True, slots=True)
class Moved:
    name: Name
    new: Name


@dataclass(frozen=True, slots=True)
class MadeDirectory:
    name: Name


@dataclass(frozen=True, slots=True)
class SyncDirectory:
    path: str
    covers: int


@dataclass(frozen=True, slots=True)
class Note:
    """What a program was about to do, or that it was done; of one of several writers."""

    writer: str
    done: bool
    step: list[Any]


NameEvent = Named | Unnamed | Moved | MadeDirectory
Event = Write | Truncate | Sync | SyncDirectory | NameEvent | Note


@dataclass
class Recording:
    """A run: the disk as it was before, all of it durable, and what was asked of it."""

    names: dict[Name, FileId]
    directories: set[str]
    contents: dict[FileId, bytes]
    events: list[Event] = field(default_factory=list)

    @classmethod
    def of(cls, store: Path) -> Recording:
        """Begin with what is in a directory."""
        recording = cls({}, set(), {})
        for path in sorted(store.rglob("*")):
            if path.is_dir():
                recording.directories.add(str(path.relative_to(store)))
            elif path.is_file() and not path.name.endswith("-shm"):
                number = len(recording.contents)
                directory = str(path.parent.relative_to(store))
                recording.names[directory, path.name] = number
                recording.contents[number] = path.read_bytes()
        return recording

    def names_after(self, events: Iterable[Event]) -> tuple[dict[Name, FileId], set[str]]:
        """Return the names and directories that there are after some of the events."""
        names, directories = dict(self.names), set(self.directories)
        for event in events:
            match event:
                case Named(name, file):
                    names[name] = file
                case Unnamed(name):
                    names.pop(name, None)
                case Moved(name, new) if name in names:
                    names[new] = names.pop(name)
                case MadeDirectory((directory, name)):
                    directories.add(os.path.normpath(f"{directory}/{name}"))
        return names, directories

    def save(self, path: Path) -> None:
        path.write_bytes(pickle.dumps(self))

    @staticmethod
    def load(path: Path) -> Recording:
        recording = pickle.loads(path.read_bytes())
        assert isinstance(recording, Recording)
        return recording
