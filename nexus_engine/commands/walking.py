"""Find what a path names, with the checks that the kernel makes on a mount."""

from __future__ import annotations

from nexus_engine import errors
from nexus_engine.commands.arguments import to_path, to_text
from nexus_engine.history.moments import resolve_moment
from nexus_engine.meta.reader import View
from nexus_engine.permissions.modes import SEARCH, allows
from nexus_engine.store import Store
from nexus_engine.types import ROOT_INO, Actor, Inode, Name, Path, Seq


def find(store: Store, text: str, actor: Actor) -> tuple[Path, Inode]:
    """Return the path that an argument names, and what is there now."""
    path = to_path(text)
    return path, reach(store.reader, path, actor)


def reach(view: View, path: Path, actor: Actor) -> Inode:
    """Return the inode at a path; symlinks are not followed.

    Raises:
        NotFound: There is nothing.
        PermissionDenied: The actor may not search a directory on the way.

    Source: path_resolution(7).
    """
    inode = view.get_inode(ROOT_INO)
    for part in path.split(b"/") if path else ():
        require(inode, SEARCH, path, actor)
        child = view.find_child(inode.ino, Name(part)) if inode.is_dir else None
        if child is None:
            raise errors.NotFound(f"there is no /{to_text(path)}")
        inode = child
    return inode


def require(inode: Inode, want: int, path: Path, actor: Actor) -> None:
    """Refuse an actor whom the permission bits refuse."""
    if not allows(inode, want, actor.uid, (actor.gid,)):
        raise errors.PermissionDenied(f"no permission for /{to_text(path)}")


def moment(store: Store, text: str) -> Seq:
    """Return what a moment means now."""
    return resolve_moment(store.database, text, store.clock.time_ns())


def require_keeper(store: Store, actor: Actor) -> None:
    """Refuse who neither owns the store nor is root, where permission bits are not looked at."""
    if actor.uid not in (0, store.path.stat().st_uid):
        raise errors.OperationNotPermitted(
            "only root and the owner of the store may do this; from .nexus/history everybody can"
            " copy what they may read"
        )
