"""What the machine draws: names, places in the tree, sizes, bytes, flags."""

from __future__ import annotations

import os
import random
from dataclasses import dataclass
from functools import lru_cache

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from .permissions import (
    ACCESS,
    DEFAULT,
    GROUP,
    GROUP_OBJ,
    MASK,
    OTHER,
    ROOT,
    USER,
    USER_OBJ,
    Acl,
    AclEntry,
    Caller,
)
from .reference import KEEP, RENAME_EXCHANGE, RENAME_NOREPLACE
from .reference_tree import NAME_MAX
from .tree import SPECIAL, Kind

MIB = 1 << 20
XATTR_VALUE_MAX = 60_000

NAMES = (
    b"a",
    b"b",
    b"c",
    b"report.txt",
    b"A",
    b".hidden",
    b"-rf",
    b"new\nline",
    b" ",
    b"caf\xe9",  # Latin-1: not UTF-8
    b"\xff\xfe\x80",
    "caf\u00e9".encode(),
    b"n" * NAME_MAX,
    "\u00e9".encode() * 127 + b"x",  # 255 bytes, 128 characters
    b"\xfe" * NAME_MAX,
)
FEW_NAMES = NAMES[:4]
TOO_LONG = (b"n" * (NAME_MAX + 1), "\u00e9".encode() * 128)


@dataclass(frozen=True, slots=True)
class Existing:
    """The path number ``index`` (modulo their count) of those of a kind; any kind if none.

    ``with_xattrs`` prefers those that have some, whatever their kind.
    """

    index: int
    kind: Kind | None = None
    with_xattrs: bool = False


@dataclass(frozen=True, slots=True)
class Under:
    """A name, which may or may not exist, in some directory or (wrongly) under a file."""

    parent: Existing
    name: bytes


Spot = Existing | Under


@dataclass(frozen=True, slots=True)
class Fill:
    """``length`` bytes that ``seed`` determines; cheap to draw, to shrink and to make."""

    seed: int
    length: int

    def data(self) -> bytes:
        return _filled(self.seed, self.length)


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a burst on one file, as fsx makes them."""

    op: str
    offset: int
    fill: Fill


@lru_cache(maxsize=64)
def _filled(seed: int, length: int) -> bytes:
    if seed == 0:
        return bytes(length)
    if seed == 1:  # compresses, and repeats within a chunk
        return (b"the same line again\n" * (length // 20 + 1))[:length]
    if seed == 2:  # every position is recognisable
        return b"".join(n.to_bytes(8, "big") for n in range(length // 8 + 1))[:length]
    return random.Random(seed).randbytes(length)


def _is_name(name: bytes) -> bool:
    # A virtual .nexus is in every directory of a mount: not ours to create.
    return name not in (b".", b"..", b".nexus")


_byte = st.sampled_from([n for n in range(1, 256) if n != ord("/")])
new_names = st.lists(_byte, min_size=1, max_size=12).map(bytes).filter(_is_name)
_pool = st.sampled_from(NAMES)
# Not integers(): it draws the ends too often, and 0 is the root.
indexes = st.sampled_from(range(64))


def names(drawn: SearchStrategy[bytes]) -> SearchStrategy[bytes]:
    """Mostly names that other directories have too, now and then one that is too long."""
    few = st.sampled_from(FEW_NAMES)
    rare = st.one_of(_pool, drawn, st.sampled_from(TOO_LONG))
    return st.sampled_from([few, few, few, _pool, _pool, drawn, rare]).flatmap(lambda names: names)


def existing(*kinds: Kind | None) -> SearchStrategy[Existing]:
    return st.builds(Existing, indexes, st.sampled_from(kinds or (None,)))


def spots(drawn: SearchStrategy[bytes], *kinds: Kind | None) -> SearchStrategy[Spot]:
    """Mostly something that exists, of these kinds; sometimes anything, sometimes nothing."""
    there = existing(*kinds)
    return st.one_of(there, there, there, existing(), unders(drawn))


def xattr_spots(drawn: SearchStrategy[bytes]) -> SearchStrategy[Spot]:
    """Half the time something that has an xattr."""
    having = st.builds(Existing, indexes, with_xattrs=st.just(True))
    others = spots(drawn, Kind.FILE, Kind.DIRECTORY)
    return st.booleans().flatmap(lambda there: having if there else others)


def unders(drawn: SearchStrategy[bytes]) -> SearchStrategy[Under]:
    directory = existing(Kind.DIRECTORY)
    parent = st.one_of(directory, directory, directory, directory, directory, existing())
    return st.builds(Under, parent, names(drawn))


_small = st.integers(0, 64)
_around_pages = st.builds(
    lambda page, off: max(0, page * 4096 + off), st.integers(0, 20), st.integers(-2, 2)
)
_medium = st.integers(0, 300 * 1024)
_around_chunks = st.builds(
    lambda chunk, off: chunk * MIB + off, st.integers(1, 2), st.sampled_from([-4097, -1, 0, 1, 777])
)
# One in eight crosses a chunk; the rest keeps the run quick.
sizes = st.one_of(_small, _small, _around_pages, _around_pages, _medium, _medium, _medium,
                  _around_chunks)  # fmt: skip
lengths = st.one_of(_small, _small, _small, _around_pages, _around_pages, _medium, _medium,
                    _around_chunks)  # fmt: skip
fills = st.builds(Fill, st.integers(0, 9), lengths)

bursts = st.lists(
    st.builds(
        Step,
        st.sampled_from(["write", "write", "write", "read", "read", "truncate", "sync", "reopen"]),
        sizes,
        fills,
    ),
    min_size=1,
    max_size=12,
)

ALICE, BOB, NOBODY = Caller(1000, 1000), Caller(1001, 1001, (1000, 2000)), Caller(65534, 65534)
"""Bob is in Alice's group."""
callers = st.sampled_from([ROOT] * 6 + [ALICE] * 3 + [BOB] * 2 + [NOBODY])
others = st.sampled_from([ALICE, BOB, NOBODY])
set_ids = st.sampled_from([0o6777, 0o4777, 0o2777, 0o2767, 0o4766, 0o6666])

