"""How things are: status, stats, verify-log, fsck, scrub; and shell completion."""

from __future__ import annotations

import os
from pathlib import Path

import click
import msgspec

from nexus_engine import errors
from nexus_engine.commands import Request
from nexusfuse.ctl import backing_up
from nexusfuse.ctl.exit_codes import DAMAGE
from nexusfuse.ctl.options import PATH, common_options, shell_only
from nexusfuse.ctl.place import CommandLine, Place, opened
from nexusfuse.ctl.progress import ProgressLine

SHELLS = ("bash", "zsh", "fish")


@click.command()
@click.argument("path", type=PATH, required=False)
@common_options
@click.pass_obj
def status(place: Place, path: str | None) -> None:
    """Show the mount that PATH (or the working directory) is in: store, daemon, log."""
    if path is not None:
        place.path(path)
    if not isinstance(place, CommandLine) or place.store is not None:
        place.submit(Request("status", {}))
        return
    mount = place.mount
    reply = place.ask(Request("status", {}))
    facts: dict[str, object] = {"mountpoint": os.fsdecode(mount.path)}
    for key, value in mount_status(mount.path).items():
        # How often each request was made is for `.nexus/status` itself.
        if key not in reply and not key.startswith("requests_"):
            facts[key] = int(value) if value.isdecimal() else value
    place.show(Request("status", {}), facts | reply)


def mount_status(mountpoint: bytes) -> dict[str, str]:
    """Return what the daemon tells of itself: the ``key value`` lines of ``.nexus/status``."""
    text = Path(os.fsdecode(mountpoint), ".nexus/status").read_text(errors="backslashreplace")
    return dict(line.partition(" ")[::2] for line in text.splitlines())


@click.command()
@common_options
@click.pass_obj
def stats(place: Place) -> None:
    """Show figures: operations, files, bytes kept and bytes shown."""
    place.submit(Request("stats", {}))


@click.command("verify-log")
@common_options
@click.pass_obj
def verify_log(place: Place) -> None:
    """Prove that no record of the log was changed or left out."""
    place.submit(Request("verify-log", {}))


@click.command()
@click.option("--deep", is_flag=True, help="Read and verify every stored byte, too.")
@click.option("--repair", is_flag=True, help="Mend what can be mended; say what was done.")
@click.option("--rebuild-index", is_flag=True, help="First find all chunks anew, in the packs.")
@common_options
@click.pass_obj
def fsck(place: Place, *, deep: bool, repair: bool, rebuild_index: bool) -> None:
    """Check that the store is consistent. By itself changes nothing.

    Exit codes: 0 clean, or all of it mended; 4 problems found, or left; 8 the check could not run.
    """
    if rebuild_index:
        backing_up.rebuild_index(place.shell())
    request = Request("repair" if repair else "fsck", {"deep": deep})
    if not (repair and isinstance(place, CommandLine) and place.store is not None):
        place.submit(request)
        return
    try:
        place.submit(request)
    except errors.CorruptMetadata as error:
        # Nobody can use it as it is.
        _salvage(place, place.store, error)
        place.submit(request)


def _salvage(line: CommandLine, store: Path, error: errors.CorruptMetadata) -> None:
    from nexus_engine.repair.salvage import salvage

    done = salvage(store)
    line.say(
        f"{error}: salvaged {done.rows:,} rows; the damaged file is {done.kept}",
        salvaged=done.rows,
        kept=str(done.kept),
    )


@click.command()
@click.option("--rate", metavar="BYTES", help="Read so many each second, at most: 500K, 50M, 1G.")
@click.option("--restart", is_flag=True, help="Begin anew, wherever the last one stopped.")
@common_options
@click.pass_obj
def scrub(place: Place, rate: str | None, *, restart: bool) -> None:
    """Read all content again, and name every file of which some has decayed.

    Where it is stopped it goes on the next time. It reads in this process, with its rights.
    """
    from nexus_engine.check import scrub as scrubbing
    from nexus_engine.config import parse_bytes

    line = place.shell()
    line.verb = "fsck"
    try:
        rate_bytes = scrubbing.RATE_BYTES if rate is None else parse_bytes(rate)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    path = line.store or Path(os.fsdecode(line.mount.store))
    with opened(path) as store, ProgressLine() as progress:
        done = scrubbing.scrub(
            store,
            rate_bytes=rate_bytes,
            restart=restart,
            progress=lambda read, total: progress("scrubbing", read, total),
        )
    reply = msgspec.to_builtins(done) | {"problems": [p._asdict() for p in done.problems]}
    line.show(Request("scrub", {}), reply)
    if done.problems:
        raise click.exceptions.Exit(DAMAGE)


@click.command()
@click.argument("shell", type=click.Choice(SHELLS), required=False)
@click.pass_context
def completion(ctx: click.Context, shell: str | None) -> None:
    """Print the script that completes nexus-ctl's arguments.

    For bash: nexus-ctl completion bash > ~/.local/share/bash-completion/completions/nexus-ctl
    """
    from click.shell_completion import get_completion_class

    ctx.obj.shell()
    shell = shell or Path(os.environ.get("SHELL", "")).name
    maker = get_completion_class(shell) if shell in SHELLS else None
    if maker is None:
        raise click.UsageError(f"say which shell: {', '.join(SHELLS)}")
    root = ctx.find_root().command
    click.echo(maker(root, {}, "nexus-ctl", "_NEXUS_CTL_COMPLETE").source())


COMMANDS = [status, stats, verify_log, fsck, shell_only(scrub), shell_only(completion)]
