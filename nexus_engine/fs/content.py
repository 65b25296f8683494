"""Open files: reading, writing, and the sessions between the two and the log."""

from __future__ import annotations

from contextlib import suppress
from functools import partial

from nexus_engine import errors
from nexus_engine.fs.access_times import AccessTimes
from nexus_engine.fs.extents import CHUNK_BYTES
from nexus_engine.fs.files import (
    INTENT_EXTENTS_MAX,
    Handle,
    OpenFile,
    WriteSession,
    commit_session,
)
from nexus_engine.fs.quotas import Held
from nexus_engine.fs.reading import read_extents, read_over
from nexus_engine.fs.staging import INLINE_BYTES, INLINE_RANGES, Staging
from nexus_engine.meta.quotas import NOTHING, Usage
from nexus_engine.reserve import full
from nexus_engine.store import Store
from nexus_engine.types import Actor, Ino, Inode, Seq

SESSION_EXTENTS_MAX = 4096
"""A session of more pieces ends: its commit would keep others waiting, and it takes memory."""
_STORED_MAX = 8192


class Content:
    """The open files of this process."""

    def __init__(self, store: Store, *, noatime: bool) -> None:
        self._store = store
        self._reader = store.reader
        self._clock = store.clock
        self.access_times = AccessTimes(store, enabled=not noatime)
        self._files: dict[Ino, OpenFile] = {}
        self.staging = Staging(store, self._files)
        self._stored: dict[Ino, tuple[Seq, int]] = {}
        """How many bytes of a file are not holes, as of its content then."""
        self.held = Held(store.database)
        self.unlinked: set[Ino] = set()
        """Inodes that lost their last name while open."""

    def __contains__(self, ino: object) -> bool:
        return ino in self._files

    @property
    def has_open_files(self) -> bool:
        return bool(self._files)

    @property
    def is_writing(self) -> bool:
        """Whether any file has a session."""
        return any(file.session is not None for file in self._files.values())

    # -- handles --

    def open(self, inode: Inode, actor: Actor, *, silent: bool = False) -> Handle:
        """Open a file.

        Args:
            silent: Reading through the handle leaves the atime alone.
        """
        file = self._files.get(inode.ino)
        if file is None:
            file = self._files[inode.ino] = OpenFile(inode.ino, inode)
        file.handles += 1
        return Handle(file, actor, silent=silent)

    async def release(self, handle: Handle) -> None:
        """Close a handle; the last one ends the session."""
        file = handle.file
        file.handles -= 1
        if file.handles == 0:
            if file.session is not None:
                await self.seal(file)
            self._drop_if_unused(file)

    def _drop_if_unused(self, file: OpenFile) -> None:
        if file.handles == 0 and file.session is None and self._files.get(file.ino) is file:
            del self._files[file.ino]
            self.held.put(file.ino, NOTHING)
            if file.ino in self.unlinked:
                # Where that fails, upkeep does it.
                with suppress(errors.EngineError):
                    self._store.database.drop_unlinked(file.ino)
                    self.unlinked.discard(file.ino)

    def hold_unlinked(self) -> None:
        """Have a row for each open file without a name: pruning leaves alone what it held.

        Where another process took the last name, or closed the file earlier than we do, there is
        none.

        Raises:
            StoreBusy: Another process is writing.
        """
        for ino in self.unlinked & self._files.keys():
            if self._reader.find_inode(ino) is None:
                self._store.database.adopt_unlinked(ino)

    def drop_unlinked(self) -> None:
        """Drop the rows of unlinked inodes that are no longer open."""
        for ino in [ino for ino in self.unlinked if ino not in self._files]:
            self._store.database.drop_unlinked(ino)
            self.unlinked.discard(ino)

    # -- reading --

    def is_over(self, ino: Ino) -> bool:
        """Tell whether `over` may have something to say of an inode."""
        return ino in self._files or ino in self.access_times

    def over(self, inode: Inode) -> Inode:
        """Return the inode with what an open session did to it, and when it was read last."""
        inode = self.access_times.over(inode)
        file = self._files.get(inode.ino)
        if file is None or file.session is None:
            return inode
        return file.session.over(inode)

    def refresh(self) -> None:
        """Another process changed the store: forget what was read from it."""
        for file in self._files.values():
            file.inode = None
            if self._committed(file).nlink == 0:
                self.unlinked.add(file.ino)
            else:
                self.unlinked.discard(file.ino)  # an undo brought it back
        self.held.reload()
        if self.held.active:
            for file in self._files.values():
                self._hold(file)

    def _committed(self, file: OpenFile) -> Inode:
        """Return the file's inode as the database has it, also after its removal.

        What is open goes on: the content of a removed inode stays where it was.
        """
        if file.inode is None:
            file.inode = self._reader.find_inode(file.ino) or self._reader.find_departed(file.ino)
            if file.inode is None:
                raise errors.StaleInode(f"inode {file.ino} is gone")
        return file.inode

    def set_mtime(self, ino: Ino, mtime_ns: int) -> None:
        """A time was set; a session that outlives that (of an unlinked file) takes it over."""
        file = self._files.get(ino)
        if file is not None and file.session is not None:
            file.session.mtime_ns = mtime_ns

    def stored_bytes(self, inode: Inode) -> int:
        """Return how many of a file's bytes are not holes; while it is written, about."""
        if inode.size <= INLINE_BYTES or not inode.is_file:
            return inode.size
        content_seq, stored = self._stored.get(inode.ino, (None, 0))
        if content_seq != inode.content_seq:
            stored = self._reader.stored_bytes(inode.ino)
            if len(self._stored) >= _STORED_MAX:
                self._stored.clear()
            self._stored[inode.ino] = inode.content_seq, stored
        file = self._files.get(inode.ino)
        if file is not None and file.session is not None:
            stored += file.session.dirty.bytes + sum(e.length for e in file.session.staged.all())
        return min(stored, inode.size)

    def write_access_times(self) -> None:
        """Put atimes into their rows; tried once.

        Raises:
            StoreBusy: Another process is writing.
        """
        for ino in self.access_times.write():
            self.refresh_inode(ino)

    def refresh_inode(self, ino: Ino) -> None:
        """The committed inode changed."""
        file = self._files.get(ino)
        if file is not None:
            file.inode = None

    async def read(self, handle: Handle, offset: int, length: int) -> bytes:
        """Return the bytes of a range, short at the end of the file."""
        file = handle.file
        session = file.session
        committed = self._committed(file)
        if not handle.silent:
            self.access_times.read(self.over(committed))
        if session is None:
            length = min(length, committed.size - offset)
            if length <= 0:
                return b""
            extents = self._reader.extents(file.ino, offset, length)
            return await read_extents(self._store, extents, offset, length)

        length = min(length, session.size_over(committed.size) - offset)
        return b"" if length <= 0 else await read_over(self._store, session, offset, length)

    # -- writing --

    async def write(self, handle: Handle, offset: int, data: bytes) -> int:
        """Write bytes; they are in an operation once the last handle closes.

        Raises:
            NoSpace: What was written before has no room; nothing of this write was taken.
        """
        await self.staging.require_room(len(data))
        file = handle.file
        await self._split_from_others(file, handle.actor)
        await file.gate.take()
        try:
            session = file.session or self._begin(file, handle.actor)
            # Before, not after: a write that fails must not have happened.
            crowd = len(session.staged) + session.dirty.count
            if crowd >= SESSION_EXTENTS_MAX:
                if file.ino in self.unlinked:
                    await self.staging.join_pieces(session, crowd)
                else:
                    await self._seal(file)
                session = file.session or self._begin(file, handle.actor)
            if full := session.dirty.full_ranges():
                await self.staging.move(session, full)
            if crowded := session.dirty.crowded_ranges():
                await self.staging.move(session, crowded)
            if self.held.active:
                data = data[: self._allowance(file, session, offset, len(data))]
            before = session.dirty.footprint
            session.write(offset, data, self._clock.time_ns())
            self.staging.dirty_bytes += session.dirty.footprint - before
            if session.dirty.bytes >= CHUNK_BYTES:
                # What this write made whole; to look through all that is dirty takes long.
                for dirty in session.dirty.overlapping(offset, offset + len(data)):
                    if len(dirty.data) == CHUNK_BYTES:
                        dirty.hash_ahead()
            self._hold(file)
        finally:
            file.gate.give()
        return len(data)

    def _allowance(self, file: OpenFile, session: WriteSession, offset: int, length: int) -> int:
        """Return how many bytes quotas let a write have.

        Raises:
            QuotaExceeded: None at all.
        """
        size = session.size_over(self._committed(file).size)
        if offset + length <= size:
            return length
        room = self.held.room_bytes(file.ino)
        if room is None:
            return length
        if size + room <= offset:
            raise self.held.exceeded(file.ino)
        return min(length, size + room - offset)

    def _hold(self, file: OpenFile) -> None:
        """Tell quotas what a file takes that no row says."""
        if not self.held.active:
            return
        committed = self._committed(file)
        size = committed.size if file.session is None else file.session.size_over(committed.size)
        if file.ino in self.unlinked:
            self.held.put(file.ino, Usage(size, 1))
        else:
            self.held.put(file.ino, Usage(size - committed.size, 0))

    def note_unlinked(self, ino: Ino, parent: Ino) -> None:
        """An open file lost its last name, in this directory; it goes on counting there."""
        self.unlinked.add(ino)
        if self.held.active:
            self.held.put(ino, NOTHING)
            self.held.put(ino, Usage(0, 1), self.held.trees_of_directory(parent))
            self._hold(self._files[ino])

    async def truncate(
        self, file: OpenFile, size: int, actor: Actor, *, flush: bool = False
    ) -> Inode:
        """Set the size of an open file, as part of its session.

        Args:
            flush: As `flush` does, and where that fails the size is what it was.
        """
        await self._split_from_others(file, actor)
        await file.gate.take()
        try:
            growth = size - self.over(self._committed(file)).size
            if growth > 0 and self._store.reserve.spent:
                raise full()
            if growth > 0 and self.held.active:
                room = self.held.room_bytes(file.ino)
                if room is not None and growth > room:
                    raise self.held.exceeded(file.ino)
            begun = file.session is None
            session = file.session or self._begin(file, actor)
            cut_off = session.beyond(size) if flush else None
            before = session.dirty.footprint
            session.truncate(size, self._clock.time_ns())
            self.staging.dirty_bytes += session.dirty.footprint - before
            if cut_off is not None:
                try:
                    await self._flush(file)
                except errors.EngineError:
                    before = session.dirty.footprint
                    session.take_back(cut_off)
                    self.staging.dirty_bytes += session.dirty.footprint - before
                    if begun:
                        file.session = None
                    raise
            return self.over(self._committed(file))
        finally:
            self._hold(file)
            file.gate.give()

    async def _split_from_others(self, file: OpenFile, actor: Actor) -> None:
        """End the session of somebody else: what two agents do are two operations.

        Processes of one user, agent and login session share one: a database's workers write to
        one file in turns, and a version for each turn would help nobody.
        """
        session = file.session
        if session is not None and file.ino not in self.unlinked:
            theirs = session.actor
            if (theirs.uid, theirs.agent, theirs.session, theirs.principal) != (
                actor.uid,
                actor.agent,
                actor.session,
                actor.principal,
            ):
                await self.seal(file)

    def find_file(self, ino: Ino) -> OpenFile | None:
        return self._files.get(ino)

    def _begin(self, file: OpenFile, actor: Actor) -> WriteSession:
        inode = self._committed(file)
        session_id = self._clock.random_bytes(8)
        file.session = WriteSession(session_id, inode, actor, self._clock.time_ns())
        return file.session

    async def flush(self, file: OpenFile) -> None:
        """Make what was written outlive this process (not yet a power loss).

        Raises:
            NoSpace: Nothing is lost: the bytes stay in memory, a later flush may succeed.
        """
        if file.session is None or not file.session.unflushed:
            return
        await file.gate.take()
        try:
            await self._flush(file)
        finally:
            file.gate.give()

    async def _flush(self, file: OpenFile) -> None:
        """See `flush`. The file's gate is held."""
        session = file.session
        if session is None or not session.unflushed:
            return
        if file.ino in self.unlinked:
            return  # without a name there is nothing to come back to after a crash
        ranges = session.dirty.ranges()
        if session.dirty.bytes > INLINE_BYTES or len(ranges) > INLINE_RANGES:
            await self.staging.move_all(session)
            ranges = []
        if len(session.staged) + len(ranges) <= INTENT_EXTENTS_MAX:
            await self.staging.move_with_intent(session, ranges)
        else:
            await self._seal(file)

    async def seal(self, file: OpenFile) -> None:
        """End the session: one operation in the log."""
        await file.gate.take()
        try:
            await self._seal(file)
        finally:
            file.gate.give()
        self._drop_if_unused(file)

    async def _seal(self, file: OpenFile) -> None:
        """See `seal`. The file's gate is held."""
        session = file.session
        if session is None:
            return
        if file.ino in self.unlinked and file.handles == 0:
            self.staging.dirty_bytes -= session.dirty.footprint
        else:
            await self.staging.move_all(session)
            if file.ino in self.unlinked:
                return  # no name, but still open: the session holds the content
            committed = await self._store.write(
                commit_session, session.actor, session, self._store.locate
            )
            if committed is None:  # another process removed it
                self.unlinked.add(file.ino)
                if file.handles:
                    return
            else:
                # Only what a row names now: another session may rely on the rest.
                digests = [extent.digest for extent in session.staged.all()]
                self._store.database.when_committed(
                    partial(self._store.chunks.forget_pending, digests)
                )
                file.inode = committed
        file.session = None
        self._hold(file)

    async def renew_intents(self) -> None:
        """Write the intents of open sessions again, into the pack of now.

        A pack that is complete is not looked at after a crash.
        """
        for file in list(self._files.values()):
            session = file.session
            if session is not None and session.flushes:
                session.unflushed = True
                await self.flush(file)

    async def seal_inode(self, ino: Ino) -> None:
        """End the session of an inode, if there is one, before something else happens to it."""
        file = self._files.get(ino)
        if file is not None and file.session is not None:
            await self.seal(file)

    async def seal_all(self, *, older_than_ns: int | None = None) -> None:
        """End every session, or those begun before a time or left behind by a failed release.

        Raises:
            EngineError: The last failure, after every session was tried.
        """
        failure: errors.EngineError | None = None
        for file in list(self._files.values()):
            session = file.session
            if session is None:
                continue
            due = older_than_ns is None or session.started_ns < older_than_ns
            if due or file.handles == 0:
                try:
                    await self.seal(file)
                except errors.EngineError as error:
                    failure = error
        if failure is not None:
            raise failure

    async def leave_sessions(self) -> dict[Ino, bool]:
        """Put sessions that could not end into the packs, for whoever opens the store next.

        Returns:
            Their files, and whether all that was written to each is kept.
        """
        left: dict[Ino, bool] = {}
        for file in list(self._files.values()):
            if file.ino in self.unlinked:
                continue
            with suppress(errors.EngineError):
                await self.flush(file)
            if file.session is not None:
                left[file.ino] = not file.session.unflushed
        return left

    def figures(self) -> dict[str, int]:
        """Return how many files are open and how much of them is not in chunks yet."""
        sessions = sum(file.session is not None for file in self._files.values())
        return {
            "open_files": len(self._files),
            "write_sessions": sessions,
            "dirty_bytes": self.staging.dirty_bytes,
        }
