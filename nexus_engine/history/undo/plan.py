"""Plan an undo: what it would do to which path, and what it would have to leave alone.

::

    operations ─→ Names: which names come back and go      names, tree
               ─→ Existence: which inodes live             existence, lives
               ─→ InodeChanges: attributes, content, times changes, attributes, times
               ─→ UndoPlan: for people, and for ``apply``
"""

from __future__ import annotations

import stat
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence

import msgspec

from nexus_engine import errors
from nexus_engine.history.undo.attributes import CONTENT
from nexus_engine.history.undo.changes import InodeChange, InodeChanges, Refused
from nexus_engine.history.undo.existence import Existence, check_rights
from nexus_engine.history.undo.lives import Lives
from nexus_engine.history.undo.names import Cause, Names, Unit
from nexus_engine.history.undo.paths import Paths
from nexus_engine.history.undo.rights import Rights
from nexus_engine.history.undo.times import DirectoryTimes
from nexus_engine.history.undo.tree import check_tree
from nexus_engine.meta.undo_queries import Key, Operation, UndoQueries
from nexus_engine.records import OF_MANY
from nexus_engine.store import Store
from nexus_engine.types import Actor, Ino, Inode, Path, Seq

RESTORE = "restore"
REMOVE = "remove"
RENAME = "rename"
_ATTRIBUTES = "attributes"
_XATTR = "xattr"
_KINDS = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "symlink",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "device",
    stat.S_IFBLK: "device",
}


class Item(msgspec.Struct, frozen=True):
    """What an undo does to one path."""

    action: str
    """restore, remove, rename, content, attributes, xattr."""
    path: Path
    """As it is now; where it is gone, as it will be."""
    path2: Path | None
    """A rename: what it will be."""
    ino: Ino
    detail: str


class Conflict(msgspec.Struct, frozen=True):
    """What an undo leaves alone."""

    seq: Seq
    """The operation that is not undone, or not altogether."""
    path: Path
    ino: Ino
    what: str
    """name, content, mode, owner or "xattr NAME"."""
    reason: str
    by: Operation | None
    """The operation that is in the way."""


class UndoPlan(msgspec.Struct, frozen=True):
    """What an undo would do, as of ``head``."""

    head: Seq
    operations: list[Seq]
    """What was asked for."""
    redo: bool
    """These are all undos."""
    reverted: list[Seq]
    """Of that, and of what force took in, what would be undone altogether."""
    items: list[Item]
    """In the order of paths."""
    conflicts: list[Conflict]
    """In the order of the log."""
    names: dict[Key, tuple[Ino, Ino]]
    """Names that change: (inode now, inode after); 0: none."""
    inodes: list[InodeChange]

    def counts(self) -> dict[str, int]:
        """Return how many paths come back, go, or change."""
        actions = Counter(item.action for item in self.items)
        return {
            "restored": actions[RESTORE],
            "removed": actions[REMOVE],
            "changed": len(self.items) - actions[RESTORE] - actions[REMOVE],
            "conflicts": len(self.conflicts),
        }


def plan_undo(
    store: Store,
    seqs: Sequence[Seq],
    *,
    actor: Actor,
    force: bool = False,
    groups: Collection[int] = (),
) -> UndoPlan:
    """Work out what undoing operations means now. Changes nothing.

    What somebody else changed later stays as it is and is reported as a conflict. A file or
    directory that selected operations made, and others worked on, stays as a whole.

    Args:
        seqs: Operations, undos among them for a redo, in any order.
        actor: Who wants it; not root: only what they could change themselves.
        force: Undo what is in the way as well, as far as it is.
        groups: Further groups of the actor.

    Raises:
        InvalidSelector: There is no such operation.
    """
    connection = store.database.connection
    queries = UndoQueries(connection)
    with queries.one_moment():
        return _Planning(
            store, queries, seqs, Rights(actor, groups, store.reader), force=force
        ).plan()


