"""From what was decided to what is to be written: one change per inode."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from nexus_engine.history.undo.attributes import CONTENT, MODE, OWNER, XATTR, Attributes
from nexus_engine.history.undo.existence import Existence
from nexus_engine.history.undo.lives import Lives
from nexus_engine.history.undo.names import LATER, Cause, Names
from nexus_engine.history.undo.rights import REFUSED, Rights
from nexus_engine.history.undo.times import DirectoryTimes
from nexus_engine.meta.reader import Reader
from nexus_engine.meta.undo_queries import UndoQueries
from nexus_engine.permissions.acl import ACCESS, Acl
from nexus_engine.types import Ino, Inode, Seq


class InodeChange(NamedTuple):
    """What is to become of an inode."""

    ino: Ino
    before: Inode | None
    """``None``: it does not exist now."""
    after: Inode | None
    """``None``: it goes. ctime, and ``content_seq`` of new content, are the operation's to set."""
    content_from: Seq | None = None
    """Its extents are to be those of after this operation."""
    new_content: bool = False
    """These are not the bytes that it had last."""
    xattrs: tuple[tuple[bytes, bytes | None], ...] = ()


class Refused(NamedTuple):
    """A selected change of an inode that has to stay."""

    ino: Ino
    what: str
    seq: Seq
    cause: Cause


