"""Mend content: extents that cannot be, overlap, or are not what was written.

What bytes a range had is never guessed: a range of which it is not known refers to `LOST`, and to
read it is an error. Zeros would be wrong bytes.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable, Iterator

import msgspec

from nexus_engine.check.content import changed_contents
from nexus_engine.check.naming import inode_name, show
from nexus_engine.meta import check_content_queries, check_log_queries, repair_queries
from nexus_engine.meta.check_content_queries import Written
from nexus_engine.meta.reader import EXTENT_MAX_BYTES
from nexus_engine.meta.repair_queries import Slice
from nexus_engine.oplog.verify import is_genuine
from nexus_engine.repair.mending import LOST, Mending, Step
from nexus_engine.repair.tree import revive
from nexus_engine.types import Digest, Extent, Ino, Inode


def extents(mending: Mending) -> None:
    """Extents with impossible numbers, or of what is no file."""
    tx, connection = mending.tx, mending.connection
    inos = dict.fromkeys(ino for _, ino, _ in check_content_queries.wrong_extents(connection))
    owners = {ino: tx.find_inode(Ino(ino)) or tx.find_departed(Ino(ino)) for ino in inos}
    if not all(owner is not None and owner.is_file for owner in owners.values()):
        mending.find_place()
    for ino, owner in owners.items():
        if owner is None:
            _make_file(mending, ino)
        elif not owner.is_file:
            new = tx.new_ino()
            repair_queries.give_content(connection, ino, new)
            mending.inode("extent-fields", ino, "is no file; its content is a file of its own")
            _make_file(mending, new)
            ino = new
        for past in (False, True):
            rows = repair_queries.slices(connection, ino, past=past)
            right = list(_possible(rows))
            if right != rows:
                repair_queries.put_slices(connection, ino, right, past=past)
                mending.inode(
                    "extent-fields", ino, "bytes of which nothing is known read as errors"
                )


def _make_file(mending: Mending, ino: int) -> Inode:
    """Make a file for content that is nobody's."""
    connection = mending.connection
    if not repair_queries.slices(connection, ino, past=False):
        # Only of the past: then the last of it is the content now.
        rows = repair_queries.slices(connection, ino, past=True)
        repair_queries.put_slices(connection, ino, (), past=True)
        latest = _laid(row._replace(to_seq=None) for row in rows)
        repair_queries.put_slices(connection, ino, latest, past=False)
    inode = revive(mending, ino, stat.S_IFREG | 0o600)
    path = mending.put_aside(inode)
    mending.inode("extent-fields", ino, f"is made for content that was nobody's: {path}")
    return inode


def _possible(rows: list[Slice]) -> Iterator[Slice]:
    """Yield extents as they can be; lost ones as such, up to where the next one begins."""
    starts = sorted(row.extent.start for row in rows)
    for row in rows:
        extent = row.extent
        if extent.start < 0:
            continue
        if (
            0 < extent.length <= EXTENT_MAX_BYTES
            and extent.chunk_offset >= 0
            and len(extent.digest) == len(LOST)
        ):
            yield row
            continue
        length = extent.length if 0 < extent.length <= EXTENT_MAX_BYTES else 1
        following = next((start for start in starts if start > extent.start), None)
        if following is not None and not 0 < extent.length <= EXTENT_MAX_BYTES:
            length = min(following - extent.start, EXTENT_MAX_BYTES)
        yield row._replace(extent=Extent(extent.start, length, LOST, 0))


def overlaps(mending: Mending) -> None:
    connection = mending.connection
    now = {ino for ino, _ in check_content_queries.overlapping_extents(connection)}
    for ino in sorted(now):
        rows = repair_queries.slices(connection, ino, past=False)
        repair_queries.put_slices(connection, ino, _laid(rows), past=False)
        mending.inode("extent-range-overlap", ino, "has the bytes of what was written later")
    then = {ino for ino, _, _ in check_content_queries.overlapping_past_extents(connection)}
    for ino in sorted(then):
        rows = repair_queries.slices(connection, ino, past=True)
        repair_queries.put_slices(connection, ino, _laid_then(rows), past=True)
        action = "had the bytes of what was written later"
        mending.inode("extent-past-range-overlap", ino, action)