class _Planning:
    """One plan in the making."""

    def __init__(
        self,
        store: Store,
        queries: UndoQueries,
        seqs: Sequence[Seq],
        rights: Rights,
        *,
        force: bool,
    ) -> None:
        self._queries = queries
        self._reader = store.reader
        self._rights = rights
        self._head = store.reader.head()
        wanted = sorted(set(seqs))
        self._operations = {o.seq: o for o in queries.operations(wanted)}
        missing = [seq for seq in wanted if seq not in self._operations]
        if missing:
            raise errors.InvalidSelector(f"there is no operation op-{missing[0]}")
        operations = list(self._operations.values())
        _require_whole(queries, operations)
        self._setattrs = {o.ino for o in operations if o.kind == "setattr"}
        self._names = names = Names(queries, force=force)
        names.select(operations)
        self._lives = Lives(queries, names, operations)
        self._existence = Existence(queries, names, self._lives, wanted, store.database.as_of)

    def plan(self) -> UndoPlan:
        names, existence = self._names, self._existence
        while True:
            names.settle()
            # Each check refuses something or finds nothing, so that this ends.
            if (
                check_tree(names, self._queries)
                or check_rights(names, self._rights, self._reader)
                or existence.check()
            ):
                continue
            break
        times = DirectoryTimes(self._queries, names, self._lives)
        work = InodeChanges(
            self._queries, names, self._lives, existence, times, self._rights, self._reader
        )
        work.collect()
        paths = Paths(names, self._queries, self._reader)
        conflicts = self._conflicts(paths, work.refused)
        return UndoPlan(
            head=self._head,
            operations=sorted(self._operations),
            redo=bool(self._operations)
            and all(o.kind == "undo" and not o.redo for o in self._operations.values()),
            reverted=self._reverted(conflicts, work),
            items=sorted(self._items(paths, work.changes), key=_place),
            conflicts=conflicts,
            names=names.changed,
            inodes=work.changes,
        )

    # -- for people --

    def _items(self, paths: Paths, changes: Iterable[InodeChange]) -> Iterator[Item]:
        for change in changes:
            yield from self._name_items(paths, change)
            yield from self._attribute_items(paths, change)

    def _name_items(self, paths: Paths, change: InodeChange) -> Iterator[Item]:
        ino = change.ino
        lost = sorted(map(paths.now, self._names.lost.get(ino, ())))
        gained = sorted(map(paths.after, self._names.gained.get(ino, ())))
        inode = change.after or change.before
        assert inode is not None
        kind = _KINDS[stat.S_IFMT(inode.mode)]
        moved = min(len(lost), len(gained))
        for old, new in zip(lost[:moved], gained[:moved], strict=True):
            yield Item(RENAME, old, new, ino, kind)
        for new in gained[moved:]:
            detail = kind if change.before is None else f"{kind}, one more name"
            yield Item(RESTORE, new, None, ino, detail)
        for old in lost[moved:]:
            detail = kind if change.after is None else f"{kind}, one name less"
            yield Item(REMOVE, old, None, ino, detail)

    def _attribute_items(self, paths: Paths, change: InodeChange) -> Iterator[Item]:
        before, after = change.before, change.after
        if before is None or after is None:
            return
        path = paths.of_inode(change.ino)
        if change.new_content:
            detail = f"{before.size} → {after.size} bytes"
            yield Item(CONTENT, path, None, change.ino, detail)
        details = list(_differences(before, after))
        if not details and not change.new_content and self._times_matter(change):
            details = ["times"]
        if details:
            yield Item(_ATTRIBUTES, path, None, change.ino, ", ".join(details))
        for name, value in change.xattrs:
            shown = name.decode(errors="backslashreplace")
            detail = f"{shown} {'removed' if value is None else 'restored'}"
            yield Item(_XATTR, path, None, change.ino, detail)

    def _times_matter(self, change: InodeChange) -> bool:
        """Tell whether the times are what was undone, not just what goes with it."""
        before, after = change.before, change.after
        assert before is not None
        assert after is not None
        if (before.mtime_ns, before.atime_ns) == (after.mtime_ns, after.atime_ns):
            return False
        if not after.is_dir:
            return True
        return change.ino in self._setattrs

    def _conflicts(self, paths: Paths, refused: Iterable[Refused]) -> list[Conflict]:
        found: dict[tuple[Seq, Ino, str], tuple[Path, Cause]] = {}
        for unit in dict.fromkeys(self._names.units.values()):
            if unit.blocked is not None and unit.seq in self._operations:
                path, ino = self._subject(paths, unit)
                found.setdefault((unit.seq, ino, "name"), (path, unit.blocked))
        for ino, what, seq, cause in refused:
            if seq not in self._operations:
                continue  # force would have taken it in
            alive = self._names.is_alive_now(ino)
            recorded = self._operations[seq].path if not alive else Path(b"")
            found.setdefault((seq, ino, what), (recorded or paths.of_inode(ino), cause))
        culprits = {cause.seq for _, cause in found.values() if cause.seq}
        by = {o.seq: o for o in self._queries.operations(sorted(culprits))}
        conflicts = [
            Conflict(seq, path, ino, what, cause.reason, by.get(cause.seq))
            for (seq, ino, what), (path, cause) in found.items()
        ]
        return sorted(conflicts, key=lambda conflict: (conflict.seq, conflict.path, conflict.what))

    def _subject(self, paths: Paths, unit: Unit) -> tuple[Path, Ino]:
        """Return what to call the thing that a unit is about."""
        operation = self._operations[unit.seq]
        if operation.ino in unit.inos and operation.kind not in OF_MANY:
            return operation.path2 or operation.path, operation.ino
        return paths.now(unit.keys[0]), min(unit.inos)

    def _reverted(self, conflicts: list[Conflict], work: InodeChanges) -> list[Seq]:
        """Return what counts as undone from now on.

        What changed nothing does. What others took back does not: should that be undone, it is
        there again.
        """
        outcomes = [cell.outcome for cell in self._names.cells.values()]
        reverted = work.reverted.union(*(outcome.reverted for outcome in outcomes))
        superseded = work.superseded.union(*(outcome.superseded for outcome in outcomes))
        remaining = {conflict.seq for conflict in conflicts} | (superseded - reverted)
        standing = {unit.seq for unit in self._names.units.values() if not unit.active}
        forced = self._names.expansions - standing
        kinds = {o.seq: o.kind for o in self._queries.operations(sorted(forced))}
        # Of an undo, names are only a part.
        forced = {seq for seq in forced if kinds[seq] not in OF_MANY}
        return sorted((self._operations.keys() - remaining) | forced)


def _require_whole(queries: UndoQueries, operations: Iterable[Operation]) -> None:
    """Refuse operations of which retention has dropped what they changed."""
    whole_from = queries.pruned_to()
    for operation in operations:
        if operation.seq <= whole_from or queries.is_expired(operation):
            raise errors.HistoryExpired(
                f"op-{operation.seq} is too old to be undone: not all of what it changed is kept"
            )


def _differences(before: Inode, after: Inode) -> Iterator[str]:
    if before.mode != after.mode:
        yield f"mode {stat.S_IMODE(before.mode):04o} → {stat.S_IMODE(after.mode):04o}"
    if (before.uid, before.gid) != (after.uid, after.gid):
        yield f"owner {before.uid}:{before.gid} → {after.uid}:{after.gid}"


def _place(item: Item) -> tuple[Path, str, str]:
    return item.path, item.action, item.detail
