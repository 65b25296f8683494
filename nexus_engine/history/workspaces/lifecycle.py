"""Making a workspace, finding it, and discarding it."""

from __future__ import annotations

import stat
from collections.abc import Container

from nexus_engine import errors
from nexus_engine.fs.namespace import add_inode, check_name
from nexus_engine.history.subtrees import join, remove_tree
from nexus_engine.meta import workspace_queries
from nexus_engine.meta.transaction import Transaction
from nexus_engine.meta.workspace_queries import Workspace
from nexus_engine.permissions import acl
from nexus_engine.records import Change
from nexus_engine.reserve import frees_space
from nexus_engine.types import NAME_MAX, ROOT_INO, Ino, Inode, Name, Path, Seq


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
    *way, last = at.split(b"/")
    directory, path = tx.get_inode(ROOT_INO), Path(b"")
    for part in way:
        path = join(path, part)
        found = tx.find_child(directory.ino, Name(part))
        if found is None:
            found = _make_directory(tx, directory, Name(part))
        if not found.is_dir:
            raise errors.NotADirectory(_show(path))
        directory = found
    check_name(last)
    if tx.find_dentry(directory.ino, Name(last)) is not None:
        raise errors.AlreadyExists(_show(at))
    return directory.ino, Name(last)


def _make_directory(tx: Transaction, parent: Inode, name: Name) -> Inode:
    check_name(name)
    default = tx.find_xattr(parent.ino, acl.DEFAULT)
    made = add_inode(tx, parent, default, name, stat.S_IFDIR | 0o755)
    tx.touch_directory(parent.ino, subdirectories=1)
    tx.add_touched(made.ino, parent.ino, name)
    return made


@frees_space
def discard_workspace(tx: Transaction, workspace: Workspace, keep: Container[Ino] = ()) -> Seq:
    """Rule: remove a workspace with all that is in it.

    Args:
        keep: Inodes that stay usable without a name, because they are open.

    Raises:
        NotFound: It is gone.
        OperationNotPermitted: Somebody else made it.
    """
    keeper = tx.get_inode(ROOT_INO).uid
    if tx.actor.uid not in (0, keeper, workspace.uid):
        raise errors.OperationNotPermitted(
            "only its maker, the store's owner and root may discard a workspace"
        )
    names = tx.dentries_of(workspace.ino)
    if not names:
        raise errors.NotFound(f"there is no workspace {workspace.name}")
    parent, name = names[0].parent, names[0].name
    path = tx.path_of(parent, name)
    count = 0
    inode = tx.get_inode(workspace.ino)
    for gone in remove_tree(tx, parent, name, inode, path, keep):
        tx.add_touched(gone.inode.ino, gone.parent, gone.name)
        count += 1
    tx.forget_paths()
    details = {"name": workspace.name, "removed": count}
    return tx.commit(Change("discard", workspace.ino, path, None, details))


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
