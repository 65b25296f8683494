"""Bring what was done in an attachment to its source.

Nothing there is overwritten, or removed, that was not seen here: each request has the condition
that the object still is what it was. And before one goes, all that the past here needs of it is
fetched. What was done is noted at once, object by object; who dies in between finds an object that
is not what was known, and by its bytes that it is his own.
"""

from __future__ import annotations

import stat
import tempfile
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path as FilePath
from typing import cast

from nexus_engine import errors
from nexus_engine.attached.changes import Imported
from nexus_engine.attached.comparing import same_content
from nexus_engine.attached.naming import text_of
from nexus_engine.attached.planning import Plan, Put, plan_push
from nexus_engine.attached.refreshing import Refreshing
from nexus_engine.attached.turns import require_going_on
from nexus_engine.backends.bucket import Bucket, Capability, HasPrograms, ObjectInfo
from nexus_engine.backends.files import translate
from nexus_engine.history.versions import read_content
from nexus_engine.meta import attachment_queries, lazy_queries
from nexus_engine.meta.attachment_queries import Attachment, SourceObject
from nexus_engine.meta.connection import Connection
from nexus_engine.store import Store
from nexus_engine.types import Ino, Path, Seq

_IN_MEMORY = 8 << 20
"""What is larger goes through a file."""
_PIECE = 4 << 20
_IN_PARTS = 16 << 20
"""What is larger may have another etag once it is all there."""
_COPY_FROM = 1 << 20
"""What is smaller is sent: a copy at the source has no condition."""
_ROUNDS = 4
"""A conflict makes files that are to be pushed in turn."""

_FAILED = (
    errors.NamespaceError,
    errors.ResourceError,
    errors.ConflictError,
    errors.IntegrityError,
    errors.ObjectNotFound,
)
"""What concerns one file; of everything else the next one would get the same."""


@dataclass(slots=True)
class Pushed:
    """What a push did."""

    puts: int = 0
    deletes: int = 0
    imported: Imported = field(default_factory=Imported)
    """Of what others had done there in the meantime."""
    failed: dict[Path, str] = field(default_factory=dict)
    """Files that are not there as they are here, and why."""


