"""Wait for a condition instead of for a time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from time import monotonic, sleep

POLL_S = 0.01


def wait_until(condition: Callable[[], bool], what: str, timeout_s: float = 30) -> None:
    """Return once the condition holds; fail when it does not come to."""
    deadline_s = monotonic() + timeout_s
    while not condition():
        assert monotonic() < deadline_s, f"{what}: not within {timeout_s} s"
        sleep(POLL_S)


def runs(pid: int) -> bool:
    """Tell whether a process runs; one that ended and waits for its parent does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"
