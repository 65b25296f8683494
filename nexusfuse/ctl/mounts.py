"""Find Nexus mounts: which one a path lies in, whether its daemon lives and answers.

Everything comes from /proc/self/mountinfo, because a stat of a dead mount fails and one of a hung
mount never returns.

Source: proc_pid_mountinfo(5).
"""

from __future__ import annotations

import enum
import errno
import os
import re
import select
import signal
from collections.abc import Callable, Iterator
from typing import NamedTuple

from nexusfuse.ctl.supervisor import devices_at

FSTYPE = b"fuse.nexus"
SOURCE_PREFIX = b"nexus:"
MOUNTINFO = "/proc/self/mountinfo"
ANSWER_LIMIT_S = 10.0
"""A daemon or a disk that takes longer for the simplest of requests hangs."""


class Health(enum.Enum):
    """How a mount is."""

    SERVES = "serves"
    DEAD = "dead"
    """Its daemon is gone, or somebody cut the connection."""
    SILENT = "silent"
    """Its daemon is there and did not answer in time."""


class Mount(NamedTuple):
    """One line of mountinfo."""

    path: bytes
    """Where it is."""
    root: bytes
    """Which directory of the filesystem is there; not ``/`` for a bind mount."""
    fstype: bytes
    source: bytes
    owner: int
    """Who mounted it (FUSE's ``user_id``)."""
    read_only: bool = False

    @property
    def is_nexus(self) -> bool:
        return self.fstype == FSTYPE

    @property
    def store(self) -> bytes:
        """Return the path of the store that a Nexus mount shows."""
        return self.source.removeprefix(SOURCE_PREFIX)

    def inside(self, path: bytes) -> bytes:
        """Return the root-relative form of a path at or below the mountpoint."""
        below = os.path.relpath(path, self.path)
        parts = [self.root.strip(b"/"), b"" if below == b"." else below]
        return b"/".join(part for part in parts if part)


def read_mounts() -> list[Mount]:
    """Return every mount that this process sees, in the order they were made."""
    with open(MOUNTINFO, "rb") as file:  # noqa: PTH123 - lines of bytes, not of text
        return list(_parse(file.read()))


def _parse(text: bytes) -> Iterator[Mount]:
    for line in text.splitlines():
        head, _, tail = line.partition(b" - ")
        fields, (fstype, source, options) = head.split(b" "), tail.split(b" ")[:3]
        owner = re.search(rb"(?:^|,)user_id=(\d+)", options)
        yield Mount(
            path=_unescape(fields[4]),
            root=_unescape(fields[3]),
            fstype=fstype,
            source=_unescape(source),
            owner=int(owner[1]) if owner else 0,
            read_only=b"ro" in options.split(b","),
        )


def _unescape(field: bytes) -> bytes:
    return re.sub(rb"\\([0-7]{3})", lambda match: bytes([int(match[1], 8)]), field)


def nexus_mounts() -> list[Mount]:
    """Return every Nexus mount that can be reached: none that another one hides."""
    topmost = {mount.path: mount for mount in read_mounts()}
    return [mount for mount in topmost.values() if mount.is_nexus]


def mount_at(path: bytes) -> Mount | None:
    """Return the topmost mount on exactly this path (absolute, without symlinks)."""
    found = [mount for mount in read_mounts() if mount.path == path]
    return found[-1] if found else None


def mount_of(path: bytes) -> Mount:
    """Return the mount that a path (absolute, without symlinks) lies in."""
    root = Mount(b"/", b"/", b"", b"", 0)
    best = root
    for mount in read_mounts():
        if is_within(path, mount.path) and len(mount.path) >= len(best.path):
            best = mount
    return best


def is_within(path: bytes, directory: bytes) -> bool:
    """Return whether a path is the directory or below it; both absolute and normal."""
    return path == directory or path.startswith(directory.rstrip(b"/") + b"/")


def device_at(path: bytes) -> str:
    """Return the device number of what is mounted on a path; empty if nothing is."""
    return (devices_at(path) or [""])[-1]


_GONE = (errno.ENOTCONN, errno.ECONNABORTED)


def _ask(path: bytes) -> int:
    """Have a mount's daemon answer; return 0, or the errno."""
    try:
        # statfs always asks the daemon; a stat may be answered from the kernel's cache.
        os.statvfs(path)
    except OSError as error:
        return error.errno or errno.EIO
    return 0


def probe(mount: Mount, limit_s: float) -> Health:
    """Return how a mount is, in time."""
    code = in_time(lambda: _ask(mount.path), limit_s)
    if code is None:
        return Health.SILENT
    return Health.DEAD if code in _GONE else Health.SERVES


def in_time(ask: Callable[[], int], limit_s: float) -> int | None:
    """Return an answer, an errno or 0; ``None`` when the time is up.

    Who asks a daemon or a disk that hangs waits for as long as it does, and no signal ends that: so
    a child process asks, and is left behind where need be.
    """
    child = os.fork()
    if child == 0:
        os._exit(min(ask(), 255))
    process = os.pidfd_open(child)
    try:
        poll = select.poll()
        poll.register(process, select.POLLIN)
        if not poll.poll(limit_s * 1000):
            os.kill(child, signal.SIGKILL)
            return None
    finally:
        os.close(process)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def real_path(text: str) -> bytes:
    """Return the absolute path of a name, following the symlinks of everything but itself.

    A name that does not exist (any more) is as good as any.
    """
    path = os.fsencode(text)
    directory, name = os.path.split(path.rstrip(b"/") or path)
    if name in (b"", b".", b".."):
        return os.path.realpath(path)
    return os.path.realpath(directory or b".").rstrip(b"/") + b"/" + name
