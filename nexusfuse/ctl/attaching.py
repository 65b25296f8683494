"""Attachments: buckets, folders and Drives of others at a path."""

from __future__ import annotations

import click

from nexus_engine.commands import Request
from nexusfuse.ctl.options import PATH, common_options, given
from nexusfuse.ctl.place import Place


@click.group()
def mounts() -> None:
    """Attach directories, buckets and Drives of others at a path."""


@mounts.command("add")
@click.argument("path", type=PATH)
@click.argument("url")
@click.option("--read-only", is_flag=True, help="Nothing can be changed there.")
@click.option(
    "-o", "options", multiple=True, metavar="NAME=VALUE",
    help="An option of the URL; interval=5m: how often to look for changes.",
)  # fmt: skip
@common_options
@click.pass_obj
def mounts_add(
    place: Place, path: str, url: str, *, read_only: bool, options: tuple[str, ...]
) -> None:
    """Show what is at URL as files at PATH, a new name or an empty directory.

    Nothing is copied: what is read is fetched and kept, what is changed goes back.
    """
    args = {"path": place.path(path), "url": url, "options": _options(options)}
    place.submit(Request("mounts-add", args | given(read_only=read_only)))


def _options(texts: tuple[str, ...]) -> dict[str, str]:
    options = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise click.UsageError(f"-o {text}: write NAME=VALUE")
        options[name] = value
    return options


@mounts.command("list")
@common_options
@click.pass_obj
def mounts_list(place: Place) -> None:
    """Show what is attached."""
    place.submit(Request("mounts-list", {}))


@mounts.command("info")
@click.argument("path", type=PATH, default=".")
@common_options
@click.pass_obj
def mounts_info(place: Place, path: str) -> None:
    """Show how PATH gets on with its source: what waits, conflicts, odd keys."""
    place.submit(Request("mounts-info", {"path": place.path(path)}))


@mounts.command("refresh")
@click.argument("path", type=PATH, default=".")
@common_options
@click.pass_obj
def mounts_refresh(place: Place, path: str) -> None:
    """Exchange changes with the source of PATH now, and wait for it."""
    place.submit(Request("mounts-refresh", {"path": place.path(path)}))


@mounts.command("remove")
@click.argument("path", type=PATH)
@click.option("--force", is_flag=True, help="Also if not all changes are at the source.")
@common_options
@click.pass_obj
def mounts_remove(place: Place, path: str, *, force: bool) -> None:
    """Take away what is attached at PATH. Its source stays as it is; an undo attaches it again."""
    place.submit(Request("mounts-remove", {"path": place.path(path)} | given(force=force)))


COMMANDS: list[click.Command] = [mounts]
