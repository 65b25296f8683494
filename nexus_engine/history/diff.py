"""What changed below a path between two moments.

Things are recognised by inode: a file that moved is one rename, and a directory that moved is one
rename however much is below it. A span of the log that is not too long says which inodes it
touched, and then only the directories above those are looked into.
"""

from __future__ import annotations

import difflib
import io
from collections.abc import Iterator
from typing import NamedTuple

from nexus_engine import errors
from nexus_engine.history.versions import read_content
from nexus_engine.meta import history_queries, log_pruning_queries
from nexus_engine.meta.database import Database
from nexus_engine.meta.reader import PATH_DEPTH_MAX, AsOfReader, Listed, View, resolve
from nexus_engine.store import Store
from nexus_engine.types import ROOT_INO, Ino, Inode, Name, Path, Seq

ADDED = "added"
REMOVED = "removed"
RENAMED = "renamed"
MODIFIED = "modified"
TYPE = "type"
MODE = "mode"
OWNER = "owner"
XATTR = "xattr"

SPAN_MAX = 200_000
"""A span of more operations is not looked through: both trees are walked instead."""
TEXT_MAX_BYTES = 1024 * 1024
TEXT_MAX_LINES = 20_000

_PAGE = 512
_BINARY_PROBE = 8192


class Difference(NamedTuple):
    """One thing that differs. A path may have several: modified, mode, owner, xattr."""

    kind: str
    """added, removed, renamed, modified, type, mode, owner, xattr."""
    path: Path
    """Before, except for what was added."""
    path2: Path | None
    """After, where that is another one."""
    before: Inode | None
    after: Inode | None


def diff(database: Database, path: Path, from_seq: Seq, to_seq: Seq) -> Iterator[Difference]:
    """Yield what differs at and below a path, directory by directory.

    Contents are compared by what they are made of, so that a file written again with the same
    bytes does not show. Times are not compared.

    Raises:
        NotFound: The path existed at neither moment.
    """
    before, after = database.as_of(from_seq), database.as_of(to_seq)
    old, new = resolve(before, path), resolve(after, path)
    if old is None and new is None:
        raise errors.NotFound(
            f"/{path.decode(errors='backslashreplace')} existed at neither moment"
        )
    comparison = _Comparison(database, before, after, old, new, path)
    yield from comparison.run()


def unified_diff(store: Store, path: Path, from_seq: Seq, to_seq: Seq) -> Iterator[str]:
    """Yield the lines of a unified diff of one file between two moments, with their ends.

    What is not text, or too long to compare, gives one line that says so.

    Raises:
        NotFound: The file existed at neither moment.
        IsADirectory: It is not a file.
    """
    sides = [_side(store, path, seq) for seq in (from_seq, to_seq)]
    if sides == [None, None]:
        raise errors.NotFound(f"{_show(path)} existed at neither moment")
    old, new = ("" if side is None else read_text(store, *side) for side in sides)
    name = path.decode(errors="backslashreplace")
    names = [f"{name}@op-{seq}" for seq in (from_seq, to_seq)]
    shown = [None if side is None else name for side, name in zip(sides, names, strict=True)]
    yield from patch(old, new, shown[0], shown[1])


GONE = (errors.ObjectChanged, errors.ObjectNotFound)
"""What others overwrote, or removed, at a source before anybody had read it here."""


def patch(
    old: str | None, new: str | None, old_name: str | None, new_name: str | None
) -> Iterator[str]:
    """Yield the lines of a unified diff of two texts, with their ends.

    Args:
        old: ``None``: no text, or too much of it.
        old_name: ``None``: there is none.
    """
    if old == new and old is not None:
        return
    if old is None or new is None:
        names = " and ".join(name for name in (old_name, new_name) if name is not None)
        yield f"Files {names} differ (binary, too long, or gone at the source)\n"
        return
    lines = difflib.unified_diff(
        list(io.StringIO(old)),  # splits at line feeds only
        list(io.StringIO(new)),
        old_name or "/dev/null",
        new_name or "/dev/null",
    )
    for line in lines:
        yield line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n"


class _Side(NamedTuple):
    view: AsOfReader
    inode: Inode


class _Pair(NamedTuple):
    """Two directories whose entries are compared; ``None``: there was or is none."""

    old: Ino | None
    new: Ino | None
    old_path: Path
    new_path: Path


