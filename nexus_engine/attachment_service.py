"""Exchanges changes with the sources of attachments, for as long as a store is served."""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass, field
from functools import partial

import anyio
import anyio.from_thread

from nexus_engine import errors
from nexus_engine.attached.exchanging import Exchanged, exchange
from nexus_engine.attached.planning import Plan, plan_push
from nexus_engine.attached.pushing import drop_spools
from nexus_engine.engine import Engine
from nexus_engine.meta import attachment_queries
from nexus_engine.meta.attachment_queries import Attachment
from nexus_engine.meta.database import Database
from nexus_engine.oplog.peers import announce
from nexus_engine.store import Store
from nexus_engine.types import Path, Seq

log = logging.getLogger(__name__)

LOOK_S = 1.0
"""So long nothing must have been done before what was done is pushed: programs write files several
times, and make some that they rename or remove at once."""
PATIENCE_S = 10.0
"""Where something is done all the time, it is pushed so often."""
PAUSE_S, PAUSE_MAX_S = 5.0, 300.0
"""After a failure, and after many."""
SOON_S = 10
"""A source is looked at again so soon where somebody found something else there than was known."""
LEAVING_S = 30.0
"""How long an unmount waits for what was changed to be at its source."""
_NOTE_EVERY = 10_000
"""Operations that concern no attachment."""


@dataclass(slots=True)
class _State:
    """How an attachment gets on."""

    planned: int = 0
    """What operations up to this one changed is at the source."""
    waiting: int = 0
    """Objects that were not what they are to be when somebody last looked."""
    next_try_s: float = 0.0
    pause_s: float = 0.0
    said: str = ""
    """The failure that is in the log."""
    failed: dict[Path, str] = field(default_factory=dict)
    """The files that stay here, which are in the log."""


