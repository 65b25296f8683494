"""Replies as people read them, and as JSON.

Each verb's reply becomes blocks (lines and tables), which are shown as plain text or, on
a terminal, with colours.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from nexus_engine.commands import Reply, Request
from nexusfuse.ctl import attachment_replies, workspace_replies
from nexusfuse.ctl.blocks import Block, Line, Table, moment, shown_path

LISTS = {
    "log": "operations",
    "history": "operations",
    "versions": "versions",
    "diff": "changes",
    "snapshot-list": "snapshots",
    "tag-list": "tags",
    "quota-list": "quotas",
    "workspace-list": "workspaces",
    "workspace-diff": "changes",
    "mounts-list": "mounts",
}
"""Verbs whose reply is a list: JSON Lines rather than one object."""

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")


def render(request: Request, reply: Reply) -> str:
    """Return a reply as plain text."""
    return plain(blocks(request, reply))


def blocks(request: Request, reply: Reply) -> list[Block]:
    """Return what there is to show of a reply."""
    return list(_BLOCKS.get(request.verb, _facts)(reply))


def json_items(request: Request, reply: Reply) -> list[Any]:
    """Return the objects to print, one a line."""
    key = LISTS.get(request.verb)
    return [reply] if key is None else list(reply[key])


# -- the two ways of showing --


def plain(shown: Iterable[Block], *, header: bool = True) -> str:
    """Return blocks as text without colour; columns are aligned, nothing is cut off."""
    lines: list[str] = []
    for block in shown:
        if isinstance(block, Line):
            lines.append(printable(block.text))
            continue
        rows = [[printable(cell) for cell in row] for row in (block.columns, *block.rows)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for row in rows if header else rows[1:]:
            cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
            lines.append("  ".join(cells).rstrip())
    return "".join(line + "\n" for line in lines)


def show(shown: list[Block], *, header: bool = True) -> None:
    """Print blocks: as rich tables on a terminal, else as plain text."""
    if not (sys.stdout.isatty() and "NO_COLOR" not in os.environ):
        sys.stdout.write(plain(shown, header=header))
        sys.stdout.flush()
        return
    from rich.console import Console
    from rich.table import Table as RichTable
    from rich.text import Text

    console = Console(highlight=False)
    for block in shown:
        if isinstance(block, Line):
            console.print(Text(printable(block.text), style=block.style), soft_wrap=True)
            continue
        table = RichTable(box=None, pad_edge=False, header_style="bold", show_header=header)
        for column in block.columns:
            table.add_column(column, overflow="fold")
        for row, style in zip(block.rows, block.styles or ("",) * len(block.rows), strict=True):
            table.add_row(*(Text(printable(cell)) for cell in row), style=style)
        console.print(table)


def printable(text: str) -> str:
    """Return text with everything escaped that a terminal would act on or could not print."""
    if text.isprintable():
        return text
    return "".join(map(_escape, text))


def _escape(char: str) -> str:
    if char.isprintable():
        return char
    if "\udc80" <= char <= "\udcff":
        return f"\\x{ord(char) - 0xDC00:02x}"
    return char.encode("unicode_escape").decode("ascii")


# -- parts --


def who(actor: dict[str, Any]) -> str:
    """Return an actor in a word: its agent, else who it was for an API, else its process."""
    name = actor["agent"] or actor["principal"]
    return name or f"{actor['command'] or '?'}[{actor['pid']}]"


def size(size_bytes: int) -> str:
    """Return a size in the largest binary unit that leaves a whole part."""
    value, unit = float(size_bytes), 0
    while value >= 1024 and unit < len(_UNITS) - 1:
        value, unit = value / 1024, unit + 1
    return f"{size_bytes} B" if unit == 0 else f"{value:.1f} {_UNITS[unit]}"


def _paths(item: dict[str, Any]) -> str:
    second = item.get("path2")
    path = shown_path(item["path"])
    return path if second is None else f"{path} -> {shown_path(second)}"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


# -- one function per verb --


def _facts(reply: Reply, prefix: str = "") -> Iterator[Block]:
    """Show a reply that is figures: ``key value`` lines."""
    for key, value in reply.items():
        if isinstance(value, dict):
            yield from _facts(value, f"{prefix}{key}_")
        elif value is not None:
            yield Line(f"{prefix}{key} {_fact(key, value)}")


def _fact(key: str, value: Any) -> str:
    if key.endswith("_ns") and isinstance(value, int):
        return moment(value)
    if key.endswith("_bytes") and isinstance(value, int):
        return f"{value} ({size(value)})"
    return str(value)


def _log(reply: Reply) -> Iterator[Block]:
    operations = reply["operations"]
    if not operations:
        yield Line("No operations match.")
        return
    rows = [
        (
            f"op-{op['seq']}",
            moment(op["time_ns"]),
            who(op["actor"]),
            op["kind"],
            _paths(op),
            "undone" if op["undone"] else "",
        )
        for op in operations
    ]
    styles = tuple("dim" if op["undone"] else "" for op in operations)
    yield Table(("OP", "TIME", "WHO", "KIND", "PATH", ""), rows, styles)
    if reply["more"]:
        yield Line(f"There are more: --before op-{operations[-1]['seq']}", "dim")


def _undo(reply: Reply) -> Iterator[Block]:
    verb = "redo" if reply["redo"] else "undo"
    changes, conflicts = reply["changes"], reply["conflicts"]
    count = _count(reply["operations"], "operation")
    if reply["dry_run"]:
        for change in changes:
            action, detail = change["action"], change["detail"]
            style = _CHANGE_STYLES.get(action, "")
            yield Line(f"{action:10} {_paths(change)}" + (f"  ({detail})" if detail else ""), style)
    for conflict in conflicts:
        yield Line(_conflict(conflict), "yellow")
    touched = _count(reply["change_count"], "path")
    left = f"; {_count(len(conflicts), 'conflict')} left alone (--force overrides)"
    if reply["dry_run"]:
        summary = f"Would {verb} {count}: {touched}"
    else:
        done = "Redid" if reply["redo"] else "Undid"
        summary = f"{done} {count}: {touched}"
        if reply["seq"] is not None:
            back = "undo" if reply["redo"] else "redo"
            summary += f"; `{back} op-{reply['seq']}` takes it back"
    yield Line(summary + (left if conflicts else "") + ".", "bold")


_CHANGE_STYLES = {"remove": "red", "restore": "green", "content": "cyan"}


def _conflict(conflict: dict[str, Any]) -> str:
    text = f"conflict  {shown_path(conflict['path'])}: {conflict['what']}: {conflict['reason']}"
    by = conflict["by"]
    if by is None:
        return text
    return f"{text} (op-{by['seq']} {by['kind']} by {who(by['actor'])}, {moment(by['time_ns'])})"


_DIFF_STYLES = {"added": "green", "removed": "red", "renamed": "magenta"}
_PATCH_STYLES = {"+": "green", "-": "red", "@": "cyan"}


def _lines(text: str) -> list[str]:
    return text.removesuffix("\n").split("\n") if text else []


def _diff(reply: Reply) -> Iterator[Block]:
    if not reply["changes"]:
        yield Line("Nothing differs.")
    if reply["patch"]:
        yield from (Line(line, _PATCH_STYLES.get(line[:1], "")) for line in _lines(reply["patch"]))
        return
    for change in reply["changes"]:
        kind = change["change"]
        yield Line(f"{kind:10} {_paths(change)}", _DIFF_STYLES.get(kind, "yellow"))


def _versions(reply: Reply) -> Iterator[Block]:
    rows = [
        (
            f"op-{version['seq']}",
            moment(version["time_ns"]),
            size(version["size"]),
            who(version["actor"]),
        )
        for version in reply["versions"]
    ]
    yield Table(("OP", "TIME", "SIZE", "WHO"), rows)


def _restore(reply: Reply) -> Iterator[Block]:
    for change in reply["changes"]:
        yield Line(f"{change['action']:8} {shown_path(change['path'])}")
    if reply["change_count"] == 0:
        yield Line(f"{shown_path(reply['path'])} is as it was at op-{reply['as_of']}.", "bold")
        return
    where = "" if reply["to"] is None else f" to {shown_path(reply['to'])}"
    more = reply["change_count"] - len(reply["changes"])
    if more:
        yield Line(f"... and {more:,} more")
    yield Line(
        f"Restored {shown_path(reply['path'])} as of op-{reply['as_of']}{where}:"
        f" {_count(reply['change_count'], 'path')}; `undo op-{reply['seq']}` takes it back.",
        "bold",
    )


def _snapshots(reply: Reply) -> Iterator[Block]:
    if not reply["snapshots"]:
        yield Line("There are no snapshots.")
        return
    rows = [
        (snapshot["name"], f"op-{snapshot['seq']}", moment(snapshot["time_ns"]))
        for snapshot in reply["snapshots"]
    ]
    yield Table(("NAME", "OP", "TIME"), rows)


def _snapshot_made(reply: Reply) -> Iterator[Block]:
    yield Line(f"Snapshot {reply['name']} keeps the moment op-{reply['seq']}.")


def _snapshot_dropped(reply: Reply) -> Iterator[Block]:
    yield Line(f"Snapshot {reply['name']} is gone; the history it named is not.")


def _tags(reply: Reply) -> Iterator[Block]:
    for tag in reply["tags"]:
        yield Line(f"{tag['key']}={tag['value']}")


def _tag_set(reply: Reply) -> Iterator[Block]:
    yield Line(f"{shown_path(reply['path'])}: {reply['key']}={reply['value']}")


def _tag_removed(reply: Reply) -> Iterator[Block]:
    yield Line(f"{shown_path(reply['path'])}: no {reply['key']} any more")


def _verify_log(reply: Reply) -> Iterator[Block]:
    yield from _problems(reply)
    verdict = "is whole" if not reply["problems"] else "is broken"
    since = f" from op-{reply['pruned'] + 1} on" if reply["pruned"] else ""
    yield Line(f"The chain of {_count(reply['records'], 'record')}{since} {verdict}.", "bold")


def _problems(reply: Reply) -> Iterator[Block]:
    for problem in reply["problems"]:
        yield Line(f"{problem['code']}  {problem['where']}: {problem['message']}", "red")


def _fsck(reply: Reply) -> Iterator[Block]:
    yield from _problems(reply)
    if reply["problems"]:
        yield Line(f"{_count(len(reply['problems']), 'problem')} found.", "bold red")
    else:
        yield Line("Clean.", "bold")


def _repair(reply: Reply) -> Iterator[Block]:
    for done in reply["mended"]:
        yield Line(f"mended  {done['code']}  {done['where']}: {done['action']}", "green")
    yield from _problems(reply)
    mended, left = _count(len(reply["mended"]), "thing"), len(reply["problems"])
    if left:
        yield Line(f"{mended} mended; {_count(left, 'problem')} left.", "bold red")
    elif reply["mended"]:
        yield Line(f"{mended} mended. Clean.", "bold")
    else:
        yield Line("Clean.", "bold")


def _scrub(reply: Reply) -> Iterator[Block]:
    yield from _problems(reply)
    read = f"Read {_count(reply['chunks'], 'chunk')}, {size(reply['read_bytes'])}"
    if reply["problems"]:
        yield Line(f"{read}: {_count(len(reply['problems']), 'problem')} found.", "bold red")
    else:
        yield Line(f"{read}: all of it is whole.", "bold")


def _prune(reply: Reply) -> Iterator[Block]:
    if reply.get("dry_run"):
        yield Line(
            f"Every operation since op-{reply['whole_from']} stays, and"
            f" {_count(reply['moments'], 'moment')} before it."
        )
        yield Line(
            f"{_count(reply['rows'], 'row')} and {_count(reply['records'], 'record')} of the log"
            f" would go, and {size(reply['unnamed_bytes'])} of content with them;"
            f" {size(reply['freed_bytes'])} would come back at once.",
            "bold",
        )
        yield from _excess(reply)
        return
    yield Line(
        f"Dropped {_count(reply['rows'], 'row')} and {_count(reply['records'], 'record')}"
        " of the log."
    )
    yield from _gc(reply)
    yield from _excess(reply)


def _excess(reply: Reply) -> Iterator[Block]:
    if reply["excess_bytes"]:
        yield Line(
            f"History is {size(reply['excess_bytes'])} above max_history: keep_all, snapshots and"
            " tags keep that.",
            "yellow",
        )


def _purge(reply: Reply) -> Iterator[Block]:
    yield Line(
        f"Destroyed {_count(reply['chunks'], 'chunk')} of {_count(reply['files'], 'file')}.", "bold"
    )
    for path in reply["shared"]:
        yield Line(f"/{path} holds some of the same content, which stays there.")


def _quotas(reply: Reply) -> Iterator[Block]:
    if not reply["quotas"]:
        yield Line("There are no quotas.")
        return
    rows = [_quota_row(quota) for quota in reply["quotas"]]
    yield Table(("BYTES", "LIMIT", "INODES", "LIMIT", "PATH"), rows)


def _quota_row(quota: dict[str, Any]) -> tuple[str, ...]:
    max_bytes, max_inodes = quota["max_bytes"], quota["max_inodes"]
    return (
        size(quota["bytes"]),
        "-" if max_bytes is None else size(max_bytes),
        f"{quota['inodes']}",
        "-" if max_inodes is None else f"{max_inodes}",
        shown_path(quota["path"]),
    )


def _quota_set(reply: Reply) -> Iterator[Block]:
    yield from _quotas({"quotas": [reply]})


def _quota_removed(reply: Reply) -> Iterator[Block]:
    yield Line(f"{shown_path(reply['path'])} has no limits of its own any more.")


def _gc(reply: Reply) -> Iterator[Block]:
    yield Line(
        f"Gave back {size(reply['freed_bytes'])} in {_count(reply['packs'], 'pack')};"
        f" {size(reply['copied_bytes'])} were moved.",
        "bold",
    )


_BLOCKS: dict[str, Callable[[Reply], Iterator[Block]]] = {
    "log": _log,
    "history": _log,
    "undo": _undo,
    "redo": _undo,
    "diff": _diff,
    "versions": _versions,
    "restore": _restore,
    "snapshot-create": _snapshot_made,
    "snapshot-list": _snapshots,
    "snapshot-delete": _snapshot_dropped,
    "tag-set": _tag_set,
    "tag-list": _tags,
    "tag-remove": _tag_removed,
    "quota-set": _quota_set,
    "quota-list": _quotas,
    "quota-remove": _quota_removed,
    "verify-log": _verify_log,
    "fsck": _fsck,
    "repair": _repair,
    "scrub": _scrub,
    "prune": _prune,
    "gc": _gc,
    "purge": _purge,
    **workspace_replies.BLOCKS,
    **attachment_replies.BLOCKS,
}
