"""The attributes, content and xattrs of one inode under an undo."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from typing import Any, NamedTuple, TypeVar

from nexus_engine.history.undo.cells import BASE, Outcome, settle, settle_by_force
from nexus_engine.history.undo.lives import History
from nexus_engine.meta.reader import AsOfReader
from nexus_engine.types import SIZE_MAX, Extent, Inode, Seq

CONTENT = "content"
MODE = "mode"
OWNER = "owner"
XATTR = "xattr "

V = TypeVar("V", bound=Hashable)


class Attributes(NamedTuple):
    """What is to become of each attribute of an inode."""

    last: Inode
    """The newest version that counts: the current one, or the one that would come back."""
    mode: Outcome[int]
    owner: Outcome[tuple[int, int]]
    content: Outcome[Seq]
    content_from: Inode | None
    """The version whose content comes back, if it differs from the last."""
    mtime_ns: int
    """Not for directories, whose entries have a say."""
    atime_ns: int | None
    """``None``: nothing that is undone set it."""
    xattrs: dict[bytes, Outcome[bytes | None]]

    def outcomes(self) -> Iterator[tuple[str, Outcome[Any]]]:
        """Yield what somebody can be in the way of. Times are not: the latest one counts."""
        yield MODE, self.mode
        yield OWNER, self.owner
        yield CONTENT, self.content
        for name, outcome in self.xattrs.items():
            yield XATTR + name.decode(errors="backslashreplace"), outcome

    def selected(self) -> Iterator[tuple[str, Seq]]:
        """Yield each selected change that is not taken back already."""
        for what, outcome in self.outcomes():
            for seq in (*outcome.reverted, *outcome.conflicts):
                yield what, seq

    def others(self) -> list[Seq]:
        """Return what others changed that stays."""
        return [seq for _, outcome in self.outcomes() for seq in outcome.others]


def settle_attributes(
    history: History,
    detours: list[tuple[Seq, Seq]],
    is_selected: Callable[[Seq], bool],
    is_without: Callable[[Seq], bool],
    before: Callable[[Inode], Iterator[Inode]],
    as_of: Callable[[Seq], AsOfReader],
    *,
    force: bool,
    compare: bool = False,
) -> Attributes | None:
    """Decide every attribute of an inode.

    Args:
        is_without: Whether an operation is selected or undone already.
        before: Yields the versions before one, newest first.
        compare: Find out whether what others did to the content cancels out, even if no selected
            change depends on it.

    Returns:
        ``None`` if no version of it counts.
    """
    versions = history.inodes(detours)
    if not versions:
        return None
    decide = settle_by_force if force else settle

    def outcome(
        value: Callable[[Inode], V], is_selected: Callable[[Seq], bool] = is_selected
    ) -> Outcome[V]:
        return decide(value(versions[0]), _steps(versions, value), is_selected)

    def time(value: Callable[[Inode], int]) -> int:
        return time_of(outcome(value, is_without), value)

    def time_of(settled: Outcome[int], value: Callable[[Inode], int]) -> int:
        if settled.target_seq != BASE or not settled.reverted:
            return settled.target
        return _time_without(versions[0], before(versions[0]), value, is_without)

    last = versions[-1]
    content = outcome(_content_seq)
    same: dict[Seq, Seq] = {}
    if content.others and (compare or content.reverted or content.conflicts):
        # An undo gives old content a new number: compare bytes.
        same = _same_contents(versions, as_of)
        content = outcome(lambda version: same[version.content_seq])
    xattrs: dict[bytes, Outcome[bytes | None]] = {}
    for name, (base, steps) in history.xattrs.items():
        kept = [
            step for step in steps if not any(born <= step[0] <= died for born, died in detours)
        ]
        xattrs[name] = decide(base, kept, is_selected)
    atime = outcome(_atime, is_without)
    return Attributes(
        last=last,
        mode=outcome(lambda version: version.mode),
        owner=outcome(lambda version: (version.uid, version.gid)),
        content=content,
        content_from=(
            _version_at(versions, content.target_seq)
            if content.target != same.get(last.content_seq, last.content_seq)
            else None
        ),
        mtime_ns=time(lambda version: version.mtime_ns),
        atime_ns=time_of(atime, _atime) if atime.reverted else None,
        xattrs=xattrs,
    )


def _time_without(
    first: Inode,
    earlier: Iterator[Inode],
    value: Callable[[Inode], int],
    is_without: Callable[[Seq], bool],
) -> int:
    """Return a time from before the first change, but for what was undone since."""
    oldest = first
    for version in earlier:
        if value(version) != value(oldest) and not is_without(oldest.from_seq):
            break
        oldest = version
    return value(oldest)


def _atime(version: Inode) -> int:
    return version.atime_ns


def _content_seq(version: Inode) -> Seq:
    return version.content_seq


def _steps(versions: list[Inode], value: Callable[[Inode], V]) -> list[tuple[Seq, V]]:
    steps = []
    before = value(versions[0])
    for version in versions[1:]:
        after = value(version)
        if after != before:
            steps.append((version.from_seq, after))
            before = after
    return steps


def _version_at(versions: list[Inode], seq: Seq) -> Inode:
    if seq == BASE:
        return versions[0]
    return next(version for version in versions if version.from_seq == seq)


def _same_contents(versions: list[Inode], as_of: Callable[[Seq], AsOfReader]) -> dict[Seq, Seq]:
    """Give contents that are equal the same number: that of the first."""
    numbers: dict[tuple[int, tuple[Extent, ...]], Seq] = {}
    same: dict[Seq, Seq] = {}
    for version in versions:
        if version.content_seq not in same:
            extents = as_of(version.from_seq).extents(version.ino, 0, SIZE_MAX)
            content = (version.size, tuple(extents))
            same[version.content_seq] = numbers.setdefault(content, version.content_seq)
    return same
