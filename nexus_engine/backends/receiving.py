"""Taking the answer to a ranged GET: all of it, and nothing else, before the deadline."""

from __future__ import annotations

import mmap
import re
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from nexus_engine.backends.base import View
from nexus_engine.backends.retrying import Again, Attempt
from nexus_engine.errors import ObjectStoreFailed

if TYPE_CHECKING:  # boto3 does without
    import requests

_PIECE = 256 << 10


def receive_answer(
    reply: requests.Response, offset: int, length: int, this: Attempt
) -> tuple[View, bool]:
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


def receive(body: Any, expected: int, this: Attempt) -> View:
    """Return the bytes of a body.

    Args:
        body: An ``HTTPResponse`` of urllib3, on which both SDKs stand.

    Raises:
        Again: it ends early.
        TimeoutError: the deadline is past.
    """
    if not expected:
        return b""
    # Each piece goes to its place while the processor has it at hand. To join them at the end would
    # take twice the memory, and Python's lock for milliseconds; so would the zeros of a bytearray.
    content, done = mmap.mmap(-1, expected, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS), 0
    with suppress(OSError):  # a kernel without
        content.madvise(mmap.MADV_HUGEPAGE)
    while done < expected:
        this.wait_s()
        # What one call of the socket returns: `read` would wait for all of it, however slowly it
        # comes, for each byte is a sign of life.
        piece: bytes = body.read1(min(_PIECE, expected - done))
        if not piece:
            raise Again(ObjectStoreFailed(f"{expected - done} of {expected} bytes are missing"))
        if len(piece) == expected:
            return piece
        content[done : done + len(piece)] = piece
        done += len(piece)
    return memoryview(content).toreadonly()
