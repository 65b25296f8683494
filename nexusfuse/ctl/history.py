"""Looking back: log, diff, history, versions, restore, cat."""

from __future__ import annotations

import itertools
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import click

from nexus_engine import errors
from nexus_engine.commands import Request
from nexus_engine.commands.arguments import PAGE_MAX
from nexusfuse.ctl.options import (
    OPERATION,
    PATH,
    actor_options,
    common_options,
    given,
    shell_only,
    time_options,
)
from nexusfuse.ctl.place import CommandLine, Place, opened, own_actor

_PAGE = click.IntRange(1, PAGE_MAX)
_POLL_S = 0.5
_COPY_BYTES = 1 << 20


@click.command()
@click.argument("path", type=PATH, required=False)
@actor_options
@time_options
@click.option("--kind", metavar="KIND", help="write, unlink, rename …")
@click.option("--before", type=OPERATION, metavar="OP", help="Older than this: the next page.")
@click.option("--limit", type=_PAGE, default=50, show_default=True, help="At most so many.")
@click.option("--follow", is_flag=True, help="Oldest first, and go on as more happens.")
@click.option("--path", "path_option", type=PATH, metavar="PATH", help="The same as PATH.")
@common_options
@click.pass_obj
def log(
    place: Place,
    path: str | None,
    path_option: str | None,
    agent: str | None,
    pid: int | None,
    session: int | None,
    since: str | None,
    until: str | None,
    kind: str | None,
    before: int | None,
    limit: int,
    *,
    follow: bool,
) -> None:
    """Show who changed what, newest first; with PATH, at or below it."""
    where = one_path(path, path_option)
    args = given(
        path=None if where is None else place.path(where),
        agent=agent,
        pid=pid,
        session=session,
        since=since,
        until=until,
        kind=kind,
        before=before,
        limit=limit,
    )
    if follow:
        _follow(place.shell(), args)
    place.submit(Request("log", args))


def one_path(argument: str | None, option: str | None) -> str | None:
    """Return the path that was given, as an argument or as an option."""
    if argument is not None and option is not None:
        raise click.UsageError("one path, please")
    return argument if option is None else option


def _follow(line: CommandLine, args: dict[str, Any]) -> NoReturn:
    """Show what the log has, then what comes, until interrupted."""
    if "before" in args or "until" in args:
        raise click.UsageError("--follow shows what is to come: no --before, no --until")
    with _news(line) as has_news:
        seen, page = 0, args
        while True:
            reply = line.ask(Request("log", page))
            newest_first = reply["operations"]
            if newest_first:
                oldest_first = {"operations": newest_first[::-1], "more": False}
                line.show(Request("log", page), oldest_first, header=seen == 0)
                seen = newest_first[0]["seq"]
            page = args | {"after": seen, "limit": PAGE_MAX}
            while not has_news():
                time.sleep(_POLL_S)


@contextmanager
def _news(line: CommandLine) -> Iterator[Callable[[], bool]]:
    """Give a question whether something may have happened since it was asked last."""
    if line.store is not None:
        # Opening a store is cheap enough; each question is preceded by a sleep.
        asked = itertools.cycle((False, True))
        yield lambda: next(asked)
        return
    path = Path(os.fsdecode(line.mount.path), ".nexus/events")
    with path.open("rb", buffering=0) as events:
        # It holds what came since it was opened, and ends there until more comes.
        yield lambda: bool(events.read(_COPY_BYTES))


@click.command()
@click.argument("since", metavar="MOMENT")
@click.argument("until", metavar="[MOMENT]", required=False)
@click.argument("path", type=PATH, required=False)
@common_options
@click.pass_obj
def diff(place: Place, since: str, until: str | None, path: str | None) -> None:
    """Show what differs between two moments, or between one and now.

    A last argument that holds a slash or is a dot is the PATH to look below.
    """
    if path is None and until is not None and _looks_like_path(until):
        until, path = None, until
    root = place.path("." if path is None else path)
    place.submit(Request("diff", given(since=since, until=until) | {"path": root}))


def _looks_like_path(text: str) -> bool:
    return "/" in text or text in (".", "..")


@click.command()
@click.argument("path", type=PATH, default=".")
@click.option("--limit", type=_PAGE, default=50, show_default=True, help="At most so many.")
@common_options
@click.pass_obj
def history(place: Place, path: str, limit: int) -> None:
    """Show the moments at which PATH, or something below it, changed.

    Each is a directory: .nexus/history/op-123.
    """
    place.submit(Request("history", {"path": place.path(path), "limit": limit}))


@click.command()
@click.argument("path", type=PATH)
@common_options
@click.pass_obj
def versions(place: Place, path: str) -> None:
    """Show every content that the file PATH had, also if it is gone."""
    place.submit(Request("versions", {"path": place.path(path)}))


@click.command()
@click.argument("path", type=PATH)
@click.argument("moment")
@click.option("--to", type=PATH, metavar="PATH", help="Put it there instead.")
@click.option("--exact", is_flag=True, help="Remove what was not there then as well.")
@common_options
@click.pass_obj
def restore(place: Place, path: str, moment: str, to: str | None, *, exact: bool) -> None:
    """Bring PATH, with all that is below it, back as it was at MOMENT."""
    args = {"path": place.path(path), "moment": moment}
    where = None if to is None else place.path(to)
    place.submit(Request("restore", args | given(exact=exact) | _named(to=where)))


def _named(**values: str | None) -> dict[str, str]:
    # Not `given`: the root is "", and is something given.
    return {key: value for key, value in values.items() if value is not None}


@click.command()
@click.argument("what", metavar="PATH@MOMENT", type=PATH)
@common_options
@click.pass_obj
def cat(place: Place, what: str) -> None:
    """Write the bytes that the file PATH had at MOMENT to standard output."""
    path, at, moment = what.rpartition("@")
    if not at or not path or not moment:
        raise click.UsageError("say when: PATH@MOMENT, as in notes/todo.md@2h")
    line = place.shell()
    if line.store is None:
        _cat_mount(line, path, moment)
    else:
        _cat_store(line, place.path(path), moment)


def _cat_mount(line: CommandLine, path: str, moment: str) -> None:
    below = line.path(path)
    mount = line.mount
    top = Path(os.fsdecode(mount.path))
    directory, name = (top / below).parent, Path(below).name
    if not directory.is_dir():
        directory, name = top, below
    if "/" in moment or moment in (".", ".."):
        raise errors.InvalidMoment(f"not a moment: {moment}")
    history = directory / ".nexus/history" / moment
    if not history.is_dir():
        raise errors.InvalidMoment(
            f"not a moment at which there was {directory}: {moment}; write 2h, an ISO time, op-123"
            " or a snapshot's name"
        )
    with (history / name).open("rb") as file:
        _copy(file)


def _copy(file: BinaryIO) -> None:
    while block := file.read(_COPY_BYTES):
        sys.stdout.buffer.write(block)
    sys.stdout.buffer.flush()


def _cat_store(line: CommandLine, path: str, moment: str) -> None:
    from nexus_engine.commands.reading import iter_content

    assert line.store is not None
    with opened(line.store) as store:
        for block in iter_content(store, path, moment, own_actor()):
            sys.stdout.buffer.write(block)
        sys.stdout.buffer.flush()


COMMANDS = [log, diff, history, versions, restore, shell_only(cat)]
