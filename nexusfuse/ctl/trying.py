"""``nexus-ctl try``: run a command in a throwaway workspace, then ask what to keep of it."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path as FilePath

import click

from nexus_engine.commands import Reply, Request
from nexusfuse.ctl.exit_codes import CONFLICTS
from nexusfuse.ctl.options import PATH, common_options, shell_only
from nexusfuse.ctl.place import CommandLine, Place
from nexusfuse.ctl.workspaces import wanted, workspace_diff

_NOT_RUN = 127
_AGENT = "NEXUS_AGENT"


@click.command("try")
@click.argument("command", nargs=-1, required=True, metavar="-- COMMAND...", type=click.UNPROCESSED)
@click.option("--over", type=PATH, metavar="PATH|URL", help="The directory to try it on.")
@click.option("--at", type=PATH, metavar="PATH", help="Where the workspace is while it runs.")
@click.option("--apply", "verdict", flag_value="apply", help="Apply all if COMMAND ends with 0.")
@click.option("--discard", "verdict", flag_value="discard", help="Discard all.")
@click.option("--keep", "verdict", flag_value="keep", help="Keep the workspace for later.")
@common_options
@click.pass_obj
def try_(
    place: Place, command: tuple[str, ...], over: str | None, at: str | None, verdict: str | None
) -> None:
    """Run COMMAND in a workspace over the working directory, and ask what to keep.

    It sees and changes a copy. What it changed is shown then, and applied, discarded or kept.
    Without a terminal, and without --apply, --discard or --keep, it is kept.
    """
    line = place.shell()
    if line.store is not None:
        raise click.UsageError("a command runs in a mount; --store is for stores without one")
    name = f"try-{os.urandom(4).hex()}"
    made = line.ask(Request("workspace-create", wanted(line, name, over, at)))
    directory = FilePath(os.fsdecode(line.mount.path), made["path"])
    code = _run(command, directory, name)
    reply = line.ask(Request("workspace-status", {"name": name, "paths": []}))
    line.show(Request("workspace-status", {}), reply)
    changed = bool(reply["changes"] or reply["conflicts"])
    decided = _decide(line, name, verdict, code, changed=changed)
    _carry_out(line, name, decided, code)


def _run(command: tuple[str, ...], directory: FilePath, name: str) -> int:
    """Run a command; return its exit code as a shell would."""
    environment = {_AGENT: name, **os.environ, "PWD": str(directory)}
    # What the terminal interrupts is the command; we go on, and ask. (A handler, unlike
    # SIG_IGN, does not outlast the exec.)
    handler = signal.signal(signal.SIGINT, lambda *_: None)
    try:
        done = subprocess.run(command, cwd=directory, env=environment, check=False).returncode
    except OSError as error:
        click.echo(f"nexus-ctl: {command[0]}: {error.strerror}", err=True)
        return _NOT_RUN
    finally:
        signal.signal(signal.SIGINT, handler)
    return done if done >= 0 else 128 - done


def _decide(line: CommandLine, name: str, verdict: str | None, code: int, *, changed: bool) -> str:
    """Return what is to become of the workspace: apply, discard or keep."""
    if not changed:
        return "discard"
    if verdict == "apply" and code != 0:
        click.echo(f"nexus-ctl: it ended with {code}, so nothing is applied", err=True)
        return "keep"
    if verdict is not None or not line.interactive:
        return verdict or "keep"
    while True:
        answer = click.prompt(
            "Apply all of it, see the diff, discard it or keep it for later?",
            type=click.Choice(["apply", "diff", "discard", "keep"]),
            err=True,
        )
        if answer != "diff":
            return str(answer)
        click.get_current_context().invoke(workspace_diff, name=name, paths=())


def _carry_out(line: CommandLine, name: str, decided: str, code: int) -> None:
    request = Request("workspace-apply", {"name": name, "paths": []})
    if decided == "apply":
        reply: Reply = line.ask(request)
        line.show(request, reply)
        if reply["conflicts"]:
            click.echo(_kept(name), err=True)
            raise click.exceptions.Exit(CONFLICTS)
    if decided == "keep":
        click.echo(_kept(name), err=True)
    else:
        line.ask(Request("workspace-discard", {"name": name}))
    if code:
        raise click.exceptions.Exit(code)


def _kept(name: str) -> str:
    return (
        f"nexus-ctl: the rest is in workspace {name}: nexus-ctl workspace status, diff, apply or"
        f" discard {name}"
    )


COMMANDS = [shell_only(try_)]
