"""Invariants of the packs: each chunk is where the index says, each pack is known."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from functools import partial

from nexus_engine import errors
from nexus_engine.backends.base import ObjectStore
from nexus_engine.cas.pack import (
    KIND_CHUNK,
    MAX_RECORD,
    PACK_HEADER_SIZE,
    RECORD_HEADER_SIZE,
    content_of,
    pack_key,
    parse_pack_header,
    parse_record,
)
from nexus_engine.check.problems import REPAIR, Invariant, Problem
from nexus_engine.meta import check_content_queries
from nexus_engine.meta.check_content_queries import ChunkRow
from nexus_engine.meta.connection import Connection
from nexus_engine.store import Store
from nexus_engine.types import Digest

# The layout is in cas/pack.py. The header alone is no record: its checksum covers the payload,
# which is what a quick check does not read.
_HEADER = struct.Struct("<4sBBHIIQ32s")
_MAGIC = b"NXR1"
_NO_FILE = "the file of its pack is gone"

_LOST = "put the pack from a backup of the store into packs, then fsck --repair"
Flaw = Callable[[ObjectStore, ChunkRow], str | None]


def packs_are_there(store: Store) -> Iterator[Problem]:
    """A pack without chunks may be missing: its process died before it wrote anything."""
    objects = store.objects
    sizes = dict(objects.iter_sizes("packs/"))
    for name, owner, end in check_content_queries.iter_packs(store.database.connection):
        key = pack_key(name)
        try:
            # One that is not in the list may have been begun since.
            size = sizes.get(key) or objects.size(key)
            found = name
            if objects.is_near(key):
                found = parse_pack_header(objects.read(key, 0, PACK_HEADER_SIZE))
        except errors.ObjectNotFound:
            if end and not _was_emptied(store, name):
                yield Problem("pack-missing", f"pack {name}", f"the file is gone; {_LOST}")
            continue
        except errors.CorruptChunk as error:
            if end or owner is None:
                yield Problem("pack-header", f"pack {name}", f"{error}; {_LOST}")
            continue
        if found != name:
            yield Problem("pack-header", f"pack {name}", f"holds the pack {found}; {_LOST}")
        if size < end:
            message = f"is {size} bytes long, its chunks need {end}; {_LOST}"
            yield Problem("pack-short", f"pack {name}", message)


def _was_emptied(store: Store, name: str) -> bool:
    """Tell whether gc moved what was in a pack since the view was taken that the check reads."""
    connection = Connection(store.database.connection.path)
    try:
        packs = check_content_queries.iter_packs(connection)
        return all(not end for found, _, end in packs if found == name)
    finally:
        connection.close()


def packs_are_known(store: Store) -> Iterator[Problem]:
    """A pack is registered before anything but its header is in it."""
    # Not the view that the check reads: a process may have begun a pack since that was taken.
    connection = Connection(store.database.connection.path)
    try:
        for key, size in store.objects.iter_sizes("packs/"):
            name = key.removeprefix("packs/").removesuffix(".pack")
            if size > PACK_HEADER_SIZE and not check_content_queries.is_registered(
                connection, name
            ):
                message = "is in no index: its chunks belong to a newer meta.db; do not delete it"
                yield Problem("pack-unknown", f"pack {name}", message)
    finally:
        connection.close()


def chunks_are_where_the_index_says(lost: set[Digest], store: Store) -> Iterator[Problem]:
    """Look at the header of each record, not at what it holds.

    Args:
        lost: Gets the digest of each chunk that is not there.
    """
    for where, message in _flaws(store, header_flaw, lost):
        yield Problem("chunk-record", where, message)


def chunks_hold_what_they_are_named_for(lost: set[Digest], store: Store) -> Iterator[Problem]:
    """Likewise, but read every chunk and compare its SHA-256."""
    for where, message in _flaws(store, content_flaw, lost):
        yield Problem("chunk-content", where, message)


def _flaws(store: Store, find_flaw: Flaw, lost: set[Digest]) -> Iterator[tuple[str, str]]:
    for chunk, flaw in iter_flaws(store, find_flaw):
        lost.add(chunk.digest)
        if flaw != _NO_FILE:  # the pack's own problem, reported once
            where = f"chunk {chunk.digest.hex()} in pack {chunk.pack} at byte {chunk.offset}"
            yield where, f"{flaw}: {REPAIR} if it is stored elsewhere"


def iter_flaws(store: Store, find_flaw: Flaw) -> Iterator[tuple[ChunkRow, str]]:
    """Yield each chunk that is not where the index says, and why."""
    # Not the view that the check reads: gc may have moved a chunk since that was taken.
    now = Connection(store.database.connection.path)
    try:
        for chunk in check_content_queries.iter_chunks(store.database.connection):
            flaw = find_flaw(store.objects, chunk)
            if flaw is not None and check_content_queries.is_at(now, chunk):
                yield chunk, flaw
    finally:
        now.close()


def header_flaw(objects: ObjectStore, chunk: ChunkRow) -> str | None:
    """Quick: look at the header of the record, not at what it holds.

    Of what lies in a bucket, not even that: it would take all of it to come here.
    """
    return place_flaw(chunk) or _header_flaw(objects, chunk)


def content_flaw(objects: ObjectStore, chunk: ChunkRow) -> str | None:
    """Thorough: read the chunk and compare checksum and SHA-256."""
    return place_flaw(chunk) or _content_flaw(objects, chunk)


def place_flaw(chunk: ChunkRow) -> str | None:
    """Say why there can be no chunk where the index says."""
    if chunk.pack is None:
        return "its pack is not registered"
    if chunk.offset < PACK_HEADER_SIZE or not (
        RECORD_HEADER_SIZE <= chunk.stored_length <= MAX_RECORD
    ):
        return f"its index entry is out of bounds ({chunk.stored_length} at {chunk.offset})"
    return None


def _header_flaw(objects: ObjectStore, chunk: ChunkRow) -> str | None:
    key = pack_key(str(chunk.pack))
    try:
        if not objects.is_near(key):
            short = objects.size(key) < chunk.offset + chunk.stored_length
            return "the pack ends before it does" if short else None
        header = objects.read(key, chunk.offset, RECORD_HEADER_SIZE)
    except errors.ObjectNotFound:
        return _NO_FILE
    if len(header) < RECORD_HEADER_SIZE:
        return "the pack ends before it"
    magic, kind, codec, _, stored_length, length, _, digest = _HEADER.unpack(header)
    if magic != _MAGIC or kind != KIND_CHUNK:
        return "no chunk begins there"
    if digest != chunk.digest:
        return f"the chunk {digest.hex()} is in its place"
    if (codec, stored_length, length) != (chunk.codec, chunk.stored_length, chunk.length):
        return "its length or codec differs from the index"
    return None


def _content_flaw(objects: ObjectStore, chunk: ChunkRow) -> str | None:
    try:
        buffer = objects.read_stored(pack_key(str(chunk.pack)), chunk.offset, chunk.stored_length)
        record = parse_record(buffer, chunk.offset)
        content_of(record)
    except errors.ObjectNotFound:
        return _NO_FILE
    except errors.CorruptChunk as error:
        return str(error)
    if record.digest != chunk.digest:
        return f"the chunk {record.digest.hex()} is in its place"
    return None


def quick_invariant(lost: set[Digest]) -> Invariant:
    return Invariant("chunks", partial(chunks_are_where_the_index_says, lost))


def deep_invariant(lost: set[Digest]) -> Invariant:
    return Invariant("bytes of chunks", partial(chunks_hold_what_they_are_named_for, lost))


INVARIANTS = (Invariant("packs", packs_are_there), Invariant("files of packs", packs_are_known))
