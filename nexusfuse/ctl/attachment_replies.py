"""What verbs about attachments answer, as people read it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from nexus_engine.commands import Reply
from nexusfuse.ctl.blocks import Block, Line, Table, shown_path


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}" + "s" * (number != 1)


def _added(reply: Reply) -> Iterator[Block]:
    how = ", read-only" if reply["read_only"] else ""
    yield Line(
        f"Attached {reply['url']} at {shown_path(reply['path'])}{how}:"
        f" {_count(reply['added'], 'object')}.",
        "bold",
    )


def _list(reply: Reply) -> Iterator[Block]:
    if not reply["mounts"]:
        yield Line("Nothing is attached.")
        return
    rows = [
        (
            shown_path(each["path"]),
            "ro" if each["read_only"] else "rw",
            each["trouble"] or (_waiting(each["waiting"]) if each["waiting"] else "in order"),
            each["url"],
        )
        for each in reply["mounts"]
    ]
    yield Table(("PATH", "MODE", "STATE", "URL"), rows)


def _waiting(count: int) -> str:
    return f"{_count(count, 'change')} to be pushed"


def _info(reply: Reply) -> Iterator[Block]:
    yield Line(f"{shown_path(reply['path'])} is {reply['url']}", "bold")
    rows = [
        ("mode", "read-only" if reply["read_only"] else "read-write"),
        *((f"option {name}", value) for name, value in sorted(reply["options"].items())),
        ("objects", f"{reply['objects']:,}"),
        ("bytes", f"{reply['size_bytes']:,}"),
        ("fetched", f"{reply['fetched_bytes']:,}"),
        ("compared", reply["listed"] or "never"),
        ("interval", f"{reply['interval_s']} s" if reply["interval_s"] else "none"),
        ("source can", ", ".join(reply["capabilities"]) or "?"),
        ("to be pushed", f"{reply['waiting']:,}"),
    ]
    yield Table(("WHAT", "IS"), rows)
    if reply["trouble"]:
        yield Line(f"trouble: {reply['trouble']}", "red")
    for each in reply["unpushed"]:
        yield Line(f"here only  {shown_path(each['path'])}: {each['reason']}", "yellow")
    for each in reply["conflicts"]:
        other = "" if each["path2"] is None else f"; what was here is {shown_path(each['path2'])}"
        yield Line(
            f"conflict   op-{each['seq']} {each['time']} {shown_path(each['path'])}{other}",
            "yellow",
        )
    for each in reply["odd_keys"]:
        yield Line(f"odd key    {each['key']} is shown as {each['path']}")


def _refreshed(reply: Reply) -> Iterator[Block]:
    parts = [f"{reply[name]:,} {name}" for name in ("added", "changed", "removed", "conflicts")]
    yield Line(f"{shown_path(reply['path'])}: {', '.join(parts)}; {reply['pushed']:,} pushed.")
    if reply["waiting"]:
        yield Line(f"{_waiting(reply['waiting'])}: nexus-ctl mounts info says why.", "yellow")


def _removed(reply: Reply) -> Iterator[Block]:
    yield Line(
        f"{reply['url']} is attached no more at {shown_path(reply['path'])};"
        f" `undo op-{reply['seq']}` attaches it again.",
        "bold",
    )


BLOCKS: dict[str, Callable[[Reply], Iterator[Block]]] = {
    "mounts-add": _added,
    "mounts-list": _list,
    "mounts-info": _info,
    "mounts-refresh": _refreshed,
    "mounts-remove": _removed,
}
