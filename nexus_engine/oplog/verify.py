"""Prove that the log is what was written: recompute the chain of hashes."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from nexus_engine.meta import log_queries
from nexus_engine.meta.connection import Connection
from nexus_engine.meta.database import Database
from nexus_engine.records import GENESIS_HASH, Record, chain_hash
from nexus_engine.types import Seq

_PROGRESS_EVERY = 10_000


class VerifyReport(NamedTuple):
    """What a verification found."""

    records: int
    """Records whose place in the chain is right, from the first one on."""
    first_broken_seq: Seq | None
    """Where the chain breaks; ``None`` if it holds."""
    reason: str | None
    head_hash: bytes
    """Hash of the last good record. Kept elsewhere, it proves later that nothing was cut off."""

    @property
    def holds(self) -> bool:
        return self.first_broken_seq is None


def verify_log(
    database: Database,
    *,
    expected_head: bytes | None = None,
    progress: Callable[[int], None] | None = None,
) -> VerifyReport:
    """Recompute the hash of every record.

    Finds a changed record or actor, and records that were removed, inserted or put into another
    order. That the newest ones were cut off shows only against a hash noted earlier.

    Args:
        expected_head: The ``head_hash`` of an earlier report; the log may have grown since.
        progress: Told now and then how many records are done.
    """
    count, previous, time_ns = 0, GENESIS_HASH, 0
    expected_found = expected_head is None or expected_head == GENESIS_HASH
    for record, has_actor in log_queries.iter_chain(database.connection):
        reason = _flaw(record, count, previous, time_ns)
        if not has_actor:
            reason = f"the actor of operation {record.seq} is missing"
        if reason is not None:
            return VerifyReport(count, Seq(count + 1), reason, previous)
        count, previous, time_ns = count + 1, record.hash, record.time_ns
        expected_found = expected_found or previous == expected_head
        if progress is not None and count % _PROGRESS_EVERY == 0:
            progress(count)
    if progress is not None:
        progress(count)
    if not expected_found:
        reason = "the log does not contain the expected hash: its end was cut off or rewritten"
        return VerifyReport(count, Seq(count + 1), reason, previous)
    return VerifyReport(count, None, None, previous)


def is_genuine(connection: Connection, seq: int) -> bool:
    """Tell whether one record is what was written, as its place in the chain says."""
    previous = GENESIS_HASH
    for record, has_actor in log_queries.iter_chain(connection, max(1, seq - 1), seq):
        if record.seq == seq:
            return has_actor and _flaw(record, seq - 1, previous, 0) is None
        previous = record.hash
    return False


def _flaw(record: Record, count: int, previous: bytes, time_ns: int) -> str | None:
    """Say what is wrong with the record that follows ``count`` good ones."""
    if record.seq != count + 1:
        return f"operation {count + 1} is missing: the next one is {record.seq}"
    if record.time_ns < time_ns:
        return f"operation {record.seq} is older than the one before it"
    row = (
        record.seq, record.id, record.time_ns, record.kind, record.ino, record.path, record.path2,
        record.details, record.undo_state, record.undoes,
    )  # fmt: skip
    if chain_hash(previous, row, record.actor) != record.hash:
        return (
            f"operation {record.seq} does not match its hash: it, its actor or the one before"
            " it was changed"
        )
    return None
