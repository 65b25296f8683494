"""Times of files as the database keeps them: 64 bits, and thousands of years.

Nanoseconds since the epoch fit from 1677 to 2262. So the last codes at either end, two years'
worth, stand for microseconds beyond: to the years 4500 and -600. Codes are ordered as the times
are.
"""

from __future__ import annotations

_COARSE_CODES = 2**56
_EXACT_MAX = 2**63 - 1 - _COARSE_CODES
_UNIT_NS = 1000


def pack_time(ns: int) -> int:
    """Return the code of a time; the nearest one where there is none.

    Args:
        ns: Nanoseconds since the epoch.
    """
    if -_EXACT_MAX <= ns <= _EXACT_MAX:
        return ns
    beyond = min((abs(ns) - _EXACT_MAX) // _UNIT_NS, _COARSE_CODES)
    return _EXACT_MAX + beyond if ns > 0 else -_EXACT_MAX - beyond


def unpack_time(code: int) -> int:
    """Return the time (ns) that a code stands for."""
    if -_EXACT_MAX <= code <= _EXACT_MAX:
        return code
    # Rounded to the unit, which whole seconds are multiples of.
    magnitude = _EXACT_MAX + (abs(code) - _EXACT_MAX) * _UNIT_NS
    magnitude += -magnitude % _UNIT_NS
    return magnitude if code > 0 else -magnitude
