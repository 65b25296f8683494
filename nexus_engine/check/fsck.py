"""Check a store: every invariant, over one consistent view of it.

Runs beside processes that use the store, holds no lock that would stop them, and changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from nexus_engine import errors
from nexus_engine.check import content, packs, past, problems, quotas, tree, workspaces
from nexus_engine.check.damage import FILES_SHOWN
from nexus_engine.check.problems import REPAIR, RESTORE_BACKUP, Invariant, Problem
from nexus_engine.meta import check_log_queries
from nexus_engine.meta.connection import GARBAGE
from nexus_engine.store import Store
from nexus_engine.types import Digest

__all__ = ["Problem", "check"]


def check(
    store: Store, *, deep: bool = False, progress: Callable[[str], None] | None = None
) -> list[Problem]:
    """Return what is wrong with a store; an empty list is a sound one.

    Args:
        deep: Also read every chunk and compare it with its digest.
        progress: Told what is about to be checked.
    """
    found: list[Problem] = []
    connection = store.database.connection
    # One read transaction: what others commit meanwhile is not seen half.
    connection.run("BEGIN")
    try:
        for invariant in _invariants(deep=deep):
            if progress is not None:
                progress(invariant.name)
            found += _violations(store, invariant)
            if any(p.code == "schema" and p.where.startswith("table") for p in found):
                break  # the rest cannot be asked
    finally:
        connection.rollback()
    return found


def _invariants(*, deep: bool) -> Iterator[Invariant]:
    yield Invariant("database", partial(_database_is_whole, thorough=deep))
    yield Invariant("schema", _schema_is_complete)
    yield Invariant("store", _store_facts)
    for module in (tree, past, content, packs, quotas, workspaces):
        yield from module.INVARIANTS
    lost: set[Digest] = set()
    yield packs.deep_invariant(lost) if deep else packs.quick_invariant(lost)
    yield Invariant("content of files", partial(content.content_is_there, lost), FILES_SHOWN)


def _violations(store: Store, invariant: Invariant) -> list[Problem]:
    found: list[Problem] = []
    most, more = invariant.most or problems.PROBLEMS_MAX, 0
    try:
        # To the end, however many there are: what is found lost is told file by file.
        for problem in invariant.find(store):
            if len(found) < most:
                found.append(problem)
            else:
                more += 1
    except (errors.IntegrityError, errors.BackendError, *GARBAGE) as error:
        message = f"cannot be checked: {type(error).__name__}: {error}"
        found.append(Problem("unreadable", invariant.name, message))
    if more:
        found.append(Problem(found[0].code, invariant.name, f"more than {most} of these"))
    return found


def _database_is_whole(store: Store, *, thorough: bool) -> Iterator[Problem]:
    for line in check_log_queries.integrity(store.database.connection, thorough=thorough):
        message = f"{line}: keep a copy of the store, then fsck --repair"
        yield Problem("database", "meta.db", f"{message}, or restore meta.db from a backup")


def _schema_is_complete(store: Store) -> Iterator[Problem]:
    connection = store.database.connection
    for flaw in check_log_queries.schema_flaws(connection):
        what = "is missing" if flaw.missing else "is not as this version makes it"
        yield Problem("schema", f"{flaw.type} {flaw.name}", f"{what}: {REPAIR}")
    for view, message in check_log_queries.broken_views(connection):
        yield Problem("view", f"view {view}", f"cannot be read ({message}): {REPAIR}")


def _store_facts(store: Store) -> Iterator[Problem]:
    for what in check_log_queries.broken_store_rows(store.database.connection):
        todo = RESTORE_BACKUP if "schema" in what else REPAIR
        yield Problem("store", "store", f"{what}: {todo}")
