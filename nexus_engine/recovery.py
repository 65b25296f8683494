"""Finish what processes that died left in the store.

A dead process leaves packs that nobody sealed, and in them intents: sessions whose programs were
told that their bytes are kept. Each such session that the log does not have yet becomes its
``write`` record now, under the name of who wrote.
"""

from __future__ import annotations

import logging
import stat
from collections.abc import Callable, Container, Iterable
from contextlib import suppress
from typing import Any, NamedTuple

import msgspec

from nexus_engine import errors
from nexus_engine.cas.pack import KIND_CHUNK, KIND_INTENT, PACK_HEADER_SIZE
from nexus_engine.fs.extents import ExtentMap
from nexus_engine.fs.files import Intent, WriteSession, commit_session, decode_intent
from nexus_engine.meta.transaction import Transaction
from nexus_engine.owners import OwnerLock, one_recovery, owners, take_over
from nexus_engine.power_loss import take_back_lost_content
from nexus_engine.records import Change, parse_details
from nexus_engine.reserve import frees_space
from nexus_engine.store import Store
from nexus_engine.types import SIZE_MAX, Digest, Ino, Inode, Seq

log = logging.getLogger(__name__)

_END = "end:"
"""In ``store``, before the name of a process that is being taken over from."""


class Recovered(NamedTuple):
    """What recovery did."""

    packs: int
    sessions: int
    unlinked: int


def recover(store: Store) -> Recovered:
    """Take over from every process that is gone. Quick where there is none.

    Safe to be interrupted and run again: a session that was committed is found in the log.
    """
    # Of several that died together after a power loss, one must take over: what they lost is found
    # before what they began is finished.
    with one_recovery(store.peers) as ours:
        return _recover(store) if ours else Recovered(0, 0, 0)


def _recover(store: Store) -> Recovered:
    packs: dict[str, list[str]] = {owner: [] for owner in owners(store.peers)}
    for name, owner in store.database.open_packs():
        packs.setdefault(owner, []).append(name)
    packs.pop(store.owner, None)
    done = Recovered(0, 0, 0)
    alive = False
    dead: list[tuple[OwnerLock, list[str]]] = []
    try:
        for owner, names in packs.items():
            lock = take_over(store.peers, owner)
            if lock is None:
                alive = True
            else:
                dead.append((lock, names))
        ends = {lock.owner: _note_end(store, lock.owner) for lock, _ in dead}
        # Of all of them first: one's intent may rely on a chunk that another one has lost.
        _take_back(store, dead)
        while dead:
            lock, names = dead[0]
            sessions = _take_over(store, names, ends[lock.owner])
            store.upkeep(store.database.drop_store_value, _END + lock.owner)
            dead.pop(0)
            lock.release()
            log.log(
                logging.WARNING if names else logging.INFO,
                "took over from process %s, which died: %d packs, %d unfinished writes",
                lock.owner, len(names), sessions,
            )  # fmt: skip
            done = Recovered(done.packs + len(names), done.sessions + sessions, 0)
    except errors.EngineError:
        for lock, _ in dead:
            lock.abandon()  # still to be taken over from
        raise
    if not alive:
        for ino in store.database.unlinked_inodes():
            store.upkeep(store.database.drop_unlinked, ino)
            done = done._replace(unlinked=done.unlinked + 1)
    return done


def _note_end(store: Store, owner: str) -> Seq:
    """Return the log's end as a process that is dead, and the disk, left it.

    A recovery adds to the log, and may be cut short: the next one goes by the first one's note.
    """
    end = store.reader.store_value(_END + owner)
    if end is None:
        end = store.reader.head()
        store.upkeep(store.database.set_store_value, _END + owner, end)
    return Seq(end)


def _take_back(store: Store, dead: list[tuple[OwnerLock, list[str]]]) -> None:
    packs = [name for _, names in dead for name in names]
    synced = min((lock.synced() for lock, names in dead if names), default=0)
    take_back_lost_content(store, packs, Seq(synced))


class _Found:
    """What is in the packs of a process that died."""

    def __init__(self) -> None:
        self.locations: dict[Digest, tuple[Any, ...]] = {}
        self.whole: dict[bytes, Intent] = {}
        """The last intent of each session whose chunks are there."""
        self.short: list[Intent] = []
        """Of which some were not there when it was read. Intents come after their chunks, but gc
        may have had these stored once more. And after a power loss they may be missing, in a pack
        before: nothing of such an intent was fsynced, but what an earlier one of the session says
        may have been."""

    def note(self, intent: Intent, *, whole: bool) -> None:
        known = self.whole.get(intent.session)
        if known is not None and known.flushes >= intent.flushes:
            return
        if whole:
            self.whole[intent.session] = intent
        else:
            self.short.append(intent)


