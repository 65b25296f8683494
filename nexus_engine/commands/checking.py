"""Verbs that examine the store itself, and mend it: verify-log, fsck, repair."""

from __future__ import annotations

import itertools

from nexus_engine.check.fsck import check
from nexus_engine.commands import Reply, Work
from nexus_engine.commands.arguments import FsckArguments, NoArguments
from nexus_engine.commands.walking import require_keeper
from nexus_engine.oplog import verify
from nexus_engine.repair import repair as repairing


def verify_log(work: Work, args: NoArguments) -> Reply:
    """Recompute the chain of hashes."""
    total = work.store.reader.head()
    report = verify.verify_log(
        work.store.database, progress=lambda done: work.progress("verifying", done, total)
    )
    return {
        "records": report.records,
        "pruned": report.pruned,
        "head_hash": report.head_hash.hex(),
        "first_broken_seq": report.first_broken_seq,
        "problems": []
        if report.reason is None
        else [
            {
                "code": "chain",
                "where": f"op-{report.first_broken_seq}",
                "message": report.reason,
            }
        ],
    }


def fsck(work: Work, args: FsckArguments) -> Reply:
    """Check every invariant."""
    require_keeper(work.store, work.actor)  # what is wrong with whose file, wherever it is
    done = itertools.count(1)
    problems = check(
        work.store,
        deep=args.deep,
        progress=lambda name: work.progress(f"checking {name}", next(done), None),
    )
    return {"deep": args.deep, "problems": [problem._asdict() for problem in problems]}


def repair(work: Work, args: FsckArguments) -> Reply:
    """Mend what can be mended."""
    require_keeper(work.store, work.actor)
    mended, problems = repairing.repair(work.store, work.actor, work.progress, deep=args.deep)
    return {
        "deep": args.deep,
        "mended": [done._asdict() for done in mended],
        "problems": [problem._asdict() for problem in problems],
    }
