"""Restore: bring a file or a subtree back as it was at a moment, as one operation.

No bytes are copied: the new state refers to the chunks of the old one. What is in the way becomes
past, like everything that is replaced, so that a restore can be undone.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator
from typing import NamedTuple

from nexus_engine import errors
from nexus_engine.fs.namespace import check_name
from nexus_engine.history.subtrees import (
    iter_children,
    join,
    put_content,
    put_xattrs,
    remove_tree,
    xattrs_of,
)
from nexus_engine.meta import retention_queries
from nexus_engine.meta.reader import AsOfReader, Listed, resolve
from nexus_engine.meta.transaction import Transaction
from nexus_engine.records import Change
from nexus_engine.reserve import frees_space
from nexus_engine.store import Store
from nexus_engine.types import (
    NO_INO,
    ROOT_INO,
    Actor,
    Ino,
    Inode,
    Name,
    Path,
    Seq,
)

CREATED = "created"
CHANGED = "changed"
REMOVED = "removed"

_PROGRESS_EVERY = 100


class Restored(NamedTuple):
    """What a restore did to one path."""

    action: str
    """created, changed, removed."""
    path: Path
    ino: Ino


def restore(
    store: Store,
    path: Path,
    seq: Seq,
    actor: Actor,
    *,
    to: Path | None = None,
    exact: bool = False,
    replace: bool = False,
    keep: Container[Ino] = (),
    progress: Callable[[int], None] | None = None,
) -> list[Restored]:
    """Bring back what a path was after an operation.

    A file that still is the same one gets its content and attributes back; one that is gone comes
    back as itself; one that lives on under another name is left there, and a copy takes the place.
    Directories on the way that are missing come back as they were, without their other entries.

    Args:
        to: Where to put it instead, as a copy; its directory must exist.
        exact: Inside directories, remove what was not there then.
        replace: With ``to``: what is there gives way.
        keep: Inodes that stay usable without a name, because they are open.
        progress: Told now and then how many paths are done.

    Returns:
        What changed, in the order of the tree; empty if everything is as it was then, and then
        the log gets no record.

    Raises:
        NotFound: The path did not exist then, or ``to``'s directory does not exist.
        AlreadyExists: There is something at ``to``.
        InvalidMoment: There is no such operation.
        NotADirectory: Where a directory is to hold it, there is now something else.
    """
    return store.transact(
        restore_path, actor, path, seq, to=to, exact=exact, replace=replace, keep=keep,
        progress=progress,
    )  # fmt: skip


@frees_space
def restore_path(
    tx: Transaction,
    path: Path,
    seq: Seq,
    *,
    to: Path | None = None,
    exact: bool = False,
    replace: bool = False,
    keep: Container[Ino] = (),
    progress: Callable[[int], None] | None = None,
) -> list[Restored]:
    """Rule: see ``restore``."""
    if not 1 <= seq <= tx.head_seq:
        raise errors.InvalidMoment(f"there is no op-{seq}; the last one is op-{tx.head_seq}")
    if retention_queries.nearest_kept(tx.connection, seq) != seq:
        raise errors.HistoryExpired(f"op-{seq} is not kept any more")
    then = tx.as_of(seq)
    source = resolve(then, path)
    if source is None:
        raise errors.NotFound(f"{_show(path)} did not exist after op-{seq}")
    target = path if to is None else to
    work = _Restoration(tx, then, exact=exact, copy=target != path, keep=keep, progress=progress)
    if work.copy:
        _require_free(tx, target, replace=replace)
    ino = work.run(source, target)
    if work.done:
        details = {"from_seq": seq, "changed": len(work.done), "exact": exact}
        path2 = target if work.copy else None
        tx.commit(Change("restore", ino, path, path2, details))
    return work.done


def _require_free(tx: Transaction, target: Path, *, replace: bool) -> None:
    directory, _, name = target.rpartition(b"/")
    check_name(name)
    parent = tx.resolve(Path(directory))
    if parent is None:
        raise errors.NotFound(f"there is no directory {_show(directory)}: make it first")
    if not parent.is_dir:
        raise errors.NotADirectory(_show(directory))
    if not replace and tx.find_child(parent.ino, Name(name)) is not None:
        raise errors.AlreadyExists(_show(target))


class _Directory(NamedTuple):
    """A directory whose entries are being restored."""

    then: Inode
    ino: Ino
    """Its inode now."""
    path: Path
    created: bool
    extra: bool
    """It keeps entries that were not there then."""
    entries: Iterator[Listed]


class _Restoration:
    """One restore, inside its transaction."""

    def __init__(
        self,
        tx: Transaction,
        then: AsOfReader,
        *,
        exact: bool,
        copy: bool,
        keep: Container[Ino],
        progress: Callable[[int], None] | None,
    ) -> None:
        self.copy = copy
        """The result is a copy somewhere else: nothing there becomes what it was."""
        self.done: list[Restored] = []
        self._tx = tx
        self._then = then
        self._exact = exact
        self._keep = keep
        self._progress = progress
        self._seen = 0
        self._top = Path(b"")
        self._mixed: set[Ino] = set()
        """Directories that keep entries which were not there then."""
        self._placed: dict[Ino, Ino] = {}
        """Files with several names then: what they are now."""

    def run(self, source: Inode, target: Path) -> Ino:
        """Put ``source`` back at ``target``, with everything below it.

        Returns:
            What is at ``target`` now.
        """
        self._top = target
        if not target:
            self._clear_way(source, source, target)
            return self._restore_tree(self._enter(source, source.ino, target, created=False))
        parent = self._reach_parent(target)
        name = Name(target.rpartition(b"/")[2])
        there = self._tx.find_child(parent, name)
        if there is not None:
            # A copy replaces what is there as a whole; otherwise directories are merged.
            if self.copy or not _mergeable(source, there):
                self._remove_tree(parent, name, there, target)
            else:
                self._clear_way(source, there, target)
        if source.is_dir:
            return self._restore_tree(self._place_directory(parent, name, source, target))
        return self._place_file(parent, name, source, target)

    # -- what is in the way --

    def _clear_way(self, then: Inode, now: Inode, path: Path) -> None:
        """Remove what other things stand where something is to be put, and what is too much.

        Before anything is put, so that a file that was moved within the subtree is free to go
        back as itself.
        """
        pending = [(then, now, path)]
        while pending and then.is_dir:
            old, new, path = pending.pop()
            for entry in iter_children(self._tx.list_children, new.ino):
                was = self._then.find_child(old.ino, entry.name)
                below = join(path, entry.name)
                if was is None:
                    if self._exact:
                        self._remove_tree(new.ino, entry.name, entry.inode, below)
                    else:
                        self._mixed.add(new.ino)
                elif not _mergeable(was, entry.inode):
                    self._remove_tree(new.ino, entry.name, entry.inode, below)
                elif was.is_dir:
                    pending.append((was, entry.inode, below))

    def _remove_tree(self, parent: Ino, name: Name, inode: Inode, path: Path) -> None:
        for gone in remove_tree(self._tx, parent, name, inode, path, self._keep):
            self._note(REMOVED, gone.path, gone.inode.ino, gone.parent, gone.name)

    # -- directories --

    def _reach_parent(self, target: Path) -> Ino:
        """Return the directory that is to hold the target; make what is missing on the way."""
        tx, then = self._tx, self._then
        parent, path = ROOT_INO, Path(b"")
        was = then.find_inode(ROOT_INO)
        for part in target.split(b"/")[:-1]:
            name, path = Name(part), join(path, part)
            was = then.find_child(was.ino, name) if was is not None else None
            there = tx.find_child(parent, name)
            if there is None:
                if was is None or self.copy:
                    raise errors.NotFound(f"there is no directory {_show(path)}: make it first")
                parent = self._place_directory(parent, name, was, path).ino
                continue
            if not there.is_dir:
                raise errors.NotADirectory(f"{_show(path)} is no directory now")
            parent = there.ino
        return parent

    def _place_directory(self, parent: Ino, name: Name, was: Inode, path: Path) -> _Directory:
        """Make sure that a directory is there, with no regard to its entries."""
        tx = self._tx
        there = tx.find_child(parent, name)
        if there is not None:
            return self._enter(was, there.ino, path, created=False)
        tx.appear(was.ino)  # as it was: rows of today would be in the way
        free = not self.copy and tx.find_inode(was.ino) is None
        ino = was.ino if free else tx.new_ino()
        inode = was._replace(ino=ino, nlink=2, ctime_ns=tx.now_ns, from_seq=tx.seq)
        tx.add_inode(inode)
        self._restore_xattrs(was.ino, ino)
        tx.add_dentry(parent, name, inode)
        tx.touch_directory(parent, subdirectories=1)
        self._note(CREATED, path, ino, parent, name)
        return self._enter(was, ino, path, created=True)

    def _enter(self, was: Inode, ino: Ino, path: Path, *, created: bool) -> _Directory:
        entries = iter_children(self._then.list_children, was.ino)
        return _Directory(was, ino, path, created, ino in self._mixed, entries)

    def _restore_tree(self, top: _Directory) -> Ino:
        """Put back every entry of a directory that is there, and everything below.

        Returns:
            The directory's inode.
        """
        stack = [top]
        while stack:
            directory = stack[-1]
            entry = next(directory.entries, None)
            if entry is None:
                self._finish_directory(stack.pop())
                continue
            path = join(directory.path, entry.name)
            if entry.inode.is_dir:
                stack.append(self._place_directory(directory.ino, entry.name, entry.inode, path))
            else:
                self._place_file(directory.ino, entry.name, entry.inode, path)
        self._tx.forget_paths()
        return top.ino

    def _finish_directory(self, directory: _Directory) -> None:
        """Put attributes back once the entries are in place: those set the times."""
        tx, was = self._tx, directory.then
        now = tx.get_inode(directory.ino)
        after = now._replace(mode=was.mode, uid=was.uid, gid=was.gid)
        if not directory.extra:
            after = after._replace(atime_ns=was.atime_ns, mtime_ns=was.mtime_ns)
        changed = self._restore_xattrs(was.ino, now.ino) or _differ(now, after)
        if changed or directory.created:
            tx.put_inode(after._replace(ctime_ns=tx.now_ns, from_seq=tx.seq))
        if changed and not directory.created:
            self._note(CHANGED, directory.path, now.ino)

    # -- everything else --

    def _place_file(self, parent: Ino, name: Name, was: Inode, path: Path) -> Ino:
        """Put a name back, with what it meant; return what it means now."""
        tx = self._tx
        there = tx.find_child(parent, name)
        if there is not None:
            if was.nlink > 1:
                self._placed[was.ino] = there.ino
            if self._restore_inode(there, was):
                self._note(CHANGED, path, there.ino)
            return there.ino
        same = self._find_same(was)
        if same is not None:
            inode = same._replace(nlink=same.nlink + 1, ctime_ns=tx.now_ns, from_seq=tx.seq)
            tx.put_inode(inode)
        else:
            inode = self._bring_back(was)
        tx.add_dentry(parent, name, inode)
        tx.touch_directory(parent)
        self._restore_inode(inode, was)
        if was.nlink > 1:
            self._placed[was.ino] = inode.ino
        self._note(CREATED, path, inode.ino, parent, name)
        return inode.ino

    def _find_same(self, was: Inode) -> Inode | None:
        """Return the living inode that a file with several names is to share."""
        tx = self._tx
        placed = self._placed.get(was.ino)
        if placed is not None:
            return tx.get_inode(placed)
        now = tx.find_inode(was.ino)
        if self.copy or was.nlink < 2 or now is None or now.nlink == 0:
            return None
        same = now.content_seq == was.content_seq and not _differ(
            now, was._replace(mtime_ns=now.mtime_ns)
        )
        for dentry in tx.dentries_of(was.ino):
            # A name that it had then and still has. Outside the subtree, nothing may change.
            if self._then.find_dentry_ino(dentry.parent, dentry.name) == was.ino and (
                same or self._is_inside(dentry.parent, dentry.name)
            ):
                return now
        return None

    def _is_inside(self, parent: Ino, name: Name) -> bool:
        path = self._tx.path_of(parent, name)
        return not self._top or path == self._top or path.startswith(self._top + b"/")

    def _bring_back(self, was: Inode) -> Inode:
        """Make the inode live again, or a copy where it lives elsewhere; content comes next."""
        tx = self._tx
        now = tx.find_inode(was.ino)
        fresh = was._replace(nlink=1, ctime_ns=tx.now_ns, from_seq=tx.seq)
        if self.copy or (now is not None and now.nlink > 0):
            size = was.size if was.is_symlink else 0
            fresh = fresh._replace(ino=tx.new_ino(), content_seq=tx.seq, size=size)
            tx.add_inode(fresh)
        else:
            tx.put_inode(fresh)
        return fresh

    def _restore_inode(self, now: Inode, was: Inode) -> bool:
        """Give an inode the content and the attributes of ``was``; tell whether they differed."""
        tx = self._tx
        after = now._replace(
            mode=was.mode, uid=was.uid, gid=was.gid, size=was.size, atime_ns=was.atime_ns,
            mtime_ns=was.mtime_ns, rdev=was.rdev, target=was.target,
        )  # fmt: skip
        changed = _differ(now, after)
        if was.is_file and self._restore_content(now, was):
            after = after._replace(content_seq=tx.seq)
            changed = True
        changed |= self._restore_xattrs(was.ino, now.ino)
        if changed:
            tx.put_inode(after._replace(ctime_ns=tx.now_ns, from_seq=tx.seq))
        return changed

    def _restore_content(self, now: Inode, was: Inode) -> bool:
        """Lay down the extents of then where they differ; tell whether the content changes."""
        tx = self._tx
        # The extents of an inode that is gone may have been cut while it was open without a name:
        # only a version that lived throughout can be trusted to have those of its content_seq.
        lived = now.from_seq < tx.seq and now.ino == was.ino
        if lived and now.content_seq == was.content_seq:
            return False
        old = self._then.extents(was.ino, 0, was.size) if was.size else []
        return put_content(tx, now.ino, old) or now.size != was.size

    def _restore_xattrs(self, source: Ino, ino: Ino) -> bool:
        return put_xattrs(self._tx, ino, xattrs_of(self._then, source))

    def _note(
        self, action: str, path: Path, ino: Ino, parent: Ino = NO_INO, name: bytes = b""
    ) -> None:
        self.done.append(Restored(action, path, ino))
        self._tx.add_touched(ino)
        if parent != NO_INO:
            self._tx.add_touched(ino, parent, name)
        self._seen += 1
        if self._progress is not None and self._seen % _PROGRESS_EVERY == 0:
            self._progress(self._seen)


def _mergeable(was: Inode, there: Inode) -> bool:
    """What is there can become what was: the same inode, or a directory in another's place."""
    return was.ino == there.ino or (was.is_dir and there.is_dir)


def _differ(now: Inode, after: Inode) -> bool:
    def seen(inode: Inode) -> tuple[object, ...]:
        return (inode.mode, inode.uid, inode.gid, inode.size, inode.mtime_ns, inode.target)

    return seen(now) != seen(after)


def _show(path: bytes) -> str:
    return "/" + path.decode(errors="backslashreplace")