modes = st.sampled_from(
    [0o644, 0o600, 0o755, 0o777, 0o700, 0o640, 0o4755, 0o2775, 0o2644, 0o1755, 0o1777, 0o6777,
     0o664, 0o070, 0o007, 0o000]
)  # fmt: skip
ids = st.sampled_from([KEEP, KEEP, 0, 1, 1000, 1000, 1001, 2000, 65534, 100_000])
special = st.sampled_from((*SPECIAL, Kind.FILE))
rdevs = st.sampled_from([os.makedev(1, 3), os.makedev(8, 17), os.makedev(4095, 1_048_575)])
rename_flags = st.sampled_from(
    [0] * 6 + [RENAME_NOREPLACE] * 2 + [RENAME_EXCHANGE] * 2 + [RENAME_NOREPLACE | RENAME_EXCHANGE]
)
# ext4 goes from December 1901 (its first second is clamped) to 2446.
times_ns = st.one_of(
    st.sampled_from([0, 1, -1, 999_999_999, 1_000_000_000, 1_600_000_000_123_456_789]),
    st.integers((2 - 2**31) * 10**9, 2**33 * 10**9),
)

_access = st.sampled_from([os.O_RDONLY, os.O_WRONLY, os.O_RDWR, os.O_RDWR])
_extra = st.sampled_from(
    [0, 0, 0, os.O_TRUNC, os.O_APPEND, os.O_APPEND, os.O_TRUNC | os.O_APPEND, os.O_NOFOLLOW]
)
open_flags = st.builds(lambda access, extra: access | extra, _access, _extra)
create_flags = st.builds(
    lambda flags, excl: flags | os.O_CREAT | excl, open_flags, st.sampled_from([0, 0, os.O_EXCL])
)

xattr_names = st.sampled_from(
    [
        b"user.a",
        b"user.a",
        b"user.a",
        b"user.b",
        b"user.b",
        b"user.mime_type",
        b"user.caf\xe9",
        b"trusted.t",
        b"user." + b"x" * 250,
        b"user." + b"x" * 251,  # one byte too long
    ]
)
xattr_values = st.builds(
    Fill,
    st.integers(0, 9),
    st.one_of(_small, _small, st.just(255), st.just(1000), st.just(XATTR_VALUE_MAX)),
)
xattr_flags = st.sampled_from([0, 0, os.XATTR_CREATE, os.XATTR_REPLACE])

acl_names = st.sampled_from([ACCESS, ACCESS, DEFAULT])
_perms = st.integers(0, 7)


def _acl(perms: list[int], users: list[int], groups: list[int], masked: bool) -> bytes:
    """Return a list as setfacl(1) makes it: with a mask wherever there is somebody named."""
    given = iter(perms)
    named = [(USER, uid) for uid in sorted(users)], [(GROUP, gid) for gid in sorted(groups)]
    entries = [AclEntry(USER_OBJ, next(given))]
    entries += [AclEntry(tag, next(given), one) for tag, one in named[0]]
    entries.append(AclEntry(GROUP_OBJ, next(given)))
    entries += [AclEntry(tag, next(given), one) for tag, one in named[1]]
    if masked or users or groups:
        entries.append(AclEntry(MASK, next(given)))
    entries.append(AclEntry(OTHER, next(given)))
    return Acl(tuple(entries)).encode()


_somebody = st.lists(st.sampled_from([0, 1000, 1001, 2000, 65534]), max_size=2, unique=True)
acls = st.one_of(
    st.builds(_acl, st.lists(_perms, min_size=8, max_size=8), _somebody, _somebody, st.booleans()),
    st.sampled_from([b"", b"\2\0\0\0", b"\2\0\0", b"\3\0\0\0", b"\2\0\0\0" + bytes(8)]),
)


def targets(drawn: SearchStrategy[bytes]) -> SearchStrategy[bytes]:
    """Symlink targets: neighbours, cousins, loops, dangling, absolute, very long, empty."""
    near = names(drawn)
    return st.one_of(
        near,
        near,
        st.builds(lambda name: b"../" + name, near),
        st.builds(lambda one, two: one + b"/" + two, near, near),
        st.sampled_from([b".", b"..", b"a/..", b"./a", b"/nowhere", b"\xff\xff/x", b""]),
        st.sampled_from([b"t" * 4095, b"t" * 4096]),
    )
