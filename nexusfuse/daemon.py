"""The composition root: open the engine, mount, serve, stop in order."""

from __future__ import annotations

import ctypes
import errno
import gc
import logging
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import pyfuse3
import trio

from nexus_engine import __version__, errors
from nexus_engine.attachment_service import AttachmentService
from nexus_engine.check import scrub
from nexus_engine.engine import Engine
from nexus_engine.oplog.peers import PeerSocket
from nexus_engine.services import Services
from nexusfuse import logs, scheduling
from nexusfuse.invalidate import Invalidator
from nexusfuse.liveness import Watchers
from nexusfuse.mount import Mounted, MountOptions, raise_read_ahead, write_back
from nexusfuse.operations import Operations
from nexusfuse.virtual.tree import VirtualTree

log = logging.getLogger(__name__)

STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
RESTARTING = signal.SIGUSR2
"""End in order, and leave the mount to the daemon that the supervisor then starts. One that is too
old to know it dies of it, and is replaced as well."""
RESTART_DELAY_S = 1.0
ARENAS = 2
TRIM_INTERVAL_S = 30.0
M_ARENA_MAX = -8  # mallopt(3)
WRITE_BACK_LIMIT_S = 30.0
POLL_INTERVAL_S = 1.0
"""A peer's wake-up can get lost; this finds what it announced."""


class Place(NamedTuple):
    """What the daemon asks about its mountpoint, right before it mounts."""

    is_wanted: Callable[[], bool]
    """Whether to mount at all: not if what was to be replaced has been unmounted."""
    is_taken: Callable[[], bool]
    """Whether a dead mount is there."""
    free: Callable[[], None]
    """Take a dead mount away; refuse a mountpoint on which we may not mount."""


async def serve(
    mountpoint: Path,
    store: Path,
    *,
    options: MountOptions,
    watchers: Watchers,
    place: Place,
    ready: Callable[[], None],
) -> None:
    """Mount a store and serve it until it is unmounted or a signal says stop.

    Args:
        mountpoint: Absolute.
        store: Absolute.
        ready: Called once the mount answers.

    Raises:
        EngineError: The store cannot be opened, or not mounted.
        Unfinished: It is unmounted, and not all that was written is in the log or on the disk.
        ConnectionAbortedError: Somebody had the kernel cut the connection.
    """
    logs.configure(debug=options.debug, log_file=options.log_file)
    _share_arenas()
    # What a dead daemon left may take long, and may be interrupted: then it is done another time.
    engine = Engine.start(store, noatime=options.noatime or options.read_only)
    engine.store.reserve.fill()
    for number in (*STOPPING, RESTARTING):
        # What is restored when the receiver closes: nothing may interrupt what comes after serving.
        signal.signal(number, signal.SIG_IGN)
    with trio.open_signal_receiver(*STOPPING, RESTARTING) as signals:
        try:
            await _serve(engine, mountpoint, options, watchers, place, ready, signals)
        finally:
            with trio.CancelScope(shield=True):
                if not watchers.told_restarting:
                    await _leave_attachments(engine)
                unfinished = await engine.close(drain=not watchers.told_restarting)
            if unfinished is not None:
                log.error("%s", unfinished)
    log.info("unmounted %s", mountpoint)
    if unfinished is not None:
        raise unfinished


async def _serve(
    engine: Engine,
    mountpoint: Path,
    options: MountOptions,
    watchers: Watchers,
    place: Place,
    ready: Callable[[], None],
    signals: AsyncIterator[int],
) -> None:
    store = engine.store.path
    operations = Operations(engine, read_only=options.read_only)
    scheduling.install(lambda: operations.under_way)
    invalidator = Invalidator(engine)
    attachments = AttachmentService(engine)
    started = time.time()

    def status() -> dict[str, Any]:
        return {
            "version": __version__,
            "pid": os.getpid(),
            "uptime_s": int(time.time() - started),
            "store": store,
            "mountpoint": mountpoint,
            "head": engine.reader.head(),
            **({"packs_url": engine.store.packs_url} if engine.store.packs_url else {}),
            **watchers.figures(),
            **engine.figures(),
            **attachments.figures(),
            **{k: v for k, v in scrub.summary(engine.store).items() if v is not None},
            **{f"requests_{name}": count for name, count in sorted(operations.requests.items())},
        }

    try:
        mounted = Mounted(operations, mountpoint, store, options)
        if not place.is_wanted():
            log.info("%s was unmounted meanwhile", mountpoint)
            watchers.stopping()
            return
        watchers.freed()
        if not (place.is_taken() and mounted.take_place()):
            place.free()
            mounted.mount()
        watchers.mounted(mounted.device)
        # A mount whose daemon is started again is not taken away: programs get an error in between,
        # and do not write into the directory beneath.
        unmounts = not (options.hold or watchers.terms is not None)
        try:
            async with PeerSocket(engine.store) as peers, trio.open_nursery() as nursery:
                operations.tree = VirtualTree(
                    engine,
                    nursery,
                    status=status,
                    invalidate=invalidator.catch_up,
                    read_only=options.read_only,
                    shared=options.allow_other,
                )
                services = Services(engine)
                nursery.start_soon(_stop_on_signal, signals, mountpoint, watchers)
                for service, *arguments in (
                    (services.run_upkeep,),
                    (services.run_settling,),
                    (services.run_recovery,),
                    (services.run_sending,),
                    (services.run_copying,),
                    (services.run_merging,),
                    (services.run_retention,),
                    (services.run_scrub,),
                    (attachments.run,),
                    (_follow_peers, peers, invalidator, engine),
                    (_notify_pollers, engine, operations.tree),
                    (_give_memory_back,),
                    (_prepare_packs, engine),
                    (watchers.beat,),
                ):
                    nursery.start_soon(_supervise, service, *arguments)
                nursery.start_soon(_announce_ready, operations, mountpoint, watchers, ready)
                await pyfuse3.main()
                _require_intended(mounted, watchers)
                if not watchers.told_restarting:
                    watchers.stopping()
                    unmounts = not options.hold
                nursery.cancel_scope.cancel()
        finally:
            # Unmounting first: what programs wrote is complete then.
            mounted.close(unmount=unmounts)
    finally:
        operations.close()


