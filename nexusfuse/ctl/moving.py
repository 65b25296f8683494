"""store migrate: have the packs of a store live elsewhere.

It works on the store itself, in this process and with its rights and credentials, as copies of a
store do.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from nexusfuse.ctl import mounts
from nexusfuse.ctl.mounting import real
from nexusfuse.ctl.options import common_options, shell_only
from nexusfuse.ctl.place import CommandLine, Failure, Place, opened
from nexusfuse.ctl.progress import ProgressLine
from nexusfuse.ctl.render import size

if TYPE_CHECKING:
    from nexus_engine.moving import move


@click.group()
def store() -> None:
    """Look after where a store keeps its contents."""


@store.command()
@click.argument("url", metavar="[URL|DIR|local]", required=False)
@click.option("--delete-old", is_flag=True, help="Then delete what is where packs lived before.")
@click.option("--cancel", is_flag=True, help="Give up a move that was begun.")
@common_options
@click.pass_obj
def migrate(place: Place, url: str | None, *, delete_old: bool, cancel: bool) -> None:
    """Move all packs to a bucket, a directory, or, with "local", to the store's own directory.

    Files are used meanwhile. What is copied is read back, and only when all of it is there do packs
    live there. Where it was stopped or killed, the same command goes on, with or without URL.
    """
    line = place.shell()
    line.verb = "store-migrate"
    if cancel and (url is not None or delete_old):
        raise click.UsageError("--cancel stands alone")
    path = line.store or Path(os.fsdecode(line.mount.store))
    from nexus_engine.moving import move

    with opened(path) as opened_store, ProgressLine() as progress:
        if cancel:
            given_up = move.cancel_move(opened_store, progress)
            line.say(
                f"Packs stay where they are, and are not moved to {given_up}.",
                cancelled=given_up.url or move.LOCAL,
            )
            return
        to = None if url is None else _destination(url)
        moved = move.move_packs(opened_store, to, delete=delete_old, progress=progress)
    _say(line, moved)


def _destination(text: str) -> str:
    """Return a URL, or "local"."""
    from nexus_engine.moving.move import LOCAL

    url = text if text == LOCAL or "://" in text else real(text).as_uri()
    if url.startswith("file:///"):
        path = os.fsencode(url.removeprefix("file://"))
        if mounts.mount_of(mounts.real_path(os.fsdecode(path))).is_nexus:
            raise Failure(f"{text} is in a Nexus mount: packs need a place of their own")
    return url


def _say(line: CommandLine, moved: move.Moved) -> None:
    from nexus_engine.moving.move import LOCAL

    text = f"Packs live in {moved.place}"
    if moved.packs:
        text += f": copied {moved.packs:,}, {size(moved.copied_bytes)}, and read them back"
    for place in moved.before:
        text += f". What was in {place} is kept: nexus-ctl store migrate --delete-old deletes it"
    line.say(
        f"{text}.",
        packs_url=moved.place.url,
        packs=moved.packs,
        copied_bytes=moved.copied_bytes,
        kept_in=[place.url or LOCAL for place in moved.before],
    )


shell_only(migrate)
COMMANDS = [shell_only(store)]