class _Comparison:
    """Two trees, walked side by side."""

    def __init__(
        self,
        database: Database,
        before: AsOfReader,
        after: AsOfReader,
        old: Inode | None,
        new: Inode | None,
        path: Path,
    ) -> None:
        self._connection = database.connection
        self._before = before
        self._after = after
        self._old = old
        self._new = new
        self._path = path
        self._pending: list[_Pair] = []
        self._dirty = self._dirty_directories()
        """Directories with a change in or below them; ``None``: not known, look into all."""

    def run(self) -> Iterator[Difference]:
        old, new, path = self._old, self._new, self._path
        if old is not None and new is not None and _is_same(old, new):
            yield from self._attributes(old, new, path, path)
            self._descend(old, new, path, path)
        else:
            yield from self._unlike(old, new, path, path)
        while self._pending:
            yield from self._compare(self._pending.pop())

    # -- where to look --

    def _dirty_directories(self) -> set[Ino] | None:
        if abs(self._after.seq - self._before.seq) > SPAN_MAX:
            return None
        first, last = sorted((self._before.seq, self._after.seq))
        if first < log_pruning_queries.log_pruned(self._connection)[0]:
            return None
        dirty: set[Ino] = set()
        for view in (self._before, self._after):
            above: set[Ino] = set()
            for ino in history_queries.iter_changed_inodes(self._connection, first, last):
                above.add(ino)
                for parent, _ in history_queries.dentries_as_of(self._connection, ino, view.seq):
                    current = parent
                    while current not in above:
                        above.add(current)
                        current = view.parent_of(current)
            dirty |= above
        return dirty

    def _descend(
        self, old: Inode | None, new: Inode | None, old_path: Path, new_path: Path
    ) -> None:
        """Compare entries later, unless they are known to be the same."""
        old_ino = old.ino if old is not None and old.is_dir else None
        new_ino = new.ino if new is not None and new.is_dir else None
        if old_ino is None and new_ino is None:
            return
        if old_ino == new_ino and self._dirty is not None and old_ino not in self._dirty:
            return
        self._pending.append(_Pair(old_ino, new_ino, old_path, new_path))

    # -- one directory --

    def _compare(self, pair: _Pair) -> Iterator[Difference]:
        for name, old, new in self._merged(pair):
            old_path, new_path = _join(pair.old_path, name), _join(pair.new_path, name)
            if old is not None and new is not None and old.ino == new.ino:
                if old != new:
                    yield from self._attributes(old, new, old_path, new_path)
                self._descend(old, new, old_path, new_path)
            else:
                yield from self._unlike(old, new, old_path, new_path)

    def _merged(self, pair: _Pair) -> Iterator[tuple[Name, Inode | None, Inode | None]]:
        """Yield the names of both directories, each once, in directory order."""
        old_entries = self._iter(self._before, pair.old)
        new_entries = self._iter(self._after, pair.new)
        old, new = next(old_entries, None), next(new_entries, None)
        while old is not None or new is not None:
            if new is None or (old is not None and _place(old) < _place(new)):
                assert old is not None
                yield old.name, old.inode, None
                old = next(old_entries, None)
            elif old is None or _place(new) < _place(old):
                yield new.name, None, new.inode
                new = next(new_entries, None)
            else:
                yield old.name, old.inode, new.inode
                old, new = next(old_entries, None), next(new_entries, None)

    def _iter(self, view: AsOfReader, directory: Ino | None) -> Iterator[Listed]:
        after = 0
        while directory is not None:
            page = view.list_children(directory, after, _PAGE)
            if not page:
                return
            yield from page
            after = page[-1].cookie

    # -- one name --

    def _unlike(
        self, old: Inode | None, new: Inode | None, old_path: Path, new_path: Path
    ) -> Iterator[Difference]:
        """A name that does not mean the same inode at both moments."""
        moved_to = None if old is None else self._moves(old.ino).get(old_path)
        came_from = new is not None and new_path in self._moves(new.ino).values()
        if old is not None and new is not None and moved_to is None and not came_from:
            yield from self._replaced(old, new, old_path, new_path)
            return
        if old is not None and moved_to is not None:
            now = self._after.get_inode(old.ino)
            yield Difference(RENAMED, old_path, moved_to, old, now)
            yield from self._attributes(old, now, old_path, moved_to)
            self._descend(old, now, old_path, moved_to)
        elif old is not None:
            yield Difference(REMOVED, old_path, None, old, None)
            self._descend(old, None, old_path, old_path)
        if new is not None and not came_from:
            yield Difference(ADDED, new_path, None, None, new)
            self._descend(None, new, new_path, new_path)

    def _replaced(
        self, old: Inode, new: Inode, old_path: Path, new_path: Path
    ) -> Iterator[Difference]:
        """Another inode took the name, as when an editor saves into a new file."""
        if (old.mode ^ new.mode) & 0o170000:
            yield Difference(TYPE, old_path, _other(old_path, new_path), old, new)
        else:
            yield from self._attributes(old, new, old_path, new_path)
        self._descend(old, new, old_path, new_path)

    def _attributes(
        self, old: Inode, new: Inode, old_path: Path, new_path: Path
    ) -> Iterator[Difference]:
        path2 = _other(old_path, new_path)
        if self._content_differs(old, new):
            yield Difference(MODIFIED, old_path, path2, old, new)
        if old.mode != new.mode:
            yield Difference(MODE, old_path, path2, old, new)
        if (old.uid, old.gid) != (new.uid, new.gid):
            yield Difference(OWNER, old_path, path2, old, new)
        if _xattrs(self._before, old.ino) != _xattrs(self._after, new.ino):
            yield Difference(XATTR, old_path, path2, old, new)

    def _content_differs(self, old: Inode, new: Inode) -> bool:
        if old.is_symlink or not old.is_file:
            return old.target != new.target or old.rdev != new.rdev
        if old.ino == new.ino and old.content_seq == new.content_seq:
            return False
        if old.size != new.size:
            return True
        if old.size == 0:
            return False
        before = self._before.extents(old.ino, 0, old.size)
        return before != self._after.extents(new.ino, 0, new.size)

    # -- where names went --

    def _moves(self, ino: Ino) -> dict[Path, Path]:
        """Return which names of an inode became which, within the two subtrees.

        Of several names that went and came, the first by path becomes the first.
        """
        connection = self._connection
        old = set(history_queries.dentries_as_of(connection, ino, self._before.seq))
        new = set(history_queries.dentries_as_of(connection, ino, self._after.seq))
        gone = self._paths(self._before, self._old, old - new)
        come = self._paths(self._after, self._new, new - old)
        return dict(zip(gone, come, strict=False))

    def _paths(
        self, view: AsOfReader, top: Inode | None, dentries: set[tuple[Ino, Name]]
    ) -> list[Path]:
        """Return the paths of names below the top, those outside left out, sorted."""
        paths = (self._path_of(view, top, parent, name) for parent, name in dentries)
        return sorted(path for path in paths if path is not None)

    def _path_of(self, view: AsOfReader, top: Inode | None, parent: Ino, name: Name) -> Path | None:
        names: list[bytes] = [name]
        while top is not None and len(names) < PATH_DEPTH_MAX:
            if parent == top.ino:
                return _join(self._path, b"/".join(reversed(names)))
            found = history_queries.dentries_as_of(self._connection, parent, view.seq)
            if parent == ROOT_INO or not found:
                return None
            parent, above = found[0]
            names.append(above)
        return None


