"""The packs that this process writes, from creation until the object store has them."""

from __future__ import annotations

import os
import threading
import uuid
from collections.abc import Callable, Container, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from nexus_engine.backends.base import ObjectStore
from nexus_engine.cas.pack import pack_key
from nexus_engine.cas.writer import PackWriter, mend_header
from nexus_engine.errors import StoreInaccessible

MAX_FULL = 4
"""Full packs that may wait to be sealed. One more, and the append that opens the next pack
seals the oldest itself: the disk or the network cannot keep up, so the writers must wait."""


class PackInfo(NamedTuple):
    """A pack of this process."""

    pack: str
    length: int
    """Bytes, header included; 0 for one that stayed empty and was removed."""
    synced_length: int
    """Bytes of these known to be durable."""
    sealed: bool
    """Finished, durable, and in the object store."""


class OwnPacks:
    """Thread-safe. Not for use after ``fork``: two processes must not share a pack.

    Args:
        directory: Existing; where open packs live. For a local store that is the directory
            of its ``packs/`` keys, so that sealing moves nothing.
        on_new_pack: Called with the id before the first append to a pack; may wait. If it raises,
            so does the append.
    """

    def __init__(
        self,
        objects: ObjectStore,
        directory: Path,
        on_new_pack: Callable[[str], None],
        new_id: Callable[[], uuid.UUID] = uuid.uuid4,
    ) -> None:
        self._objects = objects
        self._directory = directory
        self._on_new_pack = on_new_pack
        self._new_id = new_id
        self._pid = os.getpid()
        self._closed = False
        self._current: PackWriter | None = None
        self._next: list[PackWriter] = []
        """Packs that are open and that nothing was appended to."""
        self._writers: dict[str, PackWriter] = {}
        self._sealed: dict[str, PackInfo] = {}
        # Taken in this order, where more than one is. The last is never held during I/O.
        self._append_lock = threading.Lock()
        self._seal_lock = threading.Lock()
        self._lock = threading.Lock()

    def append(
        self,
        records: Sequence[bytes],
        note: Callable[[str, list[int]], None] = lambda _pack, _offsets: None,
    ) -> tuple[str, list[int]]:
        """Append the records to one pack, all or none.

        Args:
            note: Called with what is returned before the pack can be finished: whoever then asks
                what is in it must hear of these.

        Returns:
            The pack's id and the offset of each record.
        """
        if os.getpid() != self._pid:
            raise RuntimeError("packs opened before a fork cannot be appended to after it")
        while True:
            with self._append_lock:
                if self._closed:
                    raise StoreInaccessible("the chunk store is closed")
                writer = self._current
                while (writer is None or writer.full) and self._next:
                    writer = self._current = self._next.pop()
                if writer is not None and not writer.full:
                    offsets = writer.append(records)
                    note(writer.pack, offsets)
                    return writer.pack, offsets
            # Without the lock: to register a pack is to wait for whoever changes the metadata, and
            # he may be about to append.
            opened = self._open_next()
            with self._append_lock:
                self._next.append(opened)

    def find(self, pack: str) -> PackWriter | None:
        """Return the writer of a pack that is not sealed yet."""
        return self._writers.get(pack)

    def sync(self) -> None:
        """Make durable whatever was appended before the call."""
        for writer in self._unsealed():
            writer.sync()

    def seal_full(self) -> None:
        """Hand full packs over to the object store."""
        with self._append_lock:
            if self._current is not None and self._current.full:
                self._current = None  # held open, it would keep its blocks when gc removes it
        for writer in self._full():
            self._seal(writer)

    def seal_all(self) -> None:
        """Hand over every pack that something was appended to, full or not."""
        with self._append_lock:
            for writer in self._unsealed():
                writer.finished = writer.finished or not writer.empty
        self.seal_full()

    def open_ahead(self) -> None:
        """Have an open pack ready for the next append."""
        with self._append_lock:
            current = self._current
            ready = bool(self._next) or (current is not None and not current.full)
            if ready or self._closed:
                return
        opened = self._open_next()
        with self._append_lock:
            self._next.append(opened)

    def finish(self, packs: Container[str]) -> bool:
        """Append no more to these packs; tell whether any is here, and not forgotten yet."""
        with self._append_lock:
            for writer in self._unsealed():
                if writer.pack in packs:
                    writer.finished = True
        return any(info.pack in packs for info in self.written())

    def adopt(self, pack: str) -> None:
        """Finish a pack that a process left when it died: its header whole, all of it durable.

        Raises:
            ObjectNotFound: It is not there.
        """
        mend_header(self._directory, pack)
        self._objects.sync(pack_key(pack))

    def close(self) -> None:
        """Seal everything; appends fail from here on. May be repeated after a failure."""
        with self._append_lock:
            self._closed = True
            self._current = None
            self._next.clear()
        for writer in self._unsealed():
            self._seal(writer)

    def written(self) -> list[PackInfo]:
        """Return the packs of this process, without those sealed and forgotten."""
        with self._lock:
            return [*self._sealed.values(), *map(_info, self._writers.values())]

    def forget_sealed(self, packs: Iterable[str]) -> None:
        with self._lock:
            for pack in packs:
                self._sealed.pop(pack, None)

    def _open_next(self) -> PackWriter:
        waiting = self._full()
        for writer in waiting[: max(0, len(waiting) - MAX_FULL)]:
            self._seal(writer)
        writer = PackWriter(self._directory, self._new_id().hex)
        # Before gc can see it: what is asked of us about a pack that is ours must find it.
        with self._lock:
            self._writers[writer.pack] = writer
        try:
            self._on_new_pack(writer.pack)
        except Exception:
            with self._lock:
                self._writers.pop(writer.pack, None)
            writer.remove()
            raise
        writer.registered = True
        return writer

    def _seal(self, writer: PackWriter) -> None:
        with self._seal_lock:
            if writer.pack not in self._writers:
                return
            if writer.empty:
                writer.remove()
                info = PackInfo(writer.pack, 0, 0, sealed=True)
            else:
                writer.seal()
                # Readers come in through the writer until the object is there.
                self._objects.put_file(pack_key(writer.pack), writer.path)
                info = _info(writer)._replace(sealed=True)
            with self._lock:
                self._sealed[writer.pack] = info
                del self._writers[writer.pack]
            writer.close()

    def _unsealed(self) -> list[PackWriter]:
        """Return the writers, oldest first."""
        with self._lock:
            return list(self._writers.values())

    def _full(self) -> list[PackWriter]:
        """Return those that are complete, and have the row that says so when they are sealed."""
        return [writer for writer in self._unsealed() if writer.full and writer.registered]


def _info(writer: PackWriter) -> PackInfo:
    return PackInfo(writer.pack, writer.length, writer.synced_length, sealed=False)
