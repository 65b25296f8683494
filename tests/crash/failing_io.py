"""Makes the Nth I/O on a store fail: SQLite's, below a VFS, and everybody else's, below ``os``.

Both are the last step before the kernel, so that whatever handles errors above is the real thing.
Syncs are counted and can fail, and otherwise do nothing: what a disk forgets is for other tests.
"""

from __future__ import annotations

import errno
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import apsw
import pytest

READS = frozenset({"open", "pread", "preadv", "xOpen", "xRead"})
SYNCS = frozenset({"fsync", "fdatasync", "xSync"})
REMOVALS = frozenset({"unlink", "ftruncate", "xDelete", "xTruncate"})
WRITES = frozenset({"pwrite", "pwritev", "xWrite"})

_SQLITE_CODES = {
    "xRead": apsw.SQLITE_IOERR_READ,
    "xWrite": apsw.SQLITE_IOERR_WRITE,
    "xSync": apsw.SQLITE_IOERR_FSYNC,
    "xTruncate": apsw.SQLITE_IOERR_TRUNCATE,
    "xDelete": apsw.SQLITE_IOERR_DELETE,
    "xOpen": apsw.SQLITE_CANTOPEN,
}


class Fault(NamedTuple):
    """What goes wrong, once or from then on."""

    name: str
    error: int
    """An errno."""
    short: bool = False
    """Half of what is written gets there first."""
    lasting: bool = False

    def can_hit(self, call: str) -> bool:
        """Tell whether a disk would answer a call with this error."""
        if self.short:
            return call in WRITES
        if self.error == errno.ENOSPC:
            return call not in READS | REMOVALS | {"xSync"}  # SQLite tells no more than: failed
        return True


FAULTS = (
    Fault("EIO", errno.EIO),
    Fault("ENOSPC", errno.ENOSPC),
    Fault("short write", errno.ENOSPC, short=True),
    Fault("short write, then ENOSPC", errno.ENOSPC, short=True, lasting=True),
    Fault("EIO for good", errno.EIO, lasting=True),
    Fault("ENOSPC for good", errno.ENOSPC, lasting=True),
)


class FailingIO:
    """Counts the calls that touch files below a directory, and fails the one it is told to."""

    def __init__(self, directory: Path) -> None:
        self._directory = os.fsencode(directory)
        self._lock = threading.Lock()
        self._fault: Fault | None = None
        self._nth = 0
        self.seen = 0
        """Calls since ``arm`` that the fault could hit."""
        self.hits: Counter[str] = Counter()
        """Calls that were made to fail since ``arm``."""

    def arm(self, fault: Fault, nth: int) -> None:
        """Fail the ``nth`` (from 1) call that the fault can hit."""
        self.hits.clear()
        self.seen, self._nth, self._fault = 0, nth, fault

    def heal(self) -> None:
        self._fault = None

    def strikes(self, call: str) -> Fault | None:
        """Count a call; return the fault if this one is to fail."""
        fault = self._fault
        if fault is None or not fault.can_hit(call):
            return None
        with self._lock:
            self.seen += 1
            if self.seen == self._nth:
                self.hits[call] += 1
                return fault
            if fault.lasting and self.seen > self._nth:
                self.hits[call] += 1
                return fault._replace(short=False)
        return None

    def concerns(self, place: int | str | os.PathLike[str]) -> bool:
        """Tell whether a path or descriptor lies in the directory."""
        if isinstance(place, int):
            try:
                place = os.readlink(f"/proc/self/fd/{place}")
            except OSError:
                return False
        return os.fsencode(place).startswith(self._directory)


class _File(apsw.VFSFile):
    def __init__(self, io: FailingIO, inherit: str, name: Any, flags: Any) -> None:
        self._io = io
        super().__init__(inherit, name, flags)

    def xRead(self, amount: int, offset: int) -> bytes:
        _strike(self._io, "xRead")
        return super().xRead(amount, offset)

    def xWrite(self, data: bytes, offset: int) -> None:
        fault = self._io.strikes("xWrite")
        if fault is None:
            super().xWrite(data, offset)
            return
        if fault.short:
            super().xWrite(data[: len(data) // 2], offset)
        raise _sqlite_error("xWrite", fault)

    def xSync(self, flags: int) -> None:
        _strike(self._io, "xSync")

    def xTruncate(self, size: int) -> None:
        _strike(self._io, "xTruncate")
        super().xTruncate(size)


class _VFS(apsw.VFS):
    def __init__(self, io: FailingIO) -> None:
        self._io = io
        super().__init__("failing", "unix", makedefault=True)

    def xOpen(self, name: Any, flags: Any) -> _File:
        _strike(self._io, "xOpen")
        return _File(self._io, "unix", name, flags)

    def xDelete(self, name: str, sync: bool) -> None:
        _strike(self._io, "xDelete")
        super().xDelete(name, sync)


def _strike(io: FailingIO, call: str) -> None:
    fault = io.strikes(call)
    if fault is not None:
        raise _sqlite_error(call, fault)


def _sqlite_error(call: str, fault: Fault) -> Exception:
    if fault.error == errno.ENOSPC:
        return apsw.exception_for(apsw.SQLITE_FULL)
    return apsw.exception_for(_SQLITE_CODES[call])


def _failing_call(io: FailingIO, call: str, real: Callable[..., Any]) -> Callable[..., Any]:
    def wrapper(place: Any, *args: Any, **kwargs: Any) -> Any:
        if not io.concerns(place):
            return real(place, *args, **kwargs)
        name = "create" if call == "open" and args and args[0] & os.O_CREAT else call
        fault = io.strikes(name)
        if fault is None:
            return 0 if call in SYNCS else real(place, *args, **kwargs)
        if fault.short:
            return _write_half(real, place, *args)
        raise OSError(fault.error, os.strerror(fault.error))

    return wrapper


def _write_half(real: Callable[..., int], fd: int, data: Any, offset: int) -> int:
    """Write what a disk that has just become full still takes; the rest is the next call's."""
    if isinstance(data, list):
        data = [b"".join(data)]
        return real(fd, [data[0][: len(data[0]) // 2]], offset)
    return real(fd, data[: len(data) // 2], offset)


_CALLS = (
    "open", "unlink", "rename", "replace", "mkdir", "pread", "preadv", "pwrite", "pwritev",
    "fsync", "fdatasync", "ftruncate",
)  # fmt: skip


@contextmanager
def failing_io(directory: Path) -> Iterator[FailingIO]:
    """Put the seam below everything that is opened from now on."""
    io = FailingIO(directory)
    vfs = _VFS(io)
    with pytest.MonkeyPatch.context() as patch:
        for call in _CALLS:
            patch.setattr(os, call, _failing_call(io, call, getattr(os, call)))
        try:
            yield io
        finally:
            io.heal()
            vfs.unregister()
