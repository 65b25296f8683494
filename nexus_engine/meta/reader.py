"""Typed reads of the metadata: the current tree (``Reader``) and the tree as of a ``Seq``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

import xxhash

from nexus_engine import errors
from nexus_engine.meta.connection import Connection
from nexus_engine.meta.known import UNKNOWN
from nexus_engine.types import ROOT_INO, Dentry, Digest, Extent, Ino, Inode, Name, Path, Seq

R = TypeVar("R")

# No extent is longer: bounds how far to the left of a range an overlapping one can start.
EXTENT_MAX_BYTES = 4 * 1024 * 1024
PATH_DEPTH_MAX = 4096

_INODE = (
    "i.ino, i.from_seq, i.mode, i.uid, i.gid, i.nlink, i.rdev, i.size, i.atime_ns,"
    " coalesce(i.touched_ns, i.mtime_ns), coalesce(i.touched_ns, i.ctime_ns),"
    " i.btime_ns, i.content_seq, i.target"
)
_FIND_INODE = f"SELECT {_INODE} FROM inode i WHERE ino = ?"
_FIND_CHILD = (
    f"SELECT {_INODE} FROM dentry d JOIN inode i ON i.ino = d.ino"
    " WHERE d.parent = ? AND d.hash = ? AND d.name = ?"
)
_MANY = 64
_ANY_OF_MANY = f"IN ({', '.join('?' * _MANY)})"
_FIND_CHILDREN = (
    f"SELECT d.name, {_INODE} FROM dentry d JOIN inode i ON i.ino = d.ino"
    f" WHERE d.parent = ? AND d.hash {_ANY_OF_MANY}"
)
_FIND_DENTRY = (
    "SELECT parent, name, ino, kind, from_seq FROM dentry"
    " WHERE parent = ? AND hash = ? AND name = ?"
)
_LIST = (
    f"SELECT d.hash, d.name, {_INODE} FROM dentry d CROSS JOIN inode i ON i.ino = d.ino"
    " WHERE d.parent = ? AND d.hash > ? ORDER BY d.hash, d.name LIMIT ?"
)
_LAST_GONE = (
    "SELECT i.ino, i.from_seq, i.mode, i.uid, i.gid, 0, i.rdev, i.size, i.atime_ns, i.mtime_ns,"
    " coalesce(o.time_ns, i.ctime_ns), i.btime_ns, i.content_seq, i.target"
    " FROM inode_past i LEFT JOIN oplog o ON o.seq = i.to_seq"
    " WHERE i.ino = ? ORDER BY i.to_seq DESC LIMIT 1"
)
_PACKS_OF_OTHERS = (
    "SELECT p.name, max(c.offset + c.stored_length) FROM extent e"
    " CROSS JOIN chunk c ON c.digest = e.digest CROSS JOIN pack p ON p.id = c.pack"
    " WHERE e.ino = ? AND e.from_seq > ? AND p.owner <> ? GROUP BY p.name"
)
_REUSABLE_CHUNK = (
    "SELECT c.digest, p.name, c.offset, c.stored_length, c.length, c.codec FROM chunk c"
    " JOIN pack p ON p.id = c.pack WHERE c.digest = ? AND NOT p.retiring"
)
_REUSABLE_CHUNKS = _REUSABLE_CHUNK.replace("= ?", _ANY_OF_MANY)
OVERLAPPING = (
    # They are disjoint: to the left of a range one at most reaches into it. In a window of the
    # longest extent there may be millions.
    "SELECT start, length, digest, chunk_offset FROM extent"
    " WHERE ino = ?1 AND start < ?3 AND start + length > ?2 AND start >="
    " coalesce((SELECT max(start) FROM extent WHERE ino = ?1 AND start <= ?2), ?2) ORDER BY start"
)
"""Of (ino, start, end) of a range: the current extents that overlap it."""


class Listed(NamedTuple):
    """One entry of a directory listing, with its inode."""

    cookie: int
    """Where a listing resumes after this entry; stable while others come and go."""
    name: Name
    inode: Inode


class View(Protocol):
    """The tree at one moment, now or then."""

    def find_inode(self, ino: Ino) -> Inode | None: ...
    def get_inode(self, ino: Ino) -> Inode: ...
    def find_child(self, parent: Ino, name: Name) -> Inode | None: ...
    def list_children(self, parent: Ino, after: int, limit: int) -> list[Listed]: ...
    def parent_of(self, ino: Ino) -> Ino: ...
    def extents(self, ino: Ino, start: int, length: int) -> list[Extent]: ...
    def find_xattr(self, ino: Ino, name: bytes) -> bytes | None: ...
    def xattr_names(self, ino: Ino) -> list[bytes]: ...


def name_hash(name: bytes) -> int:
    """Return a name's place in its directory's order: 3 to 2^62 + 2 (1 and 2 are the dots)."""
    return (xxhash.xxh3_64_intdigest(name) >> 2) + 3


class Reader:
    """The current tree. Also the read half of a transaction."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._known = connection.known
        self._one = connection.one
        self._all = connection.all

    def ask(self, question: Callable[[Connection], R]) -> R:
        """Ask something that only one caller needs to know."""
        return question(self._connection)

    def find_inode(self, ino: Ino) -> Inode | None:
        known = self._known.inodes.get(ino, UNKNOWN)
        if known is not UNKNOWN:
            return known
        row = self._one(_FIND_INODE, (ino,))
        inode = None if row is None else Inode._make(row)
        self._known.note_inode(ino, inode)
        return inode

    def get_inode(self, ino: Ino) -> Inode:
        """Return the inode.

        Raises:
            StaleInode: No such inode now.
        """
        inode = self.find_inode(ino)
        if inode is None:
            raise errors.StaleInode(f"inode {ino} is gone")
        return inode

    def find_departed(self, ino: Ino) -> Inode | None:
        """Return an inode that is gone as it was last, with no links; its going set the ctime."""
        row = self._one(_LAST_GONE, (ino,))
        return None if row is None else Inode._make(row)

    def first_seq(self, ino: Ino) -> Seq | None:
        """Return the operation that made an inode, or ``None`` for one that never was."""
        row = self._one(
            "SELECT from_seq FROM inode_past WHERE ino = ? ORDER BY to_seq LIMIT 1", (ino,)
        ) or self._one("SELECT from_seq FROM inode WHERE ino = ?", (ino,))
        return None if row is None else row[0]

    def find_child(self, parent: Ino, name: Name) -> Inode | None:
        known = self._known.find_child(parent, name)
        if known is not UNKNOWN:
            return known
        key = (parent, name_hash(name), name)
        row = self._one(_FIND_CHILD, key)
        if row is None and self._connection.appear(parent):
            row = self._one(_FIND_CHILD, key)
        if row is None:
            self._known.note_child(parent, name, None)
            return None
        inode = Inode._make(row)
        self._known.note_inode(inode.ino, inode)
        self._known.note_child(parent, name, inode.ino)
        return inode

    def find_child_row(self, parent: Ino, name: Name) -> Inode | None:
        """Return likewise what is a row: not what nobody looked at (``shadows``)."""
        row = self._one(_FIND_CHILD, (parent, name_hash(name), name))
        return None if row is None else Inode._make(row)

    def find_children(self, parent: Ino, names: Sequence[Name]) -> dict[Name, Inode]:
        """Return what some names mean, of those that mean anything; perhaps others as well."""
        self._connection.appear(parent)
        rows = self._of_many(_FIND_CHILDREN, (parent,), [name_hash(name) for name in names])
        return {row[0]: Inode._make(row[1:]) for row in rows}

    def find_dentry(self, parent: Ino, name: Name) -> Dentry | None:
        if self._known.children.get((parent, name), UNKNOWN) is None:
            return None
        key = (parent, name_hash(name), name)
        row = self._one(_FIND_DENTRY, key)
        if row is None and self._connection.appear(parent):
            row = self._one(_FIND_DENTRY, key)
        return None if row is None else Dentry._make(row)

    def list_children(self, parent: Ino, after: int, limit: int) -> list[Listed]:
        """Return up to ``limit`` entries in directory order, after a cookie (0: from the start)."""
        self._connection.appear(parent)
        return self.list_rows(parent, after, limit)

    def list_rows(self, parent: Ino, after: int, limit: int) -> list[Listed]:
        """Return likewise the entries that are rows: not what nobody looked at (``shadows``)."""
        return [
            Listed(row[0], row[1], Inode._make(row[2:]))
            for row in self._all(_LIST, (parent, after, limit))
        ]

    def appear(self, directory: Ino) -> bool:
        """Have the entries of a directory become rows; tell whether they did just now."""
        return self._connection.appear(directory)

    def is_pending(self, directory: Ino) -> bool:
        """Tell whether a directory's entries are no rows yet."""
        shadows = self._connection.shadows
        return shadows is not None and shadows.is_pending(directory)

    def is_empty(self, parent: Ino) -> bool:
        self._connection.appear(parent)
        return self._one("SELECT 1 FROM dentry WHERE parent = ? LIMIT 1", (parent,)) is None

    def dentries_of(self, ino: Ino) -> list[Dentry]:
        """Return every name of an inode, oldest first."""
        rows = self._all(
            "SELECT parent, name, ino, kind, from_seq FROM dentry WHERE ino = ?", (ino,)
        )
        if len(rows) > 1:
            rows.sort(key=lambda row: (row[4], row[0], row[1]))
        return [Dentry._make(row) for row in rows]

    def parent_of(self, ino: Ino) -> Ino:
        """Return the directory that holds a directory; the root is its own parent."""
        row = self._one("SELECT parent FROM dentry WHERE ino = ? LIMIT 1", (ino,))
        return ROOT_INO if row is None else row[0]

    def find_path(self, ino: Ino) -> Path | None:
        """Return a path of the inode (of its oldest name, where it has several)."""
        names: list[bytes] = []
        current = ino
        while current != ROOT_INO:
            row = self._one(
                "SELECT parent, name FROM dentry WHERE ino = ? ORDER BY from_seq LIMIT 1",
                (current,),
            )
            if row is None:
                return None
            names.append(row[1])
            current = row[0]
            if len(names) > PATH_DEPTH_MAX:
                raise errors.CorruptMetadata(f"inode {ino} has no way up to the root: run fsck")
        return Path(b"/".join(reversed(names)))

    def resolve(self, path: Path) -> Inode | None:
        """Return the inode at a path (no symlinks followed), or ``None``."""
        return resolve(self, path)

    def extents(self, ino: Ino, start: int, length: int) -> list[Extent]:
        """Return the extents overlapping a byte range, whole, ascending, disjoint.

        Args:
            start: Byte offset, >= 0.
            length: Bytes, > 0; may run past the end of the file.

        Returns:
            Holes are absent: the caller zero-fills.
        """
        if self._known.is_empty(ino):
            return []
        rows = self._all(OVERLAPPING, (ino, start, start + length))
        return [Extent._make(row) for row in rows]

    def stored_bytes(self, ino: Ino) -> int:
        """Return the bytes of a file that are not holes."""
        row = self._one("SELECT sum(length) FROM extent WHERE ino = ?", (ino,))
        return (row[0] if row else 0) or 0

    def find_xattr(self, ino: Ino, name: bytes) -> bytes | None:
        known = self._known.find_xattr(ino, name)
        if known is not UNKNOWN:
            return known
        row = self._one("SELECT value FROM xattr WHERE ino = ? AND name = ?", (ino, name))
        value: bytes | None = None if row is None else row[0]
        self._known.note_xattr(ino, name, value)
        return value

    def xattr_names(self, ino: Ino) -> list[bytes]:
        return [row[0] for row in self._all("SELECT name FROM xattr WHERE ino = ?", (ino,))]

    def find_content_hash(self, ino: Ino, content_seq: Seq) -> bytes | None:
        """Return the SHA-256 of a version's whole content, if somebody asked for it before."""
        row = self._one(
            "SELECT sha256 FROM content_hash WHERE ino = ? AND content_seq = ?", (ino, content_seq)
        )
        return None if row is None else row[0]

    def find_chunk(self, digest: Digest) -> tuple[Any, ...] | None:
        """Return (pack name, offset, stored length, length, codec), or ``None``."""
        return self._one(
            "SELECT p.name, c.offset, c.stored_length, c.length, c.codec"
            " FROM chunk c JOIN pack p ON p.id = c.pack WHERE c.digest = ?",
            (digest,),
        )

    def find_reusable_chunks(self, digests: Sequence[Digest]) -> dict[Digest, tuple[Any, ...]]:
        """Return likewise those of some chunks that new files may rely on: their packs stay."""
        if len(digests) == 1:
            rows = self._all(_REUSABLE_CHUNK, (digests[0],))
        else:
            rows = self._of_many(_REUSABLE_CHUNKS, (), digests)
        return {row[0]: row[1:] for row in rows}

    def _of_many(
        self, sql: str, first: tuple[Any, ...], keys: Sequence[Any]
    ) -> list[tuple[Any, ...]]:
        """Return the rows for many keys: asked one by one, each costs several times as much."""
        rows: list[tuple[Any, ...]] = []
        for start in range(0, len(keys), _MANY):
            asked = tuple(keys[start : start + _MANY])
            rows += self._all(sql, first + asked + asked[-1:] * (_MANY - len(asked)))
        return rows

    def packs_of_others(self, ino: Ino, owner: str, after: Seq) -> list[tuple[str, int]]:
        """Return where a file's content of after an operation is, if others append there.

        Returns:
            Packs, and up to which byte they are needed.
        """
        return self._all(_PACKS_OF_OTHERS, (ino, after, owner))

    def head(self) -> Seq:
        """Return the last operation's position; 0 in an empty store."""
        row = self._one("SELECT max(seq) FROM oplog")
        return Seq((row[0] if row else 0) or 0)

    def snapshot_owner(self, name: str) -> int | None:
        """Return the uid of who made a snapshot."""
        row = self._one(
            "SELECT uid FROM snapshot WHERE name = ?",
            (name,),
        )
        return None if row is None else row[0]

    def count_inodes(self) -> int:
        row = self._one("SELECT count(*) FROM dentry")
        return 1 + (row[0] if row else 0)

    def find_snapshot(self, name: str) -> Seq | None:
        """Return the moment that a snapshot's name stands for, or ``None``."""
        row = self._one("SELECT seq FROM snapshot WHERE name = ?", (name,))
        return None if row is None else row[0]

    def is_sealed(self, pack: str) -> bool:
        """Tell whether a pack is known, and nobody appends to it any more."""
        row = self._connection.one("SELECT owner FROM pack WHERE name = ?", (pack,))
        return row == (None,)

    def find_next_pack(self, pack: str) -> str | None:
        """Return the pack that was begun after another, and that nobody appends to any more."""
        row = self._connection.one(
            "SELECT name FROM pack WHERE id > (SELECT id FROM pack WHERE name = ?)"
            " AND owner IS NULL ORDER BY id LIMIT 1",
            (pack,),
        )
        return None if row is None else str(row[0])

    def store_value(self, key: str) -> Any:
        row = self._one("SELECT value FROM store WHERE key = ?", (key,))
        return None if row is None else row[0]


