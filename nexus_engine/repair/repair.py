"""Mend what fsck finds, until there is nothing left that can be mended.

Each step is one transaction with a ``repair`` record that says what it did, so that a repair can be
interrupted, runs beside those who use the store, and tells caches what to forget. It cannot be
undone: it puts right what no operation did.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from nexus_engine import errors
from nexus_engine.check.fsck import Problem, check
from nexus_engine.meta import check_log_queries, repair_queries
from nexus_engine.repair import content, packs, quotas, rows, tree, workspaces
from nexus_engine.repair.mending import Mended, Step, run
from nexus_engine.store import Store
from nexus_engine.types import Actor

Progress = Callable[[str, int, int | None], None]

PASSES = 10
"""What is mended may bring to light what it hid; more often than this is a bug."""
_CHUNKS = frozenset(
    "chunk-record chunk-content content-lost content-lost-past pack-missing pack-short".split()
)
# Counters last: they follow what the others mend.
_STEPS = (*rows.STEPS, *workspaces.STEPS, *tree.STEPS, *content.STEPS, *quotas.STEPS)


def repair(
    store: Store, actor: Actor, progress: Progress, *, deep: bool = False
) -> tuple[list[Mended], list[Problem]]:
    """Mend a store.

    Args:
        deep: Read all content, too, as ``check`` does.

    Returns:
        What was done, and what is still wrong.

    Raises:
        CorruptMetadata: SQLite finds tables of its file damaged: salvage comes first.
    """
    mended = _mend_indexes(store)
    problems: list[Problem] = []
    for number in range(PASSES):
        problems = check(store, deep=deep, progress=lambda n: progress(f"checking {n}", 0, None))
        progress("repairing", number, None)
        done = _mend(store, actor, progress, {p.code for p in problems}, deep=deep)
        mended += done
        if not done:
            break
    if mended:
        store.sync()
    return mended, problems


def _mend_indexes(store: Store) -> list[Mended]:
    """Make SQLite's indexes anew where they are damaged, and nothing else is."""
    connection = store.database.connection
    damage = list(check_log_queries.integrity(connection, thorough=True))
    if damage:
        store.upkeep(store.database.in_transaction, repair_queries.reindex)
    left = list(check_log_queries.integrity(connection, thorough=True)) if damage else []
    for flaw in check_log_queries.schema_flaws(connection):
        if flaw.type == "table" and not flaw.missing:
            left.append(f"the table {flaw.name} is not as this version makes it")
    if left:
        raise errors.CorruptMetadata(
            f"meta.db is damaged ({left[0]}): unmount it, then nexus-ctl --store DIR fsck --repair"
        )
    return [Mended("database", "meta.db", "its indexes are made anew")] if damage else []


def _mend(
    store: Store, actor: Actor, progress: Progress, codes: set[str], *, deep: bool
) -> list[Mended]:
    mended: list[Mended] = []
    # The index first: what a chunk is long decides what extents can be.
    if "pack-header" in codes:
        headers = Step(frozenset(), partial(packs.headers, store))
        mended += store.transact(run, actor, headers)
    if codes & _CHUNKS:
        flawed, named = packs.find_lost(store, deep=deep)
        found = packs.find_elsewhere(store, flawed | named, progress)
        mended += store.transact(run, actor, Step(frozenset(), partial(packs.index, flawed, found)))
    for step in _STEPS:
        if step.codes & codes:
            mended += store.transact(run, actor, step)
    return mended
