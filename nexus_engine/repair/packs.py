"""Mend the index of chunks: what is not where it says is looked for in all packs."""

from __future__ import annotations

import os
from collections.abc import Callable

from nexus_engine import errors
from nexus_engine.backends.files import translate
from nexus_engine.backup.index import Gap, scan_pack
from nexus_engine.cas.pack import (
    KIND_CHUNK,
    PACK_HEADER_SIZE,
    content_of,
    encode_pack_header,
    pack_key,
    parse_pack_header,
)
from nexus_engine.check.packs import content_flaw, header_flaw, iter_flaws
from nexus_engine.meta import check_content_queries, repair_queries
from nexus_engine.repair.mending import LOST, Mending
from nexus_engine.store import Store
from nexus_engine.types import Digest

Place = tuple[str, tuple[int, int, int, int]]
"""(pack, (offset, stored length, length, codec))."""


def find_lost(store: Store, *, deep: bool) -> tuple[set[Digest], set[Digest]]:
    """Return (chunks that the index has and that are not there, others that extents name).

    Args:
        deep: Read every chunk, not only its header.
    """
    flaw = content_flaw if deep else header_flaw
    flawed = {chunk.digest for chunk, _ in iter_flaws(store, flaw)}
    named = set(check_content_queries.unindexed_digests(store.database.connection)) - {LOST}
    return flawed, named


def find_elsewhere(
    store: Store, wanted: set[Digest], progress: Callable[[str, int, int | None], None]
) -> dict[Digest, Place]:
    """Return where chunks are, whole, in any pack. Reads all of them."""
    objects = store.objects
    keys = sorted(key for key in objects.iter_keys("packs/") if key.endswith(".pack"))
    found: dict[Digest, Place] = {}
    for number, key in enumerate(keys):
        progress("reading packs", number, len(keys))
        name = key.removeprefix("packs/").removesuffix(".pack")
        for record in scan_pack(objects, name):
            if isinstance(record, Gap) or record.kind != KIND_CHUNK:
                continue
            if record.digest in wanted and record.digest not in found:
                try:
                    content_of(record)
                except errors.CorruptChunk:
                    continue
                place = (record.offset, record.stored_length, record.length, record.codec)
                found[record.digest] = (name, place)
    return found


def index(flawed: set[Digest], found: dict[Digest, Place], mending: Mending) -> None:
    """Enter what was found; forget what is lost, so that it is stored anew when it is written."""
    connection = mending.connection
    for digest, (pack, place) in found.items():
        repair_queries.place_chunk(connection, digest, pack, place)
        mending.say("chunk", f"chunk {digest.hex()}", f"is in pack {pack} at byte {place[0]}")
    for digest in sorted(flawed - found.keys()):
        mending.tx.remove_chunk(digest)
        action = "is lost: taken out of the index, and stored anew if it is written again"
        mending.say("chunk", f"chunk {digest.hex()}", action)


def headers(store: Store, mending: Mending) -> None:
    """A pack's header says nothing but its name and version, which are known."""
    objects = store.objects
    for name, owner, end in check_content_queries.iter_packs(mending.connection):
        if (not end and owner is not None) or not objects.is_near(pack_key(name)):
            continue
        try:
            header = objects.read(pack_key(name), 0, PACK_HEADER_SIZE)
        except errors.ObjectNotFound:
            continue
        try:
            parse_pack_header(header)
        except errors.CorruptChunk:
            _write_header(store, name)
            mending.say("pack-header", f"pack {name}", "has its header again")


def _write_header(store: Store, name: str) -> None:
    path = store.path / pack_key(name)
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.pwrite(fd, encode_pack_header(name), 0)
            os.fsync(fd)
        finally:
            os.close(fd)
    except OSError as error:
        raise translate(error, f"write {path}") from error
