"""Start a daemon: what must hold before it mounts, and how its parent learns that it serves."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import click

from nexus_engine import errors
from nexusfuse.ctl import mounts
from nexusfuse.ctl.exit_codes import STORE_UNUSABLE
from nexusfuse.ctl.place import Failure, own_actor

LOG_NAME = "daemon.log"
DEVICE = Path("/dev/fuse")
FUSE_CONF = Path("/etc/fuse.conf")
READY = b"ready"
_LOG_TAIL_BYTES = 4096


class Wanted(NamedTuple):
    """What ``mount`` was asked for; paths absolute."""

    mountpoint: Path
    store: Path
    allow_other: bool = False
    read_only: bool = False
    noatime: bool = False
    debug: bool = False
    log_file: Path | None = None

    def arguments(self) -> list[str]:
        """Return the command line that asks for the same."""
        words = ["mount", "--foreground", "--store", str(self.store)]
        words += ["--allow-other"] * self.allow_other
        words += ["--read-only"] * self.read_only
        words += ["--noatime"] * self.noatime
        words += ["--debug"] * self.debug
        if self.log_file is not None:
            words += ["--log-file", str(self.log_file)]
        return [*words, "--", str(self.mountpoint)]


def prepare(wanted: Wanted) -> None:
    """See to it that mounting can work: clear a dead mount away, make the store where it is new.

    Raises:
        Failure, EngineError: It cannot; says what to do.
    """
    _require_fuse(wanted)
    _clear_dead_mount(wanted)
    _require_mountpoint(wanted.mountpoint)
    _require_apart(wanted)
    _require_store(wanted.store)


def _require_fuse(wanted: Wanted) -> None:
    try:
        is_device = stat.S_ISCHR(DEVICE.stat().st_mode)
    except FileNotFoundError:
        is_device = False
    if not is_device:
        raise Failure(
            f"there is no {DEVICE}: load the module with `modprobe fuse` as root, or give the"
            " container the device (--device /dev/fuse --cap-add SYS_ADMIN)"
        )
    if os.geteuid() == 0:
        return
    if not os.access(DEVICE, os.R_OK | os.W_OK):
        raise Failure(
            f"no permission to open {DEVICE}: have root run `chmod 666 {DEVICE}`, as udev does"
        )
    if shutil.which("fusermount3") is None:
        raise Failure("fusermount3 is missing: install it with `apt install fuse3`")
    if wanted.allow_other and not _may_allow_other():
        raise Failure(
            f"--allow-other is not permitted: have root add a line user_allow_other to {FUSE_CONF}"
        )


def _may_allow_other() -> bool:
    try:
        lines = FUSE_CONF.read_text().splitlines()
    except OSError:
        return False
    return any(line.strip() == "user_allow_other" for line in lines)


def _clear_dead_mount(wanted: Wanted) -> None:
    """Refuse a mountpoint in use; free one whose daemon died."""
    mountpoint = wanted.mountpoint
    mount = mounts.mount_at(os.fsencode(mountpoint))
    if mount is None:
        return
    dead = mounts.is_dead(mount)
    if not mount.is_nexus:
        if dead:
            raise Failure(
                f"{mountpoint} is a dead mount of another filesystem ({os.fsdecode(mount.fstype)});"
                f" free it with `fusermount3 -u {mountpoint}`"
            )
        return
    if not dead:
        if os.fsencode(wanted.store) == mount.store:
            raise Failure(f"already mounted: {mountpoint} shows {wanted.store}")
        raise Failure(
            f"{mountpoint} already shows another store, {os.fsdecode(mount.store)};"
            f" `nexus-ctl umount {mountpoint}` frees it"
        )
    if os.geteuid() not in (0, mount.owner):
        raise Failure(
            f"{mountpoint} is a dead mount of user {mount.owner}, who (or root) can free it with"
            f" `fusermount3 -u {mountpoint}`"
        )
    click.echo(f"nexus-ctl: freeing {mountpoint}: the daemon that served it is dead", err=True)
    detach(mountpoint, lazy=True)


def detach(mountpoint: Path, *, lazy: bool) -> str | None:
    """Unmount.

    Returns:
        ``None``, or the line that says why it did not work.
    """
    if shutil.which("fusermount3") is not None:
        command = ["fusermount3", "-uz" if lazy else "-u"]
    elif os.geteuid() == 0:
        command = ["umount", *["-l"] * lazy]
    else:
        raise Failure("fusermount3 is missing: install it with `apt install fuse3`")
    done = subprocess.run(
        [*command, "--", mountpoint], capture_output=True, stdin=subprocess.DEVNULL, check=False
    )
    if done.returncode == 0:
        return None
    lines = done.stderr.decode(errors="backslashreplace").strip().splitlines()
    return lines[-1] if lines else f"{command[0]} ended with {done.returncode}"


def _require_mountpoint(path: Path) -> None:
    try:
        with os.scandir(path) as entries:
            empty = next(entries, None) is None
    except FileNotFoundError:
        raise Failure(f"{path} does not exist: make it with `mkdir -p {path}`") from None
    except NotADirectoryError:
        raise Failure(f"{path} is not a directory: mount on an empty directory") from None
    except PermissionError:
        raise Failure(f"no permission to look into {path}: mount on a directory of yours") from None
    except OSError as error:
        if error.errno in (errno.ENOTCONN, errno.EIO):
            raise Failure(f"{path} does not answer: {error.strerror}") from None
        raise
    if not empty:
        raise Failure(f"{path} is not empty: mount on an empty directory, nothing may be hidden")
    if not os.access(path, os.W_OK):
        raise Failure(f"no permission to write to {path}: mount on a directory of yours")


def _require_apart(wanted: Wanted) -> None:
    store, mountpoint = os.fsencode(wanted.store), os.fsencode(wanted.mountpoint)
    if mounts.is_within(store, mountpoint) or mounts.is_within(mountpoint, store):
        raise Failure(
            f"store and mountpoint must lie apart: {wanted.store} and {wanted.mountpoint};"
            " give --store DIR"
        )


def _require_store(path: Path) -> None:
    """Open the store once, so that what is wrong with it is said here; make it if it is new."""
    from nexus_engine.store import Store

    try:
        Store.open(path).close()
    except errors.StoreNotFound:
        try:
            Store.create(path, own_actor()).close()
        except errors.StoreExists:
            raise Failure(
                f"{path} holds something else and no store: give --store an empty or new directory",
                STORE_UNUSABLE,
            ) from None


# -- in the background --


def run_in_background(wanted: Wanted) -> int:
    """Start the daemon as a process of its own; return when the mount serves.

    The daemon is a new process rather than a fork: no thread and no event loop of ours can be in
    it, and none of our descriptors.

    Returns:
        Its process id.

    Raises:
        Failure: It did not come to serve; its own words.
    """
    log_file = wanted.log_file or wanted.store / LOG_NAME
    wanted = wanted._replace(log_file=log_file)
    try:
        log = os.open(log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise Failure(f"cannot write the log {log_file}: {error.strerror}") from error
    begin = os.fstat(log).st_size
    reading, writing = os.pipe()
    try:
        daemon = subprocess.Popen(
            [sys.executable, "-m", "nexusfuse.ctl.main", *_with_fd(wanted, writing)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            pass_fds=(writing,),
        )
    finally:
        os.close(writing)
        os.close(log)
    with os.fdopen(reading, "rb") as pipe:
        # To the end: it comes when the daemon has said its word, or dies.
        word = pipe.read().strip()
    if word == READY:
        return daemon.pid
    daemon.wait()
    if word:
        code, _, message = word.decode(errors="surrogateescape").partition(" ")
        raise Failure(message, int(code))
    raise Failure(
        f"the daemon ended before it served ({_ending(daemon.returncode)}):"
        f" {_last_line(log_file, begin)} (all of it: {log_file})"
    )


def _with_fd(wanted: Wanted, fd: int) -> list[str]:
    command, *rest = wanted.arguments()
    return [command, "--ready-fd", str(fd), *rest]


def _ending(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit {code}"


def _last_line(log_file: Path, begin: int) -> str:
    with log_file.open("rb") as file:
        file.seek(max(begin, file.seek(0, os.SEEK_END) - _LOG_TAIL_BYTES))
        lines = file.read().decode(errors="backslashreplace").strip().splitlines()
    return lines[-1] if lines else "it said nothing"


class ReadyPipe:
    """The daemon's end: one word to the parent, which waits for the end of the pipe."""

    def __init__(self, fd: int | None) -> None:
        self._fd = fd
        if fd is not None:
            os.set_inheritable(fd, False)

    def tell_ready(self) -> None:
        self._tell(READY)

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
    """Mount and serve in this process until unmounted."""
    import trio

    from nexusfuse import daemon
    from nexusfuse.mount import MountOptions

    options = MountOptions(
        allow_other=wanted.allow_other,
        read_only=wanted.read_only,
        noatime=wanted.noatime,
        debug=wanted.debug,
        log_file=wanted.log_file,
    )

    async def run() -> None:
        await daemon.serve(wanted.mountpoint, wanted.store, options=options, ready=ready)

    os.chdir("/")  # ours would keep somebody else's filesystem busy
    trio.run(run)


def only_leaf(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the one error of a nursery that failed, or the group where there are several."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error
