"""Rule: make what others did at a source a part of the tree.

Nothing that is here is lost to it. A file that was not changed here since it was last the same as
its object gets the object's new content, or goes with it. One that was changed on both sides is a
conflict: the object's content gets the name, as it has at the source, and the file that was here
moves beside it, open descriptors and history included.
"""

from __future__ import annotations

import stat
from collections.abc import Callable, Container, Sequence
from datetime import UTC, datetime

from nexus_engine import errors
from nexus_engine.attached.changes import Found, Gone, Imported, Item, Moved
from nexus_engine.attached.naming import OBJECT, beside, free
from nexus_engine.backends.bucket import executable
from nexus_engine.fs.files import Locate, content_details, enter_chunks
from nexus_engine.fs.namespace import add_inode, drop_link
from nexus_engine.meta import attachment_queries, lazy_queries
from nexus_engine.meta.attachment_queries import Attachment, SourceObject
from nexus_engine.meta.transaction import Transaction
from nexus_engine.permissions import acl
from nexus_engine.records import Change
from nexus_engine.sources import CHUNK_BYTES, lazy_extents
from nexus_engine.times import pack_time
from nexus_engine.types import Extent, Ino, Inode, Name, Path, Seq


def import_changes(
    tx: Transaction,
    attachment: Attachment,
    items: Sequence[Item],
    *,
    locate: Locate,
    keep: Container[Ino] = (),
    together: bool = False,
) -> Imported:
    """Rule: take over what was found at a source, an operation for each.

    Args:
        locate: Tells where a chunk is that the index does not know yet.
        keep: Inodes that stay usable without a name, because they are open.
        together: All of it is one operation: the making of the attachment.

    Raises:
        NotFound: The attachment is gone.
    """
    if tx.find_inode(attachment.ino) is None:
        raise errors.NotFound("it is attached no more")
    with tx.by_source():
        work = _Import(tx, attachment, locate, keep, together=together)
        for item in items:
            work.take(item)
        if together:
            details = {"url": attachment.url, "objects": work.done.added}
            root = tx.directory_path(attachment.ino)
            tx.add_touched(attachment.ino)
            tx.commit(Change("attach", attachment.ino, root, details=details))
    return work.done


