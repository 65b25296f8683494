"""What a program asked statfs(2) about, which pyfuse3 does not say.

The kernel names the inode, and pyfuse3 drops it. The caller waits in its system call, whose
arguments /proc shows: a descriptor, or the address of a path in its memory.
"""

from __future__ import annotations

import os
import platform

# Number of statfs(2) and of fstatfs(2). Source: the kernel's system call tables.
_STATFS, _FSTATFS = {"x86_64": (137, 138), "aarch64": (43, 44)}.get(platform.machine(), (-1, -1))
_SYSCALL_BYTES = 512
_PATH_MAX = 4096
_PAGE = 4096


def inode_asked_for(tid: int, device: int) -> int | None:
    """Return the number of the inode that a thread waits to know its file system of.

    Blocks, and asks the mount itself: for a thread of its own.

    Args:
        tid: The thread that waits for us.
        device: ``st_dev`` of the mount.

    Returns:
        ``None`` where that cannot be found out.

    Source: proc_pid_syscall(5).
    """
    try:
        with open(f"/proc/{tid}/syscall", "rb", buffering=0) as file:  # noqa: PTH123
            number, argument, *_ = file.read(_SYSCALL_BYTES).split()
        if int(number) == _FSTATFS:
            found = os.stat(f"/proc/{tid}/fd/{int(argument, 16)}")  # noqa: PTH116
        elif int(number) == _STATFS:
            found = os.stat(_seen_by(tid, _string(tid, int(argument, 16))))  # noqa: PTH116
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
    with open(f"/proc/{tid}/mem", "rb", buffering=0) as memory:  # noqa: PTH123
        while b"\0" not in text and len(text) <= _PATH_MAX:
            memory.seek(address + len(text))
            text += memory.read(_PAGE - (address + len(text)) % _PAGE)
    return text.partition(b"\0")[0]
