"""Verbs that let go of the past: prune and gc. For the store's owner and root."""

from __future__ import annotations

from functools import partial

from nexus_engine import errors
from nexus_engine.commands import Reply, Work
from nexus_engine.commands.arguments import (
    NoArguments,
    PruneArguments,
    PurgeArguments,
    to_path,
    to_text,
)
from nexus_engine.commands.walking import require_keeper
from nexus_engine.config import CONFIG_NAME
from nexus_engine.retention import gc
from nexus_engine.retention import prune as pruning
from nexus_engine.retention import purge as purging
from nexus_engine.types import Digest


def prune(work: Work, args: PruneArguments) -> Reply:
    """Let go of what store.yaml does not keep, and give the space back; or only say what goes."""
    require_keeper(work.store, work.actor)
    policy = work.store.config.retention
    if policy is None:
        raise errors.InvalidArgument(
            f"{work.store.path / CONFIG_NAME} has no retention: everything is kept for ever"
        )
    if args.dry_run:
        planned, foreseen = pruning.foresee(work.store, policy)
        return {
            "dry_run": True,
            "whole_from": planned.kept.pruned_to,
            "moments": len(planned.moments),
            "excess_bytes": planned.excess_bytes,
            **foreseen._asdict(),
        }
    progress = partial(work.progress, "Dropping rows")
    done = pruning.prune(work.store, policy, work.actor, progress, compact=args.compact)
    return {**done._asdict(), **collect(work, NoArguments())}


def purge(work: Work, args: PurgeArguments) -> Reply:
    """Destroy content everywhere: in the tree, in all of history, in packs."""
    require_keeper(work.store, work.actor)
    progress = partial(work.progress, "Rewriting packs")
    if (args.path is None) == (args.digest is None):
        raise errors.InvalidArgument("purge a path or a digest")
    if args.path is not None:
        done = purging.purge_path(work.store, to_path(args.path), work.actor, progress)
    else:
        digest = Digest(bytes.fromhex(args.digest or ""))
        done = purging.purge_digest(work.store, digest, work.actor, progress)
    return done._asdict() | {"shared": [to_text(path) for path in done.shared]}


def collect(work: Work, args: NoArguments) -> Reply:
    """Remove packs of which most is dead."""
    require_keeper(work.store, work.actor)
    done = gc.collect(work.store, progress=partial(work.progress, "Collecting"))
    return done._asdict()
