"""Where content still is that no version of any file names.

The index knows one place of each chunk. There may be others: of two processes that stored the same,
of a gc that was cut short, and of what a file held at an fsync and no more when its session ended.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

import msgspec

from nexus_engine import errors
from nexus_engine.backends.base import View
from nexus_engine.cas.pack import KIND_CHUNK, KIND_INTENT
from nexus_engine.fs.files import decode_intent
from nexus_engine.meta import gc_queries
from nexus_engine.store import Store
from nexus_engine.types import Digest, Ino


def find_traces(
    store: Store,
    digests: Collection[Digest],
    inos: Collection[Ino],
    progress: Callable[[int, int], None] | None = None,
) -> list[int]:
    """Return the packs in which chunks lie, or what an intent says of files, unless it is live.

    Reads every pack.

    Args:
        progress: Told (packs read, of how many).
    """
    connection = store.database.connection
    gc_queries.find_live(connection)
    wanted = set(digests)
    strays: dict[Digest, set[int]] = {}
    packs = gc_queries.all_packs(connection)
    for count, (number, name) in enumerate(packs, start=1):
        try:
            for record in store.chunks.scan(name):
                if record.kind == KIND_CHUNK:
                    if not gc_queries.is_live(connection, record.digest):
                        strays.setdefault(record.digest, set()).add(number)
                elif record.kind == KIND_INTENT:
                    wanted |= _named_by(record.payload, inos)
        except errors.ObjectNotFound:
            pass  # nothing was written to it
        if progress is not None:
            progress(count, len(packs))
    return sorted({number for digest in wanted for number in strays.get(digest, ())})


def _named_by(payload: View, inos: Collection[Ino]) -> set[Digest]:
    try:
        intent = decode_intent(payload)
    except msgspec.DecodeError:
        return set()  # recovery reports it
    if intent.ino not in inos:
        return set()
    return {extent.digest for extent in intent.extents}
