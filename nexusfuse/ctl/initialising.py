"""init: make a store, and say where its packs are to live."""

from __future__ import annotations

from pathlib import Path

import click

from nexusfuse.ctl.mounting import DEFAULT_STORE, real
from nexusfuse.ctl.options import DIRECTORY, json_option, shell_only
from nexusfuse.ctl.place import Failure, Place
from nexusfuse.ctl.preconditions import make_store


@click.command()
@click.option(
    "--store",
    type=DIRECTORY,
    metavar="DIR",
    help="Default: ./nexus-data. A URL stands for --packs URL in the default directory.",
)
@click.option(
    "--packs",
    metavar="URL",
    help="Keep contents in a bucket: s3://BUCKET/PREFIX, gs://BUCKET/PREFIX or file:///DIR.",
)
@json_option
@click.pass_obj
def init(place: Place, store: str | None, packs: str | None) -> None:
    """Make a store without mounting it."""
    line = place.shell()
    store = store or (None if line.store is None else str(line.store))
    if store is not None and "://" in store:
        if packs is not None:
            raise click.UsageError("--store is a URL, and --packs is another")
        store, packs = None, store
    path = real(store or DEFAULT_STORE)
    if packs is not None and "://" not in packs:
        packs = Path(real(packs)).as_uri()
    if (path / "meta.db").exists():
        raise Failure(f"{path} is a store already")
    make_store(path, packs_url=packs)
    where = "" if packs is None else f"; its packs live in {packs}"
    line.say(f"Made {path}{where}.", store=str(path), packs=packs)


COMMANDS = [shell_only(init)]
