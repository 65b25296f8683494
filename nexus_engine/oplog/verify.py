"""Prove that the log is what was written: recompute the chain of hashes."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from nexus_engine.meta import log_pruning_queries, log_queries
from nexus_engine.meta.connection import Connection
from nexus_engine.meta.database import Database
from nexus_engine.records import GENESIS_HASH, Record, chain_hash
from nexus_engine.types import Seq

_PROGRESS_EVERY = 10_000


class VerifyReport(NamedTuple):
    """What a verification found."""

    records: int
    """Records whose place in the chain is right, from the first one that is kept."""
    pruned: Seq
    """The last operation that retention took out of the log; the chain goes on from its hash."""
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
    with database.connection.one_moment():  # or retention might prune between two looks
        return _verify(database, expected_head, progress)


def _verify(
    database: Database, expected_head: bytes | None, progress: Callable[[int], None] | None
) -> VerifyReport:
    pruned, previous = log_pruning_queries.log_pruned(database.connection)
    last, time_ns = pruned, 0

    def report(reason: str | None) -> VerifyReport:
        broken = None if reason is None else Seq(last + 1)
        return VerifyReport(last - pruned, pruned, broken, reason, previous)

    if not _is_anchored(database, pruned, previous):
        return report("the log begins with a hash that no prune operation names")
    expected_found = expected_head is None or expected_head == previous
    for record, has_actor in log_queries.iter_chain(database.connection, pruned):
        reason = _flaw(record, last, previous, time_ns)
        if not has_actor:
            reason = f"the actor of operation {record.seq} is missing"
        if reason is not None:
            return report(reason)
        last, previous, time_ns = record.seq, record.hash, record.time_ns
        expected_found = expected_found or previous == expected_head
        if progress is not None and last % _PROGRESS_EVERY == 0:
            progress(last - pruned)
    if progress is not None:
        progress(last - pruned)
    if not expected_found:
        gone = f", or it is older than op-{pruned + 1}" if pruned else ""
        return report(
            "the log does not contain the expected hash: its end was cut off or rewritten" + gone
        )
    return report(None)


def is_genuine(connection: Connection, seq: int) -> bool:
    """Tell whether one record is what was written, as its place in the chain says."""
    pruned, previous = log_pruning_queries.log_pruned(connection)
    for record, has_actor in log_queries.iter_chain(connection, Seq(max(pruned, seq - 2)), seq):
        if record.seq == seq:
            return has_actor and _flaw(record, Seq(seq - 1), previous, 0) is None
        previous = record.hash
    return False


def _is_anchored(database: Database, pruned: Seq, pruned_hash: bytes) -> bool:
    """Tell whether the log itself says where it begins."""
    anchor = log_pruning_queries.anchor_of(database.connection)
    if anchor is None:
        return pruned == 0 and pruned_hash == GENESIS_HASH
    return anchor[1:] == (pruned, pruned_hash.hex())


def _flaw(record: Record, last: Seq, previous: bytes, time_ns: int) -> str | None:
    """Say what is wrong with the record that follows a good one."""
    if record.seq != last + 1:
        return f"operation {last + 1} is missing: the next one is {record.seq}"
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
