"""prune and gc."""

from __future__ import annotations

import click

from nexus_engine.commands import Request
from nexusfuse.ctl.options import common_options
from nexusfuse.ctl.place import Place


@click.command()
@click.option("--dry-run", is_flag=True, help="Only say what would go.")
@common_options
@click.pass_obj
def prune(place: Place, *, dry_run: bool) -> None:
    """Let go of history that store.yaml does not keep, and give its space back."""
    place.submit(Request("prune", {"dry_run": dry_run}))


@click.command()
@common_options
@click.pass_obj
def gc(place: Place) -> None:
    """Give back the space of stored content that nothing names any more."""
    place.submit(Request("gc", {}))


COMMANDS = [prune, gc]
