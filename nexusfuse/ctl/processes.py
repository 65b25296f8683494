"""Find the processes behind a mountpoint, also when its daemon does not answer.

By their command lines in /proc: nothing is kept in a file that could be out of date.

Source: proc_pid_cmdline(5).
"""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from nexusfuse.ctl import supervisor

SUPERVISOR = b"/nexusfuse/ctl/" + os.fsencode(Path(supervisor.__file__).name)
_FOREGROUND = b"--foreground"


class Behind(NamedTuple):
    """Who serves a mountpoint."""

    supervisor: int | None
    daemons: list[int]


def behind(mountpoint: bytes) -> Behind:
    """Return the processes behind a mountpoint (absolute, without symlinks)."""
    found: int | None = None
    daemons = []
    for pid, words in _command_lines():
        if len(words) > 4 and words[3].endswith(SUPERVISOR):
            if words[4] == mountpoint:
                found = pid
        elif _serves(pid, words, mountpoint):
            daemons.append(pid)
    return Behind(found, daemons)


def _serves(pid: int, words: list[bytes], mountpoint: bytes) -> bool:
    if b"mount" not in words or _FOREGROUND not in words:
        return False
    try:
        directory = os.readlink(b"/proc/%d/cwd" % pid)  # noqa: PTH115 - bytes
    except OSError:
        directory = b"/"  # another user's; ours have absolute paths
    # As text: to look at a mountpoint means to wait for its daemon.
    places = (os.path.normpath(os.path.join(directory, word)) for word in words[1:])  # noqa: PTH118
    return mountpoint in places


def _command_lines() -> Iterator[tuple[int, list[bytes]]]:
    for process in Path("/proc").iterdir():
        if process.name.isdigit() and int(process.name) != os.getpid():
            try:
                line = (process / "cmdline").read_bytes()
            except OSError:
                continue  # it has just ended
            yield int(process.name), line.rstrip(b"\0").split(b"\0")


def open_process(pid: int | None) -> int | None:
    """Return a descriptor of a process, ``None`` if there is none."""
    try:
        return None if pid is None else os.pidfd_open(pid)
    except OSError:
        return None


def wait(process: int, limit_s: float | None = None) -> bool:
    """Return once a process is gone, or the time is up; whether it is gone."""
    poll = select.poll()
    poll.register(process, select.POLLIN)
    return bool(poll.poll(None if limit_s is None else limit_s * 1000))


def wait_while_busy(pid: int, process: int, limit_s: float) -> bool:
    """Return once a process is gone, or got nothing done for so long; whether it is gone."""
    done = _done_by(pid)
    while not wait(process, limit_s):
        before, done = done, _done_by(pid)
        if before == done:
            return False
    return True


def _done_by(pid: int) -> tuple[bytes, ...]:
    """Return what changes while a process and its threads compute, read or write.

    Source: proc_pid_io(5), proc_pid_schedstat in the kernel's sched-stats.rst.
    """
    try:
        process = Path("/proc", str(pid))
        tasks = sorted((process / "task").iterdir())
        files = [process / "io", *(task / "schedstat" for task in tasks)]
        return tuple(file.read_bytes() for file in files)
    except OSError:
        return ()


def end(pid: int | None, number: signal.Signals, limit_s: float | None = None) -> bool:
    """Send a process a signal and wait for its end; whether it is gone.

    Raises:
        PermissionError: It is somebody else's.
    """
    process = open_process(pid)
    if process is None:
        return True
    try:
        signal.pidfd_send_signal(process, number)
        return wait(process, limit_s)
    except ProcessLookupError:
        return True
    finally:
        os.close(process)
