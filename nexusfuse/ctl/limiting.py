"""Limits for directories."""

from __future__ import annotations

import re
from typing import Any

import click

from nexus_engine.commands import Request
from nexusfuse.ctl.options import PATH, SEQ_MAX, common_options
from nexusfuse.ctl.place import Place

_SIZE = re.compile(r"([0-9]{1,19})([KMGTP]?)(i?B?)", re.ASCII | re.IGNORECASE)


class Size(click.ParamType[int]):
    """Bytes, with a binary unit: ``10G``."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        match = _SIZE.fullmatch(str(value))
        size = SEQ_MAX + 1
        if match is not None:
            size = int(match[1]) << 10 * ("", *"KMGTP").index(match[2].upper())
        if size > SEQ_MAX:
            self.fail(f"{value!r} is no number of bytes such as 500M, 10G or 2T", param, ctx)
        return size


@click.group()
def quota() -> None:
    """Limit how much there may be in a directory."""


@quota.command("set")
@click.argument("path", type=PATH)
@click.option("--bytes", "size", type=Size(), help="Sizes of all files, such as 10G.")
@click.option("--inodes", type=click.IntRange(0, SEQ_MAX), help="Files and directories.")
@common_options
@click.pass_obj
def quota_set(place: Place, path: str, *, size: int | None, inodes: int | None) -> None:
    """Limit what is in the directory PATH; the mount's root stands for the whole store."""
    if size is None and inodes is None:
        raise click.UsageError("give --bytes, --inodes or both")
    arguments = {"path": place.path(path), "bytes": size, "inodes": inodes}
    place.submit(Request("quota-set", arguments))


@quota.command("list")
@common_options
@click.pass_obj
def quota_list(place: Place) -> None:
    """Show every quota, and what is used of it."""
    place.submit(Request("quota-list", {}))


@quota.command("remove")
@click.argument("path", type=PATH)
@common_options
@click.pass_obj
def quota_remove(place: Place, path: str) -> None:
    """Lift the limits of the directory PATH."""
    place.submit(Request("quota-remove", {"path": place.path(path)}))


COMMANDS: list[click.Command] = [quota]
