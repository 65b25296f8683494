"""Parts of operations that change many things: directories of a path, subtrees, content, xattrs."""

from __future__ import annotations

import stat
from collections.abc import Callable, Container, Iterator
from typing import NamedTuple

from nexus_engine import errors
from nexus_engine.fs.namespace import add_inode, check_name, drop_link
from nexus_engine.meta.reader import Listed, View
from nexus_engine.meta.transaction import Transaction
from nexus_engine.permissions import acl
from nexus_engine.types import ROOT_INO, SIZE_MAX, Extent, Ino, Inode, Name, Path

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


def make_directories(tx: Transaction, path: Path) -> Inode:
    """Return the directory at a path; those on the way that are missing are made, and it.

    Raises:
        NotADirectory, InvalidName, NameTooLong.
    """
    directory, so_far = tx.get_inode(ROOT_INO), Path(b"")
    for part in path.split(b"/") if path else ():
        so_far = join(so_far, part)
        found = tx.find_child(directory.ino, Name(part))
        if found is None:
            check_name(part)
            default = tx.find_xattr(directory.ino, acl.DEFAULT)
            found = add_inode(tx, directory, default, Name(part), stat.S_IFDIR | 0o755)
            tx.touch_directory(directory.ino, subdirectories=1)
            tx.add_touched(found.ino, directory.ino, Name(part))
        if not found.is_dir:
            raise errors.NotADirectory("/" + so_far.decode(errors="backslashreplace"))
        directory = found
    return directory


def remove_directory(tx: Transaction, ino: Ino, keep: Container[Ino]) -> tuple[Path, int] | None:
    """Remove a directory with everything in it; return where it was, and how many names went.

    Returns:
        ``None``: it is gone already.
    """
    names = tx.dentries_of(ino)
    if not names:
        return None
    parent, name = names[0].parent, names[0].name
    path, count = tx.path_of(parent, name), 0
    for gone in remove_tree(tx, parent, name, tx.get_inode(ino), path, keep):
        tx.add_touched(gone.inode.ino, gone.parent, gone.name)
        count += 1
    tx.forget_paths()
    return path, count


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


def put_content(tx: Transaction, ino: Ino, wanted: list[Extent]) -> bool:
    """Lay extents down in a file where its own are others; tell whether there were any."""
    there = tx.extents(ino, 0, SIZE_MAX)
    same = _common(wanted, there)
    rest = wanted[same:] + there[same:]
    if rest:
        tx.truncate_extents(ino, min(extent.start for extent in rest))
        tx.put_extents(ino, wanted[same:])
    return bool(rest)


def _common(old: list[Extent], new: list[Extent]) -> int:
    """Return how many extents two lists have in common at their beginning."""
    for index, (first, second) in enumerate(zip(old, new, strict=False)):
        if first != second:
            return index
    return min(len(old), len(new))


def put_xattrs(tx: Transaction, ino: Ino, wanted: dict[bytes, bytes]) -> bool:
    """Give an inode these extended attributes and no others; tell whether that changes any."""
    there = xattrs_of(tx, ino)
    for name in there.keys() - wanted.keys():
        tx.remove_xattr(ino, name)
    for name, value in wanted.items():
        if there.get(name) != value:
            tx.put_xattr(ino, name, value)
    return wanted != there


def xattrs_of(view: View, ino: Ino) -> dict[bytes, bytes]:
    """Return the extended attributes of an inode, with their values."""
    found = {name: view.find_xattr(ino, name) for name in view.xattr_names(ino)}
    return {name: value for name, value in found.items() if value is not None}


def join(directory: bytes, name: bytes) -> Path:
    """Return the path of a name in a directory."""
    return Path(directory + b"/" + name if directory else name)
