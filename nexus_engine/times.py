"""Times of files as the database keeps them: 64 bits, and thousands of years.

Nanoseconds since the epoch fit from 1677 to 2262. So the last codes at either end, two years'
worth, stand for microseconds beyond: to the years 4500 and -600. Codes are ordered as the times
are.
"""

from __future__ import annotations

_COARSE_CODES = 2**56
_EXACT_MAX = 2**63 - 1 - _COARSE_CODES
_LAST_US = _EXACT_MAX // 1000
_FIRST_US = -_EXACT_MAX // 1000


def pack_time(ns: int) -> int:
    """Return the code of a time; of the last one before it that has a code.

    Args:
        ns: Nanoseconds since the epoch.
    """
    if -_EXACT_MAX <= ns <= _EXACT_MAX:
        return ns
    us = ns // 1000
    if ns > 0:
        return _EXACT_MAX + min(us - _LAST_US, _COARSE_CODES)
    return -_EXACT_MAX - min(_FIRST_US - us + 1, _COARSE_CODES)


def unpack_time(code: int) -> int:
    """Return the time (ns) that a code stands for."""
    if -_EXACT_MAX <= code <= _EXACT_MAX:
        return code
    if code > 0:
        return (_LAST_US + code - _EXACT_MAX) * 1000
    return (_FIRST_US + 1 + code + _EXACT_MAX) * 1000
