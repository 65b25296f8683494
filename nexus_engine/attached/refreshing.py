"""Find what others did at a source, and take it over."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import cast

from nexus_engine import errors
from nexus_engine.attached.changes import (
    Found,
    Gone,
    Imported,
    Item,
    Moved,
    Progress,
    actor_of,
    ignore_progress,
)
from nexus_engine.attached.comparing import same_content
from nexus_engine.attached.importing import import_changes
from nexus_engine.attached.naming import is_marker, key_of, path_of, place, text_of
from nexus_engine.attached.turns import require_going_on
from nexus_engine.backends.bucket import Bucket, Capability, ChangeFeed, ObjectInfo
from nexus_engine.meta import attachment_queries
from nexus_engine.meta.attachment_queries import Attachment, SourceObject
from nexus_engine.meta.reader import resolve
from nexus_engine.sources import CHUNK_BYTES
from nexus_engine.store import Store
from nexus_engine.types import Ino, Inode, Path

_BATCH = 500
"""Objects in a transaction, which keeps others waiting."""
_EXPORT_MAX = 64 << 20
"""Of objects whose size only reading tells."""
_TICK = 1000


def _nothing() -> None:
    pass


@dataclass(frozen=True, slots=True)
class Refreshing:
    """Takes over what others did at the source of an attachment. Whoever uses it has its `turn`.

    Args:
        keep: Inodes that stay usable without a name, because they are open.
        before: Called before files are changed: what programs wrote is to be in the log.
        trusting: Somebody wants it to be so, also if all that there was is gone.
    """

    store: Store
    attachment: Attachment
    keep: Container[Ino] = ()
    before: Callable[[], object] = _nothing
    progress: Progress = ignore_progress
    trusting: bool = False

    @property
    def bucket(self) -> Bucket:
        return self.store.sources.bucket(self.attachment.number)

    def run(self, *, first: bool = False) -> Imported:
        """Compare with all that is there.

        Args:
            first: The attachment is being made: what is found is one operation, or a few.

        Raises:
            StoreHung, StoreInaccessible, ObjectStoreFailed: The source cannot be listed.
        """
        number = self.attachment.number
        quiet, feed = self._ask_feed()
        done = Imported()
        if first or not quiet:
            found = self._list()
            known = {
                each.key: each
                for each in self.store.look(partial(attachment_queries.objects, attachment=number))
            }
            if not found and len(known) > 1 and not self.trusting:
                raise errors.StoreInaccessible(
                    f"{self.attachment.url} is empty, and had {len(known)} objects: is it the right"
                    " one, and is its disk mounted? nexus-ctl mounts refresh takes it as it is"
                )
            items: list[Item] = [Gone(each) for key, each in known.items() if key not in found]
            done = self._take_over(items + self._news(found, known), together=first)
        now_ns = self.store.clock.time_ns()
        self.store.note(
            partial(attachment_queries.note_listed, number=number, time_ns=now_ns, feed=feed)
        )
        return done

    def run_for(self, keys: Iterable[bytes]) -> Imported:
        """Compare what is under a few keys."""
        number = self.attachment.number
        items: list[Item] = []
        for key in dict.fromkeys(keys):
            known = self.store.look(
                partial(attachment_queries.object_at, attachment=number, key=key)
            )
            try:
                info = self.bucket.stat(text_of(key))
            except errors.ObjectNotFound:
                if known is not None:
                    items.append(Gone(known))
                continue
            if known is None or known.etag != info.etag:
                path = path_of(key, info.size) if known is None else known.path
                items.append(self._found(info, path, known))
        return self._take_over(items)

    def _ask_feed(self) -> tuple[bool, str]:
        """Tell whether the source says that nothing changed, and where to go on asking."""
        if Capability.CHANGE_FEED not in Capability(self.attachment.capabilities):
            return False, ""
        feed = cast(ChangeFeed, self.bucket)
        if not self.attachment.feed:
            return False, feed.changes_end()
        changed, position = feed.changed_since(self.attachment.feed)
        return not changed, position

    def _list(self) -> dict[bytes, ObjectInfo]:
        found: dict[bytes, ObjectInfo] = {}
        for info in self.bucket.iter_objects():
            assert isinstance(info, ObjectInfo)  # there is no delimiter
            found[key_of(info.key)] = info
            if len(found) % _TICK == 0:
                self.progress("listing", len(found), None)
                require_going_on(self.store)
        return found

    def _news(self, found: dict[bytes, ObjectInfo], known: dict[bytes, SourceObject]) -> list[Item]:
        """Return what is to be taken over of what is there."""
        sizes = {key: info.size for key, info in found.items()}
        shown = {key: each.path for key, each in known.items() if key in found}
        placed = place(sizes, shown)
        # First they make way, then what others have their place for comes.
        items: list[Item] = [
            Moved(known[key], path) for key, path in placed.items() if key in shown
        ]
        for key, info in found.items():
            before = known.get(key)
            if before is None or before.etag != info.etag:
                path = placed.get(key) or shown[key]
                if before is not None:
                    before = before._replace(path=path)
                items.append(self._found(info, path, before))
        return items

    def _found(self, info: ObjectInfo, path: Path, known: SourceObject | None) -> Found:
        key = key_of(info.key)
        return Found(
            key, path, info.etag, info.size, info.mtime_ns, known, is_marker(key, info.size),
            is_program=info.is_program,
        )  # fmt: skip

    def _take_over(self, items: Sequence[Item], *, together: bool = False) -> Imported:
        done = Imported()
        if not items:
            return done
        self.before()
        store, attachment = self.store, self.attachment
        root = store.reader.find_inode(attachment.ino)
        if root is None:
            raise errors.NotFound("it is attached no more")
        for start in range(0, len(items), _BATCH):
            require_going_on(store)
            batch = [self._complete(item) for item in items[start : start + _BATCH]]
            done = done.plus(
                store.transact(
                    import_changes,
                    actor_of(root),
                    attachment,
                    batch,
                    locate=store.locate,
                    keep=self.keep,
                    together=together,
                )
            )
            digests = [d for each in batch if isinstance(each, Found) for d in each.chunks or ()]
            store.chunks.forget_pending(digests)
            self.progress("importing", start + len(batch), len(items))
        return done

    def _complete(self, item: Item) -> Item:
        """Find out what only reading an object tells."""
        if not isinstance(item, Found) or item.is_directory:
            return item
        if item.size < 0:
            text = text_of(item.key)
            content = self.bucket.read(text, 0, _EXPORT_MAX, etag=item.etag)
            pieces = [content[at : at + CHUNK_BYTES] for at in range(0, len(content), CHUNK_BYTES)]
            chunks = self.store.chunks.put_many(pieces)
            item = item._replace(size=len(content), chunks=chunks)
        here = self._file_at(item.path)
        if here is None or here.size != item.size:
            return item
        if item.known is not None and here.content_seq == item.known.content_seq:
            return item
        # Perhaps it is what we brought there, and died before noting so.
        if same_content(self.store, here, self.bucket, item.key, item.etag):
            return item._replace(same_as=here.content_seq)
        return item

    def _file_at(self, path: Path) -> Inode | None:
        reader = self.store.reader
        top = reader.find_path(self.attachment.ino)
        found = None if top is None else resolve(reader, Path(top + b"/" + path))
        return found if found is not None and found.is_file else None
