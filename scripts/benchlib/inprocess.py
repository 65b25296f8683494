"""The command line of what is measured in one process, in a store of its own, without a mount."""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import TypeVar

import trio

R = TypeVar("R")


def measure_and_print(
    argv: Sequence[str],
    name: str,
    description: str | None,
    measure: Callable[[Path, int, int], Awaitable[R]],
    table: Callable[[R], str],
    *,
    count: int,
    counted: str,
) -> int:
    """Measure, and print the table.

    Args:
        measure: Called with a directory for a store, the count and the rounds.
        count: What ``--count`` is unless told otherwise; ``counted`` says of what.
    """
    parser = argparse.ArgumentParser(prog=f"scripts/bench {name}", description=description)
    parser.add_argument("--count", type=int, default=count, help=counted)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--directory", type=Path, default=os.environ.get("TMPDIR", "/var/tmp"))
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="nexus-bench-", dir=arguments.directory) as directory:
        print(table(trio.run(measure, Path(directory), arguments.count, arguments.rounds)))
    return 0
