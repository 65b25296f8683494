"""What a program asked for where a request does not say: while it waits, /proc shows its call.

- The mode from before the umask. The kernel applies the umask before a FUSE server sees the mode,
  unless asked not to, and pyfuse3 does not ask. In a directory with a default ACL the umask has no
  say (umask(2)).
- Whether a time means "now". The kernel fills in its clock of the last tick, up to 10 ms behind
  ours: a file touched at once would be older than when it was made. pyfuse3 does not pass on that
  it was the kernel who did.

Whatever cannot be known leaves the request as it is.
"""

from __future__ import annotations

import os
import platform
import struct
from io import FileIO

from nexus_engine.fs.attributes import NewAttributes

_MACHINE = platform.machine()
# Number of each system call that makes files and takes a mode → which argument that is.
# Source: syscalls(2) and the kernel's syscall tables.
_MODE_ARGUMENT = {
    "x86_64": {2: 2, 83: 1, 85: 1, 133: 1, 257: 3, 258: 2, 259: 2},
    "aarch64": {33: 2, 34: 2, 56: 3},
}.get(_MACHINE, {})
# Likewise of those that take a pointer to times, or NULL for now.
_TIMES_ARGUMENT = {
    "x86_64": {132: 1, 235: 1, 261: 2, 280: 2},
    "aarch64": {88: 2},
}.get(_MACHINE, {})
_UTIMENSAT = {"x86_64": 280, "aarch64": 88}.get(_MACHINE)
_STATFS, _FSTATFS = {"x86_64": (137, 138), "aarch64": (43, 44)}.get(_MACHINE, (None, None))
_UTIME_NOW = (1 << 30) - 1
_RECENT_NS = 10**9
_SYSCALL_BYTES = 512
_TIMES = struct.Struct("qqqq")
_PATH_MAX = 4096
_PAGE = 4096


def mode_before_umask(tid: int, mode: int, umask: int) -> int:
    """Return permission bits as a program asked for them.

    Args:
        tid: The thread that waits for us.
        mode: As the kernel sent it.
        umask: Of the caller.

    Returns:
        ``mode`` itself where nothing better is to be known: bits that nobody surely asked for
        are not given.
    """
    if not umask:
        return mode
    try:
        number, arguments = _system_call(tid)
        asked = arguments[_MODE_ARGUMENT[number]] & 0o7777
    except (OSError, ValueError, KeyError, IndexError):
        return mode
    return asked if asked & ~umask & 0o777 == mode & 0o777 else mode


def with_times_of_now(tid: int, new: NewAttributes, now_ns: int) -> NewAttributes:
    """Put the time that it is into those that are the kernel's word for "now".

    Source: utimensat(2).
    """
    times = [time_ns for time_ns in (new.atime_ns, new.mtime_ns) if time_ns is not None]
    if not any(0 <= now_ns - time_ns < _RECENT_NS for time_ns in times):
        return new
    try:
        atime_is_now, mtime_is_now = _asked_for_now(tid)
    except (OSError, ValueError, KeyError, IndexError, OverflowError, struct.error):
        return new
    if atime_is_now and new.atime_ns is not None:
        new = new._replace(atime_ns=now_ns)
    if mtime_is_now and new.mtime_ns is not None:
        new = new._replace(mtime_ns=now_ns)
    return new


def _asked_for_now(tid: int) -> tuple[bool, bool]:
    number, arguments = _system_call(tid)
    address = arguments[_TIMES_ARGUMENT[number]]
    if not address:
        return True, True
    if number != _UTIMENSAT:
        return False, False
    with _memory(tid) as memory:
        _, atime, _, mtime = _TIMES.unpack(os.pread(memory.fileno(), _TIMES.size, address))
    return atime == _UTIME_NOW, mtime == _UTIME_NOW


def inode_asked_for(tid: int, device: int) -> int | None:
    """Return the number of the inode that a thread waits to know its file system of.

    Blocks, and asks the mount itself: for a thread of its own.

    Args:
        tid: The thread that waits for us.
        device: ``st_dev`` of the mount.

    Returns:
        ``None`` where that cannot be found out.
    """
    try:
        number, arguments = _system_call(tid)
        if number == _FSTATFS:
            found = os.stat(f"/proc/{tid}/fd/{arguments[0]}")  # noqa: PTH116
        elif number == _STATFS:
            found = os.stat(_seen_by(tid, _string(tid, arguments[0])))  # noqa: PTH116
        else:
            return None
    except (OSError, ValueError):
        return None
    return found.st_ino if found.st_dev == device else None


def _seen_by(tid: int, path: bytes) -> bytes:
    where = b"root" if path.startswith(b"/") else b"cwd"
    return b"/proc/%d/%s/%s" % (tid, where, path.lstrip(b"/"))


def _string(tid: int, address: int) -> bytes:
    """Read a string from a process's memory, a page at a time: the next may not be there."""
    text = b""
    with _memory(tid) as memory:
        while b"\0" not in text and len(text) <= _PATH_MAX:
            memory.seek(address + len(text))
            text += memory.read(_PAGE - (address + len(text)) % _PAGE)
    return text.partition(b"\0")[0]


def _system_call(tid: int) -> tuple[int, list[int]]:
    """Return number and arguments of the system call that a thread is in.

    Source: proc_pid_syscall(5).
    """
    with open(f"/proc/{tid}/syscall", "rb", buffering=0) as file:  # noqa: PTH123
        number, *arguments = file.read(_SYSCALL_BYTES).split()
    return int(number), [int(argument, 16) for argument in arguments]


def _memory(tid: int) -> FileIO:
    return open(f"/proc/{tid}/mem", "rb", buffering=0)  # noqa: PTH123 - the caller closes