class _Import:
    """One batch, inside its transaction."""

    def __init__(
        self,
        tx: Transaction,
        attachment: Attachment,
        locate: Locate,
        keep: Container[Ino],
        *,
        together: bool,
    ) -> None:
        self.done = Imported()
        self._tx = tx
        self._attachment = attachment
        self._locate = locate
        self._keep = keep
        self._together = together
        self._root = tx.get_inode(attachment.ino)
        self._directories: dict[Path, Inode] = {Path(b""): self._root}

    def take(self, item: Item) -> None:
        match item:
            case Found() if item.is_directory:
                directory = self._reach(item.path)
                self._note(item, directory.ino, item.path)
            case Found():
                self._take_object(item)
            case Gone():
                self._take_away(item.known)
            case Moved():
                self._move(item)

    # -- objects --

    def _take_object(self, item: Found) -> None:
        known = item.known
        directory, name, here = self._find(item.path)
        is_free = here is None or not here.is_file
        if is_free and known is not None and (moved := self._find_unchanged(known)):
            # It has another name here, which the source does not know of yet: it still is the file.
            self._overwrite(item, moved)
        elif here is None:
            # Where it was known, it was removed here, or moved and changed: theirs comes back.
            self._create(item, directory, name, "create" if known is None else "conflict")
        elif not here.is_file:
            path = self._free(beside(item.path, OBJECT))
            directory, name, _ = self._find(path)
            self._create(item._replace(path=path), directory, name, "create")
        elif item.same_as == here.content_seq:
            self._note(item, here.ino, item.path, here.content_seq)
        elif known is not None and _is_unchanged(here, known):
            self._overwrite(item, here)
        else:
            self._put_aside(item, directory, name, here)

    def _create(self, item: Found, directory: Inode, name: Name, kind: str) -> None:
        inode = self._add(item, directory, name)
        path = self._tx.path_of(directory.ino, name)
        self._commit(kind, inode, path, directory.ino, name)
        new = Imported(added=1) if kind == "create" else Imported(conflicts=1)
        self.done = self.done.plus(new)

    def _add(self, item: Found, directory: Inode, name: Name) -> Inode:
        """Make a file of an object; note that they are the same."""
        tx = self._tx
        default = tx.find_xattr(directory.ino, acl.DEFAULT)
        mode = _mode(stat.S_IFREG | (directory.mode & 0o666), item)
        inode = add_inode(
            tx, directory, default, name, mode, size=item.size, mtime_ns=pack_time(item.mtime_ns)
        )
        tx.touch_directory(directory.ino)
        tx.add_extents(inode.ino, self._extents(item))
        self._note(item, inode.ino, item.path)
        return inode

    def _overwrite(self, item: Found, inode: Inode) -> None:
        tx = self._tx
        was = {"size": inode.size, "content_seq": inode.content_seq}
        extents = self._extents(item)
        tx.replace_extents(inode.ino, extents)
        tx.put_inode(
            inode._replace(
                from_seq=tx.seq, size=item.size, mtime_ns=pack_time(item.mtime_ns),
                ctime_ns=tx.now_ns, content_seq=tx.seq, mode=_mode(inode.mode, item),
            )
        )  # fmt: skip
        path = item.path if item.known is None else item.known.path
        self._note(item, inode.ino, path)
        details = content_details(item.size, extents)
        where = tx.any_path_of(inode.ino)
        tx.commit(Change("write", inode.ino, where, None, details, was))
        self.done = self.done.plus(Imported(changed=1))

    def _put_aside(self, item: Found, directory: Inode, name: Name, ours: Inode) -> None:
        """Both changed it: theirs gets the name, ours moves beside it."""
        tx = self._tx
        time = datetime.fromtimestamp(tx.now_ns / 1e9, UTC).strftime("%Y%m%dT%H%M%SZ")
        aside = self._free(beside(item.path, f".conflict-{time}".encode()))
        _, aside_name, _ = self._find(aside)
        path, path2 = tx.path_of(directory.ino, name), tx.path_of(directory.ino, aside_name)
        tx.remove_dentry(directory.ino, name)
        ours = ours._replace(ctime_ns=tx.now_ns, from_seq=tx.seq)
        tx.put_inode(ours)
        tx.add_dentry(directory.ino, aside_name, ours)
        tx.add_touched(ours.ino, directory.ino, aside_name)
        inode = self._add(item, directory, name)
        self._commit("conflict", inode, path, directory.ino, name, path2)
        self.done = self.done.plus(Imported(conflicts=1))

    def _take_away(self, known: SourceObject) -> None:
        """What others removed goes here, too, unless it was changed here."""
        tx = self._tx
        attachment_queries.drop_object(tx.connection, known.attachment, known.key)
        directory, name, here = self._find(known.path, make=False)
        if here is None or here.ino != known.ino:
            return
        if here.is_dir:
            self._remove_empty(known.path)
        elif _is_unchanged(here, known):
            path = tx.path_of(directory.ino, name)
            tx.remove_dentry(directory.ino, name)
            gone = drop_link(tx, here, self._keep)
            tx.touch_directory(directory.ino)
            undo_state = {"ino": gone.ino, "mode": gone.mode, "size": gone.size}
            tx.commit(Change("unlink", gone.ino, path, undo_state=undo_state))
            self.done = self.done.plus(Imported(removed=1))
            self._remove_empty(Path(known.path.rpartition(b"/")[0]))

    def _move(self, item: Moved) -> None:
        _, _, here = self._find(item.known.path, make=False)
        if here is not None and not here.is_dir:
            target = self._free(item.path)
            attachment_queries.put_object(self._tx.connection, item.known._replace(path=target))
            self._rename(item.known.path, target)

    def _rename(self, path: Path, target: Path) -> None:
        """Give a file that is there a name that is free."""
        tx = self._tx
        directory, name, inode = self._find(path, make=False)
        new_directory, new_name, _ = self._find(target)
        assert inode is not None
        old_path = tx.path_of(directory.ino, name)
        tx.remove_dentry(directory.ino, name)
        moved = inode._replace(ctime_ns=tx.now_ns, from_seq=tx.seq)
        tx.put_inode(moved)
        tx.add_dentry(new_directory.ino, new_name, moved)
        tx.touch_directory(directory.ino)
        tx.touch_directory(new_directory.ino)
        new_path = tx.path_of(new_directory.ino, new_name)
        tx.commit(Change("rename", inode.ino, old_path, new_path))

    def _extents(self, item: Found) -> list[Extent]:
        if item.chunks is not None:
            lengths = range(0, item.size, CHUNK_BYTES)
            extents = [
                Extent(start, min(CHUNK_BYTES, item.size - start), digest, 0)
                for start, digest in zip(lengths, item.chunks, strict=True)
            ]
            enter_chunks(self._tx, extents, self._locate)
            return extents
        attachment = self._attachment.number
        extents = lazy_extents(attachment, item.key, item.etag, item.size)
        if extents:
            connection = self._tx.connection
            version = lazy_queries.add_version(connection, attachment, item.key, item.etag)
            places = ((extent.digest, extent.start, extent.length) for extent in extents)
            lazy_queries.add_chunks(connection, version, places)
        return extents

    def _note(self, item: Found, ino: Ino, path: Path, content_seq: Seq | None = None) -> None:
        """Note that an object and a file are the same, as of this operation or of a content."""
        seq = self._tx.seq if content_seq is None else content_seq
        known = SourceObject(
            self._attachment.number, item.key, path, ino, seq, item.etag, item.size
        )
        attachment_queries.put_object(self._tx.connection, known)

    def _commit(
        self,
        kind: str,
        inode: Inode,
        path: Path,
        parent: Ino,
        name: Name,
        path2: Path | None = None,
    ) -> None:
        tx = self._tx
        if self._together or kind == "conflict":
            tx.add_touched(inode.ino, parent, name)
        if self._together:
            return
        details = {"mode": inode.mode}
        if inode.is_file:
            details |= content_details(inode.size, tx.extents(inode.ino, 0, max(1, inode.size)))
        tx.commit(Change(kind, inode.ino, path, path2, details))

    # -- directories --

    def _find(self, path: Path, *, make: bool = True) -> tuple[Inode, Name, Inode | None]:
        """Return (directory, name, what is there) of a path; the directory is made if need be."""
        above, _, name = path.rpartition(b"/")
        directory = self._reach(Path(above)) if make else self._look(Path(above))
        if directory is None or not directory.is_dir:
            return self._root, Name(name), None
        return directory, Name(name), self._tx.find_child(directory.ino, Name(name))

    def _look(self, path: Path) -> Inode | None:
        inode: Inode | None = self._root
        for part in path.split(b"/") if path else ():
            if inode is None or not inode.is_dir:
                return None
            inode = self._tx.find_child(inode.ino, Name(part))
        return inode

    def _reach(self, path: Path) -> Inode:
        """Return a directory, made with those that it is in where it is missing."""
        known = self._directories.get(path)
        if known is not None:
            return known
        above, _, name = path.rpartition(b"/")
        parent = self._reach(Path(above))
        found = self._tx.find_child(parent.ino, Name(name))
        if found is not None and not found.is_dir:
            # A file of ours is where others made a directory.
            self._rename(path, self._free(beside(path, OBJECT)))
            found = None
        if found is None:
            found = self._make_directory(parent, Name(name))
        self._directories[path] = found
        return found

    def _make_directory(self, parent: Inode, name: Name) -> Inode:
        tx = self._tx
        default = tx.find_xattr(parent.ino, acl.DEFAULT)
        mode = stat.S_IFDIR | (parent.mode & 0o777)
        made = add_inode(tx, parent, default, name, mode)
        tx.touch_directory(parent.ino, subdirectories=1)
        self._commit("mkdir", made, tx.path_of(parent.ino, name), parent.ino, name)
        return made

    def _remove_empty(self, path: Path) -> None:
        """Remove directories that lost all that others had in them."""
        tx = self._tx
        while path:
            directory = self._look(path)
            if directory is None or not directory.is_dir or not tx.is_empty(directory.ino):
                return
            if attachment_queries.objects_of(tx.connection, self._attachment.number, directory.ino):
                return  # an object says that there is one
            above, _, name = path.rpartition(b"/")
            parent = self._look(Path(above))
            assert parent is not None
            where = tx.path_of(parent.ino, Name(name))
            tx.remove_dentry(parent.ino, Name(name))
            tx.remove_inode(directory.ino)
            tx.touch_directory(parent.ino, subdirectories=-1)
            tx.commit(Change("rmdir", directory.ino, where))
            self._directories.pop(path, None)
            path = Path(above)

    def _free(self, path: Path) -> Path:
        """Return a path at which nothing is."""
        return free(path, _Taken(self._find))

    def _find_unchanged(self, known: SourceObject) -> Inode | None:
        """Return the file that has an object's content under another name in the attachment."""
        inode = self._tx.find_inode(known.ino)
        if inode is None or not _is_unchanged(inode, known):
            return None
        inside = self._attachment.ino in self._tx.attached.around(inode.ino)
        return inode if inside else None


class _Taken:
    """The paths at which something is."""

    def __init__(self, find: Callable[[Path], tuple[Inode, Name, Inode | None]]) -> None:
        self._find = find

    def __contains__(self, path: object) -> bool:
        assert isinstance(path, bytes)
        return self._find(Path(path))[2] is not None


def _mode(mode: int, item: Found) -> int:
    return executable(mode) if item.is_program else mode


def _is_unchanged(inode: Inode, known: SourceObject) -> bool:
    return inode.nlink > 0 and inode.ino == known.ino and inode.content_seq == known.content_seq