def _laid(rows: Iterable[Slice]) -> list[Slice]:
    """Return rows one over the other, the latest uppermost."""
    laid: list[Slice] = []
    for row in sorted(rows, key=lambda row: row.from_seq):
        laid = [piece for old in laid for piece in _outside(old, row.extent)] + [row]
    return laid


def _laid_then(rows: list[Slice]) -> list[Slice]:
    """Return past rows likewise, each below those that were true at the same time."""
    laid: list[Slice] = []
    for row in sorted(rows, key=lambda row: row.from_seq):
        beneath: list[Slice] = []
        for old in laid:
            beneath += _beneath(old, row)
        laid = [*beneath, row]
    return laid


def _beneath(old: Slice, new: Slice) -> Iterator[Slice]:
    """Yield what shows of a past row that a later one covers for some of the time."""
    assert old.to_seq is not None
    assert new.to_seq is not None
    apart = old.extent.end <= new.extent.start or new.extent.end <= old.extent.start
    if apart or old.to_seq <= new.from_seq or new.to_seq <= old.from_seq:
        yield old
        return
    if old.from_seq < new.from_seq:
        yield old._replace(to_seq=new.from_seq)
    for piece in _outside(old, new.extent):
        yield piece._replace(from_seq=max(old.from_seq, new.from_seq))
    if new.to_seq < old.to_seq:
        yield _clipped(old, new.extent.start, new.extent.end)._replace(from_seq=new.to_seq)


def _outside(row: Slice, cover: Extent) -> Iterator[Slice]:
    extent = row.extent
    if extent.end <= cover.start or cover.end <= extent.start:
        yield row
        return
    if extent.start < cover.start:
        yield _clipped(row, extent.start, cover.start)
    if extent.end > cover.end:
        yield _clipped(row, cover.end, extent.end)


def _clipped(row: Slice, start: int, end: int) -> Slice:
    extent = row.extent
    start, end = max(start, extent.start), min(end, extent.end)
    skipped = start - extent.start
    kept = Extent(start, end - start, extent.digest, extent.chunk_offset + skipped)
    return row._replace(extent=kept)


def short_chunks(mending: Mending) -> None:
    connection = mending.connection
    found = {ino for _, ino, _, _ in check_content_queries.short_chunks(connection)}
    for ino in sorted(found):
        for past in (False, True):
            rows = repair_queries.slices(connection, ino, past=past)
            right = [piece for row in rows for piece in _within_chunk(mending, row)]
            if right != rows:
                repair_queries.put_slices(connection, ino, right, past=past)
        mending.inode("extent-chunk", ino, "bytes that its chunk does not have read as errors")


def _within_chunk(mending: Mending, row: Slice) -> Iterator[Slice]:
    length = repair_queries.chunk_length(mending.connection, row.extent.digest)
    there = row.extent.length if length is None else length - row.extent.chunk_offset
    if there >= row.extent.length:
        yield row
        return
    end = row.extent.start + max(there, 0)
    if there > 0:
        yield _clipped(row, row.extent.start, end)
    yield row._replace(extent=Extent(end, row.extent.end - end, LOST, 0))


def sizes(mending: Mending) -> None:
    tx, connection = mending.tx, mending.connection
    for table, ino, seq, _, logged in list(check_content_queries.wrong_sizes(connection)):
        if not is_genuine(connection, seq):
            continue
        repair_queries.set_sizes(connection, table, ino, seq, logged)
        mending.inode("content-size", ino, f"has {logged} bytes, as op-{seq} left it with")
    for number, end, _ in list(check_content_queries.oversized_extents(connection)):
        inode = tx.get_inode(Ino(number))
        tx.put_inode(inode._replace(size=end, content_seq=tx.seq, from_seq=tx.seq))
        mending.inode("extent-size", number, f"has {end} bytes, as much as there is content")


