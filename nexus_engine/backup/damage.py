"""Which files a damaged chunk is in."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import NamedTuple

from nexus_engine.meta import backup_queries
from nexus_engine.meta.backup_queries import head_record
from nexus_engine.meta.connection import Connection
from nexus_engine.meta.history_queries import dentries_as_of
from nexus_engine.meta.reader import PATH_DEPTH_MAX
from nexus_engine.types import ROOT_INO, Digest, Ino, Path, Seq

FILES_SHOWN = 1000
"""Files that a report names."""


class DamagedFile(NamedTuple):
    """A file with content in a damaged chunk."""

    ino: Ino
    path: Path | None
    """What it is called; of the past, what it was called; ``None`` if that is lost, too."""
    seq: Seq | None
    """The last moment at which it had that content; ``None``: it has it now."""


def files_of_chunks(connection: Connection, digests: Iterable[Digest]) -> list[DamagedFile]:
    """Return files that have, or had, content in any of the chunks; `FILES_SHOWN` at most."""
    head, _ = head_record(connection)
    return [
        DamagedFile(ino, _path_at(connection, ino, head if seq is None else seq), seq)
        for ino, seq in islice(backup_queries.inodes_of_chunks(connection, digests), FILES_SHOWN)
    ]


def _path_at(connection: Connection, ino: Ino, seq: Seq) -> Path | None:
    names: list[bytes] = []
    while ino != ROOT_INO:
        dentries = dentries_as_of(connection, ino, seq)
        if not dentries or len(names) > PATH_DEPTH_MAX:
            return None
        ino, name = dentries[0]
        names.append(name)
    return Path(b"/".join(reversed(names)))
