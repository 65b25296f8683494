"""A database that SQLite finds damaged: its rows go into a new one, what is lost is told."""

from __future__ import annotations

import itertools
import time
from pathlib import Path
from typing import NamedTuple

from nexus_engine.backends.files import sync_directory
from nexus_engine.backup.index import require_alone
from nexus_engine.backup.layout import explained, sync_file
from nexus_engine.meta.connection import DATABASE_NAME
from nexus_engine.meta.salvage import salvage_rows


class Salvaged(NamedTuple):
    """What became of a damaged database."""

    kept: Path
    """Where the damaged one is now."""
    rows: int


def salvage(store: Path) -> Salvaged:
    """Replace a store's damaged database by a new one with the rows that can still be read.

    To be followed by a repair, which mends what the missing rows leave broken.

    Raises:
        StoreBusy: Somebody has the store open.
        CorruptMetadata: Nothing can be made of it; the store is as it was.
        NoSpace, StoreInaccessible, ObjectStoreFailed: The same, and it can be tried again.
    """
    require_alone(store / "peers")
    damaged, new = store / DATABASE_NAME, store / f"{DATABASE_NAME}.salvaged"
    with explained(f"salvage {damaged}"):
        rows = salvage_rows(damaged, new)
    kept = _unused(f"{damaged}.damaged-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}")
    with explained(f"replace {damaged}"):
        new.chmod(0o600)
        sync_file(new)
        for suffix in ("-wal", "-shm"):
            log = damaged.with_name(damaged.name + suffix)
            if log.exists():
                log.rename(kept.with_name(kept.name + suffix))
        kept.hardlink_to(damaged)
        new.rename(damaged)  # at no time is there no database
        sync_directory(store)
    return Salvaged(kept, sum(rows.values()))


def _unused(name: str) -> Path:
    """Return a path of this name, or with a number where that is taken."""
    paths = map(
        Path, itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))
    )
    return next(path for path in paths if not path.exists())
