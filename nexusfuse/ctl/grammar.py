"""The control file's commands: those of ``nexus-ctl``, through the same click commands.

Nothing here prints, asks, ends the process or looks at the file system: it runs in the daemon, on
text that anybody wrote.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from typing import NoReturn

import click

from nexus_engine import errors
from nexus_engine.commands import Reply, Request
from nexusfuse.ctl import render as rendering
from nexusfuse.ctl.place import CommandLine, normal_path

Render = Callable[[Reply], str]

render = rendering.render


class _Collected(Exception):
    """A command got as far as submitting its request."""

    def __init__(self, request: Request) -> None:
        self.request = request


class _Collector:
    """A ``Place`` that does nothing but remember."""

    interactive = False

    def __init__(self, directory: str) -> None:
        self.json = False
        self._directory = directory

    def use_store(self, path: str) -> NoReturn:
        raise click.UsageError("--store is for the command line; this is the mount's control file")

    def path(self, text: str) -> str:
        return normal_path(text, self._directory)

    def url_outside(self, text: str) -> None:
        """Nothing here is outside."""

    def submit(self, request: Request) -> NoReturn:
        raise _Collected(request)

    def shell(self) -> CommandLine:
        name = click.get_current_context().command_path.removeprefix("nexus-ctl ")
        raise click.UsageError(f"{name} is for a shell: run nexus-ctl {name}")


def parse(line: str, cwd: bytes) -> tuple[Request, Render]:
    """Return the request in a control line, and what renders its reply.

    Args:
        line: Any text, perhaps with lone surrogates; a leading ``nexus-ctl`` is taken as read.
        cwd: The directory whose ``.nexus`` was written to, root-relative.

    Raises:
        InvalidCommand: Anything wrong with it; says what to write instead.
    """
    from nexusfuse.ctl.main import cli

    collector = _Collector(cwd.decode("utf-8", "surrogateescape"))
    try:
        words = shlex.split(line)
        if words[:1] == ["nexus-ctl"]:
            del words[0]
        if not words:
            raise errors.InvalidCommand(f"write a command: {_commands(cli)}")
        with cli.make_context("nexus-ctl", words, obj=collector, help_option_names=[]) as context:
            cli.invoke(context)
    except _Collected as collected:
        request = collected.request
    except click.ClickException as error:
        raise errors.InvalidCommand(_one_line(error)) from error
    except click.exceptions.Exit as error:
        raise errors.InvalidCommand("not a command of the control file") from error
    except errors.NamespaceError as error:
        raise errors.InvalidCommand(str(error)) from error
    except ValueError as error:  # shlex: an open quotation
        raise errors.InvalidCommand(f"{error}; quote names as in a shell") from error
    else:
        raise errors.InvalidCommand("not a command of the control file")
    if collector.json:
        return request, lambda reply: _json_lines(request, reply)
    return request, lambda reply: render(request, reply)


def _json_lines(request: Request, reply: Reply) -> str:
    return "".join(json.dumps(item) + "\n" for item in rendering.json_items(request, reply))


def _one_line(error: click.ClickException) -> str:
    context = getattr(error, "ctx", None)
    where = f"{context.info_name}: " if context is not None and context.parent else ""
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        assert isinstance(context, click.Context)
        return f"{where}write a command after it: {_commands(context.command)}"
    message = " ".join(error.format_message().split())
    return f"{where}{message}"


def _commands(group: click.Command) -> str:
    assert isinstance(group, click.Group)
    return ", ".join(
        name
        for name, command in group.commands.items()
        if not getattr(command, "shell_only", False)
    )
