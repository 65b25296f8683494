"""Whether what an undo makes of the names is a tree: each check refuses what would break it."""

from __future__ import annotations

from nexus_engine.history.undo.names import (
    LOOP,
    NO_PARENT,
    NOT_EMPTY,
    TWO_NAMES,
    Cause,
    Names,
)
from nexus_engine.meta.reader import PATH_DEPTH_MAX
from nexus_engine.meta.undo_queries import Key, UndoQueries
from nexus_engine.types import ROOT_INO, Ino


def check_tree(names: Names, queries: UndoQueries) -> bool:
    """Refuse, once, what would leave something outside the tree.

    Returns:
        Whether something was refused: then settle the names again, and check again.
    """
    names.prefetch({*names.lost, *names.gained, *(key[0] for key in names.changed)})
    # A directory that cannot go takes part in what its entries can do: emptiness comes first.
    return (
        _check_empty(names, queries)
        or _check_parents(names, queries)
        or _check_single_names(names)
        or _check_loops(names)
    )


def _check_empty(names: Names, queries: UndoQueries) -> bool:
    refused = False
    for ino in list(names.lost):
        if not names.is_dir(ino) or names.is_alive_after(ino):
            continue
        changed = names.changed_in.get(ino, [])
        causes = [names.cause_of_name(key, NOT_EMPTY) for key in changed if names.changed[key][1]]
        # One more than are going is enough to know, unless all of them are to go by force.
        limit = len(changed) + 1 if not names.force else -1
        causes += [
            Cause(NOT_EMPTY, row.from_seq, (row.parent, row.name))
            for row in queries.children(ino, limit)
            if (row.parent, row.name) not in names.changed
        ]
        for cause in causes:
            refused |= names.refuse(names.units_losing(ino), cause)
    return refused


def _check_parents(names: Names, queries: UndoQueries) -> bool:
    refused = False
    for key, (_, after) in list(names.changed.items()):
        parent = key[0]
        if not after or names.is_alive_after(parent):
            continue
        # It is gone already: one that is to go would not be empty.
        row = queries.last_name(parent)
        cause = Cause(NO_PARENT)
        if row is not None and row.to_seq is not None:
            cause = Cause(NO_PARENT, row.to_seq, (row.parent, row.name))
        refused |= names.refuse(names.units_at(key), cause)
    return refused


def _check_single_names(names: Names) -> bool:
    refused = False
    for ino in list(names.gained):
        if not names.is_dir(ino):
            continue
        after = names.names_after(ino)
        if len(after) < 2:
            continue
        gained = names.gained.get(ino, [])
        kept = [key for key in after if key not in gained]
        cause = names.cause_of_name(kept[0], TWO_NAMES) if kept else Cause(TWO_NAMES)
        for key in gained:
            refused |= names.refuse(names.units_at(key), cause)
    return refused


def _check_loops(names: Names) -> bool:
    sound = {ROOT_INO}
    for ino in list(names.gained):
        if not names.is_dir(ino):
            continue
        way: dict[Ino, Key] = {}
        current = ino
        while current not in sound and current not in way and len(way) < PATH_DEPTH_MAX:
            after = names.names_after(current)
            if not after:
                break  # below something that is going: another check's concern
            way[current] = after[0]
            current = after[0][0]
        if current not in way:
            sound.update(way)
            continue
        if _break_loop(names, list(way.values())):
            return True
    return False


def _break_loop(names: Names, loop: list[Key]) -> bool:
    standing = [key for key in loop if key not in names.changed]
    moving = [key for key in loop if key in names.changed]
    cause = names.cause_of_name(standing[0], LOOP) if standing else Cause(LOOP)
    units = [unit for key in moving for unit in names.units_at(key)]
    return names.refuse(units, cause)
