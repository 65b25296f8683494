"""How long the machine runs, and how a failure is run again.

Quick runs are the same every time. ``--slow`` (of tests/conftest.py) draws a
seed and runs thousands of steps. These environment variables override both:
``NEXUS_MODEL_SEED``, ``NEXUS_MODEL_EXAMPLES``, ``NEXUS_MODEL_STEPS``.
"""

from __future__ import annotations

import os
import random
import shlex
from collections.abc import Callable
from dataclasses import dataclass

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import run_state_machine_as_test

from .drivers import Driver
from .machine import machine_for


@dataclass(frozen=True, slots=True)
class Effort:
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


def run_machine(
    request: pytest.FixtureRequest, new_driver: Callable[[], Driver], effort: Effort
) -> None:
    """Run the machine on the drivers that ``new_driver`` makes, one per example."""
    machine = machine_for(new_driver)
    if effort.seed is not None:
        seed(effort.seed)(machine)
    try:
        run_state_machine_as_test(
            machine,
            settings=settings(
                max_examples=effort.examples,
                stateful_step_count=effort.steps,
                derandomize=effort.seed is None,
                database=None,
                deadline=None,
                print_blob=True,
                phases=(Phase.generate, Phase.shrink),
                suppress_health_check=list(HealthCheck),
            ),
        )
    except BaseException as error:
        error.add_note(f"again: {_command(request, effort)}")
        raise


def _command(request: pytest.FixtureRequest, effort: Effort) -> str:
    chosen = f"NEXUS_MODEL_EXAMPLES={effort.examples} NEXUS_MODEL_STEPS={effort.steps}"
    if effort.seed is not None:
        chosen = f"NEXUS_MODEL_SEED={effort.seed} {chosen}"
    return f"{chosen} pytest {shlex.quote(request.node.nodeid)}"
