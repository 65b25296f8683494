"""Trying again while another process is writing."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from nexus_engine import errors

P = ParamSpec("P")
R = TypeVar("R")

BUSY_LIMIT_S = 30.0
"""A writer waits this long for another process's transaction."""


def retry(action: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
    """Run something again while another process is writing; blocks.

    Raises:
        StoreBusy: It went on for half a minute.
    """
    delay_s, deadline_s = 0.0005, time.monotonic() + BUSY_LIMIT_S
    while True:
        try:
            return action(*args, **kwargs)
        except errors.StoreBusy:
            if time.monotonic() > deadline_s:
                raise
        time.sleep(delay_s)
        delay_s = min(delay_s * 2, 0.05)
