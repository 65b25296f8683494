"""mount and umount."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from pathlib import Path

import click

from nexus_engine import errors, owners
from nexusfuse.ctl import disks, launch, mounts, preconditions, processes, supervisor
from nexusfuse.ctl.checking import mount_status
from nexusfuse.ctl.exit_codes import UNFINISHED, code_of_error
from nexusfuse.ctl.mounts import Health, Mount
from nexusfuse.ctl.options import DIRECTORY, json_option, shell_only
from nexusfuse.ctl.place import Failure, Place
from nexusfuse.ctl.processes import Behind
from nexusfuse.ctl.render import size
from nexusfuse.ctl.wanted import HANG_LIMIT_S, KERNEL_OPTIONS, Wanted

DEFAULT_STORE = "nexus-data"
FORCE_LIMIT_S = 10.0
"""How long a daemon whose connection was cut may take to put in order what it has."""
STUCK_LIMIT_S = 90.0
"""Longer than a daemon itself waits for a disk by default."""
_PATIENCE_S = 2.0
_USERS_SHOWN = 5


@click.command()
@click.argument("mountpoint", type=DIRECTORY)
@click.option("--store", type=DIRECTORY, metavar="DIR", help="Default: ./nexus-data; made if new.")
@click.option("--foreground", is_flag=True, help="Stay, for systemd.")
@click.option("--allow-other", is_flag=True, help="Let other users in.")
@click.option("--read-only", is_flag=True, help="Refuse every change.")
@click.option("--noatime", is_flag=True, help="Reading leaves access times alone.")
@click.option(
    "--options", "-o", metavar="LIST", default="", help=f"Of {', '.join(KERNEL_OPTIONS)}."
)
@click.option("--no-restart", is_flag=True, help="Don't start the daemon again when it dies.")
@click.option(
    "--hang-limit",
    type=click.FloatRange(min=0),
    default=HANG_LIMIT_S,
    metavar="SECONDS",
    help="Start it again when it does not answer for so long; default 60, 0 for never.",
)
@click.option("--nonempty", is_flag=True, help="Hide what MOUNTPOINT holds.")
@click.option(
    "--hold", is_flag=True, help="When told to end, leave the mount, dead, to the next daemon."
)
@click.option(
    "--log-file", type=DIRECTORY, metavar="FILE", help="Default: daemon.log in the store."
)
@click.option("--debug", is_flag=True, help="Log every request.")
@click.option("--ready-fd", type=int, hidden=True)
@click.option("--source", default="", hidden=True)
@json_option
@click.pass_obj
def mount(
    place: Place,
    mountpoint: str,
    store: str | None,
    log_file: str | None,
    options: str,
    hang_limit: float,
    ready_fd: int | None,
    source: str,
    *,
    foreground: bool,
    allow_other: bool,
    read_only: bool,
    noatime: bool,
    no_restart: bool,
    nonempty: bool,
    hold: bool,
    debug: bool,
) -> None:
    """Mount a store on MOUNTPOINT, an empty directory; return when it serves."""
    line = place.shell()
    if not foreground:  # who watches over it waits for the disk
        disks.require_answer(Path(store or line.store or DEFAULT_STORE))
    wanted = Wanted(
        mountpoint=mountpoint_of(mountpoint),
        store=real(store or line.store or DEFAULT_STORE),
        allow_other=allow_other,
        read_only=read_only,
        noatime=noatime,
        kernel=_kernel_options(options),
        debug=debug,
        log_file=None if log_file is None else real(log_file),
        hang_limit_s=hang_limit,
        restart=not no_restart,
        source=source,
        nonempty=nonempty,
        hold=hold,
    )
    if foreground:
        _serve(wanted, launch.ReadyPipe(ready_fd))
        return
    started = start(wanted)
    line.say(
        f"Mounted {wanted.store} on {wanted.mountpoint}.",
        mountpoint=str(wanted.mountpoint),
        store=str(wanted.store),
        pid=started.daemon,
        supervisor=started.supervisor,
    )


def start(wanted: Wanted) -> launch.Started:
    """Mount; return when it serves.

    Raises:
        Failure, EngineError: It cannot; says what to do.
    """
    behind = processes.behind(os.fsencode(wanted.mountpoint))
    if behind.supervisor is not None and mounts.mount_at(os.fsencode(wanted.mountpoint)) is None:
        raise Failure(
            f"{wanted.mountpoint} is being mounted by process {behind.supervisor};"
            f" `nexus-ctl umount {wanted.mountpoint}` ends that"
        )
    launch.prepare(wanted)
    if behind.supervisor is not None:  # of the dead mount: from now on it is ours
        processes.end(behind.supervisor, signal.SIGTERM)
    return launch.run_in_background(wanted)


def _kernel_options(text: str) -> tuple[str, ...]:
    chosen = tuple(filter(None, text.split(",")))
    for option in chosen:
        if option not in KERNEL_OPTIONS:
            raise click.UsageError(f"no option {option!r}; there are {', '.join(KERNEL_OPTIONS)}")
    return chosen


def real(path: str | Path) -> Path:
    return Path(os.path.realpath(path))


def mountpoint_of(path: str | Path) -> Path:
    """Return the absolute path of what may be a mountpoint, if possible without looking at it."""
    found = mounts.real_path(os.fspath(path))
    return Path(os.fsdecode(found)) if mounts.mount_at(found) is not None else real(path)


def _serve(wanted: Wanted, pipe: launch.ReadyPipe) -> None:
    """Serve in this process; what keeps it from that goes to whoever waits, and to stderr."""
    try:
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
@click.option("--force", is_flag=True, help="Also when the daemon hangs: who uses it gets errors.")
@click.option(
    "--limit",
    type=click.FloatRange(min=0.1),
    default=STUCK_LIMIT_S,
    metavar="SECONDS",
    help="Leave a daemon that ends, and gets nothing done for so long; default 90.",
)
@json_option
@click.pass_obj
def umount(place: Place, mountpoint: str, limit: float, *, lazy: bool, force: bool) -> None:
    """Unmount; return when everything is durable and the daemon is gone."""
    line = place.shell()
    path = unmount(mountpoint, limit, lazy=lazy, force=force)
    what = "Detached" if lazy else "Unmounted"
    line.say(f"{what} {path}.", mountpoint=str(path), daemon_ended=not lazy)


def unmount(
    mountpoint: str, limit_s: float = STUCK_LIMIT_S, *, lazy: bool = False, force: bool = False
) -> Path:
    """Unmount; return what.

    Raises:
        Failure: It is busy, somebody else's or no mount; its daemon gets nothing done any more; or
            it is unmounted, and not everything is in order.
    """
    path = mountpoint_of(mountpoint)
    os.chdir("/")  # not to be in the way ourselves
    mount = mounts.mount_at(os.fsencode(path))
    behind = processes.behind(os.fsencode(path))
    if mount is None and behind.supervisor is not None:
        processes.end(behind.supervisor, signal.SIGTERM, 0)  # between two daemons
        _wait_all(path, behind, limit_s)
    elif mount is None or not mount.is_nexus:
        raise Failure(_not_mounted(path))
    elif os.geteuid() not in (0, mount.owner):
        raise Failure(
            f"{path} was mounted by user {mount.owner}: only they and root may unmount it"
        )
    elif force:
        _force(path, mount, behind, limit_s)
    else:
        _unmount(path, mount, behind, limit_s, lazy=lazy)
    return path


def _unmount(path: Path, mount: Mount, behind: Behind, limit_s: float, *, lazy: bool) -> None:
    health = Health.SERVES if lazy else mounts.probe(mount, mounts.ANSWER_LIMIT_S)
    if health is Health.SILENT:
        raise Failure(
            f"the daemon of {path} does not answer; nexus-ctl umount --force {path} ends it, and"
            " nexus-ctl doctor tells more"
        )
    dead = health is Health.DEAD
    if dead:
        # It takes the mount away, unless it waits for the end of a daemon that hangs.
        processes.end(behind.supervisor, signal.SIGTERM, FORCE_LIMIT_S)
        if mounts.device_at(mount.path) == "":
            return
    status = {} if dead or lazy else _status(mount)
    daemons = [int(status["pid"])] if status else behind.daemons
    # Of another pid namespace, say, there are none: unmounting works without.
    waited_for = [] if dead or lazy else _open(*daemons, behind.supervisor)
    reason = preconditions.detach(path, lazy=lazy or dead)
    if reason is not None:
        raise Failure(_busy(path) or reason)
    for pid, process in waited_for:
        _wait(path, pid, process, limit_s)
    if dead or lazy:
        return
    # A daemon whose disk is full may not even be able to tell its status.
    store = Path(status.get("store") or os.fsdecode(mount.store))
    for daemon in daemons:
        word = owners.last_word(store / "peers", daemon)
        if word is not None:
            raise Failure(f"{path} is unmounted, but {word}", UNFINISHED)
    if "packs_url" in status:
        _require_sent(path, store, status["packs_url"])


def _require_sent(path: Path, store: Path, url: str) -> None:
    """Say what the bucket does not have, unless somebody is still to send it.

    Raises:
        Failure: It is on this disk alone.
    """
    from nexusfuse.ctl.bucket_troubles import unsent

    waiting, _ = unsent(store)
    if waiting and not any(True for _ in owners.living(store / "peers")):
        raise Failure(
            f"{path} is unmounted, but {size(waiting)} are not in {url} yet: they are kept in"
            f" {store}, and the next mount sends them",
            UNFINISHED,
        )


def _wait_all(path: Path, behind: Behind, limit_s: float) -> None:
    """Return when daemons and supervisor are gone; raises as `_wait`."""
    # The supervisor last: it goes when they are gone, and says every minute that they are not.
    for pid, process in _open(*behind.daemons, behind.supervisor):
        _wait(path, pid, process, limit_s)


def _force(path: Path, mount: Mount, behind: Behind, limit_s: float) -> None:
    """Cut the connection, and end the daemon, whatever it is at."""
    device = mounts.device_at(mount.path)
    if behind.supervisor is not None:
        # First of all: nobody is to start again what we end. It passes the signal on.
        processes.end(behind.supervisor, signal.SIGTERM, 0)
    supervisor.abort(device)
    for pid in behind.daemons:
        processes.end(pid, signal.SIGCONT, 0)  # one that somebody stopped can end in order
        if not processes.end(pid, signal.SIGTERM, FORCE_LIMIT_S):
            processes.end(pid, signal.SIGKILL, 0)
    if mounts.device_at(mount.path) == device:
        reason = preconditions.detach(path, lazy=True)
        if reason is not None:
            raise Failure(reason)
    _wait_all(path, behind, limit_s)


def _not_mounted(path: Path) -> str:
    around = mounts.mount_of(os.fsencode(path))
    if around.is_nexus:
        where = os.fsdecode(around.path)
        return f"{path} is no mountpoint but lies in the mount {where}: nexus-ctl umount {where}"
    return f"{path} is not a Nexus mount"


def _status(mount: Mount) -> dict[str, str]:
    """Return what the daemon tells of itself; nothing where the mountpoint is hidden, say."""
    try:
        status = mount_status(mount.path)
    except OSError:
        return {}
    return status if status.keys() >= {"pid", "store"} else {}


def _open(*pids: int | None) -> list[tuple[int, int]]:
    """Return processes, each with a descriptor, as far as they can be told."""
    found = [(pid, processes.open_process(pid)) for pid in pids if pid is not None]
    return [(pid, process) for pid, process in found if process is not None]


def _wait(path: Path, pid: int, process: int, limit_s: float) -> None:
    """Return when a process is gone.

    Raises:
        Failure: It gets nothing done any more.
    """
    if not processes.wait(process, _PATIENCE_S):
        if sys.stderr.isatty():
            click.echo("nexus-ctl: waiting until everything is where it is to be kept …", err=True)
        # Where another mount namespace has a copy of the mount (a container that was started
        # meanwhile), the kernel does not end the daemon. To one that is ending this is nothing.
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(process, signal.SIGTERM)
        if not processes.wait_while_busy(pid, process, limit_s):
            raise Failure(
                f"{path} is not mounted any more, but process {pid} is still at it and got"
                f" nothing done for {limit_s:g} s: see `nexus-ctl doctor --store DIR`; what is not"
                " on the disk yet, the next mount finishes"
            )
    os.close(process)


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
