"""What verbs about workspaces answer, as people read it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from nexus_engine.commands import Reply
from nexusfuse.ctl.blocks import Block, Line, Table, shown_path

_STYLES = {"added": "green", "removed": "red", "renamed": "magenta"}
_PATCH_STYLES = {"+": "green", "-": "red", "@": "cyan"}


def _made(reply: Reply) -> Iterator[Block]:
    yield Line(
        f"Workspace {reply['name']} is {shown_path(reply['path'])}; it begins as"
        f" {reply['url'] or _base(reply)} is now.",
        "bold",
    )
    if reply["url"] is not None:
        yield Line(f"What is applied to {_base(reply)} goes there.")


def _list(reply: Reply) -> Iterator[Block]:
    if not reply["workspaces"]:
        yield Line("There are no workspaces.")
        return
    rows = [
        (each["name"], f"op-{each['as_of']}", shown_path(each["path"]), each["url"] or _base(each))
        for each in reply["workspaces"]
    ]
    yield Table(("NAME", "AS OF", "PATH", "OVER"), rows)


def _status(reply: Reply) -> Iterator[Block]:
    yield from _changes(reply)
    if not reply["changes"] and not reply["conflicts"]:
        yield Line(f"Nothing is different in workspace {reply['name']}.")


def _changes(reply: Reply) -> Iterator[Block]:
    for change in reply["changes"]:
        yield Line(_change(change), _STYLES.get(change["change"], "yellow"))
    for change in reply["conflicts"]:
        yield Line(f"conflict   {_change(change)}: {change['conflict']}", "yellow")


def _change(change: dict[str, Any]) -> str:
    path2 = change["path2"]
    path = f"{change['path'] or '.'}" + ("" if path2 is None else f" → {path2}")
    return f"{change['change']:10} {path}"


def _diff(reply: Reply) -> Iterator[Block]:
    if not reply["changes"]:
        yield Line(f"Nothing is different in workspace {reply['name']}.")
    for change in reply["changes"]:
        conflict = "" if change["conflict"] is None else f"  (conflict: {change['conflict']})"
        yield Line(_change(change) + conflict, f"bold {_STYLES.get(change['change'], 'yellow')}")
        lines = change["patch"].removesuffix("\n").split("\n") if change["patch"] else []
        yield from (Line(line, _PATCH_STYLES.get(line[:1], "")) for line in lines)
    if reply["next"] is not None:
        yield Line(f"There is more: nexus-ctl workspace diff {reply['name']} shows all.", "bold")


def _applied(reply: Reply) -> Iterator[Block]:
    yield from _changes(reply)
    count = f"{reply['change_count']:,} change" + "s" * (reply["change_count"] != 1)
    base = _base(reply)
    left = f"; {len(reply['conflicts']):,} in conflict" if reply["conflicts"] else ""
    if reply["dry_run"]:
        yield Line(f"Would apply {count} to {base}{left}.", "bold")
    elif reply["seq"] is None:
        yield Line(f"Nothing was applied to {base}{left}.", "bold")
    else:
        back = f"`undo op-{reply['seq']}` takes it back"
        yield Line(f"Applied {count} to {base}; {back}{left}.", "bold")
    if "source" in reply:
        yield from _at_source(reply["source"])


def _at_source(source: dict[str, Any]) -> Iterator[Block]:
    if source["waiting"]:
        why = f": {source['trouble']}" if source["trouble"] else ""
        yield Line(
            f"{source['waiting']:,} of it not at {source['url']} yet{why}; nexus-ctl mounts info"
            f" {shown_path(source['path'])} tells more.",
            "yellow",
        )
    elif source["conflicts"]:
        yield Line(
            f"{source['conflicts']:,} changed at {source['url']} meanwhile: nexus-ctl mounts info"
            f" {shown_path(source['path'])} shows which.",
            "yellow",
        )
    else:
        yield Line(f"It is at {source['url']}.")


def _discarded(reply: Reply) -> Iterator[Block]:
    yield Line(
        f"Workspace {reply['name']} is discarded; `undo op-{reply['seq']}` brings it back.", "bold"
    )
    if reply["detached"]:
        yield Line(f"{reply['url']} is attached no more.")


def _base(reply: dict[str, Any]) -> str:
    return "(removed)" if reply["over"] is None else shown_path(reply["over"])


BLOCKS: dict[str, Callable[[Reply], Iterator[Block]]] = {
    "workspace-create": _made,
    "workspace-list": _list,
    "workspace-status": _status,
    "workspace-diff": _diff,
    "workspace-apply": _applied,
    "workspace-discard": _discarded,
}
