"""Where a command is carried out: through a mount's control file, or on a store in this process."""

from __future__ import annotations

import json
import os
import posixpath
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path as FilePath
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import quote

import click

from nexus_engine import errors
from nexus_engine.commands import Progress, Reply, Request, can_change, execute
from nexusfuse.ctl import control, disks, mounts, render
from nexusfuse.ctl.exit_codes import FAILED, code_of_reply
from nexusfuse.ctl.progress import ProgressLine

if TYPE_CHECKING:
    from nexus_engine.store import Store
    from nexus_engine.types import Actor
    from nexusfuse.ctl.mounts import Mount


class Place(Protocol):
    """What a command sees of where it runs. Found as ``ctx.obj``."""

    json: bool
    """Reply in JSON."""
    interactive: bool
    """Somebody sits at a terminal and may be asked."""

    def use_store(self, path: str) -> None:
        """Work on a store instead of a mount."""
        ...

    def path(self, text: str) -> str:
        """Return the root-relative form of a path argument."""
        ...

    def url_outside(self, text: str) -> str | None:
        """Return the URL of a directory that is in no mount; ``None``: it is a path in the tree."""
        ...

    def submit(self, request: Request) -> None:
        """Have a request carried out, and show the reply."""
        ...

    def shell(self) -> CommandLine:
        """Return the command line, for what only makes sense there.

        Raises:
            UsageError: This is not a command line.
        """
        ...


class Failure(click.ClickException):
    """What only a command line can fail at: one line on stderr that says what to do."""

    exit_code: int  # type: ignore[misc]  # click has one for the class; here each has its own

    def __init__(self, message: str, exit_code: int = FAILED) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class CommandLine:
    """A shell's command: finds the mount from the first path or the working directory."""

    def __init__(self) -> None:
        self.json = False
        self.interactive = sys.stdin.isatty() and sys.stdout.isatty()
        self.store: FilePath | None = None
        self.verb: str | None = None
        """What was asked last."""
        self._mount: Mount | None = None

    def use_store(self, path: str) -> None:
        self.store = FilePath(os.path.abspath(path))  # noqa: PTH100 - resolve() would follow links

    def path(self, text: str) -> str:
        if self.store is not None:
            return normal_path(text)
        path = mounts.real_path(text)
        mount = _nexus_mount(path)
        if self._mount is not None and self._mount.path != mount.path:
            raise click.UsageError(f"{text} is on another mount than the path before it")
        self._mount = mount
        return mount.inside(path).decode("utf-8", "surrogateescape")

    def url_outside(self, text: str) -> str | None:
        if self.store is not None:
            return None
        if mounts.mount_of(mounts.real_path(text)).is_nexus:
            return None
        if self._mount is None:
            self._mount = _mount_for_outside(text)
        return f"file://{quote(os.path.realpath(os.fsencode(text)))}"

    def shell(self) -> CommandLine:
        return self

    @property
    def mount(self) -> Mount:
        """The mount in question.

        Raises:
            Failure: The working directory is in none, or its daemon is dead.
        """
        if self._mount is None:
            self._mount = _nexus_mount(os.fsencode(_working_directory()))
        return self._mount

    def submit(self, request: Request) -> None:
        reply = self.ask(request)
        self.show(request, reply)
        code = code_of_reply(request, reply)
        if code:
            raise click.exceptions.Exit(code)

    def ask(self, request: Request) -> Reply:
        """Have a request carried out, showing how it gets on."""
        self.verb = request.verb
        with ProgressLine() as progress:
            if self.store is not None:
                return self._ask_store(self.store, request, progress)
            mount = self.mount
            if not mount.read_only:
                return control.ask(mount.path, request, progress)
            if can_change(request):
                raise Failure(f"{os.fsdecode(mount.path)} is mounted read-only")
            # Its control file cannot be written to.
            return self._ask_store(FilePath(os.fsdecode(mount.store)), request, progress)

    def _ask_store(self, path: FilePath, request: Request, progress: Progress) -> Reply:
        from nexus_engine.oplog import peers

        with opened(path) as store:
            before = store.reader.head()
            reply = execute(store, request, own_actor(), progress)
            if store.reader.head() != before:
                peers.announce(store)
            return reply

    def show(self, request: Request, reply: Reply, *, header: bool = True) -> None:
        """Print a reply; a table that goes on has no header."""
        if self.json:
            for item in render.json_items(request, reply):
                click.echo(json.dumps(item))
        else:
            render.show(render.blocks(request, reply), header=header)

    def say(self, text: str, **values: Any) -> None:
        """Print what was done: a line, or in JSON the values."""
        click.echo(json.dumps(values) if self.json else render.printable(text))


def normal_path(text: str, below: str = "") -> str:
    """Return the root-relative form of a path in a tree that is not in the file system.

    Args:
        below: The directory that relative paths start from, root-relative. As in a chroot, ``..``
            at the root stays there.
    """
    if "\0" in text:
        raise errors.InvalidName("a path holds no NUL")
    return posixpath.normpath("/" + posixpath.join(below, text.strip("\n"))).strip("/")


@contextmanager
def opened(path: FilePath) -> Iterator[Store]:
    """Open a store as a process of its own does: dead ones' work is finished first."""
    from nexus_engine.recovery import recover
    from nexus_engine.store import Store

    disks.require_answer(path)
    store = Store.open(path)
    try:
        recover(store)
        yield store
    finally:
        store.close()


def own_actor() -> Actor:
    """Return who runs this command."""
    from nexus_engine.types import Actor, agent_name

    fields = FilePath("/proc/self/stat").read_bytes().rpartition(b")")[2].split()
    return Actor(
        uid=os.geteuid(),
        gid=os.getegid(),
        pid=os.getpid(),
        start_ticks=int(fields[19]),
        command="nexus-ctl",
        session=os.getsid(0),
        agent=agent_name(os.environb.get(b"NEXUS_AGENT", b"")),
    )


def _nexus_mount(path: bytes) -> Mount:
    mount = mounts.mount_of(path)
    if not mount.is_nexus:
        raise Failure(
            f"{os.fsdecode(path)} is not in a Nexus mount; go into one, name a path in one, or"
            " give --store DIR for a store that is not mounted"
        )
    health = mounts.probe(mount, mounts.ANSWER_LIMIT_S)
    if health is mounts.Health.SILENT:
        raise Failure(
            f"the daemon of the mount {os.fsdecode(mount.path)} does not answer; nexus-ctl doctor"
            f" {os.fsdecode(mount.path)} tells more"
        )
    if health is mounts.Health.DEAD:
        raise Failure(
            f"the daemon of the mount {os.fsdecode(mount.path)} is dead; mount it again with"
            f" nexus-ctl mount --store {os.fsdecode(mount.store)} {os.fsdecode(mount.path)}"
        )
    return mount


def _mount_for_outside(text: str) -> Mount:
    """Return the mount to use for something that is in none: where we are, or the only one.

    Raises:
        Failure: There are several, or none.
    """
    here = os.fsencode(_working_directory())
    if mounts.mount_of(here).is_nexus:
        return _nexus_mount(here)
    found = mounts.nexus_mounts()
    if len(found) == 1:
        return _nexus_mount(found[0].path)
    there = f"there are {len(found)}" if found else "there is none"
    raise Failure(
        f"{text} is not in a Nexus mount, and {there}: go into the one to use, or name a path in it"
        " with --at"
    )


def _working_directory() -> str:
    try:
        return os.getcwd()  # noqa: PTH109
    except FileNotFoundError:
        raise Failure("the working directory was removed; cd to one that exists") from None
