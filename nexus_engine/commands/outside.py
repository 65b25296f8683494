"""Workspaces over what is outside of the mount: it is attached for as long as one needs it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path as FilePath
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from nexus_engine import errors
from nexus_engine.attached.attaching import detach
from nexus_engine.attached.changes import AGENT
from nexus_engine.attached.exchanging import exchange
from nexus_engine.attached.naming import beside
from nexus_engine.commands import Work, attaching
from nexus_engine.commands.arguments import MountsAddArguments, to_path, to_text
from nexus_engine.commands.walking import is_keeper, require_keeper
from nexus_engine.meta import attachment_queries, workspace_queries
from nexus_engine.meta.attachment_queries import Attachment
from nexus_engine.meta.workspace_queries import Workspace
from nexus_engine.types import Ino, Path

DIRECTORY = "workspaces"
"""Where a workspace is that nobody chose a place for."""
_BASE = b".base"
"""Ends the name, in there, of what was attached to be a base. Moved elsewhere it is anybody's."""


@contextmanager
def base_at(work: Work, url: str) -> Iterator[str]:
    """Yield the path at which there is what a URL names, as it is there now.

    Where that is in nothing that is attached already, it is attached; not for long, if what it was
    wanted for fails.
    """
    require_keeper(work.store, work.actor)
    found = _find(work, url)
    if found is not None:
        attachment, path = found
        exchange(work.store, attachment, keep=work.keep, progress=work.progress)
        yield path
        return
    path = _free_path(work, url)
    attachment = attaching.attach_at(work, MountsAddArguments(path, url), make_parents=True).made
    try:
        yield path
    except errors.EngineError:
        work.store.transact(detach, work.actor, attachment, work.keep)
        raise


def _find(work: Work, url: str) -> tuple[Attachment, str] | None:
    """Return what is attached read-write that has what a URL names, and its path in the mount."""
    for attachment in attachment_queries.living(work.store.database.connection):
        below = None if attachment.read_only else _below(attachment.url, url)
        top = work.store.reader.find_path(attachment.ino)
        if below is not None and top is not None:
            return attachment, f"{to_text(top)}/{below}".rstrip("/")
    return None


def _free_path(work: Work, url: str) -> str:
    """Return where to attach a source: beside the workspaces, by its own name."""
    parts = urlsplit(url)
    last = unquote(parts.path).rstrip("/").rpartition("/")[2] or parts.netloc
    path = beside(to_path(f"{DIRECTORY}/{last}"), _BASE)
    names = itertools.count(2)
    while work.store.reader.resolve(path) is not None:
        path = beside(to_path(f"{DIRECTORY}/{last}"), b" %d%b" % (next(names), _BASE))
    return to_text(path)


def _below(whole: str, part: str) -> str | None:
    """Return where what one URL names is in what another one does; ``None``: it is not in it."""
    if whole.rstrip("/") == part.rstrip("/"):
        return ""
    top, below = urlsplit(whole), urlsplit(part)
    if (top.scheme, below.scheme) != ("file", "file"):
        return None
    directory, path = (FilePath(unquote(each.path)).resolve() for each in (top, below))
    if not path.is_relative_to(directory):
        return None
    return "/".join(path.relative_to(directory).parts)


def attachment_of(work: Work, workspace: Workspace) -> Attachment | None:
    """Return the attachment that a workspace's base is in."""
    database = work.store.database
    around = database.attached.around(workspace.base_ino)
    for attachment in attachment_queries.living(database.connection) if around else ():
        if attachment.ino in around:
            return attachment
    return None


def refresh(work: Work, attachment: Attachment) -> None:
    """Have a base be what is outside, so that a conflict shows before something is applied.

    Raises:
        ReadOnly: Nothing can be applied to it.
        StoreHung, StoreInaccessible, ObjectStoreFailed: The source cannot be used now.
    """
    if attachment.read_only:
        path = work.store.reader.find_path(attachment.ino) or b""
        raise errors.ReadOnly(f"/{to_text(path)} is attached read-only: nothing can be applied")
    exchange(work.store, attachment, keep=work.keep, progress=work.progress)


def push(work: Work, attachment: Attachment) -> dict[str, Any]:
    """Bring what was applied to the source; what cannot be brought there waits, and is told."""
    conflicts = 0
    with suppress(errors.EngineError):  # which is noted, and told below
        done = exchange(work.store, attachment, keep=work.keep, refresh=False)
        conflicts = done.pushed.imported.conflicts
    fresh = attachment_queries.find(work.store.database.connection, attachment.number)
    return {
        "url": attachment.url,
        "path": to_text(work.store.reader.find_path(attachment.ino) or b""),
        "waiting": attaching.waiting(work, fresh or attachment),
        "trouble": (fresh or attachment).trouble or None,
        "conflicts": conflicts,
    }


def unneeded(work: Work, workspace: Workspace) -> Attachment | None:
    """Return what was attached for a workspace to be over, if it may go with it.

    It may if no other workspace is over it, and if there is nothing to undo in it: an undo goes to
    the source by it.
    """
    attachment = attachment_of(work, workspace)
    if attachment is None or not is_keeper(work.store, work.actor):
        return None
    path = work.store.reader.find_path(attachment.ino) or Path(b"")
    if not (path.startswith(to_path(DIRECTORY) + b"/") and path.endswith(_BASE)):
        return None
    if _others_over(work, workspace, attachment.ino):
        return None
    connection = work.store.database.connection
    used = attachment_queries.was_changed_here(connection, path, AGENT)
    return None if used else attachment


def _others_over(work: Work, workspace: Workspace, root: Ino) -> bool:
    database = work.store.database
    living = workspace_queries.living_workspaces(database.connection)
    others = (each for each in living if each.ino != workspace.ino)
    return any(root in database.attached.around(each.base_ino) for each in others)


def url_of(work: Work, workspace: Workspace) -> str | None:
    """Return what a workspace's base is outside of the mount."""
    attachment = attachment_of(work, workspace)
    if attachment is None:
        return None
    reader = work.store.reader
    top, base = reader.find_path(attachment.ino), reader.find_path(workspace.base_ino)
    below = b"" if top is None or base is None else base[len(top) :]
    parts = urlsplit(attachment.url)
    return parts._replace(path=parts.path.rstrip("/") + quote(below)).geturl()
