"""Inode numbers of what is in no table say what they are."""

from __future__ import annotations

import pytest

from nexus_engine import errors
from nexus_engine.types import Ino, Seq
from nexusfuse.virtual import numbers
from nexusfuse.virtual.numbers import Moments, NodeKind, inode_part, is_named, is_node, is_past

SMALL, LARGE = (1 << 30) - 1, 1 << 30


@pytest.mark.parametrize("seq", [0, 1, SMALL, LARGE, 1 << 50])
@pytest.mark.parametrize("ino", [1, SMALL, LARGE, (1 << 40) - 1])
def test_a_number_of_the_past_holds_moment_and_inode(seq: int, ino: int) -> None:
    moments = Moments()
    moments.number(Seq(1 << 52), Ino(7))  # takes a slot
    number = moments.number(Seq(seq), Ino(ino))
    assert moments.split(number) == (seq, ino)
    assert inode_part(number) == ino
    assert is_past(number)
    assert not is_node(number)
    assert not is_named(number)
    assert number < 1 << 63
    assert moments.number(Seq(seq), Ino(ino)) == number


def test_a_node_is_not_of_the_past() -> None:
    number = numbers.node_number(NodeKind.HISTORY, 9)
    assert not is_past(number)
    assert numbers.split_node(number) == (NodeKind.HISTORY, 9)
    assert inode_part(number) == 9


def test_moments_of_a_store_of_usual_size_take_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numbers, "_FIELD_MAX", 1)
    moments = Moments()
    for seq in range(10):
        moments.number(Seq(seq), Ino(1))
    for seq in (LARGE, LARGE + 1):
        moments.number(Seq(seq), Ino(1))
    with pytest.raises(errors.TooManyMoments):
        moments.number(Seq(LARGE + 2), Ino(1))
