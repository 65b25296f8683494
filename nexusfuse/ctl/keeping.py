"""Naming things: snapshots of the tree, tags of files."""

from __future__ import annotations

import click

from nexus_engine.commands import Request
from nexusfuse.ctl.options import PATH, common_options
from nexusfuse.ctl.place import Place


@click.group()
def snapshot() -> None:
    """Name moments, so that retention keeps them."""


@snapshot.command("create")
@click.argument("name")
@common_options
@click.pass_obj
def snapshot_create(place: Place, name: str) -> None:
    """Name the present."""
    place.submit(Request("snapshot-create", {"name": name}))


@snapshot.command("list")
@common_options
@click.pass_obj
def snapshot_list(place: Place) -> None:
    """Show every snapshot, newest first."""
    place.submit(Request("snapshot-list", {}))


@snapshot.command("delete")
@click.argument("name")
@common_options
@click.pass_obj
def snapshot_delete(place: Place, name: str) -> None:
    """Drop a snapshot's name."""
    place.submit(Request("snapshot-delete", {"name": name}))


@click.group()
def tag() -> None:
    """Attach keys with values to files (the xattrs user.nexus.tag.KEY)."""


@tag.command("set")
@click.argument("path", type=PATH)
@click.argument("key")
@click.argument("value", default="")
@common_options
@click.pass_obj
def tag_set(place: Place, path: str, key: str, value: str) -> None:
    """Set a tag; KEY=VALUE does as well."""
    if not value and "=" in key:
        key, _, value = key.partition("=")
    place.submit(Request("tag-set", {"path": place.path(path), "key": key, "value": value}))


@tag.command("list")
@click.argument("path", type=PATH)
@common_options
@click.pass_obj
def tag_list(place: Place, path: str) -> None:
    """Show the tags of PATH."""
    place.submit(Request("tag-list", {"path": place.path(path)}))


@tag.command("remove")
@click.argument("path", type=PATH)
@click.argument("key")
@common_options
@click.pass_obj
def tag_remove(place: Place, path: str, key: str) -> None:
    """Remove a tag."""
    place.submit(Request("tag-remove", {"path": place.path(path), "key": key}))


COMMANDS: list[click.Command] = [snapshot, tag]
