"""ACLs: the kernel's form, and what follows from a list. Source: acl(5)."""

from __future__ import annotations

import struct

import pytest

from nexus_engine import errors
from nexus_engine.permissions.acl import Acl

OWNER, USER, GROUP_OBJ, GROUP, MASK, OTHER = 1, 2, 4, 8, 16, 32
NOBODY = 0xFFFFFFFF
Entry = tuple[int, int, int]

MINIMAL: list[Entry] = [(OWNER, 6, NOBODY), (GROUP_OBJ, 4, NOBODY), (OTHER, 0, NOBODY)]
EXTENDED: list[Entry] = [
    (OWNER, 7, NOBODY),
    (USER, 6, 1000),
    (USER, 0, 1001),
    (GROUP_OBJ, 5, NOBODY),
    (GROUP, 2, 50),
    (GROUP, 4, 60),
    (MASK, 6, NOBODY),
    (OTHER, 1, NOBODY),
]


def encoded(entries: list[Entry], version: int = 2) -> bytes:
    return struct.pack("<I", version) + b"".join(struct.pack("<HHI", *e) for e in entries)


def acl_of(entries: list[Entry]) -> Acl:
    acl = Acl.decode(encoded(entries))
    assert acl is not None
    return acl


@pytest.mark.parametrize("entries", [MINIMAL, EXTENDED])
def test_a_list_comes_back_as_it_was(entries: list[Entry]) -> None:
    assert acl_of(entries).encode() == encoded(entries)
    assert acl_of(entries).is_minimal == (entries is MINIMAL)


def test_the_empty_list_is_none() -> None:
    assert Acl.decode(encoded([])) is None


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"\2\0\0",
        encoded(MINIMAL, version=1),
        encoded(MINIMAL)[:-1],
        encoded(MINIMAL[:2]),  # no entry for others
        encoded([*MINIMAL, MINIMAL[2]]),  # two of them
        encoded(MINIMAL[::-1]),
        encoded([(OWNER, 8, NOBODY), *MINIMAL[1:]]),  # permissions have three bits
        encoded([MINIMAL[0], (USER, 4, 1000), *MINIMAL[1:]]),  # named users need a mask
        encoded([*EXTENDED[:2], EXTENDED[1], *EXTENDED[2:]]),  # one user twice
        encoded([EXTENDED[0], (USER, 4, NOBODY), *EXTENDED[3:]]),
        encoded([*MINIMAL, (64, 7, NOBODY)]),
    ],
)
def test_what_is_no_valid_list_is_refused(value: bytes) -> None:
    with pytest.raises(errors.InvalidArgument):
        Acl.decode(value)


def test_permission_bits_show_the_mask_as_the_group() -> None:
    assert acl_of(MINIMAL).permission_bits == 0o640
    assert acl_of(EXTENDED).permission_bits == 0o761


def test_chmod_changes_owner_mask_and_others() -> None:
    changed = acl_of(EXTENDED).with_bits(0o214)
    assert changed.permission_bits == 0o214
    assert [e for e in changed.entries if e.tag in (USER, GROUP_OBJ, GROUP)] == [
        e for e in EXTENDED if e[0] in (USER, GROUP_OBJ, GROUP)
    ]
    assert acl_of(MINIMAL).with_bits(0o214).permission_bits == 0o214


@pytest.mark.parametrize(
    ("mode", "expected"), [(0o666, 0o660), (0o777, 0o761), (0o600, 0o600), (0o4755, 0o4741)]
)
def test_what_is_made_gets_what_both_list_and_program_grant(mode: int, expected: int) -> None:
    got, acl = acl_of(EXTENDED).inherited(mode)
    assert got == expected
    assert acl.permission_bits == expected & 0o777


@pytest.mark.parametrize(
    ("uid", "gids", "want", "granted"),
    [
        (7, {5}, 7, True),  # the owner, whom no mask limits
        (1000, {5}, 6, True),
        (1000, {5}, 1, False),
        (1001, {60}, 4, False),  # a named user's entry is the last word
        (2000, {5}, 4, True),
        (2000, {5}, 1, False),  # the mask
        (2000, {50, 60}, 6, False),  # one group must grant all of it
        (2000, {60}, 4, True),
        (2000, {70}, 1, True),
        (2000, {60}, 1, False),  # a group that matches keeps others' entry away
    ],
)
def test_the_most_specific_entry_decides(
    uid: int,
    gids: set[int],
    want: int,
    granted: bool,
) -> None:
    assert acl_of(EXTENDED).allows(want, uid, gids, (7, 5)) is granted
