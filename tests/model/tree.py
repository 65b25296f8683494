"""What two filesystems are compared by: attributes, and whole trees."""

from __future__ import annotations

import stat as stat_bits
from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import Enum


class Kind(Enum):
    FILE = "file"
    DIRECTORY = "directory"
    SYMLINK = "symlink"
    FIFO = "fifo"
    SOCKET = "socket"
    CHARACTERS = "character device"
    BLOCKS = "block device"

    @classmethod
    def of(cls, st_mode: int) -> Kind:
        return _KINDS[stat_bits.S_IFMT(st_mode)]

    @property
    def type_bits(self) -> int:
        """What ``st_mode`` has for it."""
        return next(bits for bits, kind in _KINDS.items() if kind is self)

    @property
    def is_device(self) -> bool:
        return self in (Kind.CHARACTERS, Kind.BLOCKS)


_KINDS = {
    stat_bits.S_IFREG: Kind.FILE,
    stat_bits.S_IFDIR: Kind.DIRECTORY,
    stat_bits.S_IFLNK: Kind.SYMLINK,
    stat_bits.S_IFIFO: Kind.FIFO,
    stat_bits.S_IFSOCK: Kind.SOCKET,
    stat_bits.S_IFCHR: Kind.CHARACTERS,
    stat_bits.S_IFBLK: Kind.BLOCKS,
}
SPECIAL = (Kind.FIFO, Kind.SOCKET, Kind.CHARACTERS, Kind.BLOCKS)


@dataclass(frozen=True, slots=True)
class Stat:
    """What stat(2) tells.

    ``size`` is None where it means nothing (directories, special files). ``mtime_ns``
    is None where the reference does not know it: not set by utimensat(2), or
    changed since; ``fresh`` then says that it must lie within the run.
    """

    ino: int
    kind: Kind
    mode: int
    uid: int
    gid: int
    nlink: int
    size: int | None
    mtime_ns: int | None
    fresh: bool = False
    rdev: int = 0


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of a tree, in a form that two filesystems have in common.

    ``content`` is the SHA-256 of a file, or a symlink's target; ``links`` the
    paths of a file that has more than one in this tree, ascending.
    """

    stat: Stat
    content: bytes | None
    xattrs: tuple[tuple[bytes, bytes], ...]
    links: tuple[bytes, ...]


Tree = dict[bytes, Entry]


def joined(directory: bytes, name: bytes) -> bytes:
    return directory + b"/" + name if directory else name


def below(path: bytes, tree: Tree) -> Tree:
    """Return a directory and what it holds; which names are of one file is left out."""
    found = {
        other: replace(entry, links=())
        for other, entry in tree.items()
        if not path or other == path or other.startswith(path + b"/")
    }
    return {
        other: entry
        if entry.stat.kind is Kind.DIRECTORY
        else replace(entry, stat=replace(entry.stat, nlink=1))
        for other, entry in found.items()
    }


def fresh_since(expected: Stat, actual: Stat, started_ns: int, now_ns: int) -> bool:
    """Tell whether an mtime that nobody set lies within the run, give or take a clock tick."""
    if not expected.fresh or actual.mtime_ns is None:
        return True
    return started_ns - 1_000_000_000 <= actual.mtime_ns <= now_ns + 1_000_000_000


def stat_difference(expected: Stat, actual: Stat) -> list[str]:
    """Return the fields that differ; what ``expected`` doesn't know is not compared."""
    names = ["kind", "mode", "uid", "gid", "nlink", "size", "rdev"]
    if expected.mtime_ns is not None:
        names.append("mtime_ns")
    return [
        f"{name}: expected {_shown(name, wanted)}, found {_shown(name, got)}"
        for name in names
        if (wanted := getattr(expected, name)) != (got := getattr(actual, name))
    ]


def tree_difference(expected: Tree, actual: Tree, started_ns: int, now_ns: int) -> list[str]:
    """Return one line per difference, empty when the trees are the same."""
    lines = [f"{shortened(path)}: missing" for path in sorted(expected.keys() - actual.keys())]
    lines += [f"{shortened(path)}: unexpected" for path in sorted(actual.keys() - expected.keys())]
    for path in sorted(expected.keys() & actual.keys()):
        want, got = expected[path], actual[path]
        differences = stat_difference(want.stat, got.stat)
        if not fresh_since(want.stat, got.stat, started_ns, now_ns):
            differences.append(f"mtime_ns: should lie within the run, is {got.stat.mtime_ns}")
        for name in ("content", "xattrs", "links"):
            if getattr(want, name) != getattr(got, name):
                differences.append(
                    f"{name}: expected {_shown(name, getattr(want, name))}, "
                    f"found {_shown(name, getattr(got, name))}"
                )
        lines += [f"{shortened(path)}: {difference}" for difference in differences]
    return lines


def hard_link_groups(paths: Iterable[tuple[bytes, int]]) -> dict[int, tuple[bytes, ...]]:
    """Return, by inode, the paths of each file that has more than one; else none."""
    groups: dict[int, list[bytes]] = {}
    for path, ino in paths:
        groups.setdefault(ino, []).append(path)
    return {ino: tuple(sorted(group)) if len(group) > 1 else () for ino, group in groups.items()}


def shortened(value: bytes) -> str:
    """Return bytes in a form that fits a line of a report."""
    if len(value) <= 60:
        return repr(value)
    return f"{value[:24]!r}…{value[-12:]!r} ({len(value)} bytes)"


def _shown(name: str, value: object) -> str:
    if name == "mode" and isinstance(value, int):
        return oct(value)
    return text if len(text := repr(value)) <= 300 else f"{text[:280]}… ({len(text)} characters)"
