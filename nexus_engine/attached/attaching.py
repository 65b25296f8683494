"""Rules: attach a source at a path, and take it away again."""

from __future__ import annotations

import stat
from collections.abc import Container
from typing import NamedTuple

from nexus_engine import errors
from nexus_engine.fs.namespace import add_inode, check_name
from nexus_engine.history.subtrees import make_directories, remove_directory
from nexus_engine.meta import attachment_queries
from nexus_engine.meta.attachment_queries import Attachment
from nexus_engine.meta.transaction import Transaction
from nexus_engine.permissions import acl
from nexus_engine.records import Change
from nexus_engine.reserve import frees_space
from nexus_engine.types import Ino, Inode, Name, Path, Seq


class Wanted(NamedTuple):
    """What is to be attached, and how."""

    url: str
    options: dict[str, str]
    read_only: bool
    interval_s: int
    capabilities: int


def attach(tx: Transaction, at: Path, wanted: Wanted, *, make_parents: bool = False) -> Attachment:
    """Rule: make a directory the place of a source. What is there comes in later.

    Args:
        at: A new name in a directory that is there, or an empty directory.
        make_parents: Directories on the way that are missing are made.

    Raises:
        NotFound, NotADirectory, DirectoryNotEmpty, AlreadyExists, InvalidArgument.
        InUse: It is in an attachment, or is one.
    """
    if make_parents:
        make_directories(tx, Path(at.rpartition(b"/")[0]))
    directory = _place(tx, at)
    number = attachment_queries.next_number(tx.connection)
    attachment = Attachment(
        number, directory.ino, wanted.url, wanted.options, wanted.read_only, wanted.interval_s,
        wanted.capabilities, pushed_seq=tx.seq, feed="", listed_ns=0, trouble="",
    )  # fmt: skip
    attachment_queries.add_attachment(tx.connection, attachment)
    details = {"url": wanted.url, "read_only": wanted.read_only}
    with tx.by_source():
        tx.commit(Change("attach", directory.ino, at, details=details))
    tx.attached.forget()
    return attachment


def _place(tx: Transaction, at: Path) -> Inode:
    """Return the directory that is to be the attachment's; it is made if need be."""
    above, _, last = at.rpartition(b"/")
    parent = tx.resolve(Path(above))
    if not last:
        raise errors.InvalidArgument("attach it in the mount, not in its place: name a directory")
    if parent is None:
        raise errors.NotFound(f"there is no directory {_show(above)}: make it first")
    if not parent.is_dir:
        raise errors.NotADirectory(_show(above))
    check_name(last)
    if tx.attached.around(parent.ino):
        raise errors.InUse(f"{_show(above)} is attached itself, and none may be in another")
    name = Name(last)
    found = tx.find_child(parent.ino, name)
    if found is None:
        default = tx.find_xattr(parent.ino, acl.DEFAULT)
        made = add_inode(tx, parent, default, name, stat.S_IFDIR | 0o700)
        tx.touch_directory(parent.ino, subdirectories=1)
        tx.add_touched(made.ino, parent.ino, name)
        return made
    if not found.is_dir:
        raise errors.NotADirectory(_show(at))
    if found.ino in tx.attached.roots:
        raise errors.InUse(f"something is attached at {_show(at)} already")
    if not tx.is_empty(found.ino):
        raise errors.DirectoryNotEmpty(f"{_show(at)} is not empty")
    tx.add_touched(found.ino)
    return found


@frees_space
def detach(tx: Transaction, attachment: Attachment, keep: Container[Ino] = ()) -> Seq:
    """Rule: take an attachment away, with its directory. Its source is left alone.

    Args:
        keep: Inodes that stay usable without a name, because they are open.

    Raises:
        NotFound: It is gone.
    """
    with tx.by_source():
        removed = remove_directory(tx, attachment.ino, keep)
        if removed is None:
            raise errors.NotFound("it is attached no more")
        path, count = removed
        details = {"url": attachment.url, "removed": count}
        seq = tx.commit(Change("detach", attachment.ino, path, None, details))
    tx.attached.forget()
    return seq


def _show(path: bytes) -> str:
    return "/" + path.decode(errors="backslashreplace")
