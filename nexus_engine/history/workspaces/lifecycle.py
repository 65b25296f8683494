"""Making a workspace, finding it, and discarding it."""

from __future__ import annotations

from collections.abc import Container

from nexus_engine import errors
from nexus_engine.fs.namespace import check_name
from nexus_engine.history.subtrees import make_directories, remove_directory
from nexus_engine.meta import workspace_queries
from nexus_engine.meta.attachment_queries import Attachment
from nexus_engine.meta.transaction import Transaction
from nexus_engine.meta.workspace_queries import Workspace
from nexus_engine.records import Change
from nexus_engine.reserve import frees_space
from nexus_engine.types import NAME_MAX, ROOT_INO, Ino, Name, Path, Seq


def make_workspace(tx: Transaction, name: str, base_ino: Ino, at: Path) -> Workspace:
    """Rule: let a new directory begin as another one is now. Copies nothing.

    Directories on the way that are missing are made.

    Raises:
        AlreadyExists: A workspace has the name, or something is there.
        NotADirectory, NotFound, InvalidName, NameTooLong.
    """
    check_workspace_name(name)
    connection = tx.connection
    if workspace_queries.workspaces_called(connection, name):
        raise errors.AlreadyExists(f"there is a workspace {name} already")
    base = tx.get_inode(base_ino)
    if not base.is_dir:
        raise errors.NotADirectory("a workspace begins as a directory")
    base_path = tx.directory_path(base_ino)
    seq = tx.seq
    parent, last = _reach(tx, at)
    ino = tx.new_ino()
    inode = base._replace(ino=ino, from_seq=seq, content_seq=seq)
    tx.add_inode(inode)
    tx.add_dentry(parent, last, inode)
    tx.touch_directory(parent, subdirectories=1)
    tx.add_touched(ino, parent, last)
    workspace = Workspace(ino, name, base_ino, tx.head_seq, seq, tx.actor.uid)
    workspace_queries.add_workspace(connection, workspace)
    tx.forget_shadows()
    details = {"name": name, "base_seq": workspace.base_seq}
    tx.commit(Change("workspace", ino, at, base_path, details))
    return workspace


def _reach(tx: Transaction, at: Path) -> tuple[Ino, Name]:
    """Return where a path is to be; make the directories that are missing on the way."""
    above, _, last = at.rpartition(b"/")
    directory = make_directories(tx, Path(above))
    check_name(last)
    if tx.find_dentry(directory.ino, Name(last)) is not None:
        raise errors.AlreadyExists(_show(at))
    return directory.ino, Name(last)


@frees_space
def discard_workspace(
    tx: Transaction,
    workspace: Workspace,
    keep: Container[Ino] = (),
    attached: Attachment | None = None,
) -> Seq:
    """Rule: remove a workspace with all that is in it.

    Args:
        keep: Inodes that stay usable without a name, because they are open.
        attached: Goes with it: it was attached to be its base.

    Raises:
        NotFound: It is gone.
        OperationNotPermitted: Somebody else made it.
    """
    keeper = tx.get_inode(ROOT_INO).uid
    if tx.actor.uid not in (0, keeper, workspace.uid):
        raise errors.OperationNotPermitted(
            "only its maker, the store's owner and root may discard a workspace"
        )
    removed = remove_directory(tx, workspace.ino, keep)
    if removed is None:
        raise errors.NotFound(f"there is no workspace {workspace.name}")
    path, count = removed
    details: dict[str, object] = {"name": workspace.name, "removed": count}
    if attached is None:
        return tx.commit(Change("discard", workspace.ino, path, None, details))
    with tx.by_source():
        base = remove_directory(tx, attached.ino, keep)
        base_path = None if base is None else base[0]
        details |= {"url": attached.url, "removed": count + (0 if base is None else base[1])}
        seq = tx.commit(Change("discard", workspace.ino, path, base_path, details))
    tx.attached.forget()
    return seq


def check_workspace_name(name: str) -> None:
    """Refuse what cannot be a workspace's name: it is the name of its directory as well."""
    try:
        encoded = name.encode()
    except UnicodeEncodeError as error:
        raise errors.InvalidName("a workspace's name must be UTF-8") from error
    if len(encoded) > NAME_MAX:
        raise errors.NameTooLong(f"workspace name of {len(encoded)} bytes; at most {NAME_MAX}")
    if not name or name in (".", "..") or "/" in name or not name.isprintable():
        raise errors.InvalidName(f"not a name for a workspace: {name!r}")


def _show(path: bytes) -> str:
    return "/" + path.decode(errors="backslashreplace")
