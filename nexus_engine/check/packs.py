"""Invariants of the packs: each chunk is where the index says, each pack is known."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from nexus_engine import errors
from nexus_engine.backends.local import LocalObjectStore
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
from nexus_engine.check.problems import Invariant, Problem
from nexus_engine.meta import check_queries
from nexus_engine.meta.check_queries import ChunkRow
from nexus_engine.meta.connection import Connection
from nexus_engine.store import Store

# The layout is in cas/pack.py. The header alone is no record: its checksum covers the payload,
# which is what a quick check does not read.
_HEADER = struct.Struct("<4sBBHIIQ32s")
_MAGIC = b"NXR1"

_LOST = "what refers to it cannot be read; look for the pack in a backup of the store"


def packs_are_there(store: Store) -> Iterator[Problem]:
    """A pack without chunks may be missing: its process died before it wrote anything."""
    objects = LocalObjectStore(store.path)
    for name, owner, end in check_queries.iter_packs(store.database.connection):
        try:
            size = objects.size(pack_key(name))
            found = parse_pack_header(objects.read(pack_key(name), 0, PACK_HEADER_SIZE))
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
        packs = check_queries.iter_packs(connection)
        return all(not end for found, _, end in packs if found == name)
    finally:
        connection.close()


def packs_are_known(store: Store) -> Iterator[Problem]:
    """A pack is registered before anything but its header is in it."""
    objects = LocalObjectStore(store.path)
    # Not the view that the check reads: a process may have begun a pack since that was taken.
    connection = Connection(store.database.connection.path)
    try:
        for key in objects.iter_keys("packs/"):
            name = key.removeprefix("packs/").removesuffix(".pack")
            if _has_records(objects, key) and not check_queries.is_registered(connection, name):
                message = "is in no index: its chunks belong to a newer meta.db; do not delete it"
                yield Problem("pack-unknown", f"pack {name}", message)
    finally:
        connection.close()


def chunks_are_where_the_index_says(store: Store) -> Iterator[Problem]:
    """Quick: looks at the header of each record, not at what it holds."""
    objects = LocalObjectStore(store.path)
    for chunk in check_queries.iter_chunks(store.database.connection):
        flaw = _place_flaw(chunk) or _header_flaw(objects, chunk)
        if flaw is not None:
            yield _chunk_problem("chunk-record", chunk, flaw)


def chunks_hold_what_they_are_named_for(store: Store) -> Iterator[Problem]:
    """Thorough: reads every chunk and compares its SHA-256."""
    objects = LocalObjectStore(store.path)
    for chunk in check_queries.iter_chunks(store.database.connection):
        flaw = _place_flaw(chunk) or _content_flaw(objects, chunk)
        if flaw is not None:
            yield _chunk_problem("chunk-content", chunk, flaw)


def _place_flaw(chunk: ChunkRow) -> str | None:
    if chunk.pack is None:
        return "its pack is not registered"
    if chunk.offset < PACK_HEADER_SIZE or not (
        RECORD_HEADER_SIZE <= chunk.stored_length <= MAX_RECORD
    ):
        return f"its index entry is out of bounds ({chunk.stored_length} at {chunk.offset})"
    return None


def _header_flaw(objects: LocalObjectStore, chunk: ChunkRow) -> str | None:
    try:
        header = objects.read(pack_key(str(chunk.pack)), chunk.offset, RECORD_HEADER_SIZE)
    except errors.ObjectNotFound:
        return None  # the pack's own problem, reported once
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


def _content_flaw(objects: LocalObjectStore, chunk: ChunkRow) -> str | None:
    try:
        buffer = objects.read(pack_key(str(chunk.pack)), chunk.offset, chunk.stored_length)
        record = parse_record(buffer, chunk.offset)
        content_of(record)
    except errors.ObjectNotFound:
        return None
    except errors.CorruptChunk as error:
        return str(error)
    if record.digest != chunk.digest:
        return f"the chunk {record.digest.hex()} is in its place"
    return None


def _chunk_problem(code: str, chunk: ChunkRow, flaw: str) -> Problem:
    where = f"chunk {chunk.digest.hex()} in pack {chunk.pack} at byte {chunk.offset}"
    return Problem(code, where, f"{flaw}; {_LOST}")


def _has_records(objects: LocalObjectStore, key: str) -> bool:
    try:
        return objects.size(key) > PACK_HEADER_SIZE
    except errors.ObjectNotFound:
        return False


INVARIANTS = (Invariant("packs", packs_are_there), Invariant("files of packs", packs_are_known))
QUICK_INVARIANT = Invariant("chunks", chunks_are_where_the_index_says)
DEEP_INVARIANT = Invariant("bytes of chunks", chunks_hold_what_they_are_named_for)
