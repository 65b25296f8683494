"""prune, purge and gc."""

from __future__ import annotations

import re

import click

from nexus_engine.commands import Request
from nexusfuse.ctl.options import PATH, common_options
from nexusfuse.ctl.place import Place

_DIGEST = re.compile("[0-9a-fA-F]{64}")


@click.command()
@click.option("--dry-run", is_flag=True, help="Only say what would go.")
@click.option("--compact", is_flag=True, help="Write meta.db anew; nobody can write meanwhile.")
@common_options
@click.pass_obj
def prune(place: Place, *, dry_run: bool, compact: bool) -> None:
    """Let go of history that store.yaml does not keep, and give its space back."""
    place.submit(Request("prune", {"dry_run": dry_run, "compact": compact}))


@click.command()
@common_options
@click.pass_obj
def gc(place: Place) -> None:
    """Give back the space of stored content that nothing names any more."""
    place.submit(Request("gc", {}))


@click.command()
@click.argument("what", type=PATH, metavar="PATH|DIGEST")
@click.option("--yes", is_flag=True, help="Do not ask.")
@common_options
@click.pass_obj
def purge(place: Place, what: str, *, yes: bool) -> None:
    """Destroy what a file ever held, or a chunk (SHA-256): now, in history and on the disk.

    This cannot be undone.
    """
    if not yes:
        if not place.interactive:
            raise click.UsageError("this cannot be undone; say --yes")
        click.confirm(f"Destroy all content of {what}, in the past as well?", abort=True)
    if _DIGEST.fullmatch(what):
        place.submit(Request("purge", {"digest": what.lower()}))
    else:
        place.submit(Request("purge", {"path": place.path(what)}))


COMMANDS = [prune, purge, gc]
