"""``nexus-ctl``: the command group, and how errors end it."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import click

from nexus_engine import __version__, errors
from nexusfuse.ctl import (
    attaching,
    backing_up,
    checking,
    doctor,
    history,
    initialising,
    keeping,
    limiting,
    mounting,
    moving,
    restarting,
    retaining,
    trying,
    undoing,
    workspaces,
)
from nexusfuse.ctl.exit_codes import FAILED, FORBIDDEN, OK, code_of_error
from nexusfuse.ctl.options import common_options
from nexusfuse.ctl.place import CommandLine
from nexusfuse.ctl.render import printable

PROGRAM = "nexus-ctl"


class RootGroup(click.Group):
    """A group whose every failure is one line on stderr and an exit code of the table."""

    def main(  # type: ignore[override]
        self, args: Sequence[str] | None = None, prog_name: str | None = None, **extra: Any
    ) -> NoReturn:
        extra.pop("standalone_mode", None)
        line = extra.setdefault("obj", CommandLine())
        try:
            result = super().main(args, PROGRAM, standalone_mode=False, **extra)
            # The code that an Exit carried, or whatever a command's function returned: nothing.
            code = result if isinstance(result, int) else OK
            sys.stdout.flush()
        except click.exceptions.NoArgsIsHelpError as error:
            click.echo(error.format_message(), err=True)
            code = error.exit_code
        except click.ClickException as error:
            code = _fail(_message(error), error.exit_code)
        except click.Abort:
            code = _fail("stopped", FAILED)
        except errors.EngineError as error:
            code = _fail(str(error) or type(error).__name__, code_of_error(error, line.verb))
        except BrokenPipeError:
            # Whoever read our output has enough. Python would complain again when it flushes.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            code = FAILED
        except OSError as error:
            code = _fail(
                _system_message(error),
                FORBIDDEN if isinstance(error, PermissionError) else FAILED,
            )
        sys.exit(code)


def _fail(message: str, code: int) -> int:
    click.echo(f"{PROGRAM}: {printable(message)}", err=True)
    return code


def _message(error: click.ClickException) -> str:
    message = " ".join(error.format_message().split())
    context = error.ctx if isinstance(error, click.UsageError) else None
    if context is None:
        return message
    path = context.command_path
    return f"{path.removeprefix(PROGRAM).strip()}: {message} ({path} --help)".removeprefix(": ")


def _system_message(error: OSError) -> str:
    name = error.filename if isinstance(error.filename, (str, bytes)) else None
    reason = error.strerror or str(error)
    return reason if name is None else f"{os.fsdecode(name)}: {reason}"


def _version(ctx: click.Context, _param: click.Parameter, value: bool) -> None:  # noqa: FBT001
    if not value or ctx.resilient_parsing:
        return
    ctx.obj.shell()
    click.echo(f"{PROGRAM} {__version__}")
    ctx.exit()


@click.group(cls=RootGroup, name=PROGRAM)
@common_options
@click.option(
    "--version",
    is_flag=True,
    expose_value=False,
    is_eager=True,
    callback=_version,
    help="Show the version.",
)
def cli() -> None:
    """A directory in which nothing is lost: mount it, look back, undo.

    A MOMENT is a point in time: 2h (ago), 15m, yesterday, an ISO 8601 time, op-1234 (after that
    operation), before-op-1234, or the name of a snapshot.
    """


_MODULES = (
    mounting, restarting, history, undoing, keeping, checking, doctor, retaining, limiting,
    backing_up, initialising, moving, workspaces, trying, attaching,
)  # fmt: skip
for _module in _MODULES:
    for _command in _module.COMMANDS:
        cli.add_command(_command)


def main() -> NoReturn:
    """Run ``nexus-ctl``."""
    cli.main()


if __name__ == "__main__":
    main()
