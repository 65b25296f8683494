"""Workspaces: work on a copy that costs nothing, review it, apply it."""

from __future__ import annotations

import click

from nexus_engine.commands import Request
from nexusfuse.ctl.options import PATH, common_options, given
from nexusfuse.ctl.place import CommandLine, Place

_inside = click.argument("paths", nargs=-1, metavar="[PATH]...", type=PATH)


@click.group()
def workspace() -> None:
    """Work on a copy of a directory that costs nothing; review it, apply it or discard it."""


@workspace.command("create")
@click.argument("name")
@click.option("--over", type=PATH, metavar="PATH|URL", help="The directory to begin as.")
@click.option("--at", type=PATH, metavar="PATH", help="Where to put it; else workspaces/NAME.")
@common_options
@click.pass_obj
def workspace_create(place: Place, name: str, over: str | None, at: str | None) -> None:
    """Make a directory that begins as another one is now.

    It is made in no time, however much there is: what is changed in it takes space, and nothing of
    that shows in the directory that it began as until it is applied. One that is outside of the
    mount, or a bucket, is attached for it, which takes a listing.
    """
    place.submit(Request("workspace-create", wanted(place, name, over, at)))


def wanted(place: Place, name: str, over: str | None, at: str | None) -> dict[str, str]:
    """Return what to ask for: a workspace over a directory of the mount, or over something else.

    Args:
        over: Where ``None``, the working directory.
    """
    args = {"name": name}
    if at is not None:
        args["at"] = place.path(at)
    url = over if over is None or "://" in over else place.url_outside(over)
    if url is None:
        return args | {"over": place.path("." if over is None else over)}
    return args | {"url": url}


@workspace.command("list")
@common_options
@click.pass_obj
def workspace_list(place: Place) -> None:
    """Show every workspace."""
    place.submit(Request("workspace-list", {}))


@workspace.command("status")
@click.argument("name")
@_inside
@common_options
@click.pass_obj
def workspace_status(place: Place, name: str, paths: tuple[str, ...]) -> None:
    """Show what is different in a workspace, and what of that is in conflict.

    PATH is in the workspace, as it is shown; without, all of it.
    """
    place.submit(Request("workspace-status", {"name": name, "paths": list(paths)}))


@workspace.command("diff")
@click.argument("name")
@_inside
@common_options
@click.pass_obj
def workspace_diff(place: Place, name: str, paths: tuple[str, ...]) -> None:
    """Show what is different, line by line: deletions first, and all of it."""
    args = {"name": name, "paths": list(paths)}
    if not isinstance(place, CommandLine):
        place.submit(Request("workspace-diff", args))
        return
    skip: int | None = 0
    while skip is not None:
        request = Request("workspace-diff", args | {"skip": skip})
        reply = place.ask(request)
        skip, reply["next"] = reply["next"], None
        place.show(request, reply)


@workspace.command("apply")
@click.argument("name")
@_inside
@click.option("--merge", is_flag=True, help="Merge text that both changed in different lines.")
@click.option("--dry-run", is_flag=True, help="Only show what would be applied.")
@common_options
@click.pass_obj
def workspace_apply(
    place: Place, name: str, paths: tuple[str, ...], *, merge: bool, dry_run: bool
) -> None:
    """Carry what is different over into the directory that the workspace began as.

    One operation, which an undo takes back. What was changed there as well is left alone and
    reported. The workspace stays.
    """
    args = {"name": name, "paths": list(paths)} | given(merge=merge, dry_run=dry_run)
    place.submit(Request("workspace-apply", args))


@workspace.command("discard")
@click.argument("name")
@common_options
@click.pass_obj
def workspace_discard(place: Place, name: str) -> None:
    """Remove a workspace. An undo brings it back."""
    place.submit(Request("workspace-discard", {"name": name}))


COMMANDS: list[click.Command] = [workspace]
