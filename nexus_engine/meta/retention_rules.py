"""SQL that finds of which files and directories more is kept than of others, or less.

The answer is ``temp.rule``, a table of the connection that asks:

    ino          the file or directory
    gone_to      of what ended up to here nothing is left, but at pinned moments
    stays_from   what ended after this stays; NULL: as everywhere
    inside       the rule begins here: attributes stay, what lies inside goes
"""

from __future__ import annotations

from nexus_engine.meta.connection import Connection
from nexus_engine.meta.reader import Reader
from nexus_engine.types import Ino, Path, Seq

TAG_KEEP = b"user.nexus.tag.keep"
"""What has this tag is kept, with everything that is or was in it."""

_RULE = (
    "DROP TABLE IF EXISTS temp.rule",
    "CREATE TEMP TABLE rule (ino INTEGER PRIMARY KEY, gone_to INTEGER NOT NULL,"
    " stays_from INTEGER, inside INTEGER NOT NULL) STRICT",
)
# Of what a directory ever held; where rules meet, the first to come stays.
_ADD_TREE = (
    "INSERT OR IGNORE INTO temp.rule (ino, gone_to, stays_from, inside)"
    " WITH RECURSIVE member (ino) AS (SELECT ?1"
    " UNION SELECT d.ino FROM member m JOIN dentry d ON d.parent = m.ino"
    " UNION SELECT d.ino FROM member m JOIN dentry_past d ON d.parent = m.ino)"
    " SELECT ino, ?2, ?3, ino = ?1 FROM member"
)
# The newest contents of a file are those of the most recent operations: all but so many go.
_LIMIT_VERSIONS = (
    "INSERT INTO temp.rule (ino, gone_to, stays_from, inside)"
    " SELECT ino, min(?2, seq), NULL, 1 FROM"
    " (SELECT ino, content_seq AS seq, row_number() OVER"
    "  (PARTITION BY ino ORDER BY content_seq DESC) AS number FROM"
    "  (SELECT ino, content_seq FROM inode_past WHERE mode & 61440 = 32768 {among}"
    "   UNION SELECT ino, content_seq FROM inode WHERE mode & 61440 = 32768 {among}))"
    " WHERE number = ?1"
    " ON CONFLICT (ino) DO UPDATE SET gone_to = max(gone_to, excluded.gone_to),"
    " stays_from = max(stays_from, excluded.gone_to) WHERE gone_to > 0"
)
_AMONG = (
    "AND ino IN (WITH RECURSIVE member (ino) AS (SELECT value FROM json_each(?3)"
    " UNION SELECT d.ino FROM member m JOIN dentry d ON d.parent = m.ino"
    " UNION SELECT d.ino FROM member m JOIN dentry_past d ON d.parent = m.ino)"
    " SELECT ino FROM member)"
)


def begin_rules(connection: Connection) -> None:
    """Have no rules."""
    for sql in _RULE:
        connection.run(sql)


def keep_tagged(connection: Connection) -> None:
    """Everything of what has the tag stays."""
    for (ino,) in connection.all("SELECT ino FROM xattr WHERE name = ?", (TAG_KEEP,)):
        connection.run(_ADD_TREE, (ino, 0, 0))


def keep_until(connection: Connection, root: Ino, until: Seq) -> None:
    """Of a file or directory, with all that is in it, everything since an operation stays.

    Nothing from before does.
    """
    connection.run(_ADD_TREE, (root, until, until))


def limit_versions(
    connection: Connection, count: int, until: Seq, roots: str | None = None
) -> None:
    """Of files with more contents than so many, only the newest stay.

    Args:
        until: What is newer stays in any case.
        roots: JSON array of inodes: only what is in these; ``None``: everything.
    """
    if roots is None:
        connection.run(_LIMIT_VERSIONS.format(among=""), (count, until))
    else:
        connection.run(_LIMIT_VERSIONS.format(among=_AMONG), (count, until, roots))


def inodes_called(connection: Connection, pattern: str) -> list[Ino]:
    """Return every inode that has or had a name like this (GLOB of SQLite)."""
    rows = connection.all(
        "SELECT ino FROM dentry WHERE CAST(name AS TEXT) GLOB ?1"
        " UNION SELECT ino FROM dentry_past WHERE CAST(name AS TEXT) GLOB ?1",
        (pattern,),
    )
    return [row[0] for row in rows]


def inode_at(connection: Connection, path: Path) -> Ino | None:
    """Return what is at a path now."""
    inode = Reader(connection).resolve(path)
    return None if inode is None else inode.ino


def last_gone(connection: Connection) -> Seq:
    """Return the newest operation of which some rule keeps nothing."""
    row = connection.one("SELECT coalesce(max(gone_to), 0) FROM temp.rule")
    return Seq(row[0] if row else 0)
