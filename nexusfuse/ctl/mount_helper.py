"""``mount.nexus`` and ``umount.nexus``: what mount(8) and umount(8) call, so that fstab works.

Source: mount(8), umount(8): "EXTERNAL HELPERS", "EXIT STATUS".
"""

from __future__ import annotations

import getopt
import os
import sys
from collections.abc import Callable
from typing import NamedTuple, NoReturn

import click

from nexus_engine import errors
from nexusfuse.ctl import mounts
from nexusfuse.ctl.mounting import mountpoint_of, real, start, unmount
from nexusfuse.ctl.wanted import KERNEL_OPTIONS, Wanted

OK, USAGE, SYSTEM_ERROR, FAILED = 0, 1, 2, 32

_IGNORED = frozenset(
    "defaults async atime relatime diratime nodiratime lazytime nolazytime nomand noiversion"
    " silent loud acl user_xattr default_permissions nouser auto noauto nofail _netdev".split()
)
"""What we do anyway, what mount(8) and systemd see to, and what makes no difference here."""
_FOR_OTHERS = ("comment", "helper", "uhelper")
_FLAGS = frozenset(("ro", "allow_other", "noatime", "debug", "no_restart", "create"))
_OPPOSITES = {"rw": "ro", "suid": "nosuid", "dev": "nodev", "exec": "noexec"}
"""What takes back an option before it."""
_IMPLIED = {
    "user": ("noexec", "nosuid", "nodev"),
    "users": ("noexec", "nosuid", "nodev"),
    "owner": ("nosuid", "nodev"),
    "group": ("nosuid", "nodev"),
}


class BadUsage(Exception):
    """The command line is wrong; one line that says how."""


class Asked(NamedTuple):
    """What a list of mount options asks for."""

    wanted: Wanted
    create: bool
    """Make the store where there is none."""


def parse_options(text: str, wanted: Wanted, *, sloppy: bool) -> Asked:
    """Return what a list of options asks for.

    Args:
        text: As in the fourth field of fstab(5).
        sloppy: Pass over options that we don't know.

    Raises:
        BadUsage: An option that we don't know, or a value that makes no sense.
    """
    chosen: set[str] = set()
    for option in filter(None, text.split(",")):
        name, _, value = option.partition("=")
        if option in _FLAGS or option in KERNEL_OPTIONS:
            chosen.add(option)
        elif option in _OPPOSITES:
            chosen.discard(_OPPOSITES[option])
        elif name in _IMPLIED:
            chosen.update(_IMPLIED[name])
        elif name == "log_file" and value:
            wanted = wanted._replace(log_file=real(value))
        elif name == "hang_limit":
            wanted = wanted._replace(hang_limit_s=_seconds(value))
        elif option == "remount":
            raise BadUsage("remount does not work: unmount, and mount with the new options")
        elif not (option in _IGNORED or name in _FOR_OTHERS or name[:2] in ("x-", "X-") or sloppy):
            raise BadUsage(f"unknown option {option!r}; -s passes over what is unknown")
    wanted = wanted._replace(
        read_only="ro" in chosen,
        allow_other="allow_other" in chosen,
        noatime="noatime" in chosen,
        debug="debug" in chosen,
        restart="no_restart" not in chosen,
        kernel=tuple(option for option in KERNEL_OPTIONS if option in chosen),
    )
    return Asked(wanted, create="create" in chosen)


def _seconds(value: str) -> float:
    try:
        seconds = float(value)
    except ValueError:
        seconds = -1
    if not seconds >= 0:
        raise BadUsage(f"hang_limit={value}: give seconds, 0 for never")
    return seconds


def mount(arguments: list[str]) -> None:
    """Mount as ``mount.nexus STORE MOUNTPOINT [-sfnv] [-o OPTIONS] [-t TYPE]`` asks."""
    given, places = _parse(arguments, "sfnvN:o:t:")
    if len(places) != 2:
        raise BadUsage("usage: mount.nexus STORE MOUNTPOINT [-sfnv] [-o OPTIONS]")
    store = real(places[0].removeprefix(os.fsdecode(mounts.SOURCE_PREFIX)))
    wanted = Wanted(
        mountpoint_of(places[1]),
        store,
        source=places[0],  # or `mount -a` would not see that it is mounted
        nonempty=True,  # as for every type: mount(8) hides what was there
    )
    text = ",".join(value for name, value in given if name == "-o")
    asked = parse_options(text, wanted, sloppy=("-s", "") in given)
    if ("-f", "") in given:
        return
    wanted = asked.wanted
    if not asked.create and not os.path.lexists(wanted.store):
        # A new store in place of a disk that is not mounted would hide that it is not.
        raise click.ClickException(
            f"no store at {wanted.store}; the option create, or nexus-ctl mount, makes one"
        )
    start(wanted)
    if ("-v", "") in given:
        click.echo(f"mount.nexus: {wanted.store} mounted on {wanted.mountpoint}")


def umount(arguments: list[str]) -> None:
    """Unmount as ``umount.nexus MOUNTPOINT [-nlfvr] [-t TYPE]`` asks."""
    given, places = _parse(arguments, "nlfvrN:t:")
    if len(places) != 1:
        raise BadUsage("usage: umount.nexus MOUNTPOINT [-nlfvr]")
    path = unmount(places[0], lazy=("-l", "") in given, force=("-f", "") in given)
    if ("-v", "") in given:
        click.echo(f"umount.nexus: {path} unmounted")


def _parse(arguments: list[str], letters: str) -> tuple[list[tuple[str, str]], list[str]]:
    try:
        given, places = getopt.gnu_getopt(arguments, letters)
    except getopt.GetoptError as error:
        raise BadUsage(str(error)) from None
    if any(name == "-N" for name, _ in given):
        raise BadUsage("-N does not work: use nsenter(1)")
    return given, places


def run(name: str, command: Callable[[list[str]], None], arguments: list[str]) -> int:
    """Run a command; return its exit code, having said on stderr what went wrong."""
    try:
        command(arguments)
    except BadUsage as error:
        message, code = str(error), USAGE
    except click.ClickException as error:
        message, code = error.format_message(), FAILED
    except errors.EngineError as error:
        message, code = str(error), FAILED
    except OSError as error:
        message, code = str(error), SYSTEM_ERROR
    else:
        return OK
    click.echo(f"{name}: {' '.join(message.split())}", err=True)
    return code


def mount_main() -> NoReturn:
    """Run ``mount.nexus``."""
    sys.exit(run("mount.nexus", mount, sys.argv[1:]))


def umount_main() -> NoReturn:
    """Run ``umount.nexus``."""
    sys.exit(run("umount.nexus", umount, sys.argv[1:]))
