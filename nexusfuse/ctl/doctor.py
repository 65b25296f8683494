"""doctor: look for the usual troubles of a machine, its mounts and their stores."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nexusfuse.ctl import mounts
from nexusfuse.ctl.exit_codes import FAILED
from nexusfuse.ctl.mounts import Mount
from nexusfuse.ctl.options import DIRECTORY, json_option, shell_only
from nexusfuse.ctl.place import CommandLine, Failure, Place
from nexusfuse.ctl.render import printable

if TYPE_CHECKING:
    from nexusfuse.ctl.troubles import Finding


@click.command()
@click.argument("mountpoint", type=DIRECTORY, required=False)
@click.option("--store", type=DIRECTORY, metavar="DIR", help="Examine this store.")
@click.option(
    "--limit",
    type=click.FloatRange(min=0.1),
    default=mounts.ANSWER_LIMIT_S,
    metavar="SECONDS",
    help="A daemon or disk that takes longer to answer hangs; default 10.",
)
@json_option
@click.pass_obj
def doctor(place: Place, mountpoint: str | None, store: str | None, limit: float) -> None:
    """Find the usual troubles of MOUNTPOINT, or of every mount; print the command for each.

    Exit code 0 when nothing is wrong.
    """
    from nexusfuse.ctl import examination, troubles

    line = place.shell()
    examined = _mounts(line, mountpoint, store)
    stores = dict.fromkeys(Path(os.fsdecode(mount.store)) for mount in examined)
    if store is not None or line.store is not None:
        stores = {Path(os.path.abspath(store or line.store or ".")): None}  # noqa: PTH100
    found = list(examination.of_machine())
    for mount in examined:
        found += examination.of_mount(mount, limit)
    for path in stores:
        found += examination.of_store(path, limit)
    where = [os.fsdecode(mount.path) for mount in examined]
    _show(line, found, examination.versions(), mounts=where, stores=list(map(str, stores)))
    if any(finding.severity != troubles.NOTE for finding in found):
        raise click.exceptions.Exit(FAILED)


def _mounts(line: CommandLine, mountpoint: str | None, store: str | None) -> list[Mount]:
    """Return the mounts that were asked about."""
    if mountpoint is None:
        path = store or line.store
        everything = mounts.nexus_mounts()
        if path is None:
            return [m for m in everything if os.geteuid() in (0, m.owner)]
        wanted = os.fsencode(os.path.realpath(path))
        return [mount for mount in everything if mount.store == wanted]
    path_of = mounts.real_path(mountpoint)
    mount = mounts.mount_at(path_of) or mounts.mount_of(path_of)
    if not mount.is_nexus:
        raise Failure(f"{mountpoint} is not in a Nexus mount; give --store DIR for its store")
    return [mount]


def _show(
    line: CommandLine, found: list[Finding], versions: dict[str, str], **examined: list[str]
) -> None:
    if line.json:
        facts: dict[str, Any] = {"findings": [finding._asdict() for finding in found]}
        line.say("", **facts, **examined, versions=versions)
        return
    known = ", ".join(f"{name} {version}" for name, version in versions.items())
    click.echo(printable(known))
    for finding in found:
        click.echo()
        click.echo(printable(f"{finding.severity}: {finding.what}"))
        click.echo(printable(f"  {finding.why}"))
        if finding.command:
            click.echo(printable(f"  $ {finding.command}"))
    click.echo()
    looked = ", ".join([*examined["mounts"], *examined["stores"]]) or "this machine; no mount"
    what = {0: "Nothing is wrong", 1: "1 finding"}.get(len(found), f"{len(found)} findings")
    click.echo(printable(f"{what} ({looked})."))


COMMANDS = [shell_only(doctor)]
