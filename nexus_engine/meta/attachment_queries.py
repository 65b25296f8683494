"""SQL about attachments: which there are, what is known of their sources, what waits for these."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import msgspec

from nexus_engine.meta.connection import Connection, detail
from nexus_engine.types import NO_INO, Ino, Path, Seq


class Attachment(NamedTuple):
    """A directory whose files are objects at a source."""

    number: int
    ino: Ino
    url: str
    options: dict[str, str]
    read_only: bool
    interval_s: int
    """Between two looks at the source; 0: only when told to."""
    capabilities: int
    """What the source was found to be able to do."""
    pushed_seq: Seq
    """What operations up to this one changed is at the source."""
    feed: str
    """Position in the change feed; empty: none."""
    listed_ns: int
    """When it was last compared with the source; 0: never."""
    trouble: str
    """Why the source could not be used last; empty: it could."""


class SourceObject(NamedTuple):
    """What an object at a source was when last seen, and the file that has its content."""

    attachment: int
    key: bytes
    path: Path
    """Where it is, relative to the attachment's directory."""
    ino: Ino
    content_seq: Seq
    """The file's content that is the object's."""
    etag: str
    size: int


class Tally(NamedTuple):
    objects: int
    size_bytes: int
    fetched_bytes: int
    """Of what was imported without reading it, so much was read since."""


_COLUMNS = (
    "a.number, a.ino, a.url, a.options, a.read_only, a.interval_s, a.capabilities, a.pushed_seq,"
    " a.feed, a.listed_ns, a.trouble"
)
_LIVES = "EXISTS (SELECT 1 FROM inode i WHERE i.ino = a.ino AND i.nlink > 0)"
_OBJECT = "attachment, key, path, ino, content_seq, etag, size"
_CHANGED = (
    "SELECT ino, max(moved) FROM ("
    "SELECT o.ino, o.kind IN ('rename', 'exchange') AS moved FROM oplog o"
    "  WHERE o.seq > ?1 AND o.seq <= ?2"
    " UNION ALL SELECT t.ino, t.parent <> 0 FROM touched t WHERE t.seq > ?1 AND t.seq <= ?2"
    f" UNION ALL SELECT coalesce({detail('replaced', 'o.details')},"
    f"  {detail('exchanged', 'o.details')}), 1 FROM oplog o"
    "  WHERE o.seq > ?1 AND o.seq <= ?2 AND o.kind IN ('rename', 'exchange')"
    ") WHERE ino IS NOT NULL GROUP BY ino"
)


def living(connection: Connection) -> list[Attachment]:
    """Return the attachments that there are now, oldest first."""
    sql = f"SELECT {_COLUMNS} FROM attachment a WHERE {_LIVES} ORDER BY a.number"
    return [_attachment(row) for row in connection.all(sql)]


def find(connection: Connection, number: int) -> Attachment | None:
    """Return an attachment, also one that is gone."""
    row = connection.one(f"SELECT {_COLUMNS} FROM attachment a WHERE a.number = ?", (number,))
    return None if row is None else _attachment(row)


def roots(connection: Connection) -> dict[Ino, bool]:
    """Return the directories of the attachments that there are, and whether each is read-only."""
    sql = f"SELECT a.ino, a.read_only FROM attachment a WHERE {_LIVES}"
    return {row[0]: bool(row[1]) for row in connection.all(sql)}


def _attachment(row: tuple[object, ...]) -> Attachment:
    found = Attachment._make(row)
    options = msgspec.json.decode(str(found.options), type=dict[str, str])
    return found._replace(options=options, read_only=bool(found.read_only))


def objects(connection: Connection, attachment: int) -> list[SourceObject]:
    """Return all that is known of a source."""
    sql = f"SELECT {_OBJECT} FROM source_object WHERE attachment = ?"
    return [SourceObject._make(row) for row in connection.all(sql, (attachment,))]


def object_at(connection: Connection, attachment: int, key: bytes) -> SourceObject | None:
    """Return what is known under a key."""
    row = connection.one(
        f"SELECT {_OBJECT} FROM source_object WHERE attachment = ? AND key = ?", (attachment, key)
    )
    return None if row is None else SourceObject._make(row)


def object_shown_at(connection: Connection, attachment: int, path: Path) -> SourceObject | None:
    """Return what is known of the object that is, or was, shown at a path."""
    row = connection.one(
        f"SELECT {_OBJECT} FROM source_object WHERE attachment = ? AND path = ?",
        (attachment, path),
    )
    return None if row is None else SourceObject._make(row)


def objects_of(connection: Connection, attachment: int, ino: Ino) -> list[SourceObject]:
    """Return the objects that had a file's content when last seen."""
    sql = f"SELECT {_OBJECT} FROM source_object WHERE attachment = ? AND ino = ?"
    return [SourceObject._make(row) for row in connection.all(sql, (attachment, ino))]


def tally(connection: Connection, attachment: int) -> Tally:
    """Count what is at a source, as far as is known."""
    objects, size = connection.one(
        "SELECT count(*), coalesce(sum(size), 0) FROM source_object"
        " WHERE attachment = ? AND ino <> ?",
        (attachment, NO_INO),
    ) or (0, 0)
    (fetched,) = connection.one(
        "SELECT coalesce(sum(c.length), 0) FROM source_version v CROSS JOIN lazy_chunk c"
        " ON c.version = v.number WHERE v.attachment = ? AND c.content IS NOT NULL",
        (attachment,),
    ) or (0,)
    return Tally(objects, size, fetched)


