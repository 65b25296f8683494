"""Time, ids and randomness: the seam through which tests make runs repeatable."""

from __future__ import annotations

import os
import time
from typing import Protocol


class Clock(Protocol):
    """Where the engine takes time and random bits from."""

    def time_ns(self) -> int:
        """Return nanoseconds since the epoch."""
        ...

    def random_bytes(self, length: int) -> bytes:
        """Return ``length`` unpredictable bytes."""
        ...


class SystemClock:
    """The real thing."""

    time_ns = staticmethod(time.time_ns)
    random_bytes = staticmethod(os.urandom)


def uuid7(time_ns: int, random: bytes) -> bytes:
    """Return a UUID version 7.

    Args:
        time_ns: Nanoseconds since the epoch; milliseconds go into the id.
        random: 10 bytes.

    Returns:
        16 bytes, ordered by time to the millisecond.

    Source: RFC 9562, section 5.7.
    """
    high = (time_ns // 1_000_000) << 16 | 0x7000 | (random[0] << 8 | random[1]) & 0x0FFF
    low = int.from_bytes(random[2:10], "big") & 0x3FFF_FFFF_FFFF_FFFF | 0x8000_0000_0000_0000
    return (high << 64 | low).to_bytes(16, "big")
