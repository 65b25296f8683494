"""What an answer to a ranged GET may say: RFC 9110, 14.4 and 15.3.7."""

from __future__ import annotations

import pytest

from nexus_engine.backends.receiving import expect
from nexus_engine.backends.retrying import Again


@pytest.mark.parametrize(
    ("offset", "length", "content_range", "content_length", "expected"),
    [
        (0, 10, "bytes 0-9/100", 10, (10, False)),
        (90, 20, "bytes 90-99/100", 10, (10, False)),
        (0, 200, "bytes 0-99/100", 100, (100, True)),
        (0, 100, "bytes 0-99/100", None, (100, True)),
        (0, 100, "", 100, (100, True)),
        (0, 200, "", 100, (100, True)),
    ],
)
def test_an_answer_that_fits_is_taken(
    offset: int,
    length: int,
    content_range: str,
    content_length: int | None,
    expected: tuple[int, bool],
) -> None:
    assert expect(offset, length, content_range, content_length) == expected


@pytest.mark.parametrize(
    ("offset", "length", "content_range", "content_length"),
    [
        (0, 10, "bytes 0-4/100", 5),  # less than there is
        (0, 10, "bytes 0-9/100", 5),  # and Content-Length says so
        (0, 10, "bytes 1-10/100", 10),  # another part
        (0, 10, "bytes 0-10/100", 11),  # more than was asked for
        (5, 10, "", 100),  # all of it
        (0, 10, "", 100),
        (0, 10, "", None),  # nothing said at all
        (0, 10, "bytes */100", 10),
    ],
)
def test_an_answer_that_does_not_is_asked_for_again(
    offset: int, length: int, content_range: str, content_length: int | None
) -> None:
    with pytest.raises(Again, match="asked for"):
        expect(offset, length, content_range, content_length)
