"""The one layer that tries again: with pauses, a deadline, and few requests at once."""

from __future__ import annotations

import io
import itertools
import os
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

from nexus_engine.backends.content import Content
from nexus_engine.errors import BackendError, EngineError, StoreHung

T = TypeVar("T")

REQUESTS_AT_ONCE = 4
"""Of one bucket in one process. The SDKs compute in Python: more threads delay the event loop of a
daemon more than they speed up transfers."""
DEADLINE_S = 60.0
_ATTEMPTS_AT_LEAST = 4
"""So many fit into a deadline even where the server keeps silent in each."""
_CONNECT_S = 10.0
_SLOWEST = 128 << 10
"""Bytes per second; a transfer gets as much time on top as it takes at this rate."""
_PAUSE_S, _PAUSE_MAX_S = 0.1, 5.0
_PIECE = 256 << 10
"""Given to a socket at once."""
PASSING_STATUSES = frozenset((408, 429, 500, 502, 503, 504))
"""Of HTTP: after these the same request may succeed."""


class Again(Exception):
    """An attempt failed; another may succeed.

    Args:
        error: What to raise when there is no time for another.
        after_s: The server asked for this pause.
    """

    def __init__(self, error: BackendError, *, after_s: float = 0.0) -> None:
        super().__init__(str(error))
        self.error = error
        self.after_s = after_s


Explain: TypeAlias = "Callable[[Exception, str, str], EngineError | Again]"


@dataclass(frozen=True, slots=True)
class Attempt:
    number: int
    """From 0. From 1 on, an earlier one may have done the work, and its answer was lost."""
    ends_s: float
    silence_s: float

    def wait_s(self) -> float:
        """Return for how long the next bytes may be waited for.

        Raises:
            TimeoutError: The deadline is past.
        """
        remaining = self.ends_s - time.monotonic()
        if remaining <= 0:
            raise TimeoutError("the deadline is past")
        return min(self.silence_s, remaining)

    def send_s(self, size: int) -> float:
        """Like `wait_s`, where one call of a socket sends so many bytes."""
        return self.wait_s() + size / _SLOWEST


class Tries:
    """Does requests of one SDK, and says in our own words what came of them.

    Args:
        failures: What the SDK raises.
        explain: Returns what to raise instead, given what was done ("cannot …") and ``url``.
        url: The bucket's.
    """

    def __init__(
        self, retrying: Retrying, failures: tuple[type[Exception], ...], explain: Explain, url: str
    ) -> None:
        self._retrying = retrying
        self._failures = failures
        self._explain = explain
        self._url = url

    def __call__(self, doing: str, attempt: Callable[[Attempt], T], *, size: int = 0) -> T:
        """As `Retrying`, where an attempt may raise what the SDK raises."""

        def explained(this: Attempt) -> T:
            try:
                return attempt(this)
            except self._failures as error:
                raise self._explain(error, doing, self._url) from error

        return self._retrying(explained, size=size)

    def close(self) -> None:
        self._retrying.close()


class Sending(io.RawIOBase):
    """A body to send, of which nothing more is given out once the deadline is past.

    Not bytes: a socket's timeout would then be for all of them, however many there are. Of a file,
    no more is in memory than the socket takes at once.
    """

    def __init__(self, content: Content, attempt: Attempt) -> None:
        self._content = content
        self._attempt = attempt
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        begin = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._content.size}[whence]
        self._at = begin + offset
        return self._at

    def read(self, size: int | None = -1, /) -> bytes:
        self._attempt.wait_s()
        rest = max(0, self._content.size - self._at)
        # More than is asked for: that is 16 KiB, and each piece waits for the interpreter's lock.
        wanted = rest if size is None or size < 0 else min(max(size, _PIECE), rest)
        piece = self._content.read(self._at, wanted)
        self._at += len(piece)
        return piece


def final(error: EngineError | Again) -> EngineError:
    """Return what to raise where nothing is tried again."""
    return error.error if isinstance(error, Again) else error


class Retrying:
    """Calls functions until they return, fail for good, or time is up. Safe in any thread.

    Args:
        deadline_s: From the call to its end, waiting for a place among others included.
        chance: Returns from 0 to 1; pauses are spread by it, so that those who were refused
            together do not come back together.
    """

    def __init__(
        self, deadline_s: float = DEADLINE_S, *, chance: Callable[[], float] = random.random
    ) -> None:
        self.deadline_s = deadline_s
        self.silence_s = deadline_s / _ATTEMPTS_AT_LEAST
        self.connect_s = min(_CONNECT_S, self.silence_s)
        self._chance = chance
        self._places = threading.BoundedSemaphore(REQUESTS_AT_ONCE)
        self._closed = threading.Event()

    def __call__(self, attempt: Callable[[Attempt], T], *, size: int = 0) -> T:
        """Return what the first attempt to succeed returns.

        Args:
            attempt: Raises `Again` where it may be called again; must end soon after
                ``Attempt.ends_s``.
            size: Bytes to transfer.

        Raises:
            BackendError: That of the last attempt, which says how many there were.
        """
        begun_s = time.monotonic()
        ends_s = begun_s + self.deadline_s + size / _SLOWEST
        if not self._places.acquire(timeout=self.deadline_s):
            raise StoreHung(
                f"{REQUESTS_AT_ONCE} requests have been waiting for the server"
                f" for {self.deadline_s:g} s, and this one for them"
            )
        # What is for transfers is not for pauses: a server that refuses at once is not asked for
        # longer because much was to be sent.
        idle_s = time.monotonic() - begun_s
        try:
            for number in itertools.count():
                started_s = time.monotonic()
                try:
                    return attempt(Attempt(number, ends_s, self.silence_s))
                except Again as again:
                    last = again
                now_s = time.monotonic()
                pause_s = max(last.after_s, self._pause_s(number))
                idle_s += min(now_s - started_s, self.silence_s) + pause_s
                # What begins later than this could not end in time.
                is_late = max(now_s + pause_s - ends_s, idle_s - self.deadline_s) > -self.silence_s
                if is_late or self._closed.wait(pause_s):
                    raise self._give_up(last, number + 1, begun_s) from last.__cause__
            raise AssertionError("unreachable")
        finally:
            self._places.release()

    def close(self) -> None:
        """End all pauses: what fails now is not tried again."""
        self._closed.set()

    def _pause_s(self, number: int) -> float:
        """Source: "Exponential Backoff And Jitter" (AWS Architecture Blog): full jitter."""
        return self._chance() * min(_PAUSE_MAX_S, _PAUSE_S * 2.0**number)

    def _give_up(self, last: Again, attempts: int, begun_s: float) -> BackendError:
        took_s = time.monotonic() - begun_s
        return type(last.error)(f"{last.error} ({attempts} attempts in {took_s:.0f} s)")
