"""Find what a path names, with the checks that the kernel makes on a mount."""

from __future__ import annotations

from pathlib import Path as FilePath

from nexus_engine import errors
from nexus_engine.commands.arguments import to_path, to_text
from nexus_engine.history.moments import resolve_moment
from nexus_engine.meta.reader import View
from nexus_engine.permissions.modes import READ, SEARCH, allows
from nexus_engine.store import Store
from nexus_engine.types import ROOT_INO, Actor, Inode, Name, Path, Seq


def groups_of(actor: Actor) -> list[int]:
    """Return the supplementary groups of an actor's process, none if it is gone.

    Source: proc_pid_status(5).
    """
    if actor.uid == 0 or actor.pid == 0:
        return []
    process = FilePath("/proc", str(actor.pid))
    try:
        lines = (process / "status").read_bytes().splitlines()
        start_ticks = (process / "stat").read_bytes().rpartition(b")")[2].split()[19]
    except OSError:
        return []
    if int(start_ticks) != actor.start_ticks:
        return []  # the number is another process's by now
    fields = dict(line.split(b":", 1) for line in lines)
    return [int(group) for group in fields[b"Groups"].split()]


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
        require(view, inode, SEARCH, path, actor)
        child = view.find_child(inode.ino, Name(part)) if inode.is_dir else None
        if child is None:
            raise errors.NotFound(f"there is no /{to_text(path)}")
        inode = child
    return inode


def require(view: View, inode: Inode, want: int, path: Path, actor: Actor) -> None:
    """Refuse an actor whom permission bits or ACL refuse."""
    if not allows(view, inode, want, actor.uid, (actor.gid, *groups_of(actor))):
        raise errors.PermissionDenied(f"no permission for /{to_text(path)}")


def may_list(store: Store, path: Path, actor: Actor) -> bool:
    """Tell whether an actor may know of the name at a path: list the directory that it is in."""
    directory = Path(path.rpartition(b"/")[0])
    try:
        require(store.reader, reach(store.reader, directory, actor), READ, path, actor)
    except (errors.NotFound, errors.PermissionDenied):
        return is_keeper(store, actor)
    return True


def may_reach(store: Store, path: Path, actor: Actor) -> bool:
    """Tell whether an actor gets to a path: may search every directory on the way."""
    try:
        reach(store.reader, path, actor)
    except errors.PermissionDenied:
        return False
    return True


def moment(store: Store, text: str) -> Seq:
    """Return what a moment means now."""
    return resolve_moment(store.database, text, store.clock.time_ns())


def is_keeper(store: Store, actor: Actor) -> bool:
    return actor.uid in (0, store.path.stat().st_uid)


def require_keeper(store: Store, actor: Actor) -> None:
    """Refuse who neither owns the store nor is root, where permission bits are not looked at."""
    if not is_keeper(store, actor):
        raise errors.OperationNotPermitted(
            "only root and the owner of the store may do this; from .nexus/history everybody can"
            " copy what they may read"
        )
