"""How long the machine runs, and how a failure is run again.

Quick runs are the same every time. ``--slow`` draws a seed and runs thousands
of steps. These environment variables override both: ``NEXUS_MODEL_SEED``,
``NEXUS_MODEL_EXAMPLES``, ``NEXUS_MODEL_STEPS``. ``NEXUS_MODEL_SHRINK=0`` reports
the first failure as it is: on a mount, making it small takes minutes.
"""

from __future__ import annotations

import gc
import os
import random
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import run_state_machine_as_test

from .drivers import Driver
from .machine import machine_for

# What hypothesis remembers of a run grows with it: about a megabyte for each
# example. A batch starts afresh, and is what has to be run again.
BATCH = 200

LONGEST_S = 7_200
"""For ``pytest.mark.timeout``: a slow run takes an hour."""


@dataclass(frozen=True, slots=True)
class Effort:
    """``seed`` is None for the examples that are the same every time."""

    examples: int
    steps: int
    seed: int | None

    @classmethod
    def of(cls, request: pytest.FixtureRequest, *, quick: int, slow: int) -> Effort:
        """Take the number of examples that ``--slow`` asks for, or doesn't."""
        is_slow = bool(request.config.getoption("--slow", default=False))
        chosen = os.environ.get("NEXUS_MODEL_SEED")
        drawn = random.SystemRandom().getrandbits(32) if is_slow else None
        return cls(
            examples=int(os.environ.get("NEXUS_MODEL_EXAMPLES", slow if is_slow else quick)),
            steps=int(os.environ.get("NEXUS_MODEL_STEPS", 100 if is_slow else 40)),
            seed=int(chosen) if chosen else drawn,
        )

    def batches(self) -> Iterator[Effort]:
        if self.seed is None:
            yield self
            return
        for number, done in enumerate(range(0, self.examples, BATCH)):
            examples = min(BATCH, self.examples - done)
            yield replace(self, examples=examples, seed=self.seed + number)

    def __str__(self) -> str:
        chosen = "" if self.seed is None else f"NEXUS_MODEL_SEED={self.seed} "
        return f"{chosen}NEXUS_MODEL_EXAMPLES={self.examples} NEXUS_MODEL_STEPS={self.steps}"


def run_machine(
    request: pytest.FixtureRequest, new_driver: Callable[[], Driver], effort: Effort
) -> None:
    """Run the machine on the drivers that ``new_driver`` makes, one per example."""
    for batch in effort.batches():
        try:
            _run(new_driver, batch)
        except (Exception, pytest.fail.Exception) as error:
            error.add_note(f"again: {batch} pytest {shlex.quote(request.node.nodeid)}")
            raise
        gc.collect()


def _run(new_driver: Callable[[], Driver], effort: Effort) -> None:
    machine = machine_for(new_driver)
    if effort.seed is not None:
        seed(effort.seed)(machine)
    phases = [Phase.generate]
    if os.environ.get("NEXUS_MODEL_SHRINK", "1") != "0":
        phases.append(Phase.shrink)
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=effort.examples,
            stateful_step_count=effort.steps,
            derandomize=effort.seed is None,
            database=None,
            deadline=None,
            print_blob=True,
            phases=phases,
            suppress_health_check=list(HealthCheck),
        ),
    )