class AttachmentService:
    """Of one engine."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._store = engine.store
        self._states: dict[int, _State] = {}
        self._busy: set[int] = set()
        """Attachments that a task is at."""
        self._head = Seq(0)
        self._changed_s = self._quiet_s = time.monotonic()

    def figures(self) -> dict[str, int]:
        """Return what is shown in a status; nothing where nothing is attached."""
        roots = self._store.database.attached.roots
        waiting = sum(state.waiting for state in self._states.values())
        return {"attachments": len(roots), "changes_to_push": waiting} if roots else {}

    async def run(self) -> None:
        """Push what is changed here, look now and then for what others changed, for ever."""
        await anyio.to_thread.run_sync(drop_spools, self._store)
        async with anyio.create_task_group() as tasks:
            while True:
                await anyio.sleep(LOOK_S)
                if not self._store.database.attached.roots:
                    continue
                is_quiet = self._note_head()
                for attachment in attachment_queries.living(self._store.database.connection):
                    if attachment.number not in self._busy:
                        # One that is slow, or gone, must not keep the others waiting.
                        self._busy.add(attachment.number)
                        tasks.start_soon(self._look_once, attachment, is_quiet)

    def _note_head(self) -> bool:
        """Tell whether it is time to push what was done."""
        now_s, head = time.monotonic(), self._store.reader.head()
        if head != self._head:
            self._head, self._quiet_s = head, now_s
        if now_s - self._quiet_s >= LOOK_S or now_s - self._changed_s >= PATIENCE_S:
            self._changed_s = now_s
            return True
        return False

    async def _look_once(self, attachment: Attachment, is_quiet: bool) -> None:  # noqa: FBT001
        try:
            await self._look_after(attachment, is_quiet=is_quiet)
        finally:
            self._busy.discard(attachment.number)

    async def _look_after(self, attachment: Attachment, *, is_quiet: bool) -> None:
        state = self._states.setdefault(attachment.number, _State())
        if time.monotonic() < state.next_try_s:
            return
        push = is_quiet and not attachment.read_only and state.planned < self._head
        age_ns = self._store.clock.time_ns() - attachment.listed_ns
        outdated = self._store.sources.outdated
        interval_s = SOON_S if attachment.number in outdated else attachment.interval_s
        refresh = bool(attachment.interval_s) and age_ns >= interval_s * 10**9
        if refresh:
            outdated.discard(attachment.number)
        if push:
            plan = await self._plan(attachment)
            state.waiting = plan.size
            push = bool(
                plan.size
                or attachment_queries.unpushed(self._store.database.connection, attachment.number)
            )
            if not push:
                state.planned = plan.head
                if plan.head - attachment.pushed_seq > _NOTE_EVERY:
                    await self._note_pushed(attachment, plan.head)
        if not push and not refresh:
            return
        stop = threading.Event()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._stop_when_cancelled, stop, attachment.number)
            await self._try(attachment, state, stop, push=push, refresh=refresh)
            stop.set()
            tasks.cancel_scope.cancel()

    async def _stop_when_cancelled(self, stop: threading.Event, number: int) -> None:
        try:
            await anyio.sleep_forever()
        finally:
            if not stop.is_set():
                stop.set()
                self._store.sources.let_go(number)  # or an unmount would wait for a silent server

    async def _try(
        self,
        attachment: Attachment,
        state: _State,
        stop: threading.Event,
        *,
        push: bool,
        refresh: bool,
    ) -> None:
        try:
            done = await self._exchange(attachment, stop, push=push, refresh=refresh)
        except errors.Interrupted:
            return
        except errors.StoreBusy:
            return  # a command is at it; the next round sees what is left
        except errors.EngineError as error:
            state.pause_s = min(max(PAUSE_S, 2 * state.pause_s), PAUSE_MAX_S)
            state.next_try_s = time.monotonic() + state.pause_s
            if state.said != str(error):
                log.error("%s: %s; trying again", attachment.url, error)
                state.said = str(error)
            return
        state.pause_s, state.said = 0.0, ""
        state.waiting = len(done.pushed.failed) if push else state.waiting
        if done.pushed.failed:
            # Of its own accord that seldom changes.
            state.next_try_s = time.monotonic() + PAUSE_S
            state.pause_s = PAUSE_S
        self._log(attachment, done, state.failed)
        state.failed = done.pushed.failed

    async def _exchange(
        self, attachment: Attachment, stop: threading.Event, *, push: bool, refresh: bool
    ) -> Exchanged:
        engine = self._engine

        def settle() -> None:
            anyio.from_thread.run(engine.settle)

        def run(store: Store) -> Exchanged:
            store.stop_on(stop)
            done = exchange(
                store, attachment, keep=engine.content, before=settle, push=push, refresh=refresh
            )
            if done.imported.any:
                announce(store)
            return done

        return await engine.in_peer(run)

    def _log(self, attachment: Attachment, done: Exchanged, known: dict[Path, str]) -> None:
        if done.imported.conflicts:
            log.warning(
                "%s: %d files were changed here and there: nexus-ctl mounts info shows which",
                attachment.url, done.imported.conflicts,
            )  # fmt: skip
        for path, reason in done.pushed.failed.items() - known.items():
            log.warning("%s: %r stays here: %s", attachment.url, path, reason)

    async def _plan(self, attachment: Attachment) -> Plan:
        def plan(database: Database) -> Plan:
            return plan_push(database.connection, attachment)

        return await self._engine.in_reader(plan)

    async def _note_pushed(self, attachment: Attachment, head: Seq) -> None:
        note = partial(
            attachment_queries.note_pushed, number=attachment.number, seq=head, failed=()
        )
        await anyio.to_thread.run_sync(self._store.note, note)

    # -- the end --

    async def push_before_leaving(self) -> None:
        """Push what is not at its source yet, as far as that takes no longer than a while."""
        engine, store = self._engine, self._store
        if not store.database.attached.roots:
            return
        await engine.settle()
        stop = threading.Event()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_stop_after, LEAVING_S, stop, store)
            for attachment in attachment_queries.living(store.database.connection):
                if attachment.read_only or not (await self._plan(attachment)).size:
                    continue
                try:
                    await self._exchange(attachment, stop, push=True, refresh=False)
                except errors.EngineError as error:
                    log.error("%s: %s", attachment.url, error)
                left = (await self._plan(attachment)).size
                if left:
                    what = "1 change is" if left == 1 else f"{left} changes are"
                    log.error(
                        "%s not at %s yet: the next mount brings it there", what, attachment.url
                    )
            tasks.cancel_scope.cancel()


async def _stop_after(seconds: float, stop: threading.Event, store: Store) -> None:
    await anyio.sleep(seconds)
    stop.set()
    store.sources.close()  # ends pauses: what fails now is not tried again
