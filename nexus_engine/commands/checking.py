"""Verbs that examine the store itself: verify-log, fsck."""

from __future__ import annotations

import itertools

from nexus_engine.check.fsck import check
from nexus_engine.commands import Progress, Reply
from nexus_engine.commands.arguments import FsckArguments, NoArguments
from nexus_engine.oplog import verify
from nexus_engine.store import Store
from nexus_engine.types import Actor


def verify_log(store: Store, args: NoArguments, actor: Actor, progress: Progress) -> Reply:
    """Recompute the chain of hashes."""
    total = store.reader.head()
    report = verify.verify_log(
        store.database, progress=lambda done: progress("verifying", done, total)
    )
    return {
        "records": report.records,
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


def fsck(store: Store, args: FsckArguments, actor: Actor, progress: Progress) -> Reply:
    """Check every invariant."""
    done = itertools.count(1)
    problems = check(
        store, deep=args.deep, progress=lambda name: progress(f"checking {name}", next(done), None)
    )
    return {"deep": args.deep, "problems": [problem._asdict() for problem in problems]}