def resolve(view: View, path: Path) -> Inode | None:
    """Return the inode at a path of a view (no symlinks followed), or ``None``."""
    inode: Inode | None = view.find_inode(ROOT_INO)
    for part in path.split(b"/") if path else ():
        if inode is None or not inode.is_dir:
            return None
        inode = view.find_child(inode.ino, Name(part))
    return inode


_PAST_INODE = (
    "ino, from_seq, mode, uid, gid, nlink, rdev, size, atime_ns, mtime_ns, ctime_ns, btime_ns,"
    " content_seq, target"
)
_FIND_INODE_ASOF = (
    f"SELECT {_PAST_INODE} FROM inode WHERE ino = ?1 AND from_seq <= ?2 AND nlink > 0"
    f" UNION ALL SELECT * FROM (SELECT {_PAST_INODE} FROM inode_past"
    "  WHERE ino = ?1 AND to_seq > ?2 ORDER BY to_seq LIMIT 1) WHERE from_seq <= ?2 LIMIT 1"
)
_FIND_DENTRY_ASOF = (
    "SELECT ino FROM dentry WHERE parent = ?1 AND hash = ?2 AND name = ?3 AND from_seq <= ?4"
    " UNION ALL SELECT ino FROM (SELECT ino, from_seq FROM dentry_past"
    "  WHERE parent = ?1 AND hash = ?2 AND name = ?3 AND to_seq > ?4 ORDER BY to_seq LIMIT 1)"
    " WHERE from_seq <= ?4 LIMIT 1"
)
_NAMED = f"({_FIND_DENTRY_ASOF})"
_FIND_CHILD_ASOF = (
    f"SELECT {_PAST_INODE} FROM inode WHERE ino = {_NAMED} AND from_seq <= ?4 AND nlink > 0"
    f" UNION ALL SELECT * FROM (SELECT {_PAST_INODE} FROM inode_past"
    f"  WHERE ino = {_NAMED} AND to_seq > ?4 ORDER BY to_seq LIMIT 1) WHERE from_seq <= ?4 LIMIT 1"
)
# Each table is read in its own order and merged: both keys begin with (parent, hash, name).
_LIST_ASOF = (
    "SELECT hash, name, ino FROM dentry"
    " WHERE parent = ?1 AND hash > ?2 AND from_seq <= ?3"
    " UNION ALL SELECT hash, name, ino FROM dentry_past"
    " WHERE parent = ?1 AND hash > ?2 AND from_seq <= ?3 AND to_seq > ?3"
    " ORDER BY hash, name LIMIT ?4"
)
# The time is that of the record, or what was noted of it when it left the log.
_CHILD_CHANGE_ASOF = (
    "SELECT c.seq, coalesce(c.time_ns, o.time_ns) FROM child_change c LEFT JOIN oplog o"
    " ON o.seq = c.seq WHERE c.parent = ? AND c.seq <= ? ORDER BY c.seq DESC LIMIT 1"
)
_SUBDIRECTORIES_ASOF = (
    "SELECT (SELECT count(*) FROM dentry WHERE parent = ?1 AND kind = 16384 AND from_seq <= ?2)"
    " + (SELECT count(*) FROM dentry_past WHERE parent = ?1 AND kind = 16384 AND from_seq <= ?2"
    "    AND to_seq > ?2)"
)
_EXTENTS_ONLY_CURRENT = (
    "SELECT start, length, digest, chunk_offset FROM extent"
    " WHERE ino = ?1 AND start > ?2 AND start < ?3 AND start + length > ?4 AND from_seq <= ?5"
    " ORDER BY start"
)
# For one start the past intervals are disjoint: of those that end after the moment, the first is
# the only candidate. Starts are found by hopping through the index, not by reading every version.
_EXTENTS_ASOF = (
    "WITH RECURSIVE hop (start) AS ("
    " SELECT (SELECT min(start) FROM extent_past WHERE ino = ?1 AND start > ?2 AND start < ?3)"
    " UNION ALL SELECT (SELECT min(p.start) FROM extent_past p"
    "  WHERE p.ino = ?1 AND p.start > hop.start AND p.start < ?3)"
    " FROM hop WHERE hop.start IS NOT NULL)"
    " SELECT start, length, digest, chunk_offset FROM extent"
    "  WHERE ino = ?1 AND start > ?2 AND start < ?3 AND start + length > ?4 AND from_seq <= ?5"
    " UNION ALL SELECT p.start, p.length, p.digest, p.chunk_offset"
    "  FROM hop CROSS JOIN extent_past p ON p.ino = ?1 AND p.start = hop.start AND p.to_seq ="
    "   (SELECT min(q.to_seq) FROM extent_past q"
    "    WHERE q.ino = ?1 AND q.start = hop.start AND q.to_seq > ?5)"
    "  WHERE p.from_seq <= ?5 AND p.start + p.length > ?4"
    " ORDER BY 1"
)
_XATTR_ASOF = (
    "SELECT name, value FROM xattr WHERE ino = ?1 AND from_seq <= ?2"
    " UNION ALL SELECT name, value FROM xattr_past"
    " WHERE ino = ?1 AND from_seq <= ?2 AND to_seq > ?2"
)


