"""How long work gets on, on one line of the terminal."""

from __future__ import annotations

import sys
import time
from types import TracebackType

_DELAY_S = 0.5
"""What is over sooner shows nothing."""
_INTERVAL_S = 0.1
_CLEAR = "\r\x1b[K"


class ProgressLine:
    """A ``Progress`` that rewrites one line of stderr; silent where that is no terminal."""

    def __init__(self) -> None:
        self._enabled = sys.stderr.isatty()
        self._next_s = time.monotonic() + _DELAY_S
        self._shown = False

    def __call__(self, what: str, done: int, total: int | None) -> None:
        now_s = time.monotonic()
        if not self._enabled or now_s < self._next_s:
            return
        self._next_s = now_s + _INTERVAL_S
        self._shown = True
        of = f"/{total:,} ({done * 100 // total}%)" if total else ""
        sys.stderr.write(f"{_CLEAR}{what}: {done:,}{of}")
        sys.stderr.flush()

    def __enter__(self) -> ProgressLine:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._shown:
            sys.stderr.write(_CLEAR)
            sys.stderr.flush()
