"""Both directions: what was done here goes to the source, what others did there comes here."""

from __future__ import annotations

from collections.abc import Callable, Container
from functools import partial
from typing import NamedTuple

from nexus_engine import errors
from nexus_engine.attached.changes import Imported, Progress, ignore_progress
from nexus_engine.attached.pushing import Pushed, Pushing
from nexus_engine.attached.refreshing import Refreshing
from nexus_engine.attached.turns import turn
from nexus_engine.meta import attachment_queries
from nexus_engine.meta.attachment_queries import Attachment
from nexus_engine.store import Store
from nexus_engine.types import Ino


class Exchanged(NamedTuple):
    pushed: Pushed
    imported: Imported


def exchange(
    store: Store,
    attachment: Attachment,
    *,
    keep: Container[Ino] = (),
    before: Callable[[], object] = lambda: None,
    push: bool = True,
    refresh: bool = True,
    trusting: bool = False,
    progress: Progress = ignore_progress,
) -> Exchanged:
    """Have an attachment and its source agree. What goes wrong is noted, for `mounts info`.

    Args:
        keep: Inodes that stay usable without a name, because they are open.
        before: Called before files are changed: what programs wrote is to be in the log.
        trusting: See `Refreshing`.

    Raises:
        StoreHung, StoreInaccessible, ObjectStoreFailed: The source cannot be used now.
        StoreBusy, NoSpace, Interrupted.
    """
    pushed, imported = Pushed(), Imported()
    with turn(store, attachment):
        try:
            if push and not attachment.read_only:
                pushed = Pushing(store, attachment, keep, before).run()
                imported = pushed.imported
            if refresh:
                # What it would find to be in conflict is found one by one while pushing.
                fresh = store.look(partial(attachment_queries.find, number=attachment.number))
                refreshing = Refreshing(
                    store, fresh or attachment, keep, before, progress, trusting=trusting
                )
                imported = imported.plus(refreshing.run())
        except (errors.Interrupted, errors.StoreBusy):
            raise
        except errors.EngineError as error:
            _note(store, attachment, str(error))
            raise
        if attachment.trouble:
            _note(store, attachment, "")
    return Exchanged(pushed, imported)


def _note(store: Store, attachment: Attachment, trouble: str) -> None:
    note = attachment_queries.note_trouble
    store.note(partial(note, number=attachment.number, trouble=trouble))
