"""How much an operation asks of the daemon: it may not come to be more unnoticed."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchlib import counts
from benchlib.counts import Counts, Grown


def test_no_operation_needs_more_requests_or_statements_than_it_did(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """``scripts/bench counts --write`` writes down what was improved, or had to be."""
    found, known = counts.measure(tmp_path), counts.committed()
    with capsys.disabled():  # a log of CI then shows what changed
        print(f"\n{counts.table(found, known)}")  # noqa: T201
    counts.require_not_grown(found, known)


def test_what_grew_is_named() -> None:
    known = {"create": Counts(requests=6, statements=20), "stat": Counts(0, 0)}
    counts.require_not_grown({"create": Counts(6.01, 19)}, known)
    with pytest.raises(Grown, match="create: requests per operation were 6 and are 7"):
        counts.require_not_grown({"create": Counts(7, 20)}, known)
    with pytest.raises(Grown, match="stat: statements per operation were 0 and are 3"):
        counts.require_not_grown({"stat": Counts(0, 3)}, known)


def test_requests_of_another_kernel_are_not_compared() -> None:
    known = {"create": Counts(requests=None, statements=20)}
    counts.require_not_grown({"create": Counts(9, 20)}, known)
