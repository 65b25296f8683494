"""The first request, in which kernel and daemon agree on what they do.

libfuse answers INIT, and of what the kernel offers it takes what it knows. One thing more is worth
having: with FUSE_HANDLE_KILLPRIV_V2 the kernel remembers that a file has no ``security.capability``
to drop, and does not ask again before each write. libfuse knows it since 3.17, pyfuse3 not at all.
So libfuse reads INIT from a socket in the device's place, and its answer goes to the kernel with
that bit more. It promises that set-ID bits go with what costs them: the engine sees to that.

Source: ``include/uapi/linux/fuse.h``; ``process_init_reply`` in fs/fuse/inode.c.
"""

from __future__ import annotations

import os
import select
import socket
import sys

INIT = 26
HANDLE_KILLPRIV_V2 = 1 << 28
_OPCODE_AT, _OFFERED_AT = 4, 52
"""Words of the request, whose header has 40 bytes."""
_ERROR_AT, _ACCEPTED_AT = 4, 28
"""Words of the answer, whose header has 16."""
_MESSAGE_MAX = 128 * 1024
_WAIT_MS = 10_000


class Handshake:
    """Sees to the first request of a mount."""

    def __init__(self, wanted: int = HANDLE_KILLPRIV_V2) -> None:
        """Args: wanted: Flags to accept where the kernel offers them."""
        self._wanted = wanted
        self._offered = 0
        self._device = -1
        self._kernels: socket.socket | None = None
        self.done = False

    def before_read(self, fd: int) -> None:
        """Let libfuse read the request from a socket, and after its answer the others from ``fd``.

        Call it whenever libfuse is about to read, until it is ``done``.

        Raises:
            OSError: The mount is gone already.
        """
        if self._kernels is None:
            self._begin(fd)
        else:
            self._end(fd, self._kernels)

    def _begin(self, fd: int) -> None:
        waiting = select.poll()
        waiting.register(fd, select.POLLIN)
        waiting.poll(_WAIT_MS)  # the kernel asks as soon as it has mounted
        self._device = os.dup(fd)
        request = os.read(self._device, _MESSAGE_MAX)
        if _word(request, _OPCODE_AT) == INIT:
            self._offered = _word(request, _OFFERED_AT)
        self._kernels, libfuses = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._kernels.send(request)
        os.dup2(libfuses.fileno(), fd, inheritable=False)
        libfuses.close()

    def _end(self, fd: int, kernels: socket.socket) -> None:
        reply = bytearray(kernels.recv(_MESSAGE_MAX, socket.MSG_DONTWAIT))
        if len(reply) >= _ACCEPTED_AT + 4 and not _word(reply, _ERROR_AT):
            accepted = _word(reply, _ACCEPTED_AT) | self._wanted & self._offered
            reply[_ACCEPTED_AT : _ACCEPTED_AT + 4] = accepted.to_bytes(4, sys.byteorder)
        os.write(self._device, reply)
        os.dup2(self._device, fd, inheritable=False)
        os.close(self._device)
        kernels.close()
        self.done = True


def _word(message: bytes | bytearray, offset: int) -> int:
    return int.from_bytes(message[offset : offset + 4], sys.byteorder)