def _take_over(store: Store, packs: list[str], end: Seq) -> int:
    """Finish the sessions in a dead process's packs; return how many there were.

    Args:
        end: The log's, as that process and the disk left it.
    """
    found = _Found()
    for name in packs:
        _read_pack(store, name, found)
    short, found.short = sorted(found.short, key=lambda i: i.flushes), []
    for intent in reversed(short):
        found.note(intent, whole=_has_chunks(store, intent, found.locations))
    lost = {intent.session: intent for intent in reversed(found.short)}
    for intent in _uncommitted(store, lost.values()):
        log.warning(
            "a write to inode %d by pid %d cannot be finished: some of its chunks did not reach the"
            " disk; the file keeps its content from before",
            intent.ino, intent.actor.pid,
        )  # fmt: skip
    sessions = 0
    for intent in _uncommitted(store, found.whole.values()):
        if intent.base <= end:
            sessions += _finish(store, intent, found.locations)
        else:
            # So nobody fsynced it; and its number may be that of another operation by now.
            log.warning(
                "a write to inode %d by pid %d cannot be finished: what it was laid over did not"
                " reach the disk",
                intent.ino, intent.actor.pid,
            )  # fmt: skip
    for name in packs:
        with suppress(errors.ObjectNotFound):
            store.chunks.adopt(name)
    store.database.sync()
    store.upkeep(store.database.retire_packs, empty=[], full=packs, chunks=[])
    return sessions


def _read_pack(store: Store, name: str, found: _Found) -> None:
    """Collect a pack's chunks, and intents."""
    # The header says nothing that is not known, and may be what the disk lost.
    scan = store.chunks.scan(name, PACK_HEADER_SIZE)
    try:
        for record in scan:
            if record.kind == KIND_CHUNK:
                found.locations[record.digest] = (
                    name, record.offset, record.stored_length, record.length, record.codec,
                )  # fmt: skip
            elif record.kind == KIND_INTENT:
                try:
                    intent = decode_intent(record.payload)
                except msgspec.DecodeError as error:
                    log.error("pack %s: unreadable intent at %d: %s", name, record.offset, error)
                    continue
                found.note(intent, whole=_has_chunks(store, intent, found.locations))
    except errors.ObjectNotFound:
        log.warning("pack %s was registered but never written", name)


def _has_chunks(store: Store, intent: Intent, locations: Container[Digest]) -> bool:
    # What later writes of the session cover completely, gc may have taken away.
    laid = ExtentMap()
    for extent in intent.extents:
        laid.put(extent)
    return all(
        extent.digest in locations or store.reader.find_chunk(extent.digest) is not None
        for extent in laid.all()
    )


def _uncommitted(store: Store, intents: Iterable[Intent]) -> list[Intent]:
    """Return the intents that no record in the log covers, oldest first."""
    wanted = list(intents)
    if not wanted:
        return []
    rows = store.database.connection.iterate(
        "SELECT seq, ino, details FROM oplog"
        " WHERE seq > ? AND kind IN ('write', 'recover') ORDER BY seq",
        (min(intent.head for intent in wanted),),
    )
    committed: dict[str, tuple[Ino, Seq, int]] = {}
    for seq, ino, text in rows:
        details = parse_details(text)
        if "session" in details:
            committed[details["session"]] = (ino, seq, details["flushes"])
        elif "lost" in details and "until" not in details:
            # The session ended and its last bytes are lost. What it had synced before is not.
            committed = {
                session: entry
                for session, entry in committed.items()
                if entry[0] != ino or entry[1] < details["lost"]
            }
    return sorted(
        (i for i in wanted if committed.get(i.session.hex(), (0, 0, -1))[2] < i.flushes),
        key=lambda i: (i.mtime_ns, i.head),
    )


def _finish(store: Store, intent: Intent, locations: dict[Digest, tuple[Any, ...]]) -> bool:
    inode = store.reader.find_inode(Ino(intent.ino))
    if inode is None or not stat.S_ISREG(inode.mode):
        return False
    session = WriteSession.from_intent(intent, inode)
    rule = commit_session if inode.content_seq == intent.base else _commit_beneath
    return store.transact(rule, intent.actor, session, locations.get) is not None


@frees_space
def _commit_beneath(
    tx: Transaction,
    session: WriteSession,
    locate: Callable[[Digest], tuple[Any, ...] | None],
) -> Inode | None:
    """Make the session a version of the file, and what others wrote since its content again.

    Nothing of either is lost, and the newest is what the file shows.
    """
    newest = tx.get_inode(session.ino)
    if commit_session(tx, session, locate) is None:
        return None
    kept = tx.as_of(newest.content_seq).extents(newest.ino, 0, SIZE_MAX)
    tx.truncate_extents(newest.ino, 0)
    tx.put_extents(newest.ino, kept)
    after = newest._replace(from_seq=tx.seq, content_seq=tx.seq, ctime_ns=tx.now_ns)
    tx.put_inode(after)
    tx.add_touched(newest.ino)
    details = {"content_seq": newest.content_seq}
    tx.commit(Change("recover", newest.ino, tx.any_path_of(newest.ino), details=details))
    return after
