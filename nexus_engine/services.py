"""What goes on beside requests for as long as a store is served: upkeep, retention, scrub.

A service runs for ever and is restarted by its supervisor. What takes long runs in a thread, with
the store opened a second time.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from functools import partial

import anyio

from nexus_engine import errors
from nexus_engine.cas.pack import PACK_HEADER_SIZE
from nexus_engine.check import scrub as scrubbing
from nexus_engine.config import Retention, Scrub, parse_bytes, seconds
from nexus_engine.engine import Engine
from nexus_engine.meta import gc_queries, log_pruning_queries
from nexus_engine.metadata_copy import put_metadata
from nexus_engine.owners import is_alone
from nexus_engine.recovery import recover
from nexus_engine.retention import gc
from nexus_engine.retention.prune import prune
from nexus_engine.store import Store
from nexus_engine.types import Actor

log = logging.getLogger(__name__)

UPKEEP_INTERVAL_S = 1.0
RECOVERY_INTERVAL_S = 5.0
SETTLE_DELAY_S = 0.02
"""The first of several operations waits for their COMMIT that long."""
ROOM_PAUSE_S = 60.0
"""Between two attempts at making room."""
DEAD_SHARE_WHEN_LOW = 0.1
MERGE_INTERVAL_S = 300.0
MERGE_PACKS = 64
"""So many more since the last time, and packs are looked at."""
SCRUB_LOOK_S = 3600.0
"""So often a daemon looks whether a scrub is due."""
_DAMAGE_LOGGED = 100


class _Failures:
    """Logs what goes wrong again and again once for each reason."""

    def __init__(self) -> None:
        self._last: dict[str, str] = {}

    def failed(self, what: str, error: errors.EngineError, outlook: str) -> None:
        if self._last.get(what) != str(error):
            log.error("%s: %s; %s", what, error, outlook)
        self._last[what] = str(error)

    def done(self, what: str) -> None:
        self._last.pop(what, None)


class Services:
    """The services of one engine."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._store = engine.store
        self._content = engine.content
        self._synced = (time.monotonic(), engine.reader.head())
        self._made_room_s = float("-inf")
        self._was_full = False
        self._filled_s: dict[str, float] = {}
        """Since when a pack holds something that the bucket does not have."""
        self._failures = _Failures()

    async def run_settling(self) -> None:
        """Have operations that come close together share a COMMIT, for ever."""
        waiting = anyio.Event()

        def note_waiting() -> None:
            waiting.set()

        while True:
            try:
                self._store.let_wait(note_waiting)
                break
            except errors.EngineError:  # a full disk: each has a COMMIT of its own until then
                await anyio.sleep(UPKEEP_INTERVAL_S)
        try:
            while True:
                await waiting.wait()
                await anyio.sleep(SETTLE_DELAY_S)
                waiting = anyio.Event()
                try:
                    self._store.settle()
                    self._failures.done("commit")
                except errors.EngineError as error:
                    self._failures.failed("commit", error, "what was done waits in the journal")
                    waiting.set()
                    await anyio.sleep(UPKEEP_INTERVAL_S)
        finally:
            self._store.let_wait(None)

    async def run_upkeep(self) -> None:
        """Sync, seal long sessions and shorten the write-ahead log, for ever."""
        while True:
            await anyio.sleep(UPKEEP_INTERVAL_S)
            try:
                await self.upkeep()
                self._failures.done("upkeep")
            except errors.StoreBusy:
                continue  # another process is writing; the next round does it
            except errors.StoreHung:
                continue  # the disk has said so, and says when it answers again
            except errors.EngineError as error:
                # A full disk, say: nothing is lost by waiting.
                self._failures.failed("upkeep", error, "trying again")

    async def run_recovery(self) -> None:
        """Finish what other processes of the store leave when they die, for ever."""
        while True:
            await anyio.sleep(RECOVERY_INTERVAL_S)
            if not is_alone(self._store.peers):
                await self._beside("recovery", lambda _, store: recover(store))

    async def run_sending(self) -> None:
        """Have a bucket get what processes that died left on the disk, for ever."""
        while True:
            try:
                if self._store.packs_url is not None:
                    await self._store.disk.sync(self._store.send_orphans)
                self._failures.done("sending")
            except errors.StoreHung:
                pass  # the disk has said so
            except errors.EngineError as error:
                self._failures.failed("sending", error, "trying again")
            await anyio.sleep(RECOVERY_INTERVAL_S)

    async def run_merging(self) -> None:
        """Make large packs of the small ones that fsync leaves in a bucket, for ever."""
        before = gc_queries.count_sealed(self._store.database.connection)
        while True:
            await anyio.sleep(MERGE_INTERVAL_S)
            now = gc_queries.count_sealed(self._store.database.connection)
            if now - before >= MERGE_PACKS and self._store.packs_url is not None:
                await self._beside("merging packs", _merge_packs)
                before = gc_queries.count_sealed(self._store.database.connection)
            before = min(before, now)

    async def run_copying(self) -> None:
        """Put copies of the metadata into the bucket that packs live in, for ever."""
        interval_s = self._store.config.metadata_interval_s
        if not interval_s:
            await anyio.sleep_forever()
        while True:
            await anyio.sleep(interval_s)
            if self._store.packs_url is not None:
                await self._beside("the copy of the metadata", lambda _, store: put_metadata(store))

    async def run_retention(self) -> None:
        """Prune by the store's policy, again and again; without one, do nothing for ever."""
        policy = self._store.config.retention
        if policy is None:
            await anyio.sleep_forever()
            return
        while True:
            dead_share = await self._until_pruning(policy)
            await self._beside("pruning", partial(_prune, policy, dead_share))

    async def _until_pruning(self, policy: Retention) -> float:
        """Wait until it is time to prune, or until room is wanted that may be made.

        Returns:
            Which share of a pack must be dead for gc to rewrite it.
        """
        begun_s, interval_s = time.monotonic(), seconds(policy.interval)
        while (waited_s := time.monotonic() - begun_s) < interval_s:
            await anyio.sleep(min(UPKEEP_INTERVAL_S, interval_s - waited_s))
            reserve = self._store.reserve
            # What is not old enough yet may be a minute later.
            due = time.monotonic() - self._made_room_s >= ROOM_PAUSE_S
            if policy.make_room and due and reserve.is_low():
                log.warning("%d bytes are left on the disk: pruning early", reserve.free_bytes())
                self._made_room_s = time.monotonic()
                await self._finish_packs()
                return DEAD_SHARE_WHEN_LOW
        return gc.DEAD_SHARE

    async def _finish_packs(self) -> None:
        """Begin new packs, so that gc can look at those of now."""
        packs = {pack.pack for pack in self._store.chunks.packs_written()}
        await self._store.disk.sync(self._store.chunks.finish, packs)
        await self._retire_packs()

    async def run_scrub(self) -> None:
        """Read all content again, now and then."""
        policy = self._store.config.scrub
        if policy is None:
            await anyio.sleep_forever()
            return
        while True:
            await anyio.sleep(min(seconds(policy.interval), SCRUB_LOOK_S))
            await self._beside("scrub", partial(_scrub_if_due, policy))

    async def _beside(self, what: str, action: Callable[[threading.Event, Store], object]) -> None:
        """Run long work in a thread with the store opened again; tell it when this is cancelled."""
        stop = threading.Event()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_set_when_cancelled, stop)
            try:
                await self._engine.in_peer(partial(action, stop))
                self._failures.done(what)
            except errors.Interrupted:
                log.info("%s: stopped; the next run goes on", what)
            except errors.EngineError as error:
                self._failures.failed(what, error, "trying again later")
            tasks.cancel_scope.cancel()

    async def upkeep(self) -> None:
        """Do one round of it."""
        await self._store.disk.sync(self._store.reserve.renew)
        if self._store.reserve.spent and not self._was_full:
            await self._finish_packs()
        self._was_full = self._store.reserve.spent
        limit_ns = int(self._store.config.session_limit_s * 1e9)
        try:
            await self._content.seal_all(older_than_ns=self._store.clock.time_ns() - limit_ns)
            self._content.hold_unlinked()
            self._content.drop_unlinked()
            self._content.write_access_times()
        finally:
            # Also with the disk full: what makes room waits for our answers.
            await self._keep_store()

    async def _keep_store(self) -> None:
        await self._leave_packs()
        await self._engine.follow()
        await self._store.disk.sync(self._store.objects.forget_deleted)
        config = self._store.config
        now_s, head = time.monotonic(), self._store.reader.head()
        due = now_s - self._synced[0] >= config.sync_interval_s
        if due and (head != self._synced[1] or self._store.has_unsynced_chunks()):
            await self._engine.sync()
            self._synced = (now_s, head)
        await self._store.disk.sync(self._store.checkpoint)
        if self._store.packs_url is not None:
            await self._send_old_packs()
        await self._retire_packs()

    async def _send_old_packs(self) -> None:
        """Begin new packs where the bucket has been waiting for those of now long enough."""
        now_s = time.monotonic()
        packs = [p for p in self._store.chunks.packs_written() if not p.sealed]
        self._filled_s = {
            p.pack: self._filled_s.get(p.pack, now_s) for p in packs if p.length > PACK_HEADER_SIZE
        }
        limit_s = self._store.config.upload_interval_s
        old = {pack for pack, since_s in self._filled_s.items() if now_s - since_s >= limit_s}
        if old:
            await self._store.disk.sync(self._store.chunks.finish, old)

    async def _retire_packs(self) -> None:
        """Have recovery, and nobody but gc, look into complete packs no more."""
        await self._store.disk.sync(self._store.chunks.seal_full)
        complete = self._store.complete_packs()
        if complete:
            await self._content.renew_intents()
            await self._engine.sync()
            self._store.with_reserve(self._store.retire_packs, complete)

    async def _leave_packs(self) -> None:
        """Answer gc, which wants to know that nobody begins to rely on a pack that goes."""
        connection = self._store.database.connection
        packs = gc_queries.unseen_packs(connection, self._store.owner)
        closing = log_pruning_queries.closing_packs(connection, self._store.owner)
        wanted = {name for _, name in packs}.union(closing)
        if wanted:
            unsealed = await self._store.disk.sync(self._store.chunks.finish, wanted)
            if unsealed:
                return  # first these must be sealed; the next round sees to that
        if packs:
            names = [name for _, name in packs]
            if await self._content.staging.leave_packs(names):
                # What goes may have been fsynced: what takes its place must be as durable.
                await self._engine.sync()
                await self._engine.secure()
            self._store.with_reserve(gc_queries.note_seen, connection, names, self._store.owner)


