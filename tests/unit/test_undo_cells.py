"""The arithmetic of undo: a cell, its changes, and what is left when some of them go.

A history is written as one letter per change: the value after it, upper case if it is selected.
"""

from __future__ import annotations

import pytest

from nexus_engine.history.undo.cells import BASE, Outcome, settle, settle_by_force
from nexus_engine.types import Seq


def decide(history: str, *, force: bool = False) -> Outcome[str]:
    """Settle a cell that was ``a`` before."""
    changes = [(Seq(index + 1), value.lower()) for index, value in enumerate(history)]
    selected = {Seq(index + 1) for index, value in enumerate(history) if value.isupper()}
    return (settle_by_force if force else settle)("a", changes, selected.__contains__)


@pytest.mark.parametrize(
    ("history", "target", "reverted", "superseded", "conflicts"),
    [
        ("", "a", [], {}, {}),
        ("b", "b", [], {}, {}),
        ("B", "a", [1], {}, {}),
        ("BC", "a", [2, 1], {}, {}),
        ("bC", "b", [2], {}, {}),
        ("Bc", "c", [], {}, {1: 2}),
        ("BcD", "c", [3], {}, {1: 2}),
        # Bob's edit and its undo.
        ("Bcb", "a", [1], {}, {}),
        ("Bcdcb", "a", [1], {}, {}),
        ("bcbC", "b", [4], {}, {}),
        # Undone by somebody, and redone.
        ("Bab", "a", [1], {}, {}),
        # Taken back by somebody already.
        ("Ba", "a", [], {1: 2}, {}),
        ("BCa", "a", [], {1: 3, 2: 3}, {}),
        ("BCb", "a", [1], {2: 3}, {}),
        ("BaC", "a", [3], {1: 2}, {}),
        ("BcDeC", "e", [5], {}, {1: 2, 3: 4}),
    ],
)
def test_a_cell_goes_back_as_far_as_others_let_it(
    history: str,
    target: str,
    reverted: list[int],
    superseded: dict[int, int],
    conflicts: dict[int, int],
) -> None:
    outcome = decide(history)
    assert outcome.target == target
    assert outcome.reverted == reverted
    assert outcome.superseded == superseded
    assert outcome.conflicts == conflicts


@pytest.mark.parametrize(
    ("history", "target"), [("Bc", "a"), ("bCdEf", "b"), ("BcbD", "a"), ("bcD", "c")]
)
def test_force_goes_back_to_before_the_first_selected_change(history: str, target: str) -> None:
    outcome = decide(history, force=True)
    assert (outcome.target, outcome.conflicts) == (target, {})


def test_the_target_says_which_change_made_it() -> None:
    assert decide("B").target_seq == BASE
    assert decide("bC").target_seq == 1


def test_others_are_those_that_stay() -> None:
    assert decide("bcbdE").others == [1, 4]


def test_a_long_history_takes_no_time() -> None:
    changes = [(Seq(seq), seq % 1000) for seq in range(1, 200_000)]
    assert settle(-1, changes, lambda seq: seq == 199_999).reverted == [199_999]
