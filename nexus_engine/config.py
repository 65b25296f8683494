"""What a store can be told: ``store.yaml`` in its directory."""

from __future__ import annotations

from pathlib import Path as FilePath
from typing import Any

import msgspec
import yaml

from nexus_engine import errors

CONFIG_NAME = "store.yaml"


class StoreConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Settings of a store, all optional in the file."""

    sync_interval_s: float = 5.0
    """What was not fsynced is on disk after this time at the latest."""
    session_limit_s: float = 60.0
    """A file written for longer than this gets a version this often."""
    dirty_limit_mib: int = 64
    """Bytes that wait in memory, over all files."""
    chunk_cache_mib: int = 64
    """Decoded chunks kept in memory."""


def load_config(store: FilePath) -> StoreConfig:
    """Read ``store.yaml``; defaults where it is missing.

    Raises:
        InvalidArgument: Unreadable, or a setting that does not exist.
    """
    path = store / CONFIG_NAME
    try:
        text = path.read_text()
    except FileNotFoundError:
        return StoreConfig()
    try:
        value: Any = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        return msgspec.convert(value or {}, StoreConfig)
    except (yaml.YAMLError, msgspec.ValidationError) as error:
        raise errors.InvalidArgument(f"{path}: {error}") from error
