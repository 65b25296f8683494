"""Taking back: undo, redo."""

from __future__ import annotations

import click

from nexus_engine.commands import Request
from nexusfuse.ctl.history import one_path
from nexusfuse.ctl.options import (
    COUNT,
    OPERATION,
    PATH,
    actor_options,
    common_options,
    find_operation,
    given,
    time_options,
)
from nexusfuse.ctl.place import Place

_dry_run = click.option("--dry-run", is_flag=True, help="Only show every path that would change.")
_force = click.option("--force", is_flag=True, help="Override what others did since, too.")
_yes = click.option("--yes", "-y", is_flag=True, help="Don't ask, on a terminal either.")


@click.command()
@click.argument("words", nargs=-1, metavar="[OP]... [PATH]", type=PATH)
@click.option("--last", type=COUNT, metavar="N", help="The last N that everything else selects.")
@time_options
@actor_options
@click.option("--path", "path_option", type=PATH, metavar="PATH", help="At or below PATH.")
@_dry_run
@_force
@_yes
@common_options
@click.pass_obj
def undo(
    place: Place,
    words: tuple[str, ...],
    path_option: str | None,
    last: int | None,
    since: str | None,
    until: str | None,
    agent: str | None,
    pid: int | None,
    session: int | None,
    *,
    dry_run: bool,
    force: bool,
    yes: bool,
) -> None:
    """Take operations back; without a selector, the last one.

    PATH alone means everything that happened at or below it, with --last 1 the last change there:
    selectors narrow each other down. What somebody else changed since is reported and left alone.
    An undo is an operation, so redo takes it back. (A file named like an operation is ./123.)
    """
    operations = [seq for word in words if (seq := find_operation(word)) is not None]
    paths = [word for word in words if find_operation(word) is None]
    if len(paths) > 1:
        raise click.UsageError("one path, please; operations are written op-123")
    where = one_path(paths[0] if paths else None, path_option)
    args = given(
        operations=operations,
        last=last,
        since=since,
        until=until,
        agent=agent,
        pid=pid,
        session=session,
    )
    if where is not None:
        path = place.path(where)
        if not path and not args:
            raise click.UsageError("that is all that ever happened here: add --last, --since …")
        args["path"] = path
    if not args:
        args["last"] = 1
    args |= given(dry_run=dry_run, force=force)
    _confirm(place, Request("undo", args), yes=yes)
    place.submit(Request("undo", args))


@click.command()
@click.argument("operations", nargs=-1, type=OPERATION, metavar="[OP]...")
@click.option("--last", type=COUNT, metavar="N", help="The last N undos.")
@_dry_run
@_force
@_yes
@common_options
@click.pass_obj
def redo(
    place: Place,
    operations: tuple[int, ...],
    last: int | None,
    *,
    dry_run: bool,
    force: bool,
    yes: bool,
) -> None:
    """Take undos back; without OP or --last, the latest one."""
    if operations and last is not None:
        raise click.UsageError("operations or --last, not both")
    args = given(operations=list(operations), last=last, dry_run=dry_run, force=force)
    if not operations and last is None:
        args["last"] = 1
    _confirm(place, Request("redo", args), yes=yes)
    place.submit(Request("redo", args))


def _confirm(place: Place, request: Request, *, yes: bool) -> None:
    """Ask before many operations are taken back, where there is somebody to ask."""
    if yes or not place.interactive or request.args.get("dry_run"):
        return
    line = place.shell()
    plan = line.ask(Request(request.verb, request.args | {"dry_run": True}))
    if plan["operations"] > 1:
        click.confirm(
            f"{request.verb.capitalize()} {plan['operations']:,} operations,"
            f" {plan['change_count']:,} paths?",
            abort=True,
            err=True,
        )


COMMANDS = [undo, redo]
