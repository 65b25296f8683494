"""Taking the answer to a ranged GET: all of it, and nothing else, before the deadline."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from nexus_engine.backends.retrying import Again, Attempt
from nexus_engine.errors import ObjectStoreFailed

if TYPE_CHECKING:  # boto3 does without
    import requests

_PIECE = 256 << 10


def receive_answer(
    reply: requests.Response, offset: int, length: int, this: Attempt
) -> tuple[bytes, bool]:
    """Return the bytes of an answer of ``requests``, and whether they are the whole object."""
    size = reply.headers.get("Content-Length")
    said = reply.headers.get("Content-Range", "")
    expected, is_whole = expect(offset, length, said, None if size is None else int(size))
    return receive(reply.raw, expected, this), is_whole


def expect(
    offset: int, length: int, content_range: str, content_length: int | None
) -> tuple[int, bool]:
    """Return how many bytes the answer must have, and whether they are the whole object.

    Args:
        content_range: The header; empty where the server sends everything.
        content_length: The header; ``None`` if there is none.

    Raises:
        Again: what the server announces is not what was asked for.

    Source: RFC 9110, 14.4 and 15.3.7.
    """
    said = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+)", content_range)
    if said:
        first, last, size = map(int, said.groups())
    else:  # everything, or nothing that can be understood
        size = content_length if content_length is not None and not content_range else -1
        first, last = 0, size - 1
    expected = min(length, size - offset)
    begins_and_has = (first, last + 1 - first)
    if size < 0 or begins_and_has != (offset, expected) or content_length not in (expected, None):
        raise Again(
            ObjectStoreFailed(
                f"asked for {length} bytes from {offset}, the server sends {content_length}"
                f" ({content_range or 'all'})"
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
