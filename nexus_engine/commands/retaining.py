"""Verbs that let go of the past: prune and gc. For the store's owner and root."""

from __future__ import annotations

from functools import partial

from nexus_engine import errors
from nexus_engine.commands import Reply, Work
from nexus_engine.commands.arguments import NoArguments, PruneArguments
from nexus_engine.commands.walking import require_keeper
from nexus_engine.config import CONFIG_NAME, Retention
from nexus_engine.retention import gc
from nexus_engine.retention import prune as pruning


def prune(work: Work, args: PruneArguments) -> Reply:
    """Let go of what store.yaml does not keep, and give the space back; or only say what goes."""
    require_keeper(work.store, work.actor)
    policy = work.store.config.retention
    if policy is None:
        raise errors.InvalidArgument(
            f"{work.store.path / CONFIG_NAME} has no retention: everything is kept for ever"
        )
    if args.dry_run:
        return _foresee(work, policy)
    dropped = pruning.prune(work.store, policy, work.actor, partial(work.progress, "Dropping rows"))
    return {"rows": dropped, **collect(work, NoArguments())}


def _foresee(work: Work, policy: Retention) -> Reply:
    planned = pruning.plan(work.store, policy)
    rows, freed = pruning.foresee(work.store, planned)
    return {
        "dry_run": True,
        "whole_from": planned.kept.pruned_to,
        "moments": len({*planned.kept.moments, *planned.pinned}),
        "rows": rows,
        "freed_bytes": freed,
    }


def collect(work: Work, args: NoArguments) -> Reply:
    """Remove packs of which most is dead."""
    require_keeper(work.store, work.actor)
    done = gc.collect(work.store, progress=partial(work.progress, "Collecting"))
    return done._asdict()
