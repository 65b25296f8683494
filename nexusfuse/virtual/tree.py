"""The virtual tree: from an inode number to the node that answers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pyfuse3
import trio

from nexus_engine.engine import Engine
from nexus_engine.types import Ino
from nexusfuse.virtual.base import Node
from nexusfuse.virtual.control import ControlNode
from nexusfuse.virtual.directories import (
    FileVersionsNode,
    HistoryNode,
    NexusNode,
    SnapshotsNode,
    VersionsNode,
)
from nexusfuse.virtual.limits import Limits
from nexusfuse.virtual.numbers import (
    Moments,
    Names,
    NodeKind,
    is_named,
    is_node,
    is_past,
    split_node,
)
from nexusfuse.virtual.past import PastNode
from nexusfuse.virtual.reports import EventsNode, LogNode, StatusNode


class VirtualTree:
    """Everything under the ``.nexus`` names.

    Args:
        status: What ``status`` shows.
        invalidate: Takes note of what others committed and has the kernel forget it.
        read_only: Refuse commands that change something.
        shared: Users other than the mounting one may enter.
        nursery: Where commands run whose reply is read while they run.
    """

    def __init__(
        self,
        engine: Engine,
        nursery: trio.Nursery,
        *,
        status: Callable[[], dict[str, Any]],
        invalidate: Callable[[], Awaitable[None]],
        read_only: bool,
        shared: bool,
    ) -> None:
        self.engine = engine
        self.status = status
        self.invalidate = invalidate
        self.read_only = read_only
        self.shared = shared
        self.start_soon = nursery.start_soon
        self.moments = Moments()
        self.names = Names()
        self.replies: dict[tuple[int, Ino], bytes] = {}
        self.limits = Limits()
        self._pollers: list[pyfuse3.PollHandle] = []

    def node(self, number: int) -> Node:
        """Return the node with a virtual inode number."""
        if is_past(number):
            seq, ino = self.moments.split(number)
            return PastNode(self.engine, self.moments, seq, ino, shared=self.shared)
        if is_named(number):
            return FileVersionsNode(self, *self.names.split(number))
        kind, directory = split_node(number)
        return _NODES[kind](self, directory)

    def is_control(self, number: int) -> bool:
        return is_node(number) and split_node(number)[0] is NodeKind.CONTROL

    def nexus_of(self, number: int) -> Ino | None:
        """Return the directory whose virtual ``.nexus`` a number is, or ``None``."""
        if not is_node(number):
            return None
        kind, directory = split_node(number)
        return directory if kind is NodeKind.NEXUS else None

    @property
    def has_pollers(self) -> bool:
        return bool(self._pollers)

    def add_poller(self, handle: pyfuse3.PollHandle) -> None:
        self._pollers.append(handle)

    def notify_pollers(self) -> None:
        """Something was committed: wake who polls ``events``."""
        pollers, self._pollers = self._pollers, []
        for handle in pollers:
            handle.notify()


_NODES: dict[NodeKind, Callable[[VirtualTree, Ino], Node]] = {
    NodeKind.NEXUS: NexusNode,
    NodeKind.HISTORY: HistoryNode,
    NodeKind.VERSIONS: VersionsNode,
    NodeKind.SNAPSHOTS: SnapshotsNode,
    NodeKind.CONTROL: ControlNode,
    NodeKind.STATUS: StatusNode,
    NodeKind.LOG: LogNode,
    NodeKind.EVENTS: EventsNode,
}
