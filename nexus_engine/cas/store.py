"""The engine's one door to content: chunks in, by digest out."""

from __future__ import annotations

import contextlib
import threading
import uuid
from collections.abc import Callable, Collection, Container, Iterable, Mapping, Sequence
from concurrent.futures import Future
from hashlib import sha256
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple

from nexus_engine.backends.base import ObjectStore, View
from nexus_engine.cas.blocks import BLOCK_BYTES, WORTH_IT, KnownBlocks
from nexus_engine.cas.cache import ChunkCache
from nexus_engine.cas.codec import CODEC_RAW, MAX_CHUNK, BytesLike, decode, encode
from nexus_engine.cas.own_packs import OwnPacks, PackInfo
from nexus_engine.cas.pack import (
    KIND_CHUNK,
    MAX_RECORD,
    RECORD_HEADER_SIZE,
    RecordScan,
    encode_record,
    intent_record,
    pack_key,
    parse_record,
)
from nexus_engine.cas.shared_sync import SharedSync
from nexus_engine.errors import CorruptChunk, EngineError, MissingChunk, ObjectNotFound
from nexus_engine.types import Digest

_INLINE_MAX = 1 << 20
"""Larger records are not for `ChunkStore.read_resident`: decoding one takes milliseconds, in
which a caller on an event loop serves nobody."""

_ALIASES_MAX = 65536
_ATTEMPTS = 3
"""How often a chunk is looked up because its pack went away in between, or a copy was bad."""


class Location(NamedTuple):
    """Where a chunk is; a row of the index."""

    pack: str
    """32 hex digits."""
    offset: int
    """Of the record in the pack, bytes."""
    stored_length: int
    """The whole record with its header, bytes."""
    length: int
    """The decoded chunk, bytes."""
    codec: int


