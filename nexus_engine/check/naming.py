"""What to call things in a report, where the tree that names them is damaged, too."""

from __future__ import annotations

from nexus_engine.meta import check_queries
from nexus_engine.meta.connection import Connection
from nexus_engine.meta.reader import PATH_DEPTH_MAX
from nexus_engine.types import ROOT_INO


def inode_name(connection: Connection, ino: int) -> str:
    """Return an inode's path and number; of one that lost its name, what it was called last."""
    path = _path(connection, ino)
    return f"inode {ino}" if path is None else f"{path} (inode {ino})"


def entry_name(connection: Connection, parent: int, name: bytes) -> str:
    """Return the path of a name in a directory."""
    above = "/" if parent == ROOT_INO else _path(connection, parent)
    if above is None:
        return f"name {show(name)} in directory {parent}"
    return f"{above.rstrip('/')}/{show(name)}"


def show(name: bytes) -> str:
    """Return a name as one line of text."""
    return name.decode(errors="backslashreplace").encode("unicode_escape").decode()


def _path(connection: Connection, ino: int) -> str | None:
    names: list[str] = []
    seen: set[int] = set()
    while ino != ROOT_INO:
        found = None if ino in seen else check_queries.a_name(connection, ino)
        if found is None or len(names) > PATH_DEPTH_MAX:
            above = check_queries.logged_path(connection, ino)
            if above is None:
                return "/".join(["…", *reversed(names)]) if names else None
            names.append(show(above))
            break
        seen.add(ino)
        ino = found[0]
        names.append(show(found[1]))
    return "/" + "/".join(reversed(names))
