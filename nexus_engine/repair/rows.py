"""Mend facts, references to the log, and intervals."""

from __future__ import annotations

from functools import partial

from nexus_engine.check.naming import entry_name, inode_name
from nexus_engine.clock import SystemClock, uuid7
from nexus_engine.meta import check_log_queries, check_queries, repair_queries
from nexus_engine.meta.check_queries import INTERVALS, Interval
from nexus_engine.meta.repair_queries import Line
from nexus_engine.repair.mending import Mending, Step
from nexus_engine.types import Ino

_INODE = INTERVALS[0]


def schema(mending: Mending) -> None:
    for flaw in list(check_log_queries.schema_flaws(mending.connection)):
        if repair_queries.make_anew(mending.connection, flaw.type, flaw.name, flaw.sql):
            mending.say("schema", f"{flaw.type} {flaw.name}", "made anew")


def facts(mending: Mending) -> None:
    connection, clock = mending.connection, SystemClock()
    present = {row[0]: row[1] for row in connection.all("SELECT key, value FROM store")}
    for key in ("store_id", "tenant_id"):
        if key not in present:
            identity = uuid7(clock.time_ns(), clock.random_bytes(10)).hex()
            repair_queries.put_fact(connection, key, identity)
            mending.say("store", key, f"is lost; from now on it is {identity}")
    if "created_ns" not in present:
        first_ns = repair_queries.first_time_ns(connection)
        repair_queries.put_fact(connection, "created_ns", first_ns)
        mending.say("store", "created_ns", "is that of the first operation")
    last, next_ino = check_log_queries.last_ino(connection), present.get("next_ino")
    if not (isinstance(next_ino, int) and next_ino > last):
        repair_queries.put_fact(connection, "next_ino", last + 1)
        mending.say("store", "next_ino", f"is {last + 1}, after the last inode that there is")
    pruned_to, head = present.get("pruned_to", 0), check_log_queries.log_end(connection)
    if not (isinstance(pruned_to, int) and 0 <= pruned_to <= head):
        kept = connection.one("SELECT coalesce(max(seq), 0) FROM kept WHERE seq <= ?", (head,))
        repair_queries.put_fact(connection, "pruned_to", kept[0] if kept else 0)
        mending.say("store", "pruned_to", "is the last of the moments that are kept")


def references(mending: Mending) -> None:
    connection = mending.connection
    broken = list(check_log_queries.broken_references(connection))
    for table, what, seq in broken:
        action = f"the row that refers to op-{seq} is gone"
        mending.say(f"{table}-reference", f"{table} {what}", action)
    if broken:
        head = check_log_queries.log_end(connection)
        for table, _, column in check_log_queries.REFERENCES:
            repair_queries.drop_references(connection, table, column, head)
    for table, what in list(check_log_queries.needless_rows(connection)):
        column = "pack" if table == "pack_seen" else "ino"
        repair_queries.drop_row(connection, table, column, what)
        mending.say(f"{table}-orphan", f"{table} {what}", "the row is gone")
    for name, seq in list(check_log_queries.unkept_snapshots(connection)):
        repair_queries.keep_snapshot(connection, seq)
        mending.say("snapshot-kept", f"snapshot {name}", f"op-{seq} is kept from now on")
    for actor, seq, count in list(check_log_queries.missing_actors(connection)):
        repair_queries.add_lost_actor(connection, actor)
        mending.say("log-actor", f"op-{seq}", f"{count} operations are by somebody called lost")


def child_changes(mending: Mending) -> None:
    connection = mending.connection
    horizon = check_queries.horizon(connection)
    for parent, name, seq in list(check_log_queries.missing_child_changes(connection, horizon)):
        repair_queries.add_child_change(connection, parent, seq)
        action = f"its directory knows of op-{seq} again"
        mending.entry("child-change", parent, name, action)


