"""Removing a subtree as a part of one operation; and walking one while it changes."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator
from typing import NamedTuple

from nexus_engine.fs.namespace import drop_link
from nexus_engine.meta.reader import Listed
from nexus_engine.meta.transaction import Transaction
from nexus_engine.types import Ino, Inode, Name, Path

_PAGE = 512


class Removed(NamedTuple):
    """A name that went."""

    path: Path
    inode: Inode
    parent: Ino
    name: Name


def remove_tree(
    tx: Transaction, parent: Ino, name: Name, inode: Inode, path: Path, keep: Container[Ino]
) -> Iterator[Removed]:
    """Remove a name with everything below it, deepest first; yield each that went.

    Of directories whose entries are no rows yet these stay so: they come back with them.

    Args:
        keep: Inodes that stay usable without a name, because they are open.
    """
    stack = [(Removed(path, inode, parent, name), _rows_of(tx, inode))]
    while stack:
        doomed, entries = stack[-1]
        entry = next(entries, None)
        if entry is not None:
            below = Removed(
                join(doomed.path, entry.name), entry.inode, doomed.inode.ino, entry.name
            )
            stack.append((below, _rows_of(tx, entry.inode)))
            continue
        stack.pop()
        path, inode, parent, name = doomed
        tx.remove_dentry(parent, name)
        if inode.is_dir:
            tx.remove_inode(inode.ino)
        else:
            drop_link(tx, tx.get_inode(inode.ino), keep)
        tx.touch_directory(parent, subdirectories=-1 if inode.is_dir else 0)
        yield doomed


def _rows_of(tx: Transaction, inode: Inode) -> Iterator[Listed]:
    return iter_children(tx.list_rows, inode.ino) if inode.is_dir else iter(())


def iter_children(
    list_children: Callable[[Ino, int, int], list[Listed]], directory: Ino
) -> Iterator[Listed]:
    """Yield a directory's entries a page at a time; entries may be removed meanwhile."""
    after = 0
    while page := list_children(directory, after, _PAGE):
        yield from page
        after = page[-1].cookie


def join(directory: bytes, name: bytes) -> Path:
    """Return the path of a name in a directory."""
    return Path(directory + b"/" + name if directory else name)
