"""SQL about workspaces: which there are, what changed in one since it was made or was applied."""

from __future__ import annotations

from typing import NamedTuple

from nexus_engine.meta.connection import Connection
from nexus_engine.meta.shadows import ADD_SHADOW, COPY_XATTRS
from nexus_engine.types import NO_INO, Ino, Name, Seq


class Workspace(NamedTuple):
    """A directory that began as another one was."""

    ino: Ino
    name: str
    base_ino: Ino
    base_seq: Seq
    """It began as the base was after this operation."""
    made_seq: Seq
    """The operation that made it."""
    uid: int
    """Of who made it."""


_LIVING = (
    "SELECT w.ino, w.name, w.base_ino, w.base_seq, w.made_seq, w.uid FROM workspace w"
    " WHERE EXISTS (SELECT 1 FROM inode i WHERE i.ino = w.ino)"
)
# What nobody looked at is pending and has no rows; new directories have no shadow, and whoever
# asks looks through them.
_CHANGED_NAMES = (
    "SELECT d.parent, d.name FROM shadow s CROSS JOIN dentry d ON d.parent = s.ino"
    " WHERE s.workspace = ?1 AND s.pending = 0 AND d.from_seq > ?2"
    " UNION SELECT d.parent, d.name FROM shadow s CROSS JOIN dentry_past d ON d.parent = s.ino"
    " WHERE s.workspace = ?1 AND s.pending = 0 AND d.to_seq > ?2 ORDER BY 1, 2"
)
_CHANGED_INODES = (
    "SELECT s.ino FROM shadow s CROSS JOIN inode i ON i.ino = s.ino"
    " WHERE s.workspace = ?1 AND i.from_seq > ?2 AND i.nlink > 0 ORDER BY 1"
)


def living_workspaces(connection: Connection) -> list[Workspace]:
    """Return the workspaces that there are now, oldest first."""
    return [Workspace._make(row) for row in connection.all(f"{_LIVING} ORDER BY w.made_seq")]


def workspaces_called(connection: Connection, name: str) -> list[Workspace]:
    """Return those that have a name: several, where one was discarded and came back."""
    return [Workspace._make(row) for row in connection.all(f"{_LIVING} AND w.name = ?", (name,))]


def changed_names(connection: Connection, workspace: Workspace) -> list[tuple[Ino, Name]]:
    """Return (directory, name) of what came, went or changed its meaning since it was made.

    Names in directories that are new themselves are left out.
    """
    return [
        (row[0], row[1])
        for row in connection.all(_CHANGED_NAMES, (workspace.ino, workspace.made_seq))
    ]


def changed_inodes(connection: Connection, workspace: Workspace) -> list[Ino]:
    """Return the inodes that stand for one of the base, and have a newer version."""
    return [row[0] for row in connection.all(_CHANGED_INODES, (workspace.ino, workspace.made_seq))]


def base_of(connection: Connection, workspace: Workspace, ino: Ino) -> Ino | None:
    """Return what an inode of a workspace stands for."""
    row = connection.one(
        "SELECT base_ino FROM shadow WHERE ino = ? AND workspace = ?", (ino, workspace.ino)
    )
    return None if row is None else row[0]


def sources_of(connection: Connection, workspace: Workspace, base_ino: Ino) -> list[Ino]:
    """Return everything that stands, or stood, for something of the base."""
    sql = "SELECT ino FROM shadow WHERE workspace = ? AND base_ino = ?"
    return [row[0] for row in connection.all(sql, (workspace.ino, base_ino))]


def applied_seqs(connection: Connection, workspace: Workspace) -> list[Seq]:
    """Return the operations by which changes went into the base, oldest first."""
    sql = "SELECT seq FROM applied WHERE workspace = ? ORDER BY seq"
    return [row[0] for row in connection.all(sql, (workspace.ino,))]


def touched_names(connection: Connection, seq: Seq) -> set[tuple[Ino, Name]]:
    """Return (directory, name) of every name that an operation changed."""
    sql = "SELECT parent, name FROM touched WHERE seq = ? AND parent <> ?"
    return {(row[0], row[1]) for row in connection.all(sql, (seq, NO_INO))}


def touched_inodes(connection: Connection, seq: Seq) -> set[Ino]:
    """Return every inode that an operation changed, or a name of it."""
    return {
        row[0] for row in connection.all("SELECT DISTINCT ino FROM touched WHERE seq = ?", (seq,))
    }


# -- changes, in a transaction of the caller --


def add_workspace(connection: Connection, workspace: Workspace) -> None:
    """Note that a directory is a workspace; it is pending."""
    connection.change(
        "INSERT INTO workspace (ino, name, base_ino, base_seq, made_seq, uid)"
        " VALUES (?, ?, ?, ?, ?, ?)",
        tuple(workspace),
    )
    arguments = (workspace.ino, workspace.base_ino, workspace.base_seq, workspace.made_seq)
    connection.change(COPY_XATTRS, arguments)
    connection.change(ADD_SHADOW, (workspace.ino, workspace.ino, workspace.base_ino, 1))


def add_applied(connection: Connection, workspace: Workspace, seq: Seq) -> None:
    """Note that changes of a workspace went into its base."""
    connection.change("INSERT INTO applied (workspace, seq) VALUES (?, ?)", (workspace.ino, seq))


def add_shadow(
    connection: Connection, workspace: Workspace, ino: Ino, base_ino: Ino, *, is_dir: bool
) -> None:
    """Note that something new in a workspace is now in the base as well."""
    connection.change(ADD_SHADOW, (ino, workspace.ino, base_ino, 0 if is_dir else None))


# -- for fsck and repair --


def lost_shadows(connection: Connection) -> list[Ino]:
    """Return what stands for something of a workspace that is not known."""
    return [
        row[0]
        for row in connection.all(
            "SELECT s.ino FROM shadow s"
            " WHERE NOT EXISTS (SELECT 1 FROM workspace w WHERE w.ino = s.workspace)"
        )
    ]


def contradicting_shadows(connection: Connection) -> list[Ino]:
    """Return directories whose entries are said to be no rows, and some are."""
    return [
        row[0]
        for row in connection.all(
            "SELECT s.ino FROM shadow s WHERE s.pending = 1 AND ("
            " EXISTS (SELECT 1 FROM dentry d WHERE d.parent = s.ino)"
            " OR EXISTS (SELECT 1 FROM dentry_past d WHERE d.parent = s.ino))"
        )
    ]


def unkept_moments(connection: Connection) -> list[tuple[str, Seq]]:
    """Return (workspace, operation) of moments that it needs, and retention does not know of."""
    return connection.all(
        "SELECT w.name, w.base_seq FROM workspace w WHERE w.base_seq <"
        " (SELECT coalesce(max(value), 0) FROM store WHERE key = 'pruned_to')"
        " AND NOT EXISTS (SELECT 1 FROM kept k WHERE k.seq = w.base_seq AND k.pinned = 1)"
        " AND EXISTS (SELECT 1 FROM inode i WHERE i.ino = w.ino)"
    )


def drop_shadow(connection: Connection, ino: Ino) -> None:
    connection.change("DELETE FROM shadow WHERE ino = ?", (ino,))


def settle_shadow(connection: Connection, ino: Ino) -> None:
    """Take the entries that are rows for all there are."""
    connection.change("UPDATE shadow SET pending = 0 WHERE ino = ?", (ino,))
