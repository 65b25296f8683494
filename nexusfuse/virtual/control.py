"""``control``: write a command, read the reply."""

from __future__ import annotations

import errno
import logging
import os
from typing import Any

import pyfuse3
import trio

from nexus_engine import commands, errors
from nexus_engine.store import Store
from nexus_engine.types import Actor, Inode
from nexusfuse.ctl import control, grammar, render
from nexusfuse.virtual.base import OpenFile, direct_file
from nexusfuse.virtual.numbers import NodeKind
from nexusfuse.virtual.reports import FileNode

log = logging.getLogger(__name__)

REPLIES_MAX = 64
"""Users whose last reply is kept for a separate ``cat``."""
REPLY_MAX = 1 << 20
"""Bytes of a reply that is kept so; who wants more reads from what it wrote to."""
_TRIM_BYTES = 1 << 16


class ControlNode(FileNode):
    """Anyone who can reach the directory may ask; each command checks what its actor may do."""

    kind = NodeKind.CONTROL

    def permissions(self, directory: Inode) -> int:
        return 0o666

    async def open(self, flags: int, actor: Actor) -> tuple[OpenFile, pyfuse3.FileInfo]:
        mode = flags & os.O_ACCMODE
        if mode == os.O_RDONLY:
            reply = self._tree.replies.get((actor.uid, self._directory), b"")
            return ControlFile(self, actor, reply, streams=False), direct_file()
        return ControlFile(self, actor, b"", streams=mode == os.O_RDWR), direct_file()

    async def run(self, line: bytes, actor: Actor, output: ControlFile) -> None:
        """Run one command; its lines go to ``output``."""
        text = line.decode(errors="surrogateescape").strip()
        if text.startswith("{"):
            await self._run_json(text, actor, output)
        else:
            await self._run_text(text, actor, output)

    async def _run_json(self, text: str, actor: Actor, output: ControlFile) -> None:
        """Serve nexus-ctl: JSON lines of progress, then the reply or the error."""
        try:
            request = control.decode_request(text)
            reply = await self._execute(request, actor, output)
        except errors.EngineError as error:
            output.add(control.encode_error(error))
            raise
        output.add(control.encode_reply(reply))

    async def _run_text(self, text: str, actor: Actor, output: ControlFile) -> None:
        """Serve a person with ``echo`` and ``cat``."""
        try:
            request, show = grammar.parse(text, self._path())
            reply = await self._execute(request, actor, None)
        except errors.EngineError as error:
            output.add(f"error: {render.printable(str(error))}\n".encode())
            raise
        output.add(show(reply).encode(errors="surrogateescape"))

    async def _execute(
        self, request: commands.Request, actor: Actor, output: ControlFile | None
    ) -> Any:
        if self._tree.read_only and commands.can_change(request):
            raise errors.ReadOnly(f"{request.verb}: mounted read-only")
        limits = self._tree.limits
        limits.require_room(actor.uid)
        async with limits.commands_of(actor.uid), limits.commands:
            return await self._execute_now(request, actor, output)

    async def _execute_now(
        self, request: commands.Request, actor: Actor, output: ControlFile | None
    ) -> Any:
        await self._engine.settle()

        def progress(what: str, done: int, total: int | None) -> None:
            if output is not None:
                line = control.encode_progress(what, done, total)
                trio.from_thread.run_sync(output.add, line)

        keep = self._engine.content

        def run(store: Store) -> Any:
            return commands.execute(store, request, actor, progress, keep=keep)

        reply = await self._engine.in_peer(run)
        # The caller looks as soon as we answer: the kernel must have forgotten what was undone.
        try:
            await self._tree.invalidate()
        except errors.EngineError as error:
            # It is done all the same. The daemon looks again within a second.
            log.error("%s is done; programs may see the old for a moment: %s", request.verb, error)
        return reply


class ControlFile:
    """An open ``control``.

    Opened for writing only, ``write`` returns when the command is done and fails as it fails.
    Opened for both, ``write`` returns at once and ``read`` gives lines as they come.
    """

    def __init__(self, node: ControlNode, actor: Actor, reply: bytes, *, streams: bool) -> None:
        self._node = node
        self._actor = actor
        self._streams = streams
        self._output = bytearray(reply)
        self._taken = 0
        self._running = False
        self._closed = False
        self._waiting = 0
        """Bytes of ``_output`` that are counted as waiting to be read."""
        self._news = trio.Event()

    def add(self, line: bytes) -> None:
        if self._closed:
            return
        self._output += line
        self._wait(len(line))
        self._news.set()

    def _wait(self, size: int) -> None:
        self._waiting += size
        self._node._tree.limits.wait(self._actor.uid, size)

    async def write(self, offset: int, data: bytes) -> int:
        if len(data) > control.LINE_MAX:
            raise pyfuse3.FUSEError(errno.E2BIG)
        if self._running:
            raise pyfuse3.FUSEError(errno.EBUSY)
        if not data.strip():
            return len(data)
        self._output.clear()
        self._taken = 0
        self._wait(-self._waiting)
        if self._streams:
            self._running = True
            self._node._tree.start_soon(self._run_streaming, data)
            return len(data)
        try:
            await self._node.run(data, self._actor, self)
        finally:
            self._keep_reply()
        return len(data)

    async def _run_streaming(self, data: bytes) -> None:
        try:
            await self._node.run(data, self._actor, self)
        except errors.EngineError as error:
            if not self._output:
                self.add(control.encode_error(error))
        except Exception:
            log.exception("a command failed: a bug; the mount lives on")
            self.add(control.encode_error(errors.EngineError("a bug: the daemon's log has it")))
        finally:
            self._running = False
            self._news.set()
            self._keep_reply()

    def _keep_reply(self) -> None:
        replies = self._node._tree.replies
        if len(self._output) <= REPLY_MAX:
            kept = bytes(self._output)
        else:
            kept = b"error: a reply of more than a mebibyte; open control for both and read there\n"
        replies.pop((self._actor.uid, self._node._directory), None)
        replies[self._actor.uid, self._node._directory] = kept
        if not self._streams:
            self._output.clear()  # nobody can read it here
            self._wait(-self._waiting)
        while len(replies) > REPLIES_MAX:
            del replies[next(iter(replies))]

    async def read(self, offset: int, length: int) -> bytes:
        while self._running and self._taken >= len(self._output):
            self._news = trio.Event()
            await self._news.wait()
        data = bytes(self._output[self._taken : self._taken + length])
        self._taken += len(data)
        if self._taken >= _TRIM_BYTES and not self._running:
            del self._output[: self._taken]
            self._wait(-min(self._taken, self._waiting))
            self._taken = 0
        return data

    async def flush(self) -> None:
        return

    async def fsync(self) -> None:
        return

    async def release(self) -> None:
        self._closed = True
        self._output.clear()
        self._wait(-self._waiting)
