"""The log's records: what one operation says of itself, and the hash that chains it to the last."""

from __future__ import annotations

import hashlib
from typing import Any, NamedTuple

import msgspec

from nexus_engine.types import Actor, Ino, Path, Seq

GENESIS_HASH = bytes(32)
"""What the first record of a store is chained to."""

KINDS = (
    "create", "mkdir", "mknod", "symlink", "link", "unlink", "rmdir", "rename", "exchange",
    "setattr", "write", "setxattr", "removexattr", "undo", "restore", "snapshot", "drop-snapshot",
    "recover", "prune", "purge", "repair", "quota", "workspace", "apply", "discard",
    "attach", "detach", "conflict",
)  # fmt: skip

OF_MANY = frozenset((
    "undo", "restore", "recover", "repair", "workspace", "apply", "discard", "attach", "detach",
    "conflict",
))  # fmt: skip
"""Kinds that may change many things at once: ``touched`` has a row for each of them."""

_encode_json = msgspec.json.Encoder().encode
_encode_msgpack = msgspec.msgpack.Encoder().encode


class Change(NamedTuple):
    """What a transaction commits: a record before it has its place in the log."""

    kind: str
    """One of ``KINDS``."""
    ino: Ino
    path: Path
    path2: Path | None = None
    """Where there are two: the new path of a rename, link or exchange."""
    details: dict[str, Any] | None = None
    """JSON-able facts about what changed."""
    undo_state: dict[str, Any] | None = None
    """JSON-able values from before, for people; undo itself reads the past rows."""
    undoes: Seq | None = None
    """An undo of one operation: which. An undo of many lists them in ``reversal``."""


class Record(NamedTuple):
    """One row of the log."""

    seq: Seq
    id: bytes
    time_ns: int
    kind: str
    ino: Ino
    path: Path
    path2: Path | None
    details: str
    undo_state: str | None
    undoes: Seq | None
    actor: Actor
    hash: bytes


def to_json(value: dict[str, Any] | None) -> str | None:
    """Return compact JSON text, or ``None`` for ``None``."""
    return None if value is None else _encode_json(value).decode()


def parse_details(text: str) -> dict[str, Any]:
    """Return a record's details; of one that was damaged, what is there under ``unreadable``."""
    try:
        value = msgspec.json.decode(text)
    except msgspec.DecodeError:
        return {"unreadable": text}
    return value if isinstance(value, dict) else {"unreadable": text}


def chain_hash(previous: bytes, row: tuple[Any, ...], actor: Actor) -> bytes:
    """Return the hash that a record carries.

    Args:
        previous: The hash of the record before, 32 bytes.
        row: (seq, id, time_ns, kind, ino, path, path2, details, undo_state, undoes) as stored.
        actor: Bound by value, so that editing the ``actor`` table shows as well.

    Source: docs/FORMAT.md, "The chain".
    """
    return hashlib.sha256(previous + _encode_msgpack((row, actor))).digest()