class ChunkStore:
    """Thread-safe; blocking, except for `read_resident`. One per process and store; not for
    use in a child after ``fork``.

    A chunk that was put is readable at once, survives the death of the process as soon as
    the operating system has it (when `put` returns), and power loss after `sync`. Until the
    engine has written its location into the index it is *pending*, and known to this process
    only.

    Args:
        packs_directory: Existing; where packs are written. For a local store: the directory
            of the keys ``packs/…``.
        find: The index: digest → location, in any pack of any process; called in the thread
            of the caller, without locks held.
        on_new_pack: Called with the id of a pack before the first append to it, so that it
            can be registered. If it raises, so does the `put`.
        before_waiting: Called before a thread waits for what another one is storing.
        before_securing: Called before `secure` waits, to have the object store take over what
            processes that are gone left: whoever wrote what, it is covered.
        close_others: Called with packs that other processes write and `secure` waits for: these are
            to be finished soon.
        find_reusable: Likewise for what is to be stored, many at a time: leaves out packs that gc
            is about to drop.
        cache_bytes: Decoded chunks to keep in memory.
        new_id: Makes pack ids.
    """

    def __init__(
        self,
        objects: ObjectStore,
        packs_directory: Path,
        find: Callable[[Digest], Location | None],
        *,
        on_new_pack: Callable[[str], None],
        before_waiting: Callable[[], None] = lambda: None,
        before_securing: Callable[[], None] = lambda: None,
        close_others: Callable[[Collection[str]], None] = lambda _: None,
        find_reusable: Callable[[Sequence[Digest]], Mapping[Digest, Location]] | None = None,
        cache_bytes: int = 64 << 20,
        new_id: Callable[[], uuid.UUID] = uuid.uuid4,
    ) -> None:
        self._objects = objects
        self._find = find
        self._find_reusable = find_reusable or self._find_each
        self._before_waiting = before_waiting
        self._before_securing = before_securing
        self._close_others = close_others
        self._packs = OwnPacks(objects, packs_directory, on_new_pack, new_id)
        self._cache = ChunkCache(cache_bytes)
        self._blocks = KnownBlocks()
        self._shared_sync = SharedSync(self._sync_now)
        self._shared_securing = SharedSync(self._secure_now, fail_together=True)
        self._pending: dict[Digest, Location] = {}
        self._aliases: dict[Digest, Digest] = {}
        self._lock = threading.Lock()
        self._settled = threading.Condition(self._lock)
        self._claimed: set[Digest] = set()
        """Digests that some thread is about to append, or to find in the index."""
        self._borrowed: dict[str, int] = {}
        self._durable: dict[str, int] = {}
        """Packs of other processes that our chunks rely on: up to which byte they are in use
        and not known to be durable, and up to which they are."""
        self._unsecured: set[str] = set()
        """Those of them that are not known to be where they are to stay."""

    def put(self, data: BytesLike) -> Digest:
        """Store a chunk unless it is there already.

        Args:
            data: Contiguous bytes, at most `MAX_CHUNK`; not to be changed meanwhile.

        Raises:
            NoSpace, StoreInaccessible, ObjectStoreFailed: nothing was stored; a later
                attempt may succeed.
        """
        return self.put_many((data,))[0]

    def put_many(
        self,
        chunks: Sequence[BytesLike],
        intent: Callable[[list[Digest]], bytes] | None = None,
        ahead: Sequence[Future[Digest] | None] = (),
    ) -> list[Digest]:
        """Store chunks, and an intent after them, in one write.

        Args:
            ahead: The digests of these very bytes, where somebody has begun to compute them.
            intent: Digests, in the order of ``chunks`` → the payload of the intent, at most
                `MAX_CHUNK` bytes. Appended after all of its chunks, so that whoever finds it
                once the process has died finds them too. (After power loss: only what was
                synced is promised.)

        Raises:
            NoSpace, StoreInaccessible, ObjectStoreFailed: nothing of this write was stored.
        """
        digests = [
            Digest(sha256(chunk).digest()) if known is None else known.result()
            for chunk, known in zip_longest(chunks, ahead)
        ]
        contents = dict(zip(digests, chunks, strict=True))
        wanted: Collection[Digest] = contents
        while True:
            mine, others = self._claim(wanted)
            try:
                new = self._without_indexed(mine)
                # With some still on their way in another thread, the intent must wait.
                payload = intent(digests) if intent is not None and not others else None
                self._append(new, contents, payload)
            finally:
                self._settle(mine)
            if not others:
                return digests
            self._await_settled(others)
            # By now they are pending or indexed; or their thread failed and they are ours.
            wanted = others

    def put_intent(self, payload: bytes) -> None:
        """Append an intent: bytes that `scan` gives back after a crash. At most `MAX_CHUNK`."""
        self.put_many((), lambda _: payload)

    def put_again(self, digest: Digest) -> None:
        """Store a chunk once more: it is in a pack that goes, and in no row yet.

        Raises:
            MissingChunk, CorruptChunk, NoSpace, StoreInaccessible, ObjectStoreFailed.
        """
        content = self.read(digest, 0, MAX_CHUNK)
        with self._lock:
            self._claimed.add(digest)
        try:
            self._append([digest], {digest: content}, None)
        finally:
            self._settle([digest])

    def copy(self, locations: Sequence[tuple[Digest, Location]]) -> list[Location]:
        """Copy chunks, as they are stored, into a pack of this process; for gc.

        Args:
            locations: Where each is now, at most some megabytes in total.

        Returns:
            Where each is as well; durable after `sync`.

        Raises:
            CorruptChunk, ObjectNotFound: one cannot be read; nothing was copied.
            NoSpace, StoreInaccessible, ObjectStoreFailed: nothing was copied.
        """
        records = []
        for digest, place in locations:
            buffer = bytes(self._read_pack(place.pack, place.offset, place.stored_length))
            try:
                record = parse_record(buffer, place.offset)
            except CorruptChunk as error:
                raise _corrupt(digest, place, str(error)) from error
            if record.kind != KIND_CHUNK or record.digest != digest:
                raise _corrupt(digest, place, "another record is in its place")
            records.append(buffer)
        pack, offsets = self._packs.append(records)
        return [
            place._replace(pack=pack, offset=offset)
            for (_, place), offset in zip(locations, offsets, strict=True)
        ]

    def pending(self, digest: Digest) -> Location | None:
        """Return the location of a chunk that the index does not have yet.

        ``None`` for one that it has (or that nobody ever put). Another process may have put
        the same content at the same time: whoever inserts second keeps the first row.
        """
        return self._pending.get(digest)

    def pending_in(self, packs: Container[str]) -> dict[Digest, Location]:
        """Return the pending chunks that lie in some packs."""
        with self._lock:
            return {d: place for d, place in self._pending.items() if place.pack in packs}

    def forget_pending(self, digests: Iterable[Digest]) -> None:
        """Say that the index has them: after the commit, not before."""
        with self._lock:
            for digest in digests:
                self._pending.pop(digest, None)

    def note_alias(self, alias: Digest, digest: Digest) -> None:
        """Have a chunk be read by another name as well, until this store forgets it."""
        with self._lock:
            if len(self._aliases) >= _ALIASES_MAX:
                self._aliases.clear()
            self._aliases[alias] = digest

    def forget_alias(self, alias: Digest) -> None:
        with self._lock:
            self._aliases.pop(alias, None)

    def read(self, digest: Digest, offset: int, length: int) -> View:
        """Return a slice of a chunk; fewer bytes only where the chunk ends. May block.

        Args:
            offset: Bytes, >= 0.

        Returns:
            ``bytes``, or a ``memoryview`` of the cached chunk where that saves a copy.

        Raises:
            MissingChunk: it is in no index, or its pack is gone.
            CorruptChunk: what is stored is not what was written.
            StoreInaccessible, ObjectStoreFailed: the store could not be read.
        """
        digest = self._aliases.get(digest, digest)
        content = self._cache.find(digest)
        if content is None:
            part = self._read_part(digest, offset, length, self._read_pack)
            if part is not None:
                return part
            content = self._load(digest, length)
        return _slice(content, offset, length)

    def read_resident(self, digest: Digest, offset: int, length: int) -> View | None:
        """Like `read`, from memory alone (this cache, or the kernel's pages).

        Returns:
            ``None`` where it takes a `read` to know.

        Raises:
            CorruptChunk, StoreInaccessible, ObjectStoreFailed: as `read`.
        """
        digest = self._aliases.get(digest, digest)
        content = self._cache.find(digest)
        if content is not None:
            return _slice(content, offset, length)
        part = self._read_part(digest, offset, length, self._read_pack_resident)
        if part is not None:
            return part
        location = self._locate(digest)
        if location is None or not _plausible(location):
            return None
        if location.length > _INLINE_MAX:
            return None
        record = self._read_pack_resident(location.pack, location.offset, location.stored_length)
        if record is None:
            return None
        try:
            return _slice(self._accept(digest, location, record, length), offset, length)
        except CorruptChunk:
            if self._objects.distrust(pack_key(location.pack)):
                return None
            raise

    def sync(self) -> None:
        """Make everything put before the call durable; callers at one time share the work.

        That includes chunks which `put` found in packs that other processes write.

        Raises:
            NoSpace, StoreInaccessible, ObjectStoreFailed: it may not be durable. A later call
                tries again, and writes again what the kernel may have given up.
        """
        self._shared_sync()

    def secure(self, packs: Iterable[str] = ()) -> None:
        """Have everything put before the call where it is to stay, such as in a bucket.

        Callers at one time share the work: what all of them put is one object.

        Args:
            packs: These as well, whoever writes them.

        Raises:
            NoSpace, StoreInaccessible, ObjectStoreFailed, StoreHung: It is not there yet.
        """
        with self._lock:
            self._unsecured.update(packs)
        self._shared_securing()

    def seal_full(self) -> None:
        """Hand full packs over to the object store; from a background thread, now and then.

        Where nobody calls it, `put` does the work itself once several packs are waiting.
        """
        self._packs.seal_full()

    def finish(self, packs: Container[str]) -> bool:
        """Append no more to these; ``seal_full`` takes them next.

        Returns:
            Whether any of them is this process's, and not sealed yet.
        """
        return self._packs.finish(packs)

    def adopt(self, pack: str) -> None:
        """Finish a pack that a process left when it died: its header whole, all of it durable.

        Whoever had a chunk in it may never have synced it, and nobody looks into it again.

        Raises:
            ObjectNotFound: It is not there.
        """
        self._packs.adopt(pack)

    def packs_written(self) -> list[PackInfo]:
        """Return this process's packs, so that the engine can record lengths and seals."""
        return self._packs.written()

    def forget_sealed(self, packs: Iterable[str]) -> None:
        """Leave these out of `packs_written` from now on: the engine has recorded them."""
        self._packs.forget_sealed(packs)

    def scan(self, pack: str, start: int = 0) -> RecordScan:
        """Return an iterator over a pack's records, for recovery, rebuild and scrub.

        Raises:
            ObjectNotFound: while iterating: there is no such pack.
        """
        return RecordScan(lambda offset, length: self._read_pack(pack, offset, length), start)

    def close(self) -> None:
        """Sync and seal; `put` fails from here on, reading still works. May be repeated."""
        self.sync()
        self._packs.close()

    def _claim(self, digests: Collection[Digest]) -> tuple[list[Digest], list[Digest]]:
        """Return those that are this thread's to store, and those that others are storing."""
        mine: list[Digest] = []
        others: list[Digest] = []
        with self._lock:
            for digest in digests:
                if digest in self._pending:
                    continue
                (others if digest in self._claimed else mine).append(digest)
            self._claimed.update(mine)
        return mine, others

    def _settle(self, digests: list[Digest]) -> None:
        with self._settled:
            self._claimed.difference_update(digests)
            self._settled.notify_all()

    def _await_settled(self, digests: list[Digest]) -> None:
        self._before_waiting()
        with self._settled:
            self._settled.wait_for(lambda: self._claimed.isdisjoint(digests))

    def _without_indexed(self, digests: list[Digest]) -> list[Digest]:
        """Return those that the index does not have; rely on the others."""
        if not digests:
            return digests
        # Asked with the claim in hand: a chunk stops being pending only when the index has
        # it, so that one or the other is seen.
        found = self._find_reusable(digests)
        for location in found.values():
            self.rely_on(location.pack, location.offset + location.stored_length)
        return [digest for digest in digests if digest not in found] if found else digests

    def _find_each(self, digests: Sequence[Digest]) -> dict[Digest, Location]:
        places = ((digest, self._find(digest)) for digest in digests)
        return {digest: place for digest, place in places if place is not None}

    def rely_on(self, pack: str, end: int) -> None:
        """Have `sync` cover a pack up to this byte, also if another process writes it.

        The rows of its chunks are committed, but nobody has promised that the bytes survive power
        loss: their process may be about to sync, or dead.
        """
        if self._packs.find(pack) is None and self._durable.get(pack, 0) < end:
            with self._lock:
                self._borrowed[pack] = max(end, self._borrowed.get(pack, 0))
                self._unsecured.add(pack)

    def _append(
        self, digests: list[Digest], contents: dict[Digest, BytesLike], intent: bytes | None
    ) -> None:
        records = []
        codecs = []
        for digest in digests:
            content = contents[digest]
            _require_size(content)
            codec, payload = encode(content)
            codecs.append(codec)
            records.append(encode_record(KIND_CHUNK, codec, len(content), digest, payload))
        if intent is not None:
            _require_size(intent)
            records.append(intent_record(intent))
        if not records:
            return

        def note(pack: str, offsets: list[int]) -> None:
            for digest, record, offset, codec in zip(
                digests, records, offsets, codecs, strict=False
            ):
                length = len(contents[digest])
                self._pending[digest] = Location(pack, offset, len(record), length, codec)

        self._packs.append(records, note)

    def _locate(self, digest: Digest) -> Location | None:
        # Pending first: the other way round, a commit between the two looks would hide it.
        return self._pending.get(digest) or self._find(digest)

    def _load(self, digest: Digest, wanted: int) -> View:
        gone: Location | None = None
        doubted = False
        for _ in range(_ATTEMPTS):
            location = self._locate(digest)
            if location is None or location == gone:
                break
            if not _plausible(location):
                raise _corrupt(digest, location, "its index entry is out of bounds")
            try:
                record = self._read_pack(location.pack, location.offset, location.stored_length)
            except ObjectNotFound:
                # gc may have moved it to another pack since we looked.
                gone = location
                continue
            try:
                return self._accept(digest, location, record, wanted)
            except CorruptChunk:
                # What is far away may be right, and the copy of it that is near is not.
                if doubted or not self._objects.distrust(pack_key(location.pack)):
                    raise
                doubted = True
        where = f"pack {gone.pack} is gone" if gone else "it is in no index"
        raise MissingChunk(f"chunk {digest.hex()} is missing: {where}; run `nexus-ctl fsck`")

    def _read_pack(self, pack: str, offset: int, length: int) -> View:
        source = self._packs.find(pack)
        if source is not None:
            with contextlib.suppress(ObjectNotFound):  # sealed since, and sent away
                return source.read(offset, length)
        return self._objects.read(pack_key(pack), offset, length)

    def _read_pack_resident(self, pack: str, offset: int, length: int) -> View | None:
        source = self._packs.find(pack)
        if source is not None:
            return source.read_resident(offset, length)
        return self._objects.read_resident(pack_key(pack), offset, length)

    def _read_part(
        self,
        digest: Digest,
        offset: int,
        length: int,
        read: Callable[[str, int, int], View | None],
    ) -> View | None:
        """Return a small part of a chunk that was verified before; ``None``: read all of it."""
        blocks = self._blocks.find(digest)
        if blocks is None or length * WORTH_IT > blocks.length or offset >= blocks.length:
            return None
        begin, end = blocks.span(offset, length)
        try:
            content = read(blocks.pack, blocks.offset + begin, end - begin)
        except ObjectNotFound:
            content = b""  # gc has moved it
        if content is not None and (len(content) < end - begin or not blocks.holds(begin, content)):
            self._blocks.forget(digest)
            return None
        return None if content is None else _slice(content, offset - begin, length)

    def _accept(self, digest: Digest, location: Location, buffer: View, wanted: int) -> View:
        """Return the content of a record as read from the store, verified, and cache it.

        Args:
            wanted: How many bytes of it.
        """
        try:
            record = parse_record(buffer, location.offset)
            if record.kind != KIND_CHUNK or record.digest != digest:
                raise CorruptChunk("another record is in its place")
            content = decode(record.codec, record.payload, record.length)
        except CorruptChunk as error:
            raise _corrupt(digest, location, str(error)) from error
        self._cache.put(digest, content)
        if record.codec == CODEC_RAW and len(content) >= max(wanted * WORTH_IT, 4 * BLOCK_BYTES):
            begin = location.offset + RECORD_HEADER_SIZE
            self._blocks.note(digest, location.pack, begin, content)
        return content

    def _secure_now(self) -> None:
        self._packs.seal_all()
        # Here, where nobody waits but for a bucket: registering a pack waits for the disk. If there
        # is no room for one, whoever writes next is told.
        with contextlib.suppress(EngineError):
            self._packs.open_ahead()
        self._before_securing()
        with self._lock:
            borrowed = set(self._unsecured)
        near = {pack for pack in borrowed if self._objects.is_waiting(pack_key(pack))}
        if near:
            self._close_others(near)
        self._objects.secure(pack_key(pack) for pack in near)
        with self._lock:
            self._unsecured -= borrowed

    def _sync_now(self) -> None:
        self._packs.sync()
        with self._lock:
            borrowed = list(self._borrowed.items())
        for pack, end in borrowed:
            # gc drops a pack only when what is live in it is durable elsewhere.
            with contextlib.suppress(ObjectNotFound):
                self._objects.sync(pack_key(pack))
            with self._lock:
                self._durable[pack] = max(end, self._durable.get(pack, 0))
                if self._borrowed[pack] == end:
                    del self._borrowed[pack]


def _plausible(location: Location) -> bool:
    return 0 <= location.offset < 1 << 62 and (
        RECORD_HEADER_SIZE <= location.stored_length <= MAX_RECORD
    )


def _slice(content: View, offset: int, length: int) -> View:
    if offset == 0 and length >= len(content):
        return content
    return memoryview(content)[offset : offset + length]


def _require_size(content: BytesLike) -> None:
    if len(content) > MAX_CHUNK:
        raise ValueError(f"{len(content)} bytes in one chunk; at most {MAX_CHUNK} fit")


def _corrupt(digest: Digest, location: Location, reason: str) -> CorruptChunk:
    return CorruptChunk(
        f"chunk {digest.hex()} in pack {location.pack} at byte {location.offset} is corrupt:"
        f" {reason}; run `nexus-ctl fsck`"
    )
