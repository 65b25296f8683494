"""Processes that have one store open wake each other when they commit.

Each binds a datagram socket in ``STORE/peers``. A short-lived process announces its commits and
waits until the others have taken note, so that whoever looks after it returned sees the change.
A lost datagram costs a second: everybody also looks by himself.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from types import TracebackType

import anyio

from nexus_engine.owners import LISTENER
from nexus_engine.store import Store

ANNOUNCE_LIMIT_S = 2.0
_CHANGED, _SEEN = b"changed", b"seen"


class _Directory:
    """``STORE/peers``, addressed through a descriptor: a socket's path is 108 bytes at most."""

    def __init__(self, store: Store) -> None:
        self.path = store.path / "peers"
        self.path.mkdir(mode=0o700, exist_ok=True)
        self._fd = os.open(self.path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)

    def address(self, name: str) -> str:
        return f"/proc/self/fd/{self._fd}/{name}"

    def bind(self, name: str) -> socket.socket:
        (self.path / name).unlink(missing_ok=True)
        bound = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        bound.setblocking(False)
        bound.bind(self.address(name))
        return bound

    def close(self, name: str, bound: socket.socket) -> None:
        bound.close()
        (self.path / name).unlink(missing_ok=True)
        os.close(self._fd)


class PeerSocket:
    """This process's socket; others that announce are answered once their change is known."""

    def __init__(self, store: Store) -> None:
        self._directory = _Directory(store)
        self._name = store.owner + LISTENER
        self._socket = self._directory.bind(self._name)
        self._waiting: list[str] = []

    async def __aenter__(self) -> PeerSocket:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._directory.close(self._name, self._socket)

    async def wait(self) -> None:
        """Return when somebody announced a change."""
        await anyio.wait_readable(self._socket)
        with contextlib.suppress(BlockingIOError):
            while True:
                message, sender = self._socket.recvfrom(64)
                if message == _CHANGED and sender:
                    self._waiting.append(os.path.basename(sender))  # noqa: PTH119 - not a path here

    async def acknowledge(self) -> None:
        """Tell those who announced that their change is known here."""
        waiting, self._waiting = self._waiting, []
        for name in waiting:
            with contextlib.suppress(OSError):
                self._socket.sendto(_SEEN, self._directory.address(name))


def announce(store: Store) -> bool:
    """Tell the other processes that have the store open that something was committed.

    Returns:
        Whether all of them took note in time.
    """
    directory = _Directory(store)
    own = f"{os.getpid()}.{threading.get_ident()}.announcer"
    sender = directory.bind(own)
    try:
        asked = 0
        for path in directory.path.glob(f"*{LISTENER}"):
            try:
                sender.sendto(_CHANGED, directory.address(path.name))
                asked += 1
            except ConnectionRefusedError:
                path.unlink(missing_ok=True)  # of a process that died
            except OSError:
                continue  # its queue is full: it will look anyway
        deadline_s = time.monotonic() + ANNOUNCE_LIMIT_S
        for _ in range(asked):
            sender.settimeout(max(0.001, deadline_s - time.monotonic()))
            try:
                sender.recv(64)
            except TimeoutError:
                return False
        return True
    finally:
        directory.close(own, sender)
