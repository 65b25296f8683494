"""The mode that a program asked for, which a default ACL needs to know.

The kernel applies the umask before a FUSE server sees the mode, unless asked not to, and pyfuse3
does not ask. In a directory with a default ACL the umask has no say (umask(2)), so what it took
away has to be found: the caller waits in its system call, whose arguments /proc shows.
"""

from __future__ import annotations

import platform

# Number of each system call that makes files and takes a mode → which argument that is.
# Source: syscalls(2) and the kernel's syscall tables.
_MODE_ARGUMENT = {
    "x86_64": {2: 2, 83: 1, 85: 1, 133: 1, 257: 3, 258: 2, 259: 2},
    "aarch64": {33: 2, 34: 2, 56: 3},
}.get(platform.machine(), {})
_SYSCALL_BYTES = 512


def mode_before_umask(tid: int, mode: int, umask: int) -> int:
    """Return permission bits as a program asked for them.

    Args:
        tid: The thread that waits for us.
        mode: As the kernel sent it.
        umask: Of the caller.

    Returns:
        ``mode`` itself where nothing better is to be known: bits that nobody surely asked for
        are not given.

    Source: proc_pid_syscall(5).
    """
    if not umask:
        return mode
    try:
        with open(f"/proc/{tid}/syscall", "rb", buffering=0) as file:  # noqa: PTH123
            number, *arguments = file.read(_SYSCALL_BYTES).split()
        asked = int(arguments[_MODE_ARGUMENT[int(number)]], 16) & 0o7777
    except (OSError, ValueError, KeyError, IndexError):
        return mode
    return asked if asked & ~umask & 0o777 == mode & 0o777 else mode
