"""Parameter types and options that several commands share."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, TypeVar

import click
from click.shell_completion import CompletionItem

F = TypeVar("F", bound=Callable[..., Any])

SEQ_MAX = 2**63 - 1
_OPERATION = re.compile(r"(?:op-)?0*([1-9][0-9]{0,18})", re.ASCII)


class TreePath(click.ParamType[str]):
    """A path in the tree. Not looked at here: what it names may be long gone."""

    name = "path"

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        return [CompletionItem(incomplete, type="file")]


class Directory(TreePath):
    """A directory of the machine's own file system."""

    name = "directory"

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        return [CompletionItem(incomplete, type="dir")]


class Operation(click.ParamType[int]):
    """``op-123`` or ``123``."""

    name = "op"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        seq = find_operation(str(value))
        if seq is None:
            self.fail(f"{value!r} is not an operation; write op-123", param, ctx)
        return seq


def find_operation(text: str) -> int | None:
    """Return the operation that a word names, ``None`` if it does not look like one."""
    match = _OPERATION.fullmatch(text)
    if match is None or int(match[1]) > SEQ_MAX:
        return None
    return int(match[1])


PATH = TreePath()
DIRECTORY = Directory()
OPERATION = Operation()
COUNT = click.IntRange(1, SEQ_MAX)
NUMBER = click.IntRange(0, SEQ_MAX)


def _use_store(ctx: click.Context, _param: click.Parameter, value: str | None) -> None:
    if value is not None and not ctx.resilient_parsing:
        ctx.obj.use_store(value)


def _use_json(ctx: click.Context, _param: click.Parameter, value: bool) -> None:  # noqa: FBT001
    if value and not ctx.resilient_parsing:
        ctx.obj.json = True


# Wherever they stand, before the command or after it.
store_option = click.option(
    "--store",
    type=DIRECTORY,
    metavar="DIR",
    expose_value=False,
    is_eager=True,
    callback=_use_store,
    help="Work on this store, mounted or not, instead of through a mount.",
)
json_option = click.option(
    "--json",
    is_flag=True,
    expose_value=False,
    is_eager=True,
    callback=_use_json,
    help="Reply in JSON; lists in JSON Lines.",
)


def common_options(command: F) -> F:
    """Add the options that every command on a mount or store takes."""
    return store_option(json_option(command))


def actor_options(command: F) -> F:
    """Add the options that select operations by who did them."""
    for option in (
        click.option("--session", type=NUMBER, metavar="SID", help="Done in this session."),
        click.option("--pid", type=NUMBER, metavar="PID", help="Done by this process."),
        click.option("--agent", metavar="NAME", help="Done by this agent (NEXUS_AGENT)."),
    ):
        command = option(command)
    return command


def time_options(command: F) -> F:
    """Add the options that select operations by when they were done."""
    for option in (
        click.option("--until", metavar="MOMENT", help="Up to this moment."),
        click.option(
            "--since", metavar="MOMENT", help="After this moment: 2h, an ISO time, op-12."
        ),
    ):
        command = option(command)
    return command


def shell_only(command: click.Command) -> click.Command:
    """Mark a command that the control file does not take."""
    command.shell_only = True  # type: ignore[attr-defined]
    return command


def given(**values: Any) -> dict[str, Any]:
    """Return the arguments that were given; the rest is left to the defaults."""
    return {key: value for key, value in values.items() if value not in (None, False, (), [])}
