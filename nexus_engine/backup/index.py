"""Where every chunk lies, found out from the packs alone."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from nexus_engine import errors
from nexus_engine.backends.base import ObjectStore
from nexus_engine.backup.layout import Progress, explained
from nexus_engine.cas.pack import (
    KIND_CHUNK,
    MAX_RECORD,
    PACK_HEADER_SIZE,
    RECORD_HEADER_SIZE,
    PackRecord,
    RecordScan,
    ScanStop,
    content_of,
    pack_key,
    parse_record,
)
from nexus_engine.meta import backup_queries
from nexus_engine.meta.backup_queries import Place
from nexus_engine.meta.connection import Connection
from nexus_engine.owners import owners
from nexus_engine.store import Store

_MAGIC = b"NXR1"
_BATCH = 1000
_WINDOW = 1 << 20


class Gap(NamedTuple):
    """Bytes of a pack that are no records."""

    pack: str
    start: int
    end: int


class Rebuilt(NamedTuple):
    """What is in the index now."""

    packs: int
    chunks: int
    gaps: list[Gap]
    """Where something is lost, or never was: a power loss leaves gaps, too."""


def rebuild_index(store: Store, progress: Progress) -> Rebuilt:
    """Write the index of a store anew; all of it, or nothing is changed.

    To be done before recovery, which takes a chunk that is in no index for lost.

    Raises:
        StoreBusy: Another process has the store open.
        CorruptMetadata: The database is damaged in other places, too.
    """
    require_alone(store.peers, store.owner)
    connection = store.database.connection
    connection.run("BEGIN IMMEDIATE")
    try:
        rebuilt = fill_index(connection, store.objects, progress)
        connection.run("COMMIT")
    finally:
        connection.rollback()
    return rebuilt


def fill_index(
    connection: Connection,
    objects: ObjectStore,
    progress: Progress,
) -> Rebuilt:
    """Fill the tables of packs and chunks from the packs; in a transaction of the caller."""
    owners_of = backup_queries.clear_index(connection)
    keys = sorted(key for key in objects.iter_keys("packs/") if key.endswith(".pack"))
    gaps: list[Gap] = []
    for number, key in enumerate(keys):
        progress("reading packs", number, len(keys))
        name = key.removeprefix("packs/").removesuffix(".pack")
        # Recovery looks for unfinished writes in the packs of processes that died.
        pack = backup_queries.add_pack(connection, name, owners_of.get(name))
        batch: list[Place] = []
        for found in scan_pack(objects, name):
            if isinstance(found, Gap):
                gaps.append(found)
            elif found.kind == KIND_CHUNK:
                batch.append(
                    Place(
                        found.digest,
                        found.offset,
                        found.stored_length,
                        found.length,
                        found.codec,
                    )
                )
            if len(batch) >= _BATCH:
                backup_queries.add_places(connection, pack, batch)
                batch.clear()
        backup_queries.add_places(connection, pack, batch)
    return Rebuilt(len(keys), backup_queries.count_chunks(connection), gaps)


def require_alone(peers: Path, own: str | None = None) -> None:
    """Refuse to go on while another process has the store open.

    Raises:
        StoreBusy: One has.
    """
    for owner in owners(peers):
        if owner == own:
            continue
        path = peers / f"{owner}.lock"
        with explained(f"look at {path}"), path.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                raise errors.StoreBusy(
                    f"process {owner.partition('-')[0]} has the store open: unmount it first"
                ) from None


def scan_pack(objects: ObjectStore, pack: str) -> Iterator[PackRecord | Gap]:
    """Yield the records of a pack, and what lies between that is none."""
    key = pack_key(pack)
    start = 0
    while True:
        scan = RecordScan(lambda offset, length: objects.read_stored(key, offset, length), start)
        yield from scan
        if scan.stop is ScanStop.END:
            return
        start = _next_record(objects, key, max(scan.end + 1, PACK_HEADER_SIZE))
        size = objects.size(key)
        if start > scan.end:
            yield Gap(pack, scan.end, start)
        if start >= size:
            return


def _next_record(objects: ObjectStore, key: str, start: int) -> int:
    """Return where the next whole record begins; the pack's size, if there is none.

    Compared with its digest, too: what looks like a record may be part of a file's content. (If it
    is a whole record in there, a pack within a pack, it is as good as any.)
    """
    size = objects.size(key)
    while start < size:
        window = bytes(objects.read_stored(key, start, _WINDOW))
        at = window.find(_MAGIC)
        while at >= 0:
            if _is_record(objects, key, start + at):
                return start + at
            at = window.find(_MAGIC, at + 1)
        start += max(1, len(window) - len(_MAGIC) + 1)
    return size


def _is_record(objects: ObjectStore, key: str, offset: int) -> bool:
    buffer = objects.read_stored(key, offset, RECORD_HEADER_SIZE)
    try:
        if len(buffer) < RECORD_HEADER_SIZE:
            return False
        length = min(MAX_RECORD, int.from_bytes(buffer[8:12], "little"))
        content_of(parse_record(objects.read_stored(key, offset, length), offset))
    except errors.CorruptChunk:
        return False
    return True
