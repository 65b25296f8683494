"""Which directories are attachments: what may not be changed in them, and what is not taken away.

Costs nothing in a store that has none, as with ``shadows``: whether there are any is asked again
after others changed the database.
"""

from __future__ import annotations

from nexus_engine import errors
from nexus_engine.meta import attachment_queries
from nexus_engine.meta.connection import Connection
from nexus_engine.meta.reader import PATH_DEPTH_MAX
from nexus_engine.types import ROOT_INO, Ino

_PARENTS = "SELECT parent FROM dentry WHERE ino = ?"


class AttachedRoots:
    """What one connection knows of them."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._roots: dict[Ino, bool] | None = None

    def forget(self) -> None:
        """There may be others by now."""
        self._roots = None

    @property
    def roots(self) -> dict[Ino, bool]:
        """Their directories, and whether each is read-only."""
        if self._roots is None:
            self._roots = attachment_queries.roots(self._connection)
        return self._roots

    @property
    def any_read_only(self) -> bool:
        return any(self.roots.values())

    def require_writable(self, ino: Ino) -> None:
        """Refuse to change something that is in a read-only attachment, by any of its names.

        Raises:
            ReadOnly.
        """
        if self.any_read_only and any(self.roots.get(root) for root in self.around(ino)):
            raise errors.ReadOnly("this is attached read-only")

    def require_free(self, ino: Ino) -> None:
        """Refuse to take away the directory of an attachment.

        Raises:
            InUse.
        """
        if ino in self.roots:
            raise errors.InUse(
                "something is attached here: nexus-ctl mounts remove takes it away, and leaves"
                " what is at the source"
            )

    def require_side_by_side(self, moved: Ino, new_parent: Ino) -> None:
        """Refuse to move a directory with an attachment in it into another one.

        Raises:
            InUse.
        """
        if self.roots and self.around(new_parent):
            above = {above for root in self.roots for above in self._way_up(root)}
            if moved in above:
                raise errors.InUse("there is an attachment in it, and none may be in another")

    def around(self, ino: Ino) -> set[Ino]:
        """Return the attachments that something is in, or is the directory of."""
        roots = self.roots
        if not roots:
            return set()
        found = {ino} & roots.keys()
        for (parent,) in self._connection.all(_PARENTS, (ino,)):
            found |= roots.keys() & set(self._way_up(parent))
            if len(found) == len(roots):
                break
        return found

    def _way_up(self, directory: Ino) -> list[Ino]:
        """Return a directory and all that it is in."""
        way = [directory]
        while way[-1] != ROOT_INO and len(way) < PATH_DEPTH_MAX:
            row = self._connection.one(f"{_PARENTS} LIMIT 1", (way[-1],))
            if row is None:
                break
            way.append(row[0])
        return way