_EXPIRED = (
    "SELECT until_seq FROM expired WHERE ino = ?1 AND until_seq > {seq}"
    " AND NOT EXISTS (SELECT 1 FROM kept WHERE seq = {seq} AND pinned = 1)"
)
_FIND_EXPIRED = _EXPIRED.format(seq="?2")
# In one statement: rows go together with the note that they are gone.
_WHY_NO_CHILD = f"SELECT {_NAMED}, ({_EXPIRED.format(seq='?4')})"


class AsOfReader:
    """The tree as it was after operation ``seq``. Immutable, so everything may be cached."""

    def __init__(self, connection: Connection, seq: Seq) -> None:
        self.seq = seq
        self._connection = connection
        self._one = connection.one
        self._all = connection.all

    def find_inode(self, ino: Ino) -> Inode | None:
        row = self._one(_FIND_INODE_ASOF, (ino, self.seq))
        return None if row is None else self._with_derived(Inode._make(row))

    def _with_derived(self, inode: Inode) -> Inode:
        """Put back what a directory's children decide: mtime, ctime, nlink."""
        if not inode.is_dir:
            return inode
        changed, time_ns = self._one(_CHILD_CHANGE_ASOF, (inode.ino, self.seq)) or (0, None)
        subdirectories = (self._one(_SUBDIRECTORIES_ASOF, (inode.ino, self.seq)) or (0,))[0]
        shadows = self._connection.shadows
        if not subdirectories and shadows is not None and shadows.is_pending(inode.ino):
            return inode
        directory = inode._replace(nlink=2 + subdirectories)
        if changed <= inode.from_seq or time_ns is None:
            return directory
        return directory._replace(mtime_ns=time_ns, ctime_ns=time_ns)

    def _require_kept(self, ino: Ino) -> None:
        """Refuse to show half of what a class keeps less of.

        Raises:
            HistoryExpired: What this file or directory held then is gone.
        """
        row = self._one(_FIND_EXPIRED, (ino, self.seq))
        if row is not None:
            raise _expired(row[0])

    def get_inode(self, ino: Ino) -> Inode:
        """Return the inode.

        Raises:
            StaleInode: It did not exist at this moment.
        """
        inode = self.find_inode(ino)
        if inode is None:
            raise errors.StaleInode(f"inode {ino} did not exist after operation {self.seq}")
        return inode

    def find_child(self, parent: Ino, name: Name) -> Inode | None:
        key = (parent, name_hash(name), name, self.seq)
        found = self._one(_FIND_CHILD_ASOF, key)
        if found is not None:
            return self._with_derived(Inode._make(found))
        self._connection.appear(parent)
        ino, until_seq = self._one(_WHY_NO_CHILD, key) or (None, None)
        if ino is not None:
            return self._get_named(ino)
        if until_seq is not None:
            raise _expired(until_seq)
        return None

    def _get_named(self, ino: Ino) -> Inode:
        """Return an inode that has a name at this moment.

        Raises:
            HistoryExpired: Retention has let go of it.
        """
        inode = self.find_inode(ino)
        if inode is None:
            raise errors.HistoryExpired(f"what was here after op-{self.seq} is not kept")
        return inode

    def find_dentry_ino(self, parent: Ino, name: Name) -> Ino | None:
        """Return what a name meant, without its inode."""
        key = (parent, name_hash(name), name, self.seq)
        row = self._one(_FIND_DENTRY_ASOF, key)
        if row is None and self._connection.appear(parent):
            row = self._one(_FIND_DENTRY_ASOF, key)
        return None if row is None else row[0]

    def list_children(self, parent: Ino, after: int, limit: int) -> list[Listed]:
        """Return up to ``limit`` entries in directory order, after a cookie (0: from the start)."""
        self._connection.appear(parent)
        rows = self._all(_LIST_ASOF, (parent, after, self.seq, limit))
        # Afterwards: rows go together with the note that they are gone.
        self._require_kept(parent)
        return [Listed(cookie, name, self._get_named(ino)) for cookie, name, ino in rows]

    def parent_of(self, ino: Ino) -> Ino:
        row = self._one(
            "SELECT parent FROM dentry WHERE ino = ?1 AND from_seq <= ?2 UNION ALL"
            " SELECT parent FROM dentry_past WHERE ino = ?1 AND from_seq <= ?2 AND to_seq > ?2"
            " LIMIT 1",
            (ino, self.seq),
        )
        return ROOT_INO if row is None else row[0]

    def extents(self, ino: Ino, start: int, length: int) -> list[Extent]:
        """Return the extents overlapping a byte range, as ``Reader.extents`` does."""
        end = start + length
        if self._one("SELECT 1 FROM extent_past WHERE ino = ? LIMIT 1", (ino,)) is None:
            sql = _EXTENTS_ONLY_CURRENT  # most files were written once
        else:
            sql = _EXTENTS_ASOF
        rows = self._all(sql, (ino, start - EXTENT_MAX_BYTES, end, start, self.seq))
        self._require_kept(ino)
        return [Extent._make(row) for row in rows]

    def stored_bytes(self, ino: Ino, size: int) -> int:
        """Return the bytes of a file that are not holes."""
        return sum(extent.length for extent in self.extents(ino, 0, size)) if size else 0

    def find_xattr(self, ino: Ino, name: bytes) -> bytes | None:
        return dict(self._all(_XATTR_ASOF, (ino, self.seq))).get(name)

    def xattr_names(self, ino: Ino) -> list[bytes]:
        return [row[0] for row in self._all(_XATTR_ASOF, (ino, self.seq))]


def _expired(until: int) -> errors.HistoryExpired:
    return errors.HistoryExpired(f"what this was before op-{until} is not kept")
