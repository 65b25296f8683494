"""The usual troubles: what is wrong, why it matters, and which command mends it.

Each check is a function that yields findings. What it looks at is in its arguments, so that a test
can give it something ill.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
import shlex
import stat
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from nexus_engine import __version__
from nexusfuse.ctl import launch, mounts, preconditions, processes, supervisor
from nexusfuse.ctl.mounts import Health, Mount

ERROR, WARNING, NOTE = "error", "warning", "note"

_REQUIREMENT = re.compile(r"([\w.-]+)>=([\d.]+)")


class Finding(NamedTuple):
    """One thing that is not as it should be."""

    severity: str
    check: str
    what: str
    why: str
    command: str
    """What mends it, to be pasted into a shell; empty where no command does."""


def check_device(device: Path = preconditions.DEVICE) -> Iterator[Finding]:
    """Whether FUSE can be used at all."""
    try:
        is_device = stat.S_ISCHR(device.stat().st_mode)
    except OSError:
        is_device = False
    if not is_device:
        yield Finding(
            ERROR,
            "device",
            f"there is no {device}",
            "nothing can be mounted; a container is given it with --device /dev/fuse",
            "modprobe fuse",
        )
    elif not os.access(device, os.R_OK | os.W_OK):
        yield Finding(
            ERROR,
            "device",
            f"no permission to open {device}",
            "only root can mount",
            f"chmod 666 {device}",
        )


def check_fusermount(program: str | None, *, uid: int) -> Iterator[Finding]:
    """Whether users can mount and unmount."""
    severity = NOTE if uid == 0 else ERROR
    if program is None:
        why = "users other than root can neither mount nor unmount"
        yield Finding(severity, "fusermount3", "fusermount3 is missing", why, "apt install fuse3")
    elif not os.stat(program).st_mode & stat.S_ISUID:  # noqa: PTH116
        why = "without it users other than root can neither mount nor unmount"
        what, command = f"{program} is not setuid root", f"chmod u+s {program}"
        yield Finding(severity, "fusermount3", what, why, command)


def check_fuse_conf(conf: Path, *, uid: int) -> Iterator[Finding]:
    """Whether a user may let others into a mount."""
    if uid != 0 and not preconditions.may_allow_other(conf):
        yield Finding(
            NOTE,
            "allow-other",
            f"{conf} has no line user_allow_other",
            "mounting with --allow-other is for root alone",
            f"echo user_allow_other >> {conf}",
        )


def check_versions(
    requirements: Iterable[str], installed: Callable[[str], str]
) -> Iterator[Finding]:
    """Whether the libraries are as new as we need them."""
    for requirement in requirements:
        match = _REQUIREMENT.fullmatch(requirement)
        if match is None:
            continue  # of an optional feature
        name, least = match.groups()
        try:
            version = installed(name)
        except importlib.metadata.PackageNotFoundError:
            version = ""
        if _numbers(version) < _numbers(least):
            yield Finding(
                ERROR,
                "versions",
                f"{name} is {version or 'missing'}; at least {least} is needed",
                "this version was never tried",
                f"pip install '{name}>={least}'",
            )


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", version)))


def check_answers(mount: Mount, limit_s: float) -> Iterator[Finding]:
    """Whether the daemon lives and answers."""
    place = shlex.quote(os.fsdecode(mount.path))
    store = shlex.quote(os.fsdecode(mount.store))
    health = mounts.probe(mount, limit_s)
    behind = processes.behind(mount.path)
    helped = behind.supervisor is not None
    if health is Health.DEAD:
        yield Finding(
            ERROR,
            "dead",
            f"the daemon of {place} is dead",
            "programs get “Transport endpoint is not connected”"
            + (f"; process {behind.supervisor} is starting it again" if helped else ""),
            f"tail {store}/{launch.LOG_NAME}"
            if helped
            else f"nexus-ctl mount --store {store} {place}",
        )
    elif health is Health.SILENT:
        daemons = ", ".join(map(str, behind.daemons)) or "not to be found"
        waiting = _waiting(mount)
        yield Finding(
            ERROR,
            "hung",
            f"the daemon of {place} did not answer within {limit_s:g} s (process {daemons})",
            "programs that use it wait, and no signal ends them"
            + (f": {waiting} requests" if waiting else "")
            + (f"; process {behind.supervisor} ends it when its time is up" if helped else ""),
            f"nexus-ctl umount --force {place}",
        )


def _waiting(mount: Mount) -> str:
    """Return how many requests the kernel has for a daemon, where that can be read."""
    number = mounts.device_at(mount.path).partition(":")[2]
    try:
        return Path(supervisor.CONNECTIONS, number, "waiting").read_text().strip()
    except OSError:
        return ""


def check_daemon(mount: Mount, status: dict[str, str]) -> Iterator[Finding]:
    """Whether the daemon is of this version, is watched over, and did not die before.

    Args:
        status: What it tells of itself.
    """
    place = shlex.quote(os.fsdecode(mount.path))
    store = shlex.quote(os.fsdecode(mount.store))
    again = f"nexus-ctl umount {place} && nexus-ctl mount --store {store} {place}"
    if status.get("version", __version__) != __version__:
        yield Finding(
            WARNING,
            "old-daemon",
            f"the daemon of {place} is version {status['version']}, installed is {__version__}",
            "an upgrade takes effect when it is mounted again",
            again if status.get("supervisor", "none") == "none" else f"nexus-ctl restart {place}",
        )
    if status.get("supervisor") == "none":
        yield Finding(
            NOTE,
            "unsupervised",
            f"nobody starts the daemon of {place} again if it dies",
            "it was mounted with --no-restart or --foreground, or its supervisor was killed",
            again,
        )
    if int(status.get("restarts", 0)):
        yield Finding(
            WARNING,
            "restarts",
            f"the daemon of {place} had to be started again (restart {status['restarts']}, after"
            f" {status.get('restarted_after', '?')})",
            "its log says what happened",
            f"grep -v level=INFO {store}/{launch.LOG_NAME} | tail -50",
        )
