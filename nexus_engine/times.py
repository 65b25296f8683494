"""Ages as people write them, and times of files as the database and servers keep them.

In 64 bits nanoseconds since the epoch fit from 1677 to 2262. So the last codes at either end, two
years' worth, stand for microseconds beyond: to the years 4500 and -600. Codes are ordered as the
times are.
"""

from __future__ import annotations

import re
from datetime import datetime

_UNITS_S = {"w": 604_800, "d": 86_400, "h": 3600, "m": 60, "s": 1}
_AGE = re.compile("".join(rf"(?:(\d{{1,9}}){unit})?" for unit in _UNITS_S), re.ASCII)

_COARSE_CODES = 2**56
_EXACT_MAX = 2**63 - 1 - _COARSE_CODES
_LAST_US = _EXACT_MAX // 1000
_FIRST_US = -_EXACT_MAX // 1000


def parse_age(text: str) -> int | None:
    """Return the seconds of an age such as 90s, 2h, 1w or 1h30m, ``None`` for anything else."""
    match = _AGE.fullmatch(text) if text else None
    if match is None:
        return None
    numbers = zip(match.groups(), _UNITS_S.values(), strict=True)
    return sum(int(number) * unit_s for number, unit_s in numbers if number is not None)


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


def ns_of(when: datetime) -> int:
    """Return nanoseconds since 1970, exactly; a float would lose some."""
    return int(when.replace(microsecond=0).timestamp()) * 10**9 + when.microsecond * 1000
