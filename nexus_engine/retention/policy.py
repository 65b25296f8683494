"""Which moments are kept: arithmetic on the log, touching nothing."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from nexus_engine.config import Retention, seconds
from nexus_engine.types import Seq

_SECOND_NS = 10**9


class Kept(NamedTuple):
    """What of the past stays."""

    pruned_to: Seq
    """Every moment from this one on."""
    moments: list[Seq]
    """Of those before it, ascending."""


def choose(
    policy: Retention,
    before: Kept,
    pinned: Sequence[Seq],
    seq_at: Callable[[int], Seq | None],
    now_ns: int,
) -> Kept:
    """Decide what is kept from now on.

    What was let go of earlier does not come back: a later policy that keeps more begins to work
    with what is there.

    Args:
        before: What is kept so far.
        pinned: Moments of snapshots.
        seq_at: Returns the last operation at or before a time (ns), ``None`` before the first.
    """
    horizon = seq_at(now_ns - seconds(policy.keep_all) * _SECOND_NS)
    pruned_to = max(before.pruned_to, horizon or Seq(0))
    wanted = {seq for seq in map(seq_at, _bounds(policy, now_ns)) if seq is not None}
    moments = {_nearest(before, seq) for seq in wanted} | set(pinned)
    return Kept(pruned_to, sorted(m for m in moments if m is not None and m < pruned_to))


def _bounds(policy: Retention, now_ns: int) -> Iterator[int]:
    """Yield the times at which a bucket of some tier ends."""
    newest_ns = now_ns - seconds(policy.keep_all) * _SECOND_NS
    for tier in policy.thin:
        step_ns = seconds(tier.every) * _SECOND_NS
        oldest_ns = now_ns - seconds(tier.until) * _SECOND_NS
        # Whole multiples, so that the same moments are chosen however often this runs.
        time_ns = newest_ns // step_ns * step_ns
        while time_ns > oldest_ns:
            yield time_ns
            time_ns -= step_ns
        newest_ns = oldest_ns


def _nearest(kept: Kept, seq: Seq) -> Seq | None:
    """Return the newest moment at or before ``seq`` that is still there."""
    if seq >= kept.pruned_to:
        return seq
    index = bisect.bisect_right(kept.moments, seq)
    return kept.moments[index - 1] if index else None
