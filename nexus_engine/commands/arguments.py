"""The arguments of each verb, and the check that turns a mapping into them.

Paths are text relative to the root, without a leading slash; "" is the root. Bytes that are not
UTF-8 are lone surrogates, as ``os.fsdecode`` makes them.
"""

from __future__ import annotations

from typing import Annotated, TypeVar

import msgspec

from nexus_engine import errors
from nexus_engine.commands import Request
from nexus_engine.types import NAME_MAX, Path

PAGE_MAX = 100_000
"""Records in one reply; who wants more asks for the next page."""
_BYTES = frozenset({"path", "to", "key", "value", "over", "at"})
"""Arguments that stand for bytes; the others are text."""
_SEQ_MAX = 2**63 - 1

Count = Annotated[int, msgspec.Meta(ge=1, le=_SEQ_MAX)]
Number = Annotated[int, msgspec.Meta(ge=0, le=_SEQ_MAX)]
Page = Annotated[int, msgspec.Meta(ge=1, le=PAGE_MAX)]
Operations = Annotated[list[Count], msgspec.Meta(max_length=PAGE_MAX)]


class Arguments(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of the arguments of every verb."""


class NoArguments(Arguments, frozen=True):
    pass


class LogArguments(Arguments, frozen=True):
    """Which records: those for which everything given holds, newest first."""

    path: str | None = None
    """At or below it."""
    agent: str | None = None
    pid: Number | None = None
    session: Number | None = None
    kind: str | None = None
    since: str | None = None
    """A moment: records after it."""
    until: str | None = None
    """A moment: records up to it."""
    before: Count | None = None
    """Records before this operation: the next page."""
    after: Number | None = None
    """Records after this operation: what is new."""
    limit: Page = 50


class PurgeArguments(Arguments, frozen=True):
    """What to destroy: a path, or the SHA-256 of a chunk in hex."""

    path: str | None = None
    digest: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")] | None = None


class PruneArguments(Arguments, frozen=True):
    dry_run: bool = False
    compact: bool = False


class SelectionArguments(Arguments, frozen=True):
    """Which operations to reverse. ``last`` counts among those that everything else allows."""

    operations: Operations = []
    last: Count | None = None
    since: str | None = None
    until: str | None = None
    path: str | None = None
    pid: Number | None = None
    session: Number | None = None
    agent: str | None = None
    force: bool = False
    dry_run: bool = False


class RedoArguments(Arguments, frozen=True):
    """Which undos to take back; neither means the latest."""

    operations: Operations = []
    last: Count | None = None
    force: bool = False
    dry_run: bool = False


class DiffArguments(Arguments, frozen=True):
    """What differs at or below ``path`` between two moments (``until`` left out: now)."""

    since: str
    until: str | None = None
    path: str = ""


class PathArguments(Arguments, frozen=True):
    path: str = ""


class HistoryArguments(Arguments, frozen=True):
    path: str = ""
    limit: Page = 50


class RestoreArguments(Arguments, frozen=True):
    """Bring ``path`` back as it was at ``moment``.

    ``to`` puts it elsewhere. ``exact`` also removes what was not there then.
    """

    path: str
    moment: str
    to: str | None = None
    exact: bool = False


class SnapshotArguments(Arguments, frozen=True):
    name: str


class TagKeyArguments(Arguments, frozen=True):
    path: str
    key: str


class TagArguments(TagKeyArguments, frozen=True):
    value: str


class QuotaArguments(Arguments, frozen=True):
    """Limits of a directory; ``None`` leaves one as it is."""

    path: str
    bytes: Number | None = None
    inodes: Number | None = None


class WorkspaceArguments(Arguments, frozen=True):
    name: str


class MakeWorkspaceArguments(WorkspaceArguments, frozen=True):
    """A workspace over the directory ``over``, or what is at ``url``, at the path ``at``."""

    over: str = ""
    url: str | None = None
    at: str | None = None


Paths = Annotated[list[str], msgspec.Meta(max_length=PAGE_MAX)]


class ReviewArguments(WorkspaceArguments, frozen=True):
    """Of a workspace: these paths and what is below them, relative to it; none: all."""

    paths: Paths = []


class PatchArguments(ReviewArguments, frozen=True):
    skip: Number = 0
    """So many changes were shown already."""


class ApplyArguments(ReviewArguments, frozen=True):
    merge: bool = False
    """Text that both sides changed, in different lines, becomes what both made of it."""
    dry_run: bool = False


class MountsAddArguments(Arguments, frozen=True):
    """What to attach at ``path``, and how."""

    path: str
    url: str
    options: dict[str, str] = {}
    """Of the bucket, and ``interval``."""
    read_only: bool = False


class MountsRemoveArguments(Arguments, frozen=True):
    path: str
    force: bool = False
    """Also if not all that was changed is at the source."""


class FsckArguments(Arguments, frozen=True):
    """Of fsck and repair."""

    deep: bool = False
    """Read and verify every chunk as well."""


A = TypeVar("A", bound=Arguments)


def parse_arguments(request: Request, type_: type[A]) -> A:
    """Return a request's arguments, checked.

    Raises:
        InvalidCommand: A type, range or name that does not fit.
    """
    try:
        args = msgspec.convert(request.args, type_)
        for name in args.__struct_fields__:
            value = getattr(args, name)
            if isinstance(value, str) and name not in _BYTES:
                value.encode()  # or no database takes it
    except (msgspec.ValidationError, UnicodeError) as error:
        raise errors.InvalidCommand(f"{request.verb}: {error}") from error
    return args


def to_path(text: str) -> Path:
    """Return the path that an argument names.

    Raises:
        InvalidName: Not a path from the root: a dot, an empty component, a NUL, too long.
    """
    path = to_bytes(text)
    parts = path.split(b"/") if path else []
    for part in parts:
        if not part or part in (b".", b"..") or b"\0" in part:
            raise errors.InvalidName(f"not a path below the root: {text!r}")
        if len(part) > NAME_MAX:
            raise errors.NameTooLong(f"name of {len(part)} bytes; at most {NAME_MAX}")
    return Path(path)


def to_text(path: bytes) -> str:
    """Return a path, or anything else that is bytes, for a reply."""
    return path.decode("utf-8", "surrogateescape")


def to_bytes(text: str) -> bytes:
    """Return what ``to_text`` was given.

    Raises:
        InvalidName: Holds surrogates that stand for no byte.
    """
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:
        raise errors.InvalidName(f"not text: {text!r}") from error
