"""What a store can be told: ``store.yaml`` in its directory."""

from __future__ import annotations

import re
from pathlib import Path as FilePath
from typing import Any, Literal

import msgspec
import yaml

from nexus_engine import errors
from nexus_engine.times import parse_age

CONFIG_NAME = "store.yaml"
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9}
_BYTES_MAX = 1 << 16

_SIZES = {"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}
_LIMIT = re.compile(r"(\d+(?:\.\d+)?)\s*(KiB|MiB|GiB|TiB|%)")


class Thinning(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Of moments up to an age, one in so often is kept."""

    every: str
    until: str

    def __post_init__(self) -> None:
        if not (0 < seconds(self.every) < seconds(self.until)):
            raise ValueError(f"nothing to keep every {self.every} until {self.until}")


class ClassRule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Files and directories of which less is kept, with all that is in them."""

    keep: str | None = None
    """Every version up to this age, and nothing older."""
    names: list[str] = []
    """Patterns (GLOB) of their names."""
    paths: list[str] = []
    """Absolute, within the store."""
    max_versions: int | None = None
    """So many contents of each file, the present one included."""

    def __post_init__(self) -> None:
        if self.keep is not None:
            seconds(self.keep)
        _require_count(self.max_versions)
        if self.keep is None and self.max_versions is None:
            raise ValueError("a class says what to keep: keep, max_versions or both")
        if any(not path.startswith("/") for path in self.paths):
            raise ValueError("the paths of a class begin with a slash")


class Retention(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How much of the past is kept. Snapshots pin what they hold, whatever this says."""

    keep_all: str
    """Every operation up to this age."""
    thin: list[Thinning] = []
    """What is kept of older ones, by rising age; beyond the last, nothing."""
    max_history: str | None = None
    """Bytes ("20GiB") or share of the disk ("30%") that content may take which only the past has.
    What ``keep_all`` and snapshots keep stays all the same."""
    max_versions: int | None = None
    """So many contents of each file, the present one included; besides those of ``keep_all``."""
    classes: list[ClassRule] = []
    """Where several hold something, the first one counts."""
    keep_log: str | None = None
    """Records of the log up to this age; without it, all of them."""
    interval: str = "1h"
    """How often a daemon prunes."""
    make_room: bool = False
    """Prune earlier when the disk is nearly full."""

    def __post_init__(self) -> None:
        ages = [seconds(self.keep_all), *(seconds(tier.until) for tier in self.thin)]
        if ages != sorted(set(ages)):
            raise ValueError("the ages of thin must rise, from keep_all on")
        if self.keep_log is not None and seconds(self.keep_log) < seconds(self.keep_all):
            raise ValueError("keep_log is at least keep_all: nothing is undone without its record")
        if self.max_history is not None:
            bytes_of(self.max_history, 0)
        _require_count(self.max_versions)
        seconds(self.interval)


class Scrub(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a daemon reads all content again, to find what decayed."""

    interval: str = "4w"
    """From the end of one to the beginning of the next."""
    rate: str = "20M"
    """Bytes each second, at most."""

    def __post_init__(self) -> None:
        seconds(self.interval)
        parse_bytes(self.rate)


def parse_bytes(text: str) -> int:
    """Return a number of bytes: ``50M`` is 50,000,000."""
    number, unit = (text[:-1], text[-1]) if text[-1:] in ("K", "M", "G") else (text, "")
    if not (number.isascii() and number.isdigit() and 0 < int(number) < 10**12):
        raise ValueError(f"{text!r} is no number of bytes such as 500K, 50M or 1G")
    return int(number) * _UNITS[unit]


def seconds(age: str) -> int:
    """Return an age in seconds."""
    value = parse_age(age)
    if value is None:
        raise ValueError(f"{age!r} is no age such as 90s, 2h, 3d or 1w")
    return value


def bytes_of(limit: str, disk_bytes: int) -> int:
    """Return a limit such as ``500MiB`` or ``30%`` in bytes."""
    match = _LIMIT.fullmatch(limit)
    if match is None:
        raise ValueError(f"{limit!r} is no size such as 500MiB, 20GiB or 30%")
    number = float(match[1])
    return int(disk_bytes * number / 100 if match[2] == "%" else number * _SIZES[match[2]])


def _require_count(count: int | None) -> None:
    if count is not None and count < 1:
        raise ValueError("max_versions is at least 1")


class StoreConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Settings of a store, all optional in the file."""

    sync_interval_s: float = 5.0
    """What was not fsynced is on disk after this time at the latest."""
    session_limit_s: float = 60.0
    """A file written for longer than this gets a version this often."""
    read_limit_s: float = 30.0
    """A read for which the disk takes longer fails; 0: never."""
    sync_limit_s: float = 60.0
    """The same for writing and syncing."""
    dirty_limit_mib: int = 64
    """Bytes that wait in memory, over all files."""
    chunk_cache_mib: int = 64
    """Decoded chunks kept in memory."""
    durability: Literal["remote", "local"] = "remote"
    """What fsync waits for where packs live in a bucket: the bucket, or this machine's disk."""
    upload_interval_s: float = 60.0
    """What was not fsynced is in the bucket after this time at the latest, while it answers."""
    upload_limit_s: float = 60.0
    """Whoever waits for the bucket gets an error after so long."""
    upload_backlog_mib: int = 1024
    """So much may wait for the bucket before whoever writes more has to wait."""
    cache_mib: int = 10240
    """Copies of what is in the bucket, on this machine's disk."""
    metadata_interval_s: float = 3600.0
    """How often a copy of the metadata goes to the bucket that packs live in; 0: never, and not at
    unmounting either."""
    reserve_mib: int = 16
    """Kept back on the disk for emptying it when it is full; 0 keeps nothing back."""
    retention: Retention | None = None
    """Without it everything is kept for ever."""
    scrub: Scrub | None = Scrub()
    """``None``: never by itself."""


def load_config(store: FilePath) -> StoreConfig:
    """Read ``store.yaml``; defaults where it is missing.

    Raises:
        InvalidArgument: Unreadable, or a setting that does not exist.
    """
    path = store / CONFIG_NAME
    try:
        with path.open("rb") as file:
            text = file.read(_BYTES_MAX + 1)
    except FileNotFoundError:
        return StoreConfig()
    if len(text) > _BYTES_MAX:
        raise errors.InvalidArgument(f"{path}: more than {_BYTES_MAX} bytes of settings")
    try:
        value: Any = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        return msgspec.convert(value or {}, StoreConfig)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise errors.InvalidArgument(f"{path}: {error}") from error
