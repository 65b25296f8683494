"""Check a store: every invariant, over one consistent view of it.

Runs beside processes that use the store, holds no lock that would stop them, and changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice

from nexus_engine import errors
from nexus_engine.check import content, packs, past, tree
from nexus_engine.check.problems import RESTORE_BACKUP, Invariant, Problem
from nexus_engine.meta import check_queries
from nexus_engine.store import Store

__all__ = ["PROBLEMS_MAX", "Problem", "check"]

PROBLEMS_MAX = 100
"""Of one invariant; where everything is broken, more of the same tells nothing."""


def check(
    store: Store, *, deep: bool = False, progress: Callable[[str], None] | None = None
) -> list[Problem]:
    """Return what is wrong with a store; an empty list is a sound one.

    Args:
        deep: Also read every chunk and compare it with its digest.
        progress: Told what is about to be checked.
    """
    problems: list[Problem] = []
    connection = store.database.connection
    # One read transaction: what others commit meanwhile is not seen half.
    connection.run("BEGIN")
    try:
        for invariant in _invariants(deep=deep):
            if progress is not None:
                progress(invariant.name)
            problems += _violations(store, invariant)
    finally:
        connection.run("ROLLBACK")
    return problems


def _invariants(*, deep: bool) -> Iterator[Invariant]:
    yield Invariant("database", partial(_database_is_whole, thorough=deep))
    yield Invariant("views", _views_work)
    yield Invariant("store", _store_facts)
    for module in (tree, past, content, packs):
        yield from module.INVARIANTS
    yield packs.DEEP_INVARIANT if deep else packs.QUICK_INVARIANT


def _violations(store: Store, invariant: Invariant) -> list[Problem]:
    found: list[Problem] = []
    try:
        found.extend(islice(invariant.find(store), PROBLEMS_MAX + 1))
    except (errors.IntegrityError, errors.BackendError) as error:
        found.append(Problem("unreadable", invariant.name, f"cannot be checked: {error}"))
    if len(found) > PROBLEMS_MAX:
        last = found[PROBLEMS_MAX - 1]
        del found[PROBLEMS_MAX:]
        found.append(Problem(last.code, invariant.name, f"more than {PROBLEMS_MAX} of these"))
    return found


def _database_is_whole(store: Store, *, thorough: bool) -> Iterator[Problem]:
    for line in check_queries.integrity(store.database.connection, thorough=thorough):
        yield Problem("database", "meta.db", f"{line}: {RESTORE_BACKUP}")


def _views_work(store: Store) -> Iterator[Problem]:
    for view, message in check_queries.broken_views(store.database.connection):
        yield Problem("view", view, f"cannot be read ({message}): {RESTORE_BACKUP}")


def _store_facts(store: Store) -> Iterator[Problem]:
    for what in check_queries.broken_store_rows(store.database.connection):
        yield Problem("store", "store", f"{what}: {RESTORE_BACKUP}")
