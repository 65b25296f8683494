"""Places at which a process kills itself, by name: at least one for each window in docs/FORMAT.md.

Nothing of this is in the product. ``armed.py`` wraps its functions in a process of its own.
"""

from __future__ import annotations

import functools
import inspect
import os
import signal
from collections.abc import Callable
from typing import Any, NamedTuple

import apsw

from nexus_engine import engine, owners, recovery, sources, store
from nexus_engine.attached import importing, pushing, refreshing
from nexus_engine.backends import block_cache, cache_files, directory, local, remote
from nexus_engine.backup import layout, making
from nexus_engine.cas import own_packs, writer
from nexus_engine.fs import content
from nexus_engine.history.undo import apply
from nexus_engine.history.workspaces import applying
from nexus_engine.meta import (
    attachment_queries,
    connection,
    database,
    gc_queries,
    journal,
    shadows,
    transaction,
)
from nexus_engine.metadata_copy import LATEST_KEY
from nexus_engine.moving import ends, move
from nexusfuse import daemon, liveness

Wraps = Callable[["Trigger"], None]


class Trigger:
    """Counts how often a place is reached, once it is armed; kills this process the Nth time."""

    def __init__(self, name: str, nth: int, hits: int) -> None:
        self._name = name
        self._left = nth
        self._hits = hits
        self.armed = False

    def reached(self) -> bool:
        """Count; tell whether this is the time."""
        self._left -= self.armed
        return self.armed and self._left == 0

    def kill(self) -> None:
        os.write(self._hits, self._name.encode() + b"\n")
        os.kill(os.getpid(), signal.SIGKILL)

    def __call__(self) -> None:
        if self.reached():
            self.kill()


class Failpoint(NamedTuple):
    """Where, and when it counts."""

    install: Wraps
    window: str
    """Of the table, or of the issue's list; what follows "killed"."""
    at_start: bool = False
    """Counts from the beginning of the process; else from SIGUSR1 on."""


def before(owner: Any, name: str, when: Callable[..., object] = lambda *_: True) -> Wraps:
    """Kill when a function is called, where its arguments are of that kind."""

    def install(trigger: Trigger) -> None:
        function = getattr(owner, name)

        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            if when(*args):
                trigger()
            return function(*args, **kwargs)

        setattr(owner, name, wrapper)

    return install


def after(owner: Any, name: str, when: Callable[..., object] = lambda *_: True) -> Wraps:
    """Kill when a function has returned."""

    def install(trigger: Trigger) -> None:
        function = getattr(owner, name)

        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            result = function(*args, **kwargs)
            if when(*args):
                trigger()
            return result

        @functools.wraps(function)
        async def async_wrapper(*args: Any, **kwargs: Any) -> Any:
            result = await function(*args, **kwargs)
            if when(*args):
                trigger()
            return result

        setattr(owner, name, async_wrapper if inspect.iscoroutinefunction(function) else wrapper)

    return install