class InodeChanges:
    """Works out every ``InodeChange``, once all names are settled."""

    def __init__(
        self,
        queries: UndoQueries,
        names: Names,
        lives: Lives,
        existence: Existence,
        times: DirectoryTimes,
        rights: Rights,
        reader: Reader,
    ) -> None:
        self.changes: list[InodeChange] = []
        self.refused: list[Refused] = []
        self.reverted: set[Seq] = set()
        """Operations of which something goes."""
        self.superseded: set[Seq] = set()
        """Operations of which something was taken back by others."""
        self._queries = queries
        self._names = names
        self._lives = lives
        self._existence = existence
        self._times = times
        self._rights = rights
        self._reader = reader

    def collect(self) -> None:
        departed: dict[Ino, Seq] = {}
        for ino, history in self._lives.of.items():
            if not self._names.is_alive_now(ino) and self._names.is_alive_after(ino):
                departed[ino] = history.versions[-1].inode.from_seq
        # Its extents may have been cut after it was gone, through a handle that was open.
        cut = self._queries.extents_changed(departed)
        for ino in self._lives.of:
            change = self._change(ino, cut=ino in cut)
            if change is not None:
                self.changes.append(change)

    def _change(self, ino: Ino, *, cut: bool) -> InodeChange | None:
        names = self._names
        alive, lives_on = names.is_alive_now(ino), names.is_alive_after(ino)
        before = self._reader.find_inode(ino) if alive else None
        if not lives_on:
            if before is not None:
                return InodeChange(ino, before, None)
            self._refuse_gone(ino)
            return None
        attributes = None
        if before is None or ino in self._lives.attributes:
            attributes = self._existence.attributes(ino)
        base = before or (attributes.last if attributes is not None else None)
        if base is None:
            return None
        change = InodeChange(ino, before, self._linked(base, new=before is None))
        if attributes is not None:
            change = self._with_attributes(change, attributes, cut=cut)
        if ino in self._lives.directories or (before is None and base.is_dir):
            change = self._with_mtime(change)
        renamed = ino in names.lost or ino in names.gained or ino in names.changed_in
        if renamed or change.after != before or change.xattrs or change.new_content:
            return change
        return None

    def _refuse_gone(self, ino: Ino) -> None:
        if ino not in self._lives.attributes:
            return
        attributes = self._existence.attributes(ino)
        if attributes is None:
            return
        if self._existence.is_own(ino):
            if not self._existence.is_unmade(ino):
                self.superseded.update(self._lives.selected_versions(ino))
            return
        self.superseded.update(self._lives.selected_versions(ino))
        cause = self._names.root_cause(self._existence.death(ino))
        self.refused += [Refused(ino, what, seq, cause) for what, seq in attributes.selected()]

    def _linked(self, inode: Inode, *, new: bool) -> Inode:
        """Count names, for directories those of the directories inside."""
        names = self._names
        if not inode.is_dir:
            return inode._replace(nlink=len(names.names_after(inode.ino)))
        difference = sum(
            names.is_dir(after) - names.is_dir(now)
            for now, after in map(names.changed.__getitem__, names.changed_in.get(inode.ino, ()))
        )
        begin = 2 if new and not self._reader.is_pending(inode.ino) else inode.nlink
        return inode._replace(nlink=begin + difference)

    def _with_attributes(
        self, change: InodeChange, attributes: Attributes, *, cut: bool
    ) -> InodeChange:
        after = change.after
        assert after is not None
        ino = change.ino
        if self._existence.is_own(ino):
            # It should not be there at all, but it has to stay: then as it is.
            cause = self._existence.survival(ino)
            self.refused += [Refused(ino, what, seq, cause) for what, seq in attributes.selected()]
            return change
        rights = self._rights
        guard = change.before or after
        if self._allow(ino, MODE, attributes, allowed=rights.owns(guard)):
            after = after._replace(mode=attributes.mode.target)
        owner = attributes.owner.target
        if self._allow(ino, OWNER, attributes, allowed=rights.may_give(guard, owner)):
            after = after._replace(uid=owner[0], gid=owner[1])
        may_write = rights.may_write(guard)
        xattrs = tuple(self._xattrs(guard, attributes))
        change = change._replace(after=self._with_bits_of_acl(after, dict(xattrs)))
        if self._allow(ino, CONTENT, attributes, allowed=may_write):
            change = self._with_content(change, attributes, cut=cut)
        if rights.owns(guard) or (change.new_content and may_write):
            change = self._with_times(change, attributes)
        return change._replace(xattrs=xattrs)

    def _with_content(
        self, change: InodeChange, attributes: Attributes, *, cut: bool
    ) -> InodeChange:
        assert change.after is not None
        source = attributes.content_from
        if source is None:
            from_seq = attributes.last.from_seq if cut else None
            return change._replace(content_from=from_seq)
        return change._replace(
            after=change.after._replace(size=source.size),
            content_from=source.from_seq,
            new_content=True,
        )

    def _with_times(self, change: InodeChange, attributes: Attributes) -> InodeChange:
        after = change.after
        assert after is not None
        if attributes.atime_ns is not None:
            after = after._replace(atime_ns=attributes.atime_ns)
        if not after.is_dir:
            after = after._replace(mtime_ns=attributes.mtime_ns)
        return change._replace(after=after)

    def _with_bits_of_acl(self, after: Inode, changed: dict[bytes, bytes | None]) -> Inode:
        """Show the permission bits of the ACL: where somebody else's stays, its bits do too."""
        acl = changed[ACCESS] if ACCESS in changed else self._reader.find_xattr(after.ino, ACCESS)
        if acl is None:
            return after
        return after._replace(mode=after.mode & ~0o777 | Acl.parse(acl).permission_bits)

    def _xattrs(self, guard: Inode, attributes: Attributes) -> Iterator[tuple[bytes, bytes | None]]:
        ino = guard.ino
        for name, outcome in attributes.xattrs.items():
            before, steps = self._lives.of[ino].xattrs[name]
            now = steps[-1][1] if steps else before
            what = XATTR + name.decode(errors="backslashreplace")
            may_set = self._rights.may_set_xattr(guard, name)
            allowed = self._allow(ino, what, attributes, allowed=may_set)
            if allowed and outcome.target != now:
                yield name, outcome.target

    def _with_mtime(self, change: InodeChange) -> InodeChange:
        after = change.after
        assert after is not None
        alone = change.ino not in self._names.changed_in
        if alone and change.before is not None and not self._rights.may_write(change.before):
            return change  # times that go with no change of entries are the owner's matter
        mtime_ns = self._times.mtime(change.ino, change.before)
        if mtime_ns is None:
            return change
        return change._replace(after=after._replace(mtime_ns=mtime_ns))

    def _allow(self, ino: Ino, what: str, attributes: Attributes, *, allowed: bool) -> bool:
        """Note what stays: because of others, or because the actor may not."""
        outcome = dict(attributes.outcomes())[what]
        for seq, by in outcome.conflicts.items():
            self.refused.append(Refused(ino, what, seq, Cause(LATER, by)))
        self.superseded.update(outcome.superseded)
        if allowed or not outcome.reverted:
            self.reverted.update(outcome.reverted)
            return True
        for seq in outcome.reverted:
            self.refused.append(Refused(ino, what, seq, Cause(REFUSED)))
        return False