@dataclass(slots=True)
class Pushing:
    """Pushes from one attachment. Whoever uses it has its `turn`.

    Args:
        keep: Inodes that stay usable without a name, because they are open.
        before: Called before files are changed: what programs wrote is to be in the log.
    """

    store: Store
    attachment: Attachment
    keep: Container[Ino] = ()
    before: Callable[[], object] = lambda: None
    done: Pushed = field(default_factory=Pushed)

    @property
    def bucket(self) -> Bucket:
        return self.store.sources.bucket(self.attachment.number)

    @property
    def capabilities(self) -> Capability:
        return Capability(self.attachment.capabilities)

    def run(self) -> Pushed:
        """Push all that was changed.

        Raises:
            StoreHung, StoreInaccessible, ObjectStoreFailed: The source does not take anything now.
            StoreBusy, NoSpace, Interrupted.
        """
        for _ in range(_ROUNDS):
            plan = self._plan()
            if not plan.size:
                self._note_end(plan.head)
                break
            # What the log says so far is to be on the disk before it is anywhere else.
            self.store.sync()
            changed = self._carry_out(plan)
            self._note_end(plan.head)
            if not changed:
                break
            refreshing = Refreshing(self.store, self.attachment, self.keep, self.before)
            self.done.imported = self.done.imported.plus(refreshing.run_for(changed))
        return self.done

    def _plan(self) -> Plan:
        number = self.attachment.number
        found = self.store.look(partial(attachment_queries.find, number=number))
        if found is not None:
            self.attachment = found
        return self.store.look(partial(plan_push, attachment=self.attachment))

    def _carry_out(self, plan: Plan) -> list[bytes]:
        """Do it; return the keys under which something else is than was known."""
        changed: list[bytes] = []
        self.done.failed.clear()
        for doing, path, keys in self._steps(plan):
            require_going_on(self.store)
            try:
                doing()
            except errors.ObjectChanged as error:
                changed += keys
                self.done.failed[path] = str(error)
            except _FAILED as error:
                if isinstance(error, (errors.NoSpace, errors.StoreBusy, errors.Interrupted)):
                    raise
                self.done.failed[path] = str(error)
        return changed

    def _steps(self, plan: Plan) -> Iterator[tuple[Callable[[], None], Path, list[bytes]]]:
        """Yield what is to be done, of which path and keys, in an order in which it can be done.

        Deletions come last, when what they were moved to is there; but where a directory takes the
        place of a file, or the other way round.
        """
        last = []
        keys = [put.key for put in plan.puts]
        for known in plan.deletes:
            step = (partial(self._delete, known), known.path, [known.key])
            if any(_is_in_the_way(known.key, key) for key in keys):
                yield step
            else:
                last.append(step)
        for put in plan.puts:
            related = [each.key for each in (put.replaces, put.same) if each is not None]
            yield partial(self._put, put, plan.head), put.path, [put.key, *related]
        yield from last

    def _note_end(self, head: Seq) -> None:
        note = partial(
            attachment_queries.note_pushed,
            number=self.attachment.number,
            seq=head,
            failed=list(self.done.failed.items()),
        )
        self.store.note(note)

    # -- one object --

    def _put(self, put: Put, head: Seq) -> None:
        if put.replaces is not None:
            if put.replaces.path != put.path:
                shown = put.replaces.path.decode(errors="backslashreplace")
                raise errors.AlreadyExists(f"its key is that of the object at {shown}")
            self._fetch(put.replaces)
        info = self._copy(put) if self._is_to_be_copied(put) else None
        if info is None:
            info = self._send(put, head)
        is_program = bool(put.inode.mode & stat.S_IXUSR)
        if is_program and not info.is_program and Capability.PROGRAMS in self.capabilities:
            bucket = cast(HasPrograms, self.bucket)
            info = bucket.make_program(text_of(put.key), if_match=info.etag)
        known = SourceObject(
            self.attachment.number, put.key, put.path, put.inode.ino, put.inode.content_seq,
            info.etag, put.inode.size,
        )  # fmt: skip
        self.store.note(partial(attachment_queries.put_object, known=known))
        self.done.puts += 1

    def _delete(self, known: SourceObject) -> None:
        self._fetch(known)
        bucket, key = self.bucket, text_of(known.key)
        if Capability.CONDITIONAL_DELETE in self.capabilities:
            bucket.delete(key, if_match=known.etag)
        else:
            try:
                if bucket.stat(key).etag != known.etag:
                    raise _changed(key)
            except errors.ObjectNotFound:
                pass
            else:
                bucket.delete(key)
        self.store.note(
            partial(attachment_queries.drop_object, attachment=known.attachment, key=known.key)
        )
        self.done.deletes += 1

    def _fetch(self, known: SourceObject) -> None:
        """Have here what the past needs of an object that is about to go.

        Raises:
            ObjectChanged: It is another one, or none, already.
        """
        try:
            self.store.sources.fetch_version(known.attachment, known.key, known.etag)
        except errors.ObjectNotFound:
            raise _changed(text_of(known.key)) from None

    def _is_to_be_copied(self, put: Put) -> bool:
        """Tell whether the source is to copy an object to another key."""
        if put.same is None or put.replaces is not None or put.inode.size < _COPY_FROM:
            return False
        if Capability.COPY not in self.capabilities or _is_in_the_way(put.same.key, put.key):
            return False
        missing = partial(
            lazy_queries.unfetched_of,
            attachment=put.same.attachment, key=put.same.key, etag=put.same.etag,
        )  # fmt: skip
        return bool(self.store.look(missing))

    def _copy(self, put: Put) -> ObjectInfo | None:
        """Have the source copy an object; ``None``: it is not what it was.

        Between looking and copying somebody else may make an object under the new key. That is the
        price of not fetching and sending it all.
        """
        assert put.same is not None
        bucket, old, new = self.bucket, text_of(put.same.key), text_of(put.key)
        try:
            if bucket.stat(old).etag != put.same.etag:
                return None
        except errors.ObjectNotFound:
            return None
        try:
            bucket.stat(new)
        except errors.ObjectNotFound:
            pass
        else:
            raise _changed(new)
        info = bucket.copy(old, new)
        if bucket.stat(old).etag != put.same.etag or info.size != put.inode.size:
            bucket.delete(new)  # what was copied is something else
            return None
        move = partial(
            lazy_queries.move_version,
            attachment=self.attachment.number,
            old=(put.same.key, put.same.etag),
            new=(put.key, info.etag),
        )
        self.store.note(move)
        return info

    def _send(self, put: Put, head: Seq) -> ObjectInfo:
        key, replaces = text_of(put.key), put.replaces
        with self._content(put, head) as content:
            try:
                info = self._put_conditionally(key, content, replaces, put.inode.size)
            except errors.ObjectChanged:
                return self._own(put, head)
        if put.inode.size > _IN_PARTS:
            found = self.bucket.stat(key)
            if found.size == info.size:
                return found
        return info

    def _put_conditionally(
        self, key: str, content: bytes | FilePath, replaces: SourceObject | None, size: int
    ) -> ObjectInfo:
        needed = Capability.CONDITIONAL_PUT
        if size > _IN_PARTS:
            needed |= Capability.CONDITIONAL_PARTS
        etag = "" if replaces is None else replaces.etag
        if needed in self.capabilities:
            return self.bucket.put(key, content, if_absent=not etag, if_match=etag)
        # Somebody who writes between the two is overwritten: docs/BACKENDS.md.
        try:
            there = self.bucket.stat(key).etag
        except errors.ObjectNotFound:
            there = ""
        if there != etag:
            raise _changed(key)
        return self.bucket.put(key, content)

    def _own(self, put: Put, head: Seq) -> ObjectInfo:
        """Return what is there if it is what was to be put: by us, and we died before noting it.

        Raises:
            ObjectChanged: It is not.
        """
        key = text_of(put.key)
        try:
            info = self.bucket.stat(key)
        except errors.ObjectNotFound:
            raise _changed(key) from None
        if info.size == put.inode.size and same_content(
            self.store, put.inode, self.bucket, put.key, info.etag, as_of=head
        ):
            return info
        raise _changed(key)

    @contextmanager
    def _content(self, put: Put, head: Seq) -> Iterator[bytes | FilePath]:
        store, inode = self.store, put.inode
        view = store.database.as_of(head)
        if inode.size <= _IN_MEMORY:
            yield read_content(store, view, inode, 0, inode.size)
            return
        with tempfile.NamedTemporaryFile(dir=store.path, prefix=SPOOL) as file:
            for offset in range(0, inode.size, _PIECE):
                require_going_on(store)
                content = read_content(store, view, inode, offset, _PIECE)
                try:
                    file.write(content)
                    file.flush()
                except OSError as error:
                    raise translate(error, f"keep {text_of(put.key)} to send it") from error
            yield FilePath(file.name)


SPOOL = "attached-upload-"
"""In the store's directory, a large file on its way to a source."""


def drop_spools(store: Store) -> None:
    """Remove what processes left that died while they sent large files."""
    for path in store.path.glob(f"{SPOOL}*"):
        path.unlink(missing_ok=True)


def count_waiting(connection: Connection, attachment: Attachment) -> int:
    """Return how many objects are not yet what the files here are."""
    return 0 if attachment.read_only else plan_push(connection, attachment).size


def _is_in_the_way(first: bytes, second: bytes) -> bool:
    """Tell whether one of two keys is that of a directory which the other one is in."""
    return first.startswith(second + b"/") or second.startswith(first + b"/")


def _changed(key: str) -> errors.ObjectChanged:
    return errors.ObjectChanged(f"{key} is not what it was when it was seen last")
