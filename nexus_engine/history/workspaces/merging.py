"""Text that both sides changed, merged three ways: where they changed different lines.

The algorithm is that of diff3: lines that all three have in common divide the text into stretches;
of each, who left it as it was gives way to the other.

Source: S. Khanna, K. Kunal, B. C. Pierce, "A Formal Investigation of Diff3", 2007.
"""

from __future__ import annotations

from collections.abc import Iterator
from difflib import SequenceMatcher
from typing import NamedTuple

from nexus_engine.fs.extents import CHUNK_BYTES
from nexus_engine.history.diff import GONE, TEXT_MAX_BYTES, TEXT_MAX_LINES, is_text
from nexus_engine.history.versions import read_content
from nexus_engine.history.workspaces.changes import Plan
from nexus_engine.history.workspaces.contents import CONTENT, iter_agreed
from nexus_engine.meta.reader import View
from nexus_engine.store import Store
from nexus_engine.types import Digest, Extent, Ino, Inode, Seq

Lines = list[bytes]


class Merged(NamedTuple):
    """What both sides made of a file."""

    mine: Seq
    """The ``content_seq`` in the workspace that it was merged from."""
    theirs: Seq
    """The one in the base."""
    content: bytes


class Stored(NamedTuple):
    """Merged content that is in chunks."""

    merged: Merged
    extents: list[Extent]


def merge_conflicts(store: Store, plan: Plan) -> dict[Ino, Merged]:
    """Return what can be merged of what is in conflict, by inode of the workspace."""
    sides = plan.sides
    found: dict[Ino, Merged] = {}
    for change in plan.inodes:
        mine, theirs = sides.live(change.source), sides.live(change.ino)
        old = next(iter_agreed(sides, change.ino, CONTENT), None)
        if CONTENT not in change.conflicts or mine is None or theirs is None or old is None:
            continue
        texts = [
            _read_lines(store, *side) for side in (old, (sides.now, mine), (sides.now, theirs))
        ]
        first, second, third = texts
        if first is None or second is None or third is None:
            continue
        lines = merge_lines(first, second, third)
        if lines is not None:
            merged = Merged(mine.content_seq, theirs.content_seq, b"\n".join(lines))
            found[change.source] = merged
    return found


def store_merged(store: Store, merged: dict[Ino, Merged]) -> dict[Ino, Stored]:
    """Put merged content into chunks. They are in no index until an operation names them."""
    if merged:
        store.announce_writing()
    return {ino: Stored(each, _store(store, each.content)) for ino, each in merged.items()}


def _store(store: Store, content: bytes) -> list[Extent]:
    starts = range(0, len(content), CHUNK_BYTES)
    chunks = [content[start : start + CHUNK_BYTES] for start in starts]
    digests: list[Digest] = store.chunks.put_many(chunks) if chunks else []
    return [
        Extent(start, len(chunk), digest, 0)
        for start, chunk, digest in zip(starts, chunks, digests, strict=True)
    ]


def _read_lines(store: Store, view: View, inode: Inode) -> Lines | None:
    """Return the lines of a text, ``None`` where it is none or too long, or cannot be had."""
    if not inode.is_file or inode.size > TEXT_MAX_BYTES:
        return None
    try:
        content = read_content(store, view, inode, 0, inode.size)
    except GONE:
        return None
    lines = content.split(b"\n")
    return lines if is_text(content) and len(lines) <= TEXT_MAX_LINES else None


def merge_lines(old: Lines, mine: Lines, theirs: Lines) -> Lines | None:
    """Return what both made of a text, ``None`` where they made different things of one place."""
    merged: Lines = []
    at = (0, 0, 0)
    for begin, length in _common(old, mine, theirs):
        ends = tuple(begin)
        first, second, third = (
            lines[start:end]
            for lines, start, end in zip((old, mine, theirs), at, ends, strict=True)
        )
        if second == third or third == first:
            merged += second
        elif second == first:
            merged += third
        else:
            return None
        merged += old[begin.old : begin.old + length]
        at = (begin.old + length, begin.mine + length, begin.theirs + length)
    return merged


class _Place(NamedTuple):
    old: int
    mine: int
    theirs: int


def _common(old: Lines, mine: Lines, theirs: Lines) -> Iterator[tuple[_Place, int]]:
    """Yield where stretches that all three have begin, and their lengths; last an empty one."""
    ours = SequenceMatcher(None, old, mine, autojunk=False).get_matching_blocks()
    others = SequenceMatcher(None, old, theirs, autojunk=False).get_matching_blocks()
    first = second = 0
    while first < len(ours) and second < len(others):
        left, right = ours[first], others[second]
        begin = max(left.a, right.a)
        length = min(left.a + left.size, right.a + right.size) - begin
        if length > 0:
            place = _Place(begin, left.b + begin - left.a, right.b + begin - right.a)
            yield place, length
        if left.a + left.size < right.a + right.size:
            first += 1
        else:
            second += 1
    yield _Place(len(old), len(mine), len(theirs)), 0
