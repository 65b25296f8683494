"""Which trees a crash may leave, as far as the notes of a writer tell."""

from __future__ import annotations

import os
import stat
from collections.abc import Container, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tests.crash.campaign.steps import Notes, Step, content_of

Change = tuple[int, bytes | None]
"""Bytes at an offset, or ``None``: the size becomes that number."""


class Entry(NamedTuple):
    """What is at a path."""

    mode: int
    """With the type."""
    ino: int
    content: bytes
    """Or where a symlink points."""
    value: str | None
    """Of the attribute user.campaign."""


def look(top: Path) -> dict[str, Entry]:
    """Return all there is below a directory of a mount."""
    return dict(_walk(top))


class File:
    """A regular file: the bytes that are promised, and what was written on top of them."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.mode = 0o644
        self.value: str | None = None
        self.settled = bytearray()
        self.pending: list[Change] = []

    def settle(self) -> None:
        """close(2) or fsync(2) returned."""
        for change in self.pending:
            _apply(self.settled, change)
        self.pending.clear()

    def allows(self, content: bytes) -> bool:
        """Tell whether a crash may leave this.

        What was written after the last promise may be there up to any byte; in the order in which
        it was written, for it is one session's.
        """
        state = bytearray(self.settled)
        for offset, data in self.pending:
            if state == content:
                return True
            if data is not None:
                part = bytearray(state)
                _apply(part, (offset, data[: _common(content[offset:], data)]))
                if part == content:
                    return True
            _apply(state, (offset, data))
        return state == content


class Tree:
    """A directory as its one writer left it; paths are relative to it.

    Args:
        promises: The calls that promise a file's content when they return.
    """

    def __init__(self, promises: Container[str] = ("fsync", "flush", "close")) -> None:
        self._promises = promises
        self.made: list[File] = []
        self.directories: dict[str, int] = {}
        self.files: dict[str, File] = {}
        self.links: dict[str, str] = {}
        self._open: dict[str, File] = {}

    def apply(self, step: Step) -> None:
        """Do what a call did that returned, or would have done."""
        match step:
            case ["create", path]:
                self._open[path] = self._add(path)
            case ["put", path, seed, length]:
                self._add(path).pending.append((0, content_of(seed, length)))
            case ["open" | "open-truncate" as how, path]:
                self._open[path] = self.files[path]
                if how == "open-truncate":
                    self._open[path].pending.append((0, None))
            case ["write", path, offset, seed, length]:
                if length:
                    self._open[path].pending.append((offset, content_of(seed, length)))
            case ["truncate", path, size]:
                self._open[path].pending.append((size, None))
            case ["fsync" | "flush" | "close", path]:
                if step[0] in self._promises:
                    self._open[path].settle()
                if step[0] == "close":
                    del self._open[path]
            case ["mkdir", path, mode]:
                self.directories[path] = mode
            case ["rmdir", path]:
                del self.directories[path]
            case ["unlink", path]:
                self._remove(path)
            case ["symlink", target, path]:
                self.links[path] = target
            case ["link", path, new]:
                self.files[new] = self.files[path]
            case ["rename", path, new]:
                self._rename(path, new)
            case ["chmod", path, mode]:
                self.files[path].mode = mode
            case ["setxattr", path, value]:
                self.files[path].value = value
            case ["sync" | "gc"]:
                pass
            case _:
                raise ValueError(step)

    def _add(self, path: str) -> File:
        file = self.files[path] = File(len(self.made))
        self.made.append(file)
        return file

    def _remove(self, path: str) -> None:
        if self.files.pop(path, None) is None:
            del self.links[path]

    def _rename(self, path: str, new: str) -> None:
        if path in self.files and self.files.get(new) is self.files[path]:
            return  # rename(2): two names of one file, so nothing happens
        for names in (self.directories, self.files, self.links):
            _move(names, path, new)

    def problems(self, found: Mapping[str, Entry], contents: Sequence[File] = ()) -> list[str]:
        """Return how what was found differs from this.

        Args:
            contents: The files made, in a later state of this tree that contents may be from.
        """
        names = {**self.directories, **self.files, **self.links}
        problems = [f"{path} is gone" for path in names if path not in found]
        inodes: dict[int, File] = {}
        for path, entry in found.items():
            problems += self._flaws(path, entry, contents or self.made)
            file = self.files.get(path)
            if file is not None and inodes.setdefault(entry.ino, file) is not file:
                problems.append(f"{path} has become a link of another file")
        return problems

    def _flaws(self, path: str, entry: Entry, contents: Sequence[File]) -> Iterator[str]:
        mode = stat.S_IMODE(entry.mode)
        file = self.files.get(path)
        if path in self.directories and stat.S_ISDIR(entry.mode):
            if mode != self.directories[path]:
                yield f"{path} has the mode {mode:o}"
        elif path in self.links and stat.S_ISLNK(entry.mode):
            if entry.content != self.links[path].encode():
                yield f"{path} points elsewhere"
        elif file is not None and stat.S_ISREG(entry.mode):
            if mode != file.mode:
                yield f"{path} has the mode {mode:o} and should have {file.mode:o}"
            if entry.value != file.value:
                yield f"{path} has another attribute"
            if not contents[file.number].allows(entry.content):
                yield f"{path}: {len(entry.content)} bytes that nobody was promised"
        else:
            yield f"{path} is there and should not be"


def judge_tree(top: Path, notes: Notes) -> list[str]:
    """Return what is wrong with a writer's directory: as before the last call, or after it."""
    tree = Tree()
    for step in notes.done:
        tree.apply(step)
    found = look(top)
    problems = tree.problems(found)
    if not problems or notes.in_flight is None:
        return problems
    tree.apply(notes.in_flight)
    after = tree.problems(found)
    return after and [f"amid {notes.in_flight}:", *problems, "or else:", *after]


def _apply(content: bytearray, change: Change) -> None:
    offset, data = change
    size = offset if data is None else offset + len(data)
    if data is None:
        del content[size:]
    if len(content) < offset:
        content += bytes(offset - len(content))
    if data is not None:
        content[offset:size] = data


def _common(content: bytes, data: bytes) -> int:
    """Return how many bytes at the beginning are the same."""
    low, high = 0, min(len(content), len(data))
    while low < high:
        middle = (low + high + 1) // 2
        if content[:middle] == data[:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _move(names: dict[str, Any], path: str, new: str) -> None:
    for name in [name for name in names if name == path or name.startswith(path + "/")]:
        names[new + name.removeprefix(path)] = names.pop(name)


def _walk(top: Path) -> Iterator[tuple[str, Entry]]:
    for listed in os.scandir(top):
        path, status = Path(listed.path), listed.stat(follow_symlinks=False)
        content, value = b"", None
        if stat.S_ISREG(status.st_mode):
            content = path.read_bytes()
            if "user.campaign" in os.listxattr(path):
                value = os.getxattr(path, "user.campaign").decode()
        elif stat.S_ISLNK(status.st_mode):
            content = os.fsencode(path.readlink())
        yield listed.name, Entry(status.st_mode, status.st_ino, content, value)
        if stat.S_ISDIR(status.st_mode):
            for name, entry in _walk(path):
                yield f"{listed.name}/{name}", entry
