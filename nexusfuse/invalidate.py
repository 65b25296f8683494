"""Have the kernel forget what others changed: peers on the same store, undo, restore."""

from __future__ import annotations

import errno

import pyfuse3
import trio

from nexus_engine.engine import Engine
from nexus_engine.oplog.tail import Stale
from nexus_engine.types import Ino


class Invalidator:
    """Takes note of foreign operations and tells the kernel."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._lock = trio.Lock()

    async def catch_up(self) -> None:
        """Return when the kernel has forgotten everything that is stale by now."""
        async with self._lock:
            stale = self._engine.catch_up()
            if stale is not None:
                # The kernel may make us wait for a lock that is held by a request which only we
                # can answer: in a thread, so that the loop can.
                await trio.to_thread.run_sync(_tell_kernel, stale)


async def forget_attributes(ino: Ino) -> None:
    """Have the kernel ask for an inode's attributes again; from a task of its own."""
    await trio.to_thread.run_sync(_forget_inode, ino, True)


def _tell_kernel(stale: Stale) -> None:
    for parent, name in stale.entries:
        try:
            pyfuse3.invalidate_entry(parent, name)
        except OSError as error:
            _require_unknown(error)
    for ino in stale.inodes:
        _forget_inode(ino, attr_only=False)


def _forget_inode(ino: Ino, attr_only: bool) -> None:  # noqa: FBT001 - pyfuse3's signature
    try:
        pyfuse3.invalidate_inode(ino, attr_only)
    except OSError as error:
        _require_unknown(error)


def _require_unknown(error: OSError) -> None:
    """What the kernel never looked at, it need not forget."""
    if error.errno not in (errno.ENOENT, errno.ENOTDIR):
        raise error