def _prune(policy: Retention, dead_share: float, stop: threading.Event, store: Store) -> None:
    actor = Actor(store.path.stat().st_uid, 0, os.getpid(), command="retention")
    store.stop_on(stop)
    done = prune(store, policy, actor)
    collected = gc.collect(store, dead_share=dead_share)
    log.info(
        "pruned %d rows and %d records; gave back %d bytes in %d packs",
        done.rows, done.records, collected.freed_bytes, collected.packs,
    )  # fmt: skip
    if done.excess_bytes:
        log.info("history is %d bytes above max_history", done.excess_bytes)


def _merge_packs(stop: threading.Event, store: Store) -> None:
    store.stop_on(stop)
    gc.collect(store, dead_share=gc.SMALL_ONLY)


def _scrub_if_due(policy: Scrub, stop: threading.Event, store: Store) -> None:
    state = scrubbing.load_state(store)
    since_ns = state.ended_ns or store.reader.store_value("created_ns") or 0
    due_ns = since_ns + seconds(policy.interval) * 10**9
    if not state.pack and store.clock.time_ns() < due_ns:
        return
    done = scrubbing.scrub(store, rate_bytes=parse_bytes(policy.rate), pause=stop.wait)
    if done.complete:
        log.info("scrub: read %d chunks, %d bytes", done.chunks, done.read_bytes)
        for problem in done.problems[:_DAMAGE_LOGGED]:
            log.error("scrub: %s: %s", problem.where, problem.message)


async def _set_when_cancelled(event: threading.Event) -> None:
    try:
        await anyio.sleep_forever()
    finally:
        event.set()