def intervals(interval: Interval, mending: Mending) -> None:
    connection = mending.connection
    found = (
        (f"{interval.table}-interval", check_queries.impossible_intervals),
        (f"{interval.table}-unlogged", check_queries.unlogged_rows),
        (f"{interval.table}-overlap", check_queries.overlapping_intervals),
        (f"{interval.table}-overlap", check_queries.outlived_rows),
    )
    width = len(interval.key)
    keys = {row[:width]: code for code, find in found for row in list(find(connection, interval))}
    head = check_log_queries.log_end(connection)
    for key, code in keys.items():
        line = repair_queries.timeline(connection, interval, key)
        moves, current = straighten(line, head, mending.tx.seq)
        for to_seq, new in moves:
            repair_queries.move_past(connection, interval, key, to_seq, new)
        if current is not None and current != line.current:
            repair_queries.move_current(connection, interval, key, current)
        gone = sum(new is None for _, new in moves)
        action = "its versions follow each other again"
        if gone:
            action += f"; {gone} that were true at no time are gone"
        if interval.table == "dentry":
            mending.say(code, entry_name(connection, key[0], key[2]), action)
        else:
            mending.say(code, inode_name(connection, key[0]), action)
            mending.tx.add_touched(Ino(key[0]))


def straighten(
    line: Line, head: int, now: int
) -> tuple[list[tuple[int, tuple[int, int] | None]], int | None]:
    """Return the least change after which the rows of a key follow each other.

    Args:
        head: The end of the log; nothing begins or ends after it.
        now: The operation from which a current row is true of which nothing is known.

    Returns:
        [(to_seq of a past row, its interval or ``None``: it was true at no time)], and the
        from_seq of the current row.
    """
    moves: list[tuple[int, tuple[int, int] | None]] = []
    current = line.current
    known = current if current is not None and 1 <= current <= head else head
    last = 0
    for from_seq, to_seq in line.past:
        end = to_seq if to_seq <= head else known
        begin = max(from_seq, last, 1)
        if begin >= end:
            begin = max(last, 1) if last or end < 2 else end - 1
        new = (begin, end) if begin < end else None
        if new != (from_seq, to_seq):
            moves.append((to_seq, new))
        if new is not None:
            last = end
    if current is not None:
        if not 1 <= current <= head:
            current = last or now
        current = max(current, last)
    return moves, current


def gaps(mending: Mending) -> None:
    """Have versions of inodes last as long as there are names that lead to them."""
    connection = mending.connection
    found = {ino: "inode-gap" for *_, ino in check_queries.inode_gaps(connection)}
    for _, _, ino, _ in list(check_queries.past_dentries_of_nothing(connection)):
        found[ino] = "dentry-past-dangling"
    end = check_log_queries.log_end(connection) + 1
    for ino, code in found.items():
        line = repair_queries.timeline(connection, _INODE, (ino,))
        if not line.past and line.current is None:
            continue  # made anew, as far as it is known
        periods = repair_queries.name_periods(connection, ino, end)
        _stretch(mending, ino, line, periods)
        mending.inode(code, ino, "what is known of it stands for the time between, too")


def _stretch(mending: Mending, ino: int, line: Line, periods: list[tuple[int, int]]) -> None:
    last = 0
    for from_seq, to_seq in line.past:
        begin = _earliest(periods, last, from_seq)
        final = to_seq == line.past[-1][1] and line.current is None
        end = max([to_seq, *(b for a, b in periods if a <= to_seq < b)]) if final else to_seq
        if (begin, end) != (from_seq, to_seq):
            repair_queries.move_past(mending.connection, _INODE, (ino,), to_seq, (begin, end))
        last = end
    if line.current is not None:
        begin = _earliest(periods, last, line.current)
        if begin != line.current:
            repair_queries.move_current(mending.connection, _INODE, (ino,), begin)


def _earliest(periods: list[tuple[int, int]], last: int, begin: int) -> int:
    """Return since when a version must be true that begins too late for a name."""
    needed = [max(a, last) for a, b in periods if a < begin and b > last]
    return min([begin, *needed])


STEPS = (
    Step(frozenset({"schema", "view"}), schema),
    Step(frozenset({"store"}), facts),
    Step(
        frozenset(
            {f"{table}-reference" for table, _, _ in check_log_queries.REFERENCES}
            | {"expired-orphan", "pack_seen-orphan", "snapshot-kept", "log-actor"}
        ),
        references,
    ),
    *(
        Step(
            frozenset(f"{i.table}-{what}" for what in ("interval", "unlogged", "overlap")),
            partial(intervals, i),
        )
        for i in INTERVALS
    ),
    Step(frozenset({"inode-gap", "dentry-past-dangling"}), gaps),
    Step(frozenset({"child-change"}), child_changes),
)
