"""The composition root: open the engine, mount, serve, stop in order."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pyfuse3
import trio

from nexus_engine import __version__
from nexus_engine.check import scrub
from nexus_engine.engine import Engine
from nexus_engine.oplog.peers import PeerSocket
from nexusfuse import logs, scheduling
from nexusfuse.invalidate import Invalidator
from nexusfuse.mount import MountOptions, fuse_options, mount, raise_read_ahead
from nexusfuse.operations import Operations
from nexusfuse.virtual.tree import VirtualTree

log = logging.getLogger(__name__)

RESTART_DELAY_S = 1.0
POLL_INTERVAL_S = 1.0
"""A peer's wake-up can get lost; this finds what it announced."""


async def serve(
    mountpoint: Path, store: Path, *, options: MountOptions, ready: Callable[[], None]
) -> None:
    """Mount a store and serve it until it is unmounted or a signal says stop.

    Args:
        mountpoint: Absolute.
        store: Absolute.
        ready: Called once the mount answers.

    Raises:
        EngineError: The store cannot be opened, or not mounted.
    """
    logs.configure(debug=options.debug, log_file=options.log_file)
    scheduling.install()
    engine = Engine.start(store, noatime=options.noatime or options.read_only)
    operations = Operations(engine, read_only=options.read_only)
    invalidator = Invalidator(engine)
    started = time.time()

    def status() -> dict[str, Any]:
        return {
            "version": __version__,
            "pid": os.getpid(),
            "uptime_s": int(time.time() - started),
            "store": store,
            "mountpoint": mountpoint,
            "head": engine.reader.head(),
            **engine.figures(),
            **{k: v for k, v in scrub.summary(engine.store).items() if v is not None},
            **{f"requests_{name}": count for name, count in sorted(operations.requests.items())},
        }

    try:
        mount(operations, mountpoint, fuse_options(store, options))
        try:
            async with trio.open_nursery() as nursery, PeerSocket(engine.store) as peers:
                operations.tree = VirtualTree(
                    engine,
                    nursery,
                    status=status,
                    invalidate=invalidator.catch_up,
                    read_only=options.read_only,
                    shared=options.allow_other,
                )
                nursery.start_soon(_stop_on_signal)
                for service, *arguments in (
                    (engine.run_upkeep,),
                    (engine.run_retention,),
                    (engine.run_scrub,),
                    (_follow_peers, peers, invalidator),
                    (_notify_pollers, engine, operations.tree),
                ):
                    nursery.start_soon(_supervise, service, *arguments)
                nursery.start_soon(_announce_ready, mountpoint, ready)
                await pyfuse3.main()
                _notify_systemd("STOPPING=1")
                nursery.cancel_scope.cancel()
        finally:
            # Unmounting first: what programs wrote is complete then.
            pyfuse3.close(unmount=True)
    finally:
        operations.close()
        with trio.CancelScope(shield=True):
            await engine.close()
    log.info("unmounted %s", mountpoint)


async def _supervise(service: Callable[..., Awaitable[None]], *arguments: Any) -> None:
    """Run a service for ever; what goes wrong in it must not take the mount down."""
    while True:
        try:
            await service(*arguments)
        except Exception:
            log.exception("%s failed: a bug; it starts again", service.__name__)
            await trio.sleep(RESTART_DELAY_S)


async def _announce_ready(mountpoint: Path, ready: Callable[[], None]) -> None:
    await trio.to_thread.run_sync(raise_read_ahead, mountpoint)
    log.info("serving %s", mountpoint)
    ready()
    _notify_systemd("READY=1")


async def _stop_on_signal() -> None:
    # What is restored when the receiver closes: nothing may interrupt what comes after serving.
    for stop in (signal.SIGTERM, signal.SIGINT):
        signal.signal(stop, signal.SIG_IGN)
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for number in signals:
            log.info("%s: stopping", signal.Signals(number).name)
            pyfuse3.terminate()
            return


async def _follow_peers(peers: PeerSocket, invalidator: Invalidator) -> None:
    while True:
        with trio.move_on_after(POLL_INTERVAL_S):
            await peers.wait()
        await invalidator.catch_up()
        await peers.acknowledge()


async def _notify_pollers(engine: Engine, tree: VirtualTree) -> None:
    """Wake who polls ``events``, soon after something was committed."""
    seen = engine.reader.head()
    while True:
        await trio.sleep(0.1)
        if tree.has_pollers and (head := engine.reader.head()) != seen:
            seen = head
            tree.notify_pollers()


def _notify_systemd(state: str) -> None:
    """Tell the service manager, where there is one.

    Source: sd_notify(3).
    """
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with (
        contextlib.suppress(OSError),
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as notifier,
    ):
        notifier.sendto(state.encode(), address)
