"""Which files damaged chunks are in."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from itertools import groupby, islice
from typing import NamedTuple

from nexus_engine.check.naming import inode_name
from nexus_engine.meta import backup_queries, check_content_queries
from nexus_engine.meta.backup_queries import head_record
from nexus_engine.meta.check_content_queries import LostRange
from nexus_engine.meta.connection import Connection
from nexus_engine.meta.database import Database
from nexus_engine.meta.history_queries import dentries_as_of
from nexus_engine.meta.reader import PATH_DEPTH_MAX
from nexus_engine.types import ROOT_INO, SIZE_MAX, Digest, Ino, Path, Seq

FILES_SHOWN = 1000
"""Files that a report names."""
_VERSIONS_TRIED = 100
"""Older versions that are looked at for a whole one."""
_RANGES_SHOWN = 3


class DamagedFile(NamedTuple):
    """A file with content in a damaged chunk."""

    ino: Ino
    path: Path | None
    """What it is called; of the past, what it was called; ``None`` if that is lost, too."""
    seq: Seq | None
    """The last moment at which it had that content; ``None``: it has it now."""


def files_of_chunks(connection: Connection, digests: Iterable[Digest]) -> list[DamagedFile]:
    """Return files that have, or had, content in any of the chunks; `FILES_SHOWN` at most."""
    head, _ = head_record(connection)
    return [
        DamagedFile(ino, _path_at(connection, ino, head if seq is None else seq), seq)
        for ino, seq in islice(backup_queries.inodes_of_chunks(connection, digests), FILES_SHOWN)
    ]


def _path_at(connection: Connection, ino: Ino, seq: Seq) -> Path | None:
    names: list[bytes] = []
    while ino != ROOT_INO:
        dentries = dentries_as_of(connection, ino, seq)
        if not dentries or len(names) > PATH_DEPTH_MAX:
            return None
        ino, name = dentries[0]
        names.append(name)
    return Path(b"/".join(reversed(names)))


class LostContent(NamedTuple):
    """Bytes of a file that cannot be read."""

    ino: Ino
    where: str
    """The file, for people."""
    until: Seq | None
    """The last moment at which it had this content; ``None``: it has it now."""
    ranges: list[tuple[int, int]]
    """(first byte, byte after the last)."""
    whole: Seq | None
    """Of what is lost now: the newest operation after which the file was whole."""

    @property
    def message(self) -> str:
        shown = ", ".join(f"{start}-{end - 1}" for start, end in self.ranges[:_RANGES_SHOWN])
        more = " and more" if len(self.ranges) > _RANGES_SHOWN else ""
        if self.until is not None:
            return f"until op-{self.until}: bytes {shown}{more} are lost of a version from then"
        todo = (
            "look for the pack in a backup"
            if self.whole is None
            else f"whole at op-{self.whole}: nexus-ctl restore PATH op-{self.whole}"
        )
        return f"bytes {shown}{more} are lost, the rest can be read; {todo}"


def lost_content(database: Database, lost: Collection[Digest]) -> Iterator[LostContent]:
    """Yield every file that has, or had, bytes in these chunks: the present first of each."""
    if not lost:
        return
    connection = database.connection
    with check_content_queries.lost_ranges(connection, lost) as found:
        rows = list(islice(found, 100 * FILES_SHOWN))
    for ino, of_file in groupby(rows, lambda row: row.ino):
        ranges = list(of_file)
        where = inode_name(connection, ino)
        now = [row for row in ranges if row.to_seq is None]
        if now:
            yield LostContent(ino, where, None, _merged(now), _last_whole(database, ino, lost))
        past = [row for row in ranges if row.to_seq is not None]
        if past:
            until = max(row.to_seq or 0 for row in past) - 1
            yield LostContent(ino, where, Seq(until), _merged(past), None)


def _merged(rows: Iterable[LostRange]) -> list[tuple[int, int]]:
    merged: list[tuple[int, int]] = []
    for start, end in sorted({(row.start, row.start + row.length) for row in rows}):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged


def _last_whole(database: Database, ino: Ino, lost: Collection[Digest]) -> Seq | None:
    """Return the newest moment at which a file had bytes, and all of them."""
    for seq in check_content_queries.contents_of(database.connection, ino, _VERSIONS_TRIED):
        extents = database.as_of(seq).extents(ino, 0, SIZE_MAX)
        if extents and not any(extent.digest in lost for extent in extents):
            return seq
    return None