def odd_objects(connection: Connection, attachment: int, limit: int) -> list[SourceObject]:
    """Return objects whose keys are no paths, and where each is shown."""
    sql = f"SELECT {_OBJECT} FROM source_object WHERE attachment = ? AND key <> path LIMIT ?"
    return [SourceObject._make(row) for row in connection.all(sql, (attachment, limit))]


def unpushed(connection: Connection, attachment: int) -> dict[Path, str]:
    """Return what could not be brought to the source, and why."""
    sql = "SELECT path, reason FROM unpushed WHERE attachment = ? ORDER BY path"
    return {Path(row[0]): row[1] for row in connection.all(sql, (attachment,))}


def changed_inodes(connection: Connection, after: Seq, upto: Seq) -> list[tuple[Ino, bool]] | None:
    """Return every inode that operations in a stretch of the log may have changed.

    Returns:
        Whether each may have moved as well, with all that is in it; ``None`` where retention has
        taken records of that stretch: it may be any.
    """
    (taken,) = connection.one("SELECT value FROM store WHERE key = 'log_pruned'") or (0,)
    if after < taken:
        return None
    return [(row[0], bool(row[1])) for row in connection.all(_CHANGED, (after, upto))]


def conflicts(connection: Connection, path: Path, limit: int) -> list[tuple[Seq, int, Path, Path]]:
    """Return (operation, time, path, path of the other) of conflicts below a path, newest first."""
    sql = (
        "SELECT seq, time_ns, path, coalesce(path2, x'') FROM oplog WHERE path >= ?1 AND path < ?2"
        " AND kind = 'conflict' ORDER BY seq DESC LIMIT ?3"
    )
    return connection.all(sql, (path + b"/", path + b"0", limit))


def was_changed_here(connection: Connection, path: Path, agent: str) -> bool:
    """Tell whether the log has operations in an attachment that its source did not bring about.

    Args:
        path: Of its directory.
        agent: Who bears what others did at the source.
    """
    row = connection.one(
        "SELECT 1 FROM oplog o JOIN actor a ON a.id = o.actor"
        " WHERE (o.path = ?1 OR o.path >= ?2 AND o.path < ?3) AND a.agent <> ?4"
        " AND o.kind NOT IN ('attach', 'detach', 'discard') AND o.seq >"
        " (SELECT coalesce(max(seq), 0) FROM oplog WHERE path = ?1 AND kind = 'attach') LIMIT 1",
        (path, path + b"/", path + b"0", agent),
    )
    return row is not None


# -- changes, in a transaction of the caller --


def add_attachment(connection: Connection, attachment: Attachment) -> None:
    connection.change(
        "INSERT INTO attachment (number, ino, url, options, read_only, interval_s, capabilities,"
        " pushed_seq, feed, listed_ns, trouble) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            *attachment[:3],
            msgspec.json.encode(attachment.options).decode(),
            int(attachment.read_only),
            *attachment[5:],
        ),
    )


def next_number(connection: Connection) -> int:
    (number,) = connection.one("SELECT coalesce(max(number), 0) + 1 FROM attachment") or (1,)
    return int(number)


def put_object(connection: Connection, known: SourceObject) -> None:
    """Note what is at the source under a key."""
    connection.change(
        f"INSERT OR REPLACE INTO source_object ({_OBJECT}) VALUES (?, ?, ?, ?, ?, ?, ?)",
        tuple(known),
    )


def put_objects(connection: Connection, known: Iterable[SourceObject]) -> None:
    """Note what is at the source under some keys."""
    connection.change_many(
        f"INSERT OR REPLACE INTO source_object ({_OBJECT}) VALUES (?, ?, ?, ?, ?, ?, ?)",
        [tuple(each) for each in known],
    )


def drop_object(connection: Connection, attachment: int, key: bytes) -> None:
    """Note that nothing is at the source under a key."""
    connection.change(
        "DELETE FROM source_object WHERE attachment = ? AND key = ?", (attachment, key)
    )


def note_listed(connection: Connection, number: int, time_ns: int, feed: str) -> None:
    """Note that an attachment agrees with its source, as far as others changed that."""
    connection.change(
        "UPDATE attachment SET listed_ns = ?, feed = ?, trouble = '' WHERE number = ?",
        (time_ns, feed, number),
    )


def note_pushed(
    connection: Connection, number: int, seq: Seq, failed: Iterable[tuple[Path, str]]
) -> None:
    """Note that what operations up to one changed is at the source, but for some files."""
    connection.change(
        "UPDATE attachment SET pushed_seq = max(pushed_seq, ?) WHERE number = ?", (seq, number)
    )
    connection.change("DELETE FROM unpushed WHERE attachment = ?", (number,))
    connection.change_many(
        "INSERT OR REPLACE INTO unpushed (attachment, path, reason) VALUES (?, ?, ?)",
        [(number, *each) for each in failed],
    )


def note_trouble(connection: Connection, number: int, trouble: str) -> None:
    """Note why a source cannot be used; empty: it can."""
    connection.change("UPDATE attachment SET trouble = ? WHERE number = ?", (trouble, number))
