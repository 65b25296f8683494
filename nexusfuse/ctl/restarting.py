"""restart: another daemon for a mount that goes on."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import click

from nexusfuse.ctl import mounts, processes
from nexusfuse.ctl.checking import mount_status
from nexusfuse.ctl.mounting import STUCK_LIMIT_S, mountpoint_of
from nexusfuse.ctl.mounts import Health
from nexusfuse.ctl.options import DIRECTORY, json_option, shell_only
from nexusfuse.ctl.place import Failure, Place
from nexusfuse.ctl.processes import Behind

START_LIMIT_S = 60.0


@click.command()
@click.argument("mountpoint", type=DIRECTORY)
@json_option
@click.pass_obj
def restart(place: Place, mountpoint: str) -> None:
    """Replace the daemon of MOUNTPOINT, in use or not, by one of the version installed now."""
    line = place.shell()
    path = mountpoint_of(mountpoint)
    mount = mounts.mount_at(os.fsencode(path))
    behind = processes.behind(os.fsencode(path))
    if mount is None or not mount.is_nexus:
        raise Failure(f"{path} is not a Nexus mount")
    if behind.supervisor is None:
        raise Failure(
            f"nobody starts the daemon of {path} again: `systemctl restart` does, for a service;"
            " otherwise unmount and mount again"
        )
    for pid in behind.daemons:
        _end(pid)
    line.say(f"Restarted {path}.", mountpoint=str(path), pid=_next_daemon(path, behind))


def _end(pid: int) -> None:
    """Have a daemon leave its mount to the next one.

    Raises:
        Failure: It does not get done with it.
    """
    process = processes.open_process(pid)
    if process is None:
        return
    signal.pidfd_send_signal(process, signal.SIGUSR2)
    if not processes.wait_while_busy(pid, process, STUCK_LIMIT_S):
        raise Failure(
            f"process {pid} is to end and got nothing done for {STUCK_LIMIT_S:g} s;"
            " `nexus-ctl doctor` tells more"
        )
    os.close(process)


def _next_daemon(path: Path, before: Behind) -> int:
    """Return the daemon that serves a mountpoint instead of those before.

    Raises:
        Failure: It does not come.
    """
    deadline_s = time.monotonic() + START_LIMIT_S
    while time.monotonic() < deadline_s:
        mount = mounts.mount_at(os.fsencode(path))
        if mount is not None and mounts.probe(mount, START_LIMIT_S) is Health.SERVES:
            pid = int(mount_status(mount.path)["pid"])
            if pid not in before.daemons:
                return pid
        time.sleep(0.05)
    raise Failure(
        f"the next daemon of {path} does not serve yet; its log, and `nexus-ctl doctor {path}`,"
        " say why"
    )


COMMANDS = [shell_only(restart)]
