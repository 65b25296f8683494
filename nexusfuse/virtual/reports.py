"""The files of ``.nexus`` that tell: status, log, events."""

from __future__ import annotations

import os
import re
import select
import stat
from typing import TYPE_CHECKING, Any

import msgspec
import pyfuse3

from nexus_engine.meta.database import Database
from nexus_engine.oplog import reader as log_reader
from nexus_engine.records import Record, parse_details
from nexus_engine.types import Actor, Ino, Inode, Path, Seq
from nexusfuse.ctl.render import printable
from nexusfuse.virtual.base import (
    BaseNode,
    FixedFile,
    OpenFile,
    ReadOnlyFile,
    direct_file,
    require_read_only,
    virtual_entry,
    volatile,
)
from nexusfuse.virtual.limits import Limits
from nexusfuse.virtual.numbers import NodeKind, node_number

if TYPE_CHECKING:
    from nexusfuse.virtual.tree import VirtualTree

LOG_RECORDS = 1000
"""Records that ``log`` shows."""
EVENTS_BATCH = 256
_CONTROLS = re.compile(rb"\x7f|\xc2[\x80-\x9f]")
"""DEL and the C1 controls in UTF-8, some of which terminals act on."""


class FileNode(BaseNode):
    """A virtual file that belongs to a directory."""

    kind: NodeKind
    mask = 0o444

    def __init__(self, tree: VirtualTree, directory: Ino) -> None:
        self._tree = tree
        self._engine = tree.engine
        self._directory = directory

    async def attributes(self) -> pyfuse3.EntryAttributes:
        inode = self._engine.reader.get_inode(self._directory)
        number = node_number(self.kind, self._directory)
        inode = self.owned(inode)
        mode = stat.S_IFREG | self.permissions(inode)
        return volatile(virtual_entry(number, inode, mode, size=self.size()))

    def permissions(self, directory: Inode) -> int:
        """Return the permission bits: who may read the directory may read this."""
        return directory.mode & self.mask

    def owned(self, directory: Inode) -> Inode:
        """Return the directory with the owner that this is to show."""
        return directory

    def size(self) -> int:
        return 0

    def _path(self) -> Path:
        return self._engine.reader.find_path(self._directory) or Path(b"")


class StatusNode(FileNode):
    """``status``: this mount in figures, as ``key value`` lines."""

    kind = NodeKind.STATUS

    async def open(self, flags: int, actor: Actor) -> tuple[OpenFile, pyfuse3.FileInfo]:
        require_read_only(flags)
        lines = [f"{key} {printable(str(value))}\n" for key, value in self._tree.status().items()]
        return FixedFile("".join(lines).encode()), direct_file()


class RecordsNode(FileNode):
    """Names what happened below, in directories too that not everyone may enter: the keeper's."""

    def owned(self, directory: Inode) -> Inode:
        return directory._replace(uid=os.geteuid(), gid=os.getegid())

    def permissions(self, directory: Inode) -> int:
        return 0o400


class LogFile(FixedFile):
    """An open ``log``; what it holds counts as waiting to be read."""

    def __init__(self, content: bytes, limits: Limits, uid: int) -> None:
        super().__init__(content)
        self._limits = limits
        self._uid = uid
        limits.wait(uid, len(content))

    async def release(self) -> None:
        self._limits.wait(self._uid, -len(self._content))


class LogNode(RecordsNode):
    """``log``: the latest records below this directory as JSON lines, newest last."""

    kind = NodeKind.LOG

    async def open(self, flags: int, actor: Actor) -> tuple[OpenFile, pyfuse3.FileInfo]:
        require_read_only(flags)
        self._tree.limits.require_room(actor.uid)
        await self._engine.settle()
        query = log_reader.LogQuery(path=self._path(), limit=LOG_RECORDS, newest_first=True)

        def find(database: Database) -> list[bytes]:
            entries = log_reader.entries(database, query)
            return [record_line(record, undone) for record, undone in entries]

        lines = await self._engine.in_reader(find)
        return LogFile(b"".join(reversed(lines)), self._tree.limits, actor.uid), direct_file()


class EventsNode(RecordsNode):
    """``events``: records as they come, for ``tail -f`` and ``poll``."""

    kind = NodeKind.EVENTS

    def size(self) -> int:
        # Grows with the log, which makes `tail -f` look again, and by more than any record is
        # long: it reads no further than the size says.
        return self._engine.reader.head() << 16

    async def open(self, flags: int, actor: Actor) -> tuple[OpenFile, pyfuse3.FileInfo]:
        require_read_only(flags)
        return EventStream(self._tree, self._path()), direct_file(nonseekable=True)


class EventStream(ReadOnlyFile):
    """An open ``events``: gives what came since it was opened, then an end of file."""

    def __init__(self, tree: VirtualTree, path: Path) -> None:
        self._tree = tree
        self._database = tree.engine.store.database
        self._path = path
        self._cursor: Seq = self._database.reader.head()
        self._buffer = b""

    async def read(self, offset: int, length: int) -> bytes:
        self._fill()
        taken, self._buffer = self._buffer[:length], self._buffer[length:]
        return taken

    def _fill(self) -> None:
        """Take the next records below the directory, if none are waiting."""
        head = self._database.reader.head()
        if self._buffer or head == self._cursor:
            return
        query = log_reader.LogQuery(
            path=self._path,
            since_seq=Seq(self._cursor + 1),
            until_seq=head,
            limit=EVENTS_BATCH,
            newest_first=False,
        )
        found = list(log_reader.entries(self._database, query))
        self._buffer = b"".join(record_line(record, undone) for record, undone in found)
        # A full batch may not be all; otherwise everything up to the end has been looked at.
        self._cursor = found[-1].record.seq if len(found) == EVENTS_BATCH else head

    def poll(self, handle: pyfuse3.PollHandle | None) -> int:
        """Return the poll(2) events that hold now; ``handle`` is told when more come."""
        self._fill()
        if self._buffer:
            return int(select.POLLIN)
        if handle is not None:
            self._tree.add_poller(handle)
        return 0


def record_line(record: Record, undone: bool) -> bytes:  # noqa: FBT001
    """Return a record as one line of JSON."""
    line: dict[str, Any] = {
        "seq": record.seq,
        "time_ns": record.time_ns,
        "kind": record.kind,
        "path": _text(record.path),
        "actor": record.actor._asdict(),
        "undone": undone,
        "details": parse_details(record.details),
    }
    if record.path2 is not None:
        line["path2"] = _text(record.path2)
    # JSON escapes the other control characters itself.
    return _CONTROLS.sub(_escape, msgspec.json.encode(line)) + b"\n"


def _escape(found: re.Match[bytes]) -> bytes:
    return b"\\u%04x" % ord(found[0].decode())


def _text(path: bytes) -> str:
    return path.decode(errors="backslashreplace")