def _torn_append(trigger: Trigger) -> None:
    """Kill after half of what an append has to write."""
    whole = writer._write_all

    def half(fd: int, buffers: list[bytes], offset: int) -> None:
        if trigger.reached():
            data = b"".join(buffers)
            os.pwrite(fd, data[: len(data) // 2 + 1], offset)
            trigger.kill()
        whole(fd, buffers, offset)

    writer._write_all = half  # type: ignore[assignment]


def _torn_file(suffix: str) -> Wraps:
    """Kill after half of what SQLite writes to a file."""

    def install(trigger: Trigger) -> None:
        class File(apsw.VFSFile):
            def __init__(self, name: str | apsw.URIFilename | None, flags: list[int]) -> None:
                path = name.filename() if isinstance(name, apsw.URIFilename) else name
                self._watched = str(path).endswith(suffix)
                super().__init__("unix", name, flags)

            def xWrite(self, data: bytes, offset: int) -> None:
                if self._watched and trigger.reached():
                    super().xWrite(bytes(data)[: len(data) // 2], offset)
                    trigger.kill()
                super().xWrite(data, offset)

        class Vfs(apsw.VFS):
            def __init__(self) -> None:
                super().__init__("torn", "unix", makedefault=True)

            def xOpen(self, name: str | apsw.URIFilename | None, flags: list[int]) -> apsw.VFSFile:
                return File(name, flags)

        _KEPT.append(Vfs())

    return install


_KEPT: list[apsw.VFS] = []
"""A VFS lives as long as its object."""


def _is_first_write(_: object, handle: Any, *__: object) -> bool:
    inode = handle.file.inode
    return handle.file.session is None and inode is not None and inode.size == 0


def _has_intent(_: object, handle: Any) -> bool:
    return handle.file.session is not None and handle.file.session.flushes > 0


def _is_in_second_batch(_: object, item: Any) -> bool:
    """Of hundreds of names, about half come after this one."""
    return bool(item.path > b"new5")


def _is_foreign(lock: owners.OwnerLock) -> bool:
    return not lock.owner.startswith(f"{os.getpid()}-")


Content, Store, Database = content.Content, store.Store, database.Database
Transaction = transaction.Transaction

FAILPOINTS = {
    # while programs write
    "create-committed": Failpoint(
        before(Content, "write", _is_first_write), "between a create and the first write"
    ),
    "write-returned": Failpoint(after(Content, "write"), "with bytes in memory only"),
    "close-returned": Failpoint(before(Content, "release", _has_intent), "after a close"),
    "session-commits": Failpoint(before(content, "commit_session"), "between intent and commit"),
    "append-torn": Failpoint(_torn_append, "during an append to a pack"),
    "commit-torn": Failpoint(_torn_file("-wal"), "during a transaction: half a frame"),
    "transaction-ends": Failpoint(before(Transaction, "end"), "during a transaction: no frame"),
    "committed": Failpoint(after(Transaction, "end"), "after the commit, before the reply"),
    "journaled": Failpoint(after(journal.Journal, "append"), "journaled, not committed"),
    "settles": Failpoint(before(Database, "settle"), "before a COMMIT of what waits"),
    "settled": Failpoint(after(Database, "settle"), "after a COMMIT of what waited"),
    "unlinked-open": Failpoint(
        after(engine.Engine, "_unlinked", lambda e, inode, *_: inode.ino in e.content.unlinked),
        "while an unlinked file was open",
    ),
    # what the daemon does beside that
    "pack-registered": Failpoint(after(Store, "_add_pack"), "before the first append to a pack"),
    "pack-seals": Failpoint(before(own_packs.OwnPacks, "_seal"), "during sealing: before"),
    "pack-sealed": Failpoint(after(writer.PackWriter, "seal"), "during sealing: synced"),
    "intents-renewed": Failpoint(after(Content, "renew_intents"), "during sealing: intents"),
    "pack-retires": Failpoint(before(Store, "retire_packs"), "during sealing: before the row"),
    "pack-retired": Failpoint(after(Database, "retire_packs"), "during sealing: after the row"),
    "sync-between": Failpoint(before(Database, "sync"), "between the syncs of pack and log"),
    "checkpoint-torn": Failpoint(_torn_file("meta.db"), "during a checkpoint: half a page"),
    "checkpointed": Failpoint(after(connection.Connection, "checkpoint"), "after a checkpoint"),
    # where packs live in a bucket
    "sending-begins": Failpoint(before(remote, "put_pack"), "during an upload: before the PUT"),
    "sending-sent": Failpoint(after(remote, "put_pack"), "during an upload: the bucket has it"),
    "sending-adopts": Failpoint(
        before(cache_files.CacheFiles, "_move"), "during an upload: sums in the cache"
    ),
    "sending-adopted": Failpoint(
        after(block_cache.BlockCache, "adopt"), "during an upload: the file is gone"
    ),
    "sending-secured": Failpoint(after(Store, "secure"), "after an upload, before fsync returns"),
    "sending-copied": Failpoint(
        after(directory.DirectoryBucket, "put", lambda _, key, *__: key.endswith(".zst")),
        "while metadata is copied to a bucket: it does not count yet",
    ),
    "sending-counts": Failpoint(
        after(directory.DirectoryBucket, "put", lambda _, key, *__: key == LATEST_KEY),
        "while metadata is copied to a bucket: older copies are there",
    ),
    # while the store is taken over
    "recovering-journal": Failpoint(
        after(Database, "redo"), "while recovering: journals applied", True
    ),
    "recovering-rewound": Failpoint(
        after(recovery, "take_back_lost_content"), "while recovering: looked for losses", True
    ),
    "recovering-session": Failpoint(
        after(recovery, "_finish"), "while recovering: a session finished", True
    ),
    "recovering-seals": Failpoint(
        before(Database, "seal_pack"), "while recovering: before a pack is sealed", True
    ),
    "recovering-sealed": Failpoint(
        after(Database, "seal_pack"), "while recovering: a pack sealed", True
    ),
    "recovering-leaves": Failpoint(
        before(owners.OwnerLock, "release", _is_foreign), "while recovering: lock held", True
    ),
    # mounting
    "mounted": Failpoint(before(liveness.Watchers, "mounted"), "while mounting", True),
    "ready": Failpoint(
        before(daemon, "raise_read_ahead"), "while mounting: before it serves", True
    ),
    # making a store
    "making-opened": Failpoint(after(store, "migrate"), "while making a store: tables", True),
    "making-rooted": Failpoint(after(Database, "transact"), "while making a store: root", True),
    "making-closed": Failpoint(after(Database, "close"), "while making a store: no name yet", True),
    # commands
    "undo-writes": Failpoint(after(apply, "_write_inode"), "during an undo"),
    "undo-ends": Failpoint(after(apply, "_record"), "during an undo: before its record"),
    "snapshot-writes": Failpoint(after(Transaction, "add_snapshot"), "during a snapshot"),
    "workspace-appears": Failpoint(
        after(shadows.Shadows, "_write_page"), "while entries of a workspace become rows"
    ),
    "workspace-appeared": Failpoint(
        after(shadows.Shadows, "_write"), "when entries became rows, before the commit"
    ),
    "workspace-applies": Failpoint(after(applying._Application, "_remove_name"), "during an apply"),
    "pushing-copied": Failpoint(
        after(pushing.Pushing, "_copy"), "pushing: copied there, not noted", True
    ),
    "pushing-sent": Failpoint(after(pushing.Pushing, "_send"), "pushing: sent, not noted", True),
    "pushing-noted": Failpoint(after(pushing.Pushing, "_put"), "pushing: between two files", True),
    "pushing-deleted": Failpoint(
        before(attachment_queries, "drop_object"), "pushing: deleted there, not noted", True
    ),
    "pushing-ends": Failpoint(
        before(attachment_queries, "note_pushed"), "pushing: all is there", True
    ),
    "importing-writes": Failpoint(after(importing._Import, "_overwrite"), "during an import", True),
    "importing-batch": Failpoint(
        before(refreshing.Refreshing, "_complete", _is_in_second_batch),
        "between two batches of an import",
        True,
    ),
    "importing-ends": Failpoint(
        before(attachment_queries, "note_listed"), "after an import, before it is noted", True
    ),
    "fetching-stored": Failpoint(before(sources.Sources, "_keep"), "fetching: no row yet"),
    "fetching-noted": Failpoint(after(sources.Sources, "_fetch"), "fetching: before the reply"),
    "backup-copies-database": Failpoint(
        after(connection.Connection, "copy_to"), "during a backup: database copied", True
    ),
    "backup-copies-packs": Failpoint(
        before(making._Making, "_copy_packs"), "during a backup: before the packs", True
    ),
    "backup-ends": Failpoint(
        before(making._Making, "_finish"), "during a backup: before the manifest", True
    ),
    "backup-tidies": Failpoint(
        before(layout.BackupDirectory, "sweep"), "during a backup: before old packs go", True
    ),
    "gc-marks": Failpoint(after(gc_queries, "retire"), "during gc: packs marked", True),
    "gc-moves": Failpoint(after(gc_queries, "move_chunks"), "during gc: chunks moved", True),
    "gc-removes": Failpoint(
        before(local.LocalObjectStore, "delete"), "during gc: before the file goes", True
    ),
    "gc-removed": Failpoint(
        after(local.LocalObjectStore, "delete"), "during gc: before the row goes", True
    ),
    "moving-noted": Failpoint(
        before(move, "_require_claimed"), "while moving packs: the mark is not put", True
    ),
    "moving-put": Failpoint(
        after(ends, "put_pack"), "while moving packs: put, and not read back", True
    ),
    "moving-copied": Failpoint(
        after(move._Move, "_copy_one"), "while moving packs: one is there", True
    ),
    "moving-placed": Failpoint(
        after(ends.ToDirectory, "put_in_place"), "while moving packs: in place, no row", True
    ),
    "moving-switches": Failpoint(
        after(move._Move, "_enter"), "while moving packs: before the commit", True
    ),
    "moving-switched": Failpoint(
        before(move, "_set_aside"), "while moving packs: after the commit", True
    ),
    "moving-deletes": Failpoint(
        after(directory.DirectoryBucket, "delete", lambda _, key: key.startswith("packs/")),
        "while what was in the old place is deleted",
        True,
    ),
}
