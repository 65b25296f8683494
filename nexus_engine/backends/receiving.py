"""Taking the answer to a ranged GET: all of it, and nothing else, before the deadline."""

from __future__ import annotations

import re
from typing import Any

from nexus_engine.backends.retrying import Again, Attempt
from nexus_engine.errors import ObjectStoreFailed

_PIECE = 256 << 10


def expect(offset: int, length: int, content_range: str, content_length: int) -> tuple[int, bool]:
    """Return how many bytes the answer must have, and whether they are the whole object.

    Args:
        content_range: The header; empty where the server sends everything.

    Raises:
        Again: what the server announces is not what was asked for.

    Source: RFC 9110, 14.4 and 15.3.7.
    """
    said = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+)", content_range)
    first, last, size = map(int, said.groups()) if said else (0, content_length - 1, content_length)
    expected = min(length, size - offset)
    if first != offset or last - first + 1 != expected or content_length != expected:
        raise Again(
            ObjectStoreFailed(
                f"asked for {length} bytes from {offset}, the server sends {content_length}"
                f" from {first} of {size}"
            )
        )
    return expected, expected == size


def receive(body: Any, expected: int, this: Attempt) -> bytes:
    """Return the bytes of a body.

    Args:
        body: An ``HTTPResponse`` of urllib3, on which both SDKs stand.

    Raises:
        Again: it ends early.
        TimeoutError: the deadline is past.
    """
    pieces, missing = [], expected
    while missing:
        this.wait_s()
        # What one call of the socket returns: `read` would wait for all of it, however slowly it
        # comes, for each byte is a sign of life.
        piece = body.read1(min(_PIECE, missing))
        if not piece:
            raise Again(ObjectStoreFailed(f"{missing} of {expected} bytes are missing"))
        pieces.append(piece)
        missing -= len(piece)
    return b"".join(pieces)
