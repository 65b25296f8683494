"""Workspaces: work on a copy that costs nothing, review it, apply it."""

from __future__ import annotations

import click

from nexus_engine.commands import Request
from nexusfuse.ctl.options import PATH, common_options
from nexusfuse.ctl.place import Place


@click.group()
def workspace() -> None:
    """Work on a copy of a directory that costs nothing; review it, apply it or discard it."""


@workspace.command("create")
@click.argument("name")
@click.option("--over", type=PATH, metavar="PATH", default=".", help="The directory to begin as.")
@click.option("--at", type=PATH, metavar="PATH", help="Where to put it; else workspaces/NAME.")
@common_options
@click.pass_obj
def workspace_create(place: Place, name: str, over: str, at: str | None) -> None:
    """Make a directory that begins as another one is now.

    It is made in no time, however much there is: what is changed in it takes space, and nothing of
    that shows in the directory that it began as until it is applied.
    """
    args = {"name": name, "over": place.path(over)}
    if at is not None:
        args["at"] = place.path(at)
    place.submit(Request("workspace-create", args))


@workspace.command("list")
@common_options
@click.pass_obj
def workspace_list(place: Place) -> None:
    """Show every workspace."""
    place.submit(Request("workspace-list", {}))


@workspace.command("discard")
@click.argument("name")
@common_options
@click.pass_obj
def workspace_discard(place: Place, name: str) -> None:
    """Remove a workspace. An undo brings it back."""
    place.submit(Request("workspace-discard", {"name": name}))


COMMANDS: list[click.Command] = [workspace]
