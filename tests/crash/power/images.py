"""Disks that a power loss could leave: what was synced, and any part of what was not.

Sources: fsync(2) promises a file's bytes and not its name, which is the directory's to sync;
unsynced bytes reach the disk in any order, a sector at a time; names of one directory reach it in
their order, as on the journaling file systems.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

from tests.crash.power.events import (
    FileId,
    Name,
    NameEvent,
    Recording,
    Sync,
    SyncDirectory,
    Truncate,
    Write,
)

SECTORS = (512, 4096)
FATES = ("nothing", "nothing", "prefix", "some", "some", "all")
"""Of a file's unsynced writes: which of them the disk has."""


class Disk:
    """A recording up to an event."""

    def __init__(self, recording: Recording, end: int) -> None:
        self._recording = recording
        self._events = recording.events[:end]
        self.torn = 0
        """Writes that reached the disk in part."""
        self.lost = 0
        """Writes that did not reach it at all."""

    def build(
        self,
        target: Path,
        rng: random.Random | None,
        fate_of: Callable[[Name], str] | None = None,
    ) -> None:
        """Make the directory.

        Args:
            rng: Decides what is lost; ``None``: no names are.
            fate_of: What becomes of a file's unsynced bytes; one of `FATES`.
        """
        names, directories = self._names(rng)
        for directory in [".", *sorted(directories)]:
            (target / directory).mkdir(mode=0o700, parents=True, exist_ok=True)
        for name, file in names.items():
            fate = "all" if rng is None else rng.choice(FATES)
            fate = fate if fate_of is None else fate_of(name)
            (target / name[0] / name[1]).write_bytes(self._content(file, fate, rng))

    def _names(self, rng: random.Random | None) -> tuple[dict[Name, FileId], set[str]]:
        ends = self._name_ends(rng)
        names, directories = self._recording.names_after(
            event
            for position, event in enumerate(self._events)
            if isinstance(event, NameEvent) and position < ends[event.name[0]]
        )
        kept = {name: file for name, file in names.items() if name[0] in {".", *directories}}
        return kept, directories

    def _name_ends(self, rng: random.Random | None) -> dict[str, int]:
        """Return for each directory up to which event the disk has its names."""
        total = len(self._events)
        ends: dict[str, int] = {}
        for event in self._events:
            if isinstance(event, NameEvent):
                ends.setdefault(event.name[0], 0)
            elif isinstance(event, SyncDirectory):
                # Of two at once, the one that ends later may have begun earlier.
                ends[event.path] = max(ends.get(event.path, 0), event.covers)
        if rng is None:
            return dict.fromkeys(ends, total)
        return {path: rng.choice((end, rng.randint(end, total))) for path, end in ends.items()}

    def _content(self, file: FileId, fate: str, rng: random.Random | None) -> bytes:
        content = bytearray(self._recording.contents.get(file, b""))
        syncs = (e for e in self._events if isinstance(e, Sync) and e.file == file)
        synced = max((event.covers for event in syncs), default=0)
        own = [
            (position, event)
            for position, event in enumerate(self._events)
            if isinstance(event, Write | Truncate) and event.file == file
        ]
        pending = [event for position, event in own if position >= synced]
        for position, event in own:
            if position < synced:
                _apply(content, event)
        if rng is not None and fate == "prefix":
            self.lost += len(pending)
            pending = pending[: rng.randint(0, len(pending))]
            self.lost -= len(pending)
        if fate == "nothing":
            self.lost += len(pending)
        elif fate == "some" and rng is not None:
            self._apply_sectors(content, pending, rng)
        else:
            for event in pending:
                _apply(content, event)
        return bytes(content)

    def _apply_sectors(
        self, content: bytearray, pending: list[Write | Truncate], rng: random.Random
    ) -> None:
        """Have each sector as it was at some time since the last sync; the size, too.

        The kernel writes pages: a sector that has a later write has the earlier ones as well.
        """
        sector, latest = rng.choice(SECTORS), bytearray(content)
        share = rng.choice((0.1, 0.5, 0.9))
        size = len(content)
        for event in pending:
            _apply(latest, event)
            size = rng.choice((size, len(latest)))
            if isinstance(event, Truncate):
                continue
            first, last = event.offset // sector, (event.offset + len(event.data) - 1) // sector
            written = 0
            for start in range(first * sector, (last + 1) * sector, sector):
                if rng.random() < share:
                    part = bytes(latest[start : start + sector])
                    _apply(content, Write(event.file, start, part))
                    written += 1
            self.lost += written == 0
            self.torn += 0 < written <= last - first
        _apply(content, Truncate(0, size))


def _apply(content: bytearray, event: Write | Truncate) -> None:
    if isinstance(event, Truncate):
        del content[event.size :]
        content += bytes(event.size - len(content))
        return
    if len(content) < event.offset:
        content += bytes(event.offset - len(content))
    content[event.offset : event.offset + len(event.data)] = event.data
