"""Limits so low that what is rare happens all the time."""

from __future__ import annotations

from nexus_engine import services
from nexus_engine.cas import writer
from nexus_engine.meta import database


def use_small_limits() -> None:
    """Have packs fill, and the write-ahead log begin anew, after some files; for this process."""
    setattr(writer, "PACK_SIZE", 256 << 10)  # noqa: B010 - a name that it imports
    database.CHECKPOINT_BYTES = 128 << 10
    database.RESTART_BYTES = 256 << 10
    services.UPKEEP_INTERVAL_S = 0.02