def _side(store: Store, path: Path, seq: Seq) -> _Side | None:
    view = store.database.as_of(seq)
    inode = resolve(view, path)
    if inode is None:
        return None
    if inode.is_dir:
        raise errors.IsADirectory(f"{_show(path)} is a directory")
    return _Side(view, inode)


def read_text(store: Store, view: View, inode: Inode) -> str | None:
    """Return a file's text, ``None`` where it is none or too much of it, or it cannot be had."""
    if inode.target is not None:
        return inode.target.decode(errors="backslashreplace") + "\n"
    if not inode.is_file or inode.size > TEXT_MAX_BYTES:
        return None
    try:
        content = read_content(store, view, inode, 0, inode.size)
    except GONE:
        return None
    if not is_text(content) or content.count(b"\n") > TEXT_MAX_LINES:
        return None
    return content.decode(errors="backslashreplace")


def is_text(content: bytes) -> bool:
    """Tell whether a content looks like text, whatever its encoding."""
    return b"\0" not in content[:_BINARY_PROBE]


def _is_same(old: Inode, new: Inode) -> bool:
    return old.ino == new.ino or (old.is_dir and new.is_dir)


def _xattrs(view: AsOfReader, ino: Ino) -> dict[bytes, bytes | None]:
    return {name: view.find_xattr(ino, name) for name in view.xattr_names(ino)}


def _place(entry: Listed) -> tuple[int, bytes]:
    return entry.cookie, entry.name


def _other(old_path: Path, new_path: Path) -> Path | None:
    return None if old_path == new_path else new_path


def _join(directory: bytes, name: bytes) -> Path:
    return Path(directory + b"/" + name if directory else name)


def _show(path: bytes) -> str:
    return "/" + path.decode(errors="backslashreplace")
