"""Taking turns: one thread of one process at a time compares an attachment with its source."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from functools import partial

from nexus_engine import errors
from nexus_engine.backends.files import lock_within, translate
from nexus_engine.meta.attachment_queries import Attachment
from nexus_engine.store import Store


@contextlib.contextmanager
def turn(store: Store, attachment: Attachment, *, wait_s: float = 60.0) -> Iterator[None]:
    """Keep everybody else from importing to an attachment, and pushing from it, meanwhile.

    Raises:
        StoreBusy: Somebody still is at it after ``wait_s``.
        Interrupted: Whoever wanted this work done wants it to end.
    """
    path = store.path / f"attached-{attachment.number}.lock"
    try:
        fd = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise translate(error, f"open {path}") from error
    try:
        if not lock_within(fd, wait_s, pause=partial(require_going_on, store)):
            raise errors.StoreBusy(
                f"changes are being exchanged with {attachment.url}: try again when it is done"
            )
        yield
    finally:
        os.close(fd)


def require_going_on(store: Store, wait_s: float = 0.0) -> None:
    """Raises Interrupted where long work is to end."""
    if store.stopping.wait(wait_s):
        raise errors.Interrupted("told to stop")
