"""Which operations an undo is about."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from nexus_engine import errors
from nexus_engine.meta.database import Database
from nexus_engine.meta.undo_queries import UndoQueries
from nexus_engine.oplog.reader import LogQuery, entries, get_entry, is_undone
from nexus_engine.records import Record, parse_details
from nexus_engine.types import ROOT_INO, Path, Seq

_NO_CHANGE = frozenset(
    ("snapshot", "drop-snapshot", "recover", "repair", "quota", "prune", "purge", "attach")
)
"""Kinds that change nothing of the tree, or that put right what a crash or decay had made of it;
what is done for good; and what shows objects of somebody else's, which an undo would delete."""


class Selector(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Operations for which everything that is given holds."""

    ops: tuple[Seq, ...] = ()
    """Exactly these; nothing else may be given then."""
    last: int | None = None
    """So many of the newest."""
    since_seq: Seq | None = None
    """After this operation."""
    until_seq: Seq | None = None
    """Up to this operation."""
    path: Path | None = None
    """On this path or below it, as it was called when it happened."""
    pid: int | None = None
    session: int | None = None
    agent: str | None = None
    uid: int | None = None

    def summary(self) -> dict[str, object]:
        """Return what was asked for, for the log."""
        given = {name: getattr(self, name) for name in self.__struct_fields__}
        given = {name: value for name, value in given.items() if value not in (None, ())}
        if self.path is not None:
            given["path"] = self.path.decode(errors="backslashreplace")
        if len(self.ops) > 16:
            given["ops"] = len(self.ops)
        return given


def select(database: Database, selector: Selector) -> list[Seq]:
    """Return the operations that are to be undone, in the order of the log.

    An operation that is undone already is not among them, and neither are undos, unless named:
    taking back an undo is a redo.

    Raises:
        InvalidSelector: Nothing is asked for, or what cannot be.
        NothingToUndo: An operation was named that is undone already.
    """
    _check(selector)
    if selector.ops:
        return _named(database, selector.ops)
    queries = UndoQueries(database.connection)
    found: list[Seq] = []
    for entry in entries(database, _query(selector)):
        record = entry.record
        if entry.undone or record.kind in _NO_CHANGE:
            continue
        if record.kind == "undo" and not _is_partial_redo(queries, record):
            continue
        if record.kind == "mkdir" and record.ino == ROOT_INO:
            continue
        found.append(record.seq)
        if len(found) == selector.last:
            break
    return found[::-1]


def select_redo(database: Database, selector: Selector) -> list[Seq]:
    """Return the undos that are to be taken back, in the order of the log.

    Those that took back an undo themselves are left alone, unless named.

    Raises:
        InvalidSelector, NothingToUndo: As ``select``; also if what is named is no undo.
    """
    _check(selector)
    if selector.ops:
        for seq in selector.ops:
            if _kind_of(database, seq) != "undo":
                raise errors.InvalidSelector(f"op-{seq} is no undo: there is nothing to redo")
        return _named(database, selector.ops)
    found: list[Seq] = []
    for entry in entries(database, _query(selector)):
        record = entry.record
        if record.kind != "undo" or entry.undone or _is_redo(record):
            continue
        found.append(record.seq)
        if len(found) == selector.last:
            break
    return found[::-1]


def _kind_of(database: Database, seq: Seq) -> str:
    """Return the kind of an operation.

    Raises:
        InvalidSelector: There is no such operation, or it is nothing that can be undone.
    """
    try:
        record = get_entry(database, seq).record
    except errors.InvalidMoment as error:
        raise errors.InvalidSelector(str(error)) from error
    if record.kind in _NO_CHANGE or (record.ino == ROOT_INO and record.kind == "mkdir"):
        raise errors.InvalidSelector(f"op-{seq} ({record.kind}) is nothing that can be undone")
    return record.kind


def _check(selector: Selector) -> None:
    given = selector.summary()
    if not given:
        raise errors.InvalidSelector("say which operations: --last N, --op, --since, --agent, …")
    if selector.ops and len(given) > 1:
        raise errors.InvalidSelector("operations named one by one go with no other condition")
    if selector.last is not None and selector.last < 1:
        raise errors.InvalidSelector(f"the last {selector.last} operations: at least 1")


def _named(database: Database, seqs: Iterable[Seq]) -> list[Seq]:
    wanted = sorted(set(seqs))
    for seq in wanted:
        _kind_of(database, seq)
        if is_undone(database, seq):
            raise errors.NothingToUndo(f"op-{seq} is undone already; redo takes its undo back")
    return wanted


def _query(selector: Selector) -> LogQuery:
    return LogQuery(
        # The root holds everything: no condition.
        path=selector.path or None,
        agent=selector.agent,
        pid=selector.pid,
        session=selector.session,
        uid=selector.uid,
        since_seq=None if selector.since_seq is None else Seq(selector.since_seq + 1),
        until_seq=selector.until_seq,
    )


def _is_redo(record: Record) -> bool:
    return bool(parse_details(record.details).get("redo"))


def _is_partial_redo(queries: UndoQueries, record: Record) -> bool:
    """Tell whether a redo had to leave something, so that the undo that it took back still stands.

    What it did is then an operation like any other: what was undone before is there again, though
    it counts as undone.
    """
    return _is_redo(record) and not queries.reverses(record.seq)
