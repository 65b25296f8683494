"""Scrub: read all content again, from the disk, and compare it with checksum and SHA-256.

What decays is noticed when it is read, and most of what is kept is not read for years. A scrub
finds it while a backup still has it. It goes through the packs in their order at a bounded rate,
notes how far it is, and goes on from there when it is run again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import msgspec

from nexus_engine import errors
from nexus_engine.cas.pack import content_of, pack_key, parse_record
from nexus_engine.check.damage import lost_content
from nexus_engine.check.packs import place_flaw
from nexus_engine.check.problems import Problem
from nexus_engine.meta import check_content_queries
from nexus_engine.meta.check_content_queries import ChunkRow
from nexus_engine.store import Store
from nexus_engine.types import Digest

RATE_BYTES = 50 * 1000 * 1000
"""Of a scrub that somebody waits for, each second, unless told otherwise."""
_FACT = "scrub"
_NOTE_EVERY_S = 5.0
_PACKS = 8
"""Looked up at once: there is no index from a pack to its chunks."""
_DAMAGED_MAX = 10_000


class State(msgspec.Struct):
    """How far a scrub is; kept in the table ``store``."""

    pack: int = 0
    """The pack it is in, and the offset in it up to which everything was read."""
    offset: int = 0
    begun_ns: int = 0
    read_bytes: int = 0
    chunks: int = 0
    damaged: list[str] = []
    """Digests of chunks found damaged, in hex."""
    ended_ns: int = 0
    """When one last came to the end; 0: never."""
    damaged_chunks: int = 0
    """What that found."""
    damaged_files: int = 0


class Scrubbed(msgspec.Struct):
    """What a scrub found, from its beginning on."""

    complete: bool
    resumed: bool
    chunks: int
    read_bytes: int
    problems: list[Problem]


Progress = Callable[[int, int], None]
"""(bytes read, of how many)."""


def load_state(store: Store) -> State:
    """Return how far a scrub is, and what the last one found."""
    text = store.reader.store_value(_FACT)
    try:
        return State() if text is None else msgspec.json.decode(text, type=State)
    except (msgspec.DecodeError, TypeError):
        return State()  # only a note: begin anew


def summary(store: Store) -> dict[str, Any]:
    """Return what a status tells of scrubs."""
    state = load_state(store)
    return {
        "scrub_ended_ns": state.ended_ns or None,
        "scrub_damaged_files": state.damaged_files,
        "scrub_read_bytes": state.read_bytes if state.pack else None,
    }


def scrub(
    store: Store,
    *,
    rate_bytes: int = RATE_BYTES,
    restart: bool = False,
    progress: Progress | None = None,
    pause: Callable[[float], bool] | None = None,
) -> Scrubbed:
    """Read content until the end, or until told to stop.

    Args:
        rate_bytes: Read no more than this each second.
        restart: Begin with the first pack, wherever the last scrub is.
        pause: Waits so long (s), and returns whether to stop.
    """
    state = load_state(store)
    resumed = state.pack > 0 and not restart
    if not resumed:
        ended = (state.ended_ns, state.damaged_chunks, state.damaged_files)
        state = State(begun_ns=store.clock.time_ns())
        state.ended_ns, state.damaged_chunks, state.damaged_files = ended
    with _noting(store, state):
        complete = _run(store, state, rate_bytes, progress, pause or _sleep)
        problems = _problems(store, state)
        if complete:
            state.ended_ns, state.pack, state.offset = store.clock.time_ns(), 0, 0
            state.damaged_chunks = len(state.damaged)
            state.damaged_files = len({p.where for p in problems if p.code != "chunk-content"})
    return Scrubbed(complete, resumed, state.chunks, state.read_bytes, problems)


def _sleep(seconds: float) -> bool:
    time.sleep(seconds)
    return False


@contextmanager
def _noting(store: Store, state: State) -> Iterator[None]:
    """Keep the state, however it ends."""
    try:
        yield
    finally:
        _note(store, state)


def _note(store: Store, state: State) -> None:
    text = msgspec.json.encode(state).decode()
    store.upkeep(store.database.set_store_value, _FACT, text)


def _run(
    store: Store,
    state: State,
    rate_bytes: int,
    progress: Progress | None,
    pause: Callable[[float], bool],
) -> bool:
    """Read on; return whether the end was reached."""
    total = check_content_queries.stored_bytes(store.database.connection)
    started_s = noted_s = time.monotonic()
    read = 0
    for chunk, pack in _iter_chunks(store, state):
        if len(state.damaged) < _DAMAGED_MAX and _is_damaged(store, chunk):
            state.damaged.append(chunk.digest.hex())
        read += chunk.stored_length
        state.read_bytes += chunk.stored_length
        state.chunks += 1
        state.pack, state.offset = pack, chunk.offset + 1
        if progress is not None:
            progress(state.read_bytes, total)
        now_s = time.monotonic()
        if now_s - noted_s > _NOTE_EVERY_S:
            _note(store, state)
            noted_s = now_s
        early_s = started_s + read / rate_bytes - now_s
        if pause(max(early_s, 0.0)):
            return False
    return True


def _iter_chunks(store: Store, state: State) -> Iterator[tuple[ChunkRow, int]]:
    """Yield chunks pack by pack as they lie there, from where the scrub is."""
    connection, first = store.database.connection, state.pack
    while numbers := check_content_queries.packs_from(connection, first, _PACKS):
        rows = check_content_queries.chunks_in(connection, numbers[0], numbers[-1])
        for number, chunk in rows:
            if number != state.pack or chunk.offset >= state.offset:
                yield chunk, number
        first = numbers[-1] + 1


def _is_damaged(store: Store, chunk: ChunkRow) -> bool:
    """Tell whether a chunk is lost, and not just somewhere else since gc was at work."""
    flaw = _flaw(store, chunk)
    return flaw is not None and check_content_queries.is_at(store.database.connection, chunk)


def _flaw(store: Store, chunk: ChunkRow) -> str | None:
    """Say what is wrong with a chunk where it is stored, whatever copies of it are nearer."""
    flaw = place_flaw(chunk)
    if flaw is not None:
        return flaw
    key = pack_key(str(chunk.pack))
    try:
        stored = store.objects.read_stored(key, chunk.offset, chunk.stored_length)
        record = parse_record(stored, chunk.offset)
        content_of(record)
    except errors.StoreHung:
        raise  # it says nothing of the chunk
    except errors.BackendError as error:
        return f"the pack cannot be read: {error}"
    except errors.CorruptChunk as error:
        return str(error)
    return None if record.digest == chunk.digest else "another chunk is in its place"


def _problems(store: Store, state: State) -> list[Problem]:
    """Name what is damaged: chunks, and every file that has or had content in them."""
    damaged = {Digest(bytes.fromhex(digest)) for digest in state.damaged}
    problems = [
        Problem("chunk-content", f"chunk {digest.hex()}", "is not what its digest names")
        for digest in sorted(damaged)
    ]
    for lost in lost_content(store.database, damaged):
        code = "content-lost" if lost.until is None else "content-lost-past"
        problems.append(Problem(code, lost.where, lost.message))
    return problems
