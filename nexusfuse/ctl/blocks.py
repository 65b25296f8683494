"""What replies are shown as: lines and tables."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import NamedTuple


class Line(NamedTuple):
    text: str
    style: str = ""
    """A rich style, for terminals."""


class Table(NamedTuple):
    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    styles: tuple[str, ...] = ()
    """A rich style for each row, or nothing."""


Block = Line | Table


def moment(time_ns: int) -> str:
    """Return a time as this machine's clock on the wall showed it."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(time_ns // 1_000_000_000))


def shown_path(path: str) -> str:
    return "/" + path
