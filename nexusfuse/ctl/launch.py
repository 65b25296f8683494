"""Start a daemon, and learn from it that it serves.

``nexus-ctl mount`` checks everything and makes the store where it is new. The daemon then opens the
store, which takes long where a dead one left much, and right before it mounts frees the mountpoint.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import click

from nexusfuse.ctl import mounts, preconditions, supervisor
from nexusfuse.ctl.place import Failure
from nexusfuse.ctl.preconditions import Mountpoint
from nexusfuse.ctl.wanted import Wanted

LOG_NAME = "daemon.log"
READY = b"ready"
_LOG_TAIL_BYTES = 4096
_ROOT = Path(__file__).parents[2]


class Started(NamedTuple):
    """What serves a mount in the background."""

    daemon: int
    supervisor: int | None


def prepare(wanted: Wanted) -> None:
    """See to it that mounting can work; make the store where it is new.

    Raises:
        Failure, EngineError: It cannot; says what to do.
    """
    preconditions.require_fuse(wanted)
    if preconditions.require_places(wanted) is not None:
        click.echo(
            f"nexus-ctl: freeing {wanted.mountpoint}: the daemon that served it is dead", err=True
        )
    preconditions.require_store(wanted.store)


def run_in_background(wanted: Wanted) -> Started:
    """Start the daemon as a process of its own; return when the mount serves.

    The daemon is a new process rather than a fork: no thread and no event loop of ours can be in
    it, and none of our descriptors. Between it and us is a supervisor, unless not wanted.

    Raises:
        Failure: It did not come to serve; its own words.
    """
    log_file = wanted.log_file or wanted.store / LOG_NAME
    wanted = wanted._replace(log_file=log_file)
    try:
        log_fd = os.open(log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise Failure(f"cannot write the log {log_file}: {error.strerror}") from error
    begin = os.fstat(log_fd).st_size
    reading, writing = os.pipe()
    try:
        started = subprocess.Popen(
            _command(wanted, writing),
            stdin=subprocess.DEVNULL,
            stdout=log_fd,
            stderr=log_fd,
            start_new_session=True,
            pass_fds=(writing,),
            env=_environment(),
        )
    finally:
        os.close(writing)
        os.close(log_fd)
    with os.fdopen(reading, "rb") as pipe:
        # To the end: it comes when the daemon has said its word, or dies.
        word = pipe.read().strip()
    if word.startswith(READY):
        daemon = int(word.removeprefix(READY))
        return Started(daemon, started.pid if started.pid != daemon else None)
    started.wait()
    if word:
        code, _, message = word.decode(errors="surrogateescape").partition(" ")
        raise Failure(message, int(code))
    raise Failure(
        f"the daemon ended before it served ({_ending(started.returncode)}):"
        f" {_last_line(log_file, begin)} (all of it: {log_file})"
    )


def _command(wanted: Wanted, ready_fd: int) -> list[str]:
    command, *rest = wanted.arguments()
    # -P: no module comes from the directory that somebody happens to be in.
    daemon = [sys.executable, "-P", "-m", "nexusfuse.ctl.main", command]
    daemon += ["--ready-fd", str(ready_fd), *rest]
    if not wanted.restart:
        return daemon
    program = [sys.executable, "-I", "-S", supervisor.__file__]
    return [*program, str(wanted.mountpoint), str(wanted.hang_limit_s), *daemon]


def _environment() -> dict[str, str]:
    """Return our environment, in which a Python that is told -P finds our modules."""
    path = os.pathsep.join(filter(None, (str(_ROOT), os.environ.get("PYTHONPATH"))))
    return {**os.environ, "PYTHONPATH": path}


def _ending(code: int) -> str:
    if code > 128:  # as the supervisor passes it on
        code = 128 - code
    return supervisor.ending(code)


def _last_line(log_file: Path, begin: int) -> str:
    with log_file.open("rb") as file:
        file.seek(max(begin, file.seek(0, os.SEEK_END) - _LOG_TAIL_BYTES))
        lines = file.read().decode(errors="backslashreplace").strip().splitlines()
    return lines[-1] if lines else "it said nothing"


class ReadyPipe:
    """The daemon's end: one line to the parent, which waits for the end of the pipe."""

    def __init__(self, fd: int | None) -> None:
        self._fd = fd
        if fd is not None:
            os.set_inheritable(fd, False)

    def tell_ready(self) -> None:
        self._tell(READY + b" %d" % os.getpid())

    def tell_failure(self, message: str, code: int) -> None:
        line = " ".join(message.split())
        self._tell(f"{code} {line}".encode(errors="surrogateescape"))

    def _tell(self, word: bytes) -> None:
        if self._fd is None:
            return
        try:
            os.write(self._fd, word)
        except BrokenPipeError:
            pass  # the parent was interrupted; the mount serves all the same
        finally:
            os.close(self._fd)
            self._fd = None


def serve(wanted: Wanted, ready: Callable[[], None]) -> None:
    """Mount and serve in this process until unmounted.

    Raises:
        Failure, EngineError: It cannot; says what to do.
        ConnectionAbortedError: Somebody had the kernel cut the connection.
    """
    import faulthandler

    import trio

    from nexus_engine.meta.connection import DATABASE_NAME
    from nexusfuse import daemon
    from nexusfuse.liveness import Watchers
    from nexusfuse.mount import MountOptions

    faulthandler.enable()  # whoever ends us for hanging sends SIGABRT: it shows where
    watchers = Watchers()
    replaces = watchers.terms.replaces if watchers.terms is not None else ""
    options = MountOptions(
        allow_other=wanted.allow_other,
        read_only=wanted.read_only,
        noatime=wanted.noatime,
        kernel=wanted.kernel,
        source=wanted.source or f"{mounts.SOURCE_PREFIX.decode()}{wanted.store}",
        hold=wanted.hold,
        debug=wanted.debug,
        log_file=wanted.log_file,
    )

    preconditions.require_fuse(wanted)
    dead = replaces
    if not replaces:
        if preconditions.require_places(wanted) is not None:
            dead = mounts.device_at(os.fsencode(wanted.mountpoint))
        try:
            (wanted.store / DATABASE_NAME).stat()
        except FileNotFoundError:
            preconditions.make_store(wanted.store)
    mountpoint = Mountpoint(wanted, dead, replaces=bool(replaces))

    async def run() -> None:
        await daemon.serve(
            wanted.mountpoint,
            wanted.store,
            options=options,
            watchers=watchers,
            place=daemon.Place(mountpoint.is_wanted, mountpoint.is_taken, mountpoint.free),
            ready=ready,
        )

    os.chdir("/")  # ours would keep somebody else's filesystem busy
    trio.run(run)


def only_leaf(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the one error of a nursery that failed, or the group where there are several."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error
