"""The usual troubles of what is attached to a store."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from nexus_engine import errors
from nexus_engine.attached.pushing import count_waiting
from nexus_engine.meta import attachment_queries
from nexus_engine.meta.connection import DATABASE_NAME, Connection
from nexus_engine.meta.reader import Reader
from nexusfuse.ctl.troubles import WARNING, Finding


def check_attachments(store: Path) -> Iterator[Finding]:
    """Whether the sources of attachments could be used, and have what was changed here."""
    try:
        (store / DATABASE_NAME).stat()
        with closing(Connection(str(store / DATABASE_NAME))) as connection:
            yield from list(_check(connection, store))
    except (errors.EngineError, OSError):
        return  # check_database says why


def _check(connection: Connection, store: Path) -> Iterator[Finding]:
    for attachment in attachment_queries.living(connection):
        path = os.fsdecode(Reader(connection).find_path(attachment.ino) or b"")
        look = f"nexus-ctl --store {shlex.quote(str(store))} mounts info {shlex.quote(f'/{path}')}"
        if attachment.trouble:
            yield Finding(
                WARNING,
                "attachment",
                f"the source of /{path} cannot be used: {attachment.trouble}",
                "what was not read yet cannot be read; what is changed waits here",
                look,
            )
        failed = attachment_queries.unpushed(connection, attachment.number)
        waiting = count_waiting(connection, attachment)
        if failed or (waiting and attachment.trouble):
            yield Finding(
                WARNING,
                "unpushed",
                f"{waiting} changes of /{path} are not at {attachment.url}",
                "they are in this store alone",
                look,
            )
