"""What verbs about workspaces answer, as people read it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from nexus_engine.commands import Reply
from nexusfuse.ctl.blocks import Block, Line, Table, shown_path


def _made(reply: Reply) -> Iterator[Block]:
    yield Line(
        f"Workspace {reply['name']} is {shown_path(reply['path'])}; it begins as"
        f" {_base(reply)} is now.",
        "bold",
    )


def _list(reply: Reply) -> Iterator[Block]:
    if not reply["workspaces"]:
        yield Line("There are no workspaces.")
        return
    rows = [
        (each["name"], f"op-{each['as_of']}", shown_path(each["path"]), _base(each))
        for each in reply["workspaces"]
    ]
    yield Table(("NAME", "AS OF", "PATH", "OVER"), rows)


def _discarded(reply: Reply) -> Iterator[Block]:
    yield Line(
        f"Workspace {reply['name']} is discarded; `undo op-{reply['seq']}` brings it back.", "bold"
    )


def _base(reply: dict[str, Any]) -> str:
    return "(removed)" if reply["over"] is None else shown_path(reply["over"])


BLOCKS: dict[str, Callable[[Reply], Iterator[Block]]] = {
    "workspace-create": _made,
    "workspace-list": _list,
    "workspace-discard": _discarded,
}
