"""Where objects are shown whose keys are no paths.

Source: docs/USAGE.md, "Attached buckets and folders".
"""

from __future__ import annotations

import pytest

from nexus_engine.attached.naming import path_of, place
from nexus_engine.types import NAME_MAX, Path


@pytest.mark.parametrize(
    ("key", "path"),
    [
        ("a", "a"),
        ("a/b c/ü", "a/b c/ü"),
        ("a//b", "a/%2Fb"),
        ("a///b", "a/%2F%2Fb"),
        ("/a", "%2Fa"),
        ("//", "%2F%2F"),
        ("a/", "a%2F"),
        ("a/./b", "a/%2E/b"),
        ("..", "%2E%2E"),
        ("a/..", "a/%2E%2E"),
        (".nexus/control", "%2Enexus/control"),
        ("a%2Fb", "a%2Fb"),
        ("nul\0", "nul%00"),
    ],
)
def test_a_key_is_shown_at_a_path_that_says_what_it_is(key: str, path: str) -> None:
    assert path_of(key.encode(), 1).decode() == path


def test_an_empty_object_whose_key_ends_in_a_slash_is_a_directory() -> None:
    assert path_of(b"a/b/", 0) == b"a/b"
    assert place({b"a/b/": 0, b"a/b/c": 1}, {}) == {b"a/b/": b"a/b", b"a/b/c": b"a/b/c"}


def test_a_name_that_is_too_long_is_cut_between_characters_and_stays_its_own() -> None:
    keys = [("ü" * 200 + end).encode() for end in "ab"]
    first, second = (path_of(key, 1) for key in keys)
    assert first != second
    assert len(first) <= NAME_MAX
    assert first.decode().startswith("ü" * 100)


def test_a_file_gives_way_to_a_directory_of_its_name() -> None:
    assert place({b"a": 1, b"a/b": 1}, {}) == {b"a": b"a (object)", b"a/b": b"a/b"}


def test_two_keys_never_have_one_path() -> None:
    keys = [b"a", b"a/", b"a/b", b"a (object)", b"a%2F", b"x//y", b"x/%2Fy"]
    placed = place(dict.fromkeys(keys, 1), {})
    assert sorted(placed) == sorted(keys)
    assert len(set(placed.values())) == len(keys)
    paths = set(placed.values())
    assert not [p for p in paths for other in paths if other.startswith(p + b"/")]


def test_what_is_shown_stays_where_it_is_unless_a_directory_needs_the_name() -> None:
    known = {b"a": Path(b"a"), b"b": Path(b"b"), b"c//d": Path(b"c/elsewhere")}
    found = dict.fromkeys([*known, b"a/x"], 1)
    assert place(found, known) == {b"a": b"a (object)", b"a/x": b"a/x"}