async def _leave_attachments(engine: Engine) -> None:
    """What goes wrong here must not keep the store from being closed."""
    try:
        await AttachmentService(engine).push_before_leaving()
    except errors.EngineError as error:
        log.error("what was changed in attachments stays here for now: %s", error)


def _share_arenas() -> None:
    """Have threads share what malloc(3) keeps: each would keep some megabytes of its own."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_ARENA_MAX, ARENAS)


async def _prepare_packs(engine: Engine) -> None:
    """Load what asking a bucket takes before somebody waits for it."""
    await engine.store.disk.sync(engine.store.objects.prepare)
    # What was imported stays: to look through it for garbage would hold up requests for 15 ms.
    gc.freeze()


async def _give_memory_back() -> None:
    """Let go of the free memory between what is in use, where large buffers were."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    while trim is not None:
        await trio.sleep(TRIM_INTERVAL_S)
        await trio.to_thread.run_sync(trim, 0)


def _require_intended(mounted: Mounted, watchers: Watchers) -> None:
    """Refuse to take it for an unmount that the kernel has no more requests for us."""
    told = watchers.told_stopping or watchers.told_restarting
    if not told and mounted.is_there():
        raise ConnectionAbortedError(errno.ECONNABORTED, "the connection to the kernel was aborted")


async def _supervise(service: Callable[..., Awaitable[None]], *arguments: Any) -> None:
    """Run a service for ever; what goes wrong in it must not take the mount down."""
    while True:
        try:
            await service(*arguments)
            return
        except errors.EngineError as error:
            log.error("%s: %s; it starts again", service.__name__, error)
            await trio.sleep(RESTART_DELAY_S)
        except Exception:
            log.exception("%s failed: a bug; it starts again", service.__name__)
            await trio.sleep(RESTART_DELAY_S)


async def _announce_ready(
    operations: Operations, mountpoint: Path, watchers: Watchers, ready: Callable[[], None]
) -> None:
    # In a thread: the answer comes from us.
    operations.device = (await trio.to_thread.run_sync(mountpoint.stat)).st_dev
    await trio.to_thread.run_sync(raise_read_ahead, operations.device)
    log.info("serving %s", mountpoint)
    ready()
    watchers.ready()


async def _stop_on_signal(
    signals: AsyncIterator[int], mountpoint: Path, watchers: Watchers
) -> None:
    async for number in signals:
        log.info("%s: stopping", signal.Signals(number).name)
        if watchers.told_stopping:
            continue
        if number == RESTARTING and watchers.terms is not None:
            watchers.told_restarting = True
        else:
            watchers.stopping()
        # What programs wrote through mmap is the kernel's until it is asked for.
        with trio.move_on_after(WRITE_BACK_LIMIT_S):
            await trio.to_thread.run_sync(write_back, mountpoint, abandon_on_cancel=True)
        pyfuse3.terminate()


async def _follow_peers(peers: PeerSocket, invalidator: Invalidator, engine: Engine) -> None:
    while True:
        with trio.move_on_after(POLL_INTERVAL_S):
            await peers.wait()
        await invalidator.catch_up()
        with suppress(errors.EngineError):  # upkeep tries again, and says why
            await engine.follow()
        await peers.acknowledge()


async def _notify_pollers(engine: Engine, tree: VirtualTree) -> None:
    """Wake who polls ``events``, soon after something was committed."""
    seen = engine.reader.head()
    while True:
        await trio.sleep(0.1)
        if tree.has_pollers and (head := engine.reader.head()) != seen:
            seen = head
            tree.notify_pollers()
