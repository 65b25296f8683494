"""mount and umount."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
from pathlib import Path

import click

from nexus_engine import errors
from nexusfuse.ctl import launch, mounts
from nexusfuse.ctl.checking import mount_status
from nexusfuse.ctl.exit_codes import code_of_error
from nexusfuse.ctl.mounts import Mount
from nexusfuse.ctl.options import DIRECTORY, json_option, shell_only
from nexusfuse.ctl.place import Failure, Place

DEFAULT_STORE = "nexus-data"
_PATIENCE_MS = 2000
_USERS_SHOWN = 5


@click.command()
@click.argument("mountpoint", type=DIRECTORY)
@click.option("--store", type=DIRECTORY, metavar="DIR", help="Default: ./nexus-data; made if new.")
@click.option("--foreground", is_flag=True, help="Stay, for systemd.")
@click.option("--allow-other", is_flag=True, help="Let other users in.")
@click.option("--read-only", is_flag=True, help="Refuse every change.")
@click.option("--noatime", is_flag=True, help="Reading leaves access times alone.")
@click.option(
    "--log-file", type=DIRECTORY, metavar="FILE", help="Default: daemon.log in the store."
)
@click.option("--debug", is_flag=True, help="Log every request.")
@click.option("--ready-fd", type=int, hidden=True)
@json_option
@click.pass_obj
def mount(
    place: Place,
    mountpoint: str,
    store: str | None,
    log_file: str | None,
    ready_fd: int | None,
    *,
    foreground: bool,
    allow_other: bool,
    read_only: bool,
    noatime: bool,
    debug: bool,
) -> None:
    """Mount a store on MOUNTPOINT, an empty directory; return when it serves."""
    line = place.shell()
    wanted = launch.Wanted(
        mountpoint=_real(mountpoint),
        store=_real(store or line.store or DEFAULT_STORE),
        allow_other=allow_other,
        read_only=read_only,
        noatime=noatime,
        debug=debug,
        log_file=None if log_file is None else _real(log_file),
    )
    if foreground:
        _serve(wanted, launch.ReadyPipe(ready_fd))
        return
    launch.prepare(wanted)
    pid = launch.run_in_background(wanted)
    line.say(
        f"Mounted {wanted.store} on {wanted.mountpoint}.",
        mountpoint=str(wanted.mountpoint),
        store=str(wanted.store),
        pid=pid,
    )


def _real(path: str | Path) -> Path:
    return Path(os.path.realpath(path))


def _serve(wanted: launch.Wanted, pipe: launch.ReadyPipe) -> None:
    """Serve in this process; what keeps it from that goes to whoever waits, and to stderr."""
    try:
        launch.prepare(wanted)
        try:
            launch.serve(wanted, pipe.tell_ready)
        except BaseExceptionGroup as group:
            raise launch.only_leaf(group) from group
    except errors.EngineError as error:
        pipe.tell_failure(str(error), code_of_error(error, None))
        raise
    except Failure as error:
        pipe.tell_failure(error.message, error.exit_code)
        raise


@click.command()
@click.argument("mountpoint", type=DIRECTORY)
@click.option("--lazy", is_flag=True, help="Detach now, end when nobody uses it any more.")
@json_option
@click.pass_obj
def umount(place: Place, mountpoint: str, *, lazy: bool) -> None:
    """Unmount; return when everything is durable and the daemon is gone."""
    line = place.shell()
    path = _real(mountpoint)
    os.chdir("/")  # not to be in the way ourselves
    mount = mounts.mount_at(os.fsencode(path))
    if mount is None or not mount.is_nexus:
        raise Failure(_not_mounted(path))
    if os.geteuid() not in (0, mount.owner):
        raise Failure(
            f"{path} was mounted by user {mount.owner}: only they and root may unmount it"
        )
    dead = mounts.is_dead(mount)
    daemon = None if dead else _open_daemon(mount)
    reason = launch.detach(path, lazy=lazy or dead)
    if reason is not None:
        raise Failure(_busy(path) or reason)
    if daemon is not None and not lazy:
        _wait(daemon)
    what = "Detached" if lazy else "Unmounted"
    line.say(f"{what} {path}.", mountpoint=str(path), daemon_ended=not lazy)


def _not_mounted(path: Path) -> str:
    around = mounts.mount_of(os.fsencode(path))
    if around.is_nexus:
        where = os.fsdecode(around.path)
        return f"{path} is no mountpoint but lies in the mount {where}: nexus-ctl umount {where}"
    return f"{path} is not a Nexus mount"


def _open_daemon(mount: Mount) -> int | None:
    """Return a descriptor of the daemon's process, ``None`` if it cannot be told."""
    try:
        return os.pidfd_open(int(mount_status(mount.path)["pid"]))
    except (OSError, KeyError, ValueError):
        return None  # of another pid namespace, say: unmounting works without


def _wait(daemon: int) -> None:
    """Return when the process is gone."""
    poll = select.poll()
    poll.register(daemon, select.POLLIN)
    if not poll.poll(_PATIENCE_MS):
        if sys.stderr.isatty():
            click.echo("nexus-ctl: waiting until everything is on the disk …", err=True)
        # Where another mount namespace has a copy of the mount (a container that was started
        # meanwhile), the kernel does not end the daemon. To one that is ending this is nothing.
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(daemon, signal.SIGTERM)
        poll.poll()
    os.close(daemon)


def _busy(mountpoint: Path) -> str | None:
    """Say who uses a mount, as far as /proc tells."""
    users = list(_users(os.fsencode(mountpoint)))
    if not users:
        return None
    shown = ", ".join(users[:_USERS_SHOWN])
    more = f" and {len(users) - _USERS_SHOWN} more" if len(users) > _USERS_SHOWN else ""
    return f"{mountpoint} is in use by {shown}{more}: end them, or umount --lazy"


def _users(mountpoint: bytes) -> list[str]:
    found = []
    for process in Path("/proc").iterdir():
        if not process.name.isdigit():
            continue
        use = _use(process, mountpoint)
        if use is not None:
            found.append(f"{_command(process)}[{process.name}] ({use})")
    return found


def _use(process: Path, mountpoint: bytes) -> str | None:
    links = [(process / "cwd", "working directory"), (process / "root", "root directory")]
    links.append((process / "exe", "program"))
    # Of somebody else's process, or one that just ended, there is nothing to see.
    with contextlib.suppress(OSError):
        links += [(link, "open file") for link in (process / "fd").iterdir()]
    for link, use in links:
        try:
            target = os.fsencode(link.readlink())
        except OSError:
            continue
        if mounts.is_within(target, mountpoint):
            return use
    return None


def _command(process: Path) -> str:
    try:
        return (process / "comm").read_text(errors="backslashreplace").strip()
    except OSError:
        return "?"


COMMANDS = [shell_only(mount), shell_only(umount)]