def contents(mending: Mending) -> None:
    """Extents that are not what the log says was written, where that is one whole chunk."""
    connection = mending.connection
    for written in list(changed_contents(connection)):
        digest = Digest(bytes.fromhex(written.sha256))
        if written.expected != 1 or written.place is None:
            continue
        start, length = msgspec.json.decode(written.place, type=tuple[int, int])
        if (repair_queries.chunk_length(connection, digest) or 0) < length:
            continue  # it was a part of a chunk, or the chunk is lost
        right = Extent(start, length, digest, 0)
        # Remainders of what it cut in two lie beside it.
        there = [e for e in written.extents if e.start < right.end and e.end > right.start]
        if len(there) == 1:
            done = _replace(mending, written, there[0], right)
        else:
            done = _lay_again(mending, written, right)
        if done:
            mending.inode("content-changed", written.ino, f"is what op-{written.seq} wrote")


def _replace(mending: Mending, written: Written, wrong: Extent, right: Extent) -> bool:
    """Put right the only extent that an operation laid down."""
    for past in (False, True):
        rows = repair_queries.slices(mending.connection, written.ino, past=past)
        for index, row in enumerate(rows):
            if row.extent == wrong and row.from_seq == written.seq:
                rows[index] = row._replace(extent=right)
                repair_queries.put_slices(mending.connection, written.ino, rows, past=past)
                return True
    return False


def _lay_again(mending: Mending, written: Written, right: Extent) -> bool:
    """Put back the only extent that an operation laid down, where that is the content now."""
    inode = mending.tx.find_inode(written.ino)
    if inode is None or inode.content_seq != written.seq:
        return False
    # Nothing of the content of now is later than the operation that it is of, whatever a row says.
    rows = [
        row._replace(from_seq=min(row.from_seq, written.seq))
        for row in repair_queries.slices(mending.connection, written.ino, past=False)
    ]
    laid = _laid([*rows, Slice(right, written.seq, None)])
    repair_queries.put_slices(mending.connection, written.ino, laid, past=False)
    # Nor did anything else begin to be true after it: such a row is of another file, if the log
    # has nothing else to say of this one.
    past = repair_queries.slices(mending.connection, written.ino, past=True)
    ours = [
        row
        for row in past
        if row.from_seq < written.seq
        or repair_queries.concerns(mending.connection, row.from_seq, written.ino)
    ]
    if ours != past:
        repair_queries.put_slices(mending.connection, written.ino, ours, past=True)
    return True


def dates_and_orphans(mending: Mending) -> None:
    connection = mending.connection
    found = list(check_content_queries.unlogged_contents(connection))
    for ino, _ in found:
        mending.inode("content-unlogged", ino, "its content is as old as its version")
    if found:
        repair_queries.date_contents(connection, check_log_queries.log_end(connection))
    for ino, seq in list(check_content_queries.orphan_hashes(connection)):
        repair_queries.drop_hash(connection, ino, seq)
        where = inode_name(connection, ino)
        mending.say("content-hash", where, f"the SHA-256 of op-{seq} is gone")
    orphans = list(check_content_queries.orphan_xattrs(connection))
    for ino, name in orphans:
        mending.say("xattr-orphan", f"attribute {show(name)}", f"of inode {ino} is gone")
    if orphans:
        repair_queries.drop_orphans(connection)


STEPS = (
    Step(frozenset({"extent-fields"}), extents),
    Step(frozenset({"extent-range-overlap", "extent-past-range-overlap"}), overlaps),
    Step(frozenset({"extent-chunk"}), short_chunks),
    Step(frozenset({"content-size", "extent-size"}), sizes),
    Step(frozenset({"content-changed"}), contents),
    Step(frozenset({"content-unlogged", "content-hash", "xattr-orphan"}), dates_and_orphans),
)
