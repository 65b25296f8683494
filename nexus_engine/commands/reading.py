"""Verbs that change nothing: status, stats, log, history, versions, diff, lists, content."""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import islice
from typing import Any

from nexus_engine import errors
from nexus_engine.check import scrub
from nexus_engine.commands import Reply, Work
from nexus_engine.commands.arguments import (
    DiffArguments,
    HistoryArguments,
    LogArguments,
    NoArguments,
    PathArguments,
    to_path,
    to_text,
)
from nexus_engine.commands.walking import (
    find,
    groups_of,
    is_keeper,
    may_reach,
    moment,
    reach,
    require,
    require_keeper,
)
from nexus_engine.history import diff as diffing
from nexus_engine.history import snapshots
from nexus_engine.history.versions import Version, read_content
from nexus_engine.history.versions import versions as versions_of
from nexus_engine.meta import schema
from nexus_engine.meta.connection import DATABASE_NAME
from nexus_engine.meta.reader import resolve
from nexus_engine.oplog import reader as oplog
from nexus_engine.oplog.reader import LogEntry, LogQuery
from nexus_engine.permissions.modes import READ, allows
from nexus_engine.placing import find_before, find_move
from nexus_engine.records import parse_details
from nexus_engine.store import Store
from nexus_engine.types import Actor, Name, Path, Seq

TAG_PREFIX = b"user.nexus.tag."
DIFFERENCES_MAX = 100_000
_BLOCK_BYTES = 1 << 20


def status(work: Work, args: NoArguments) -> Reply:
    """Return what a store is and where its log stands."""
    head = work.store.reader.head()
    last = oplog.get_entry(work.store.database, head).record if head else None
    disk = os.statvfs(work.store.path)
    return {
        "store": to_text(os.fsencode(work.store.path)),
        "store_id": work.store.reader.store_value("store_id"),
        "format": schema.VERSION,
        "created_ns": work.store.reader.store_value("created_ns"),
        "operations": head,
        "last_operation_ns": None if last is None else last.time_ns,
        "entries": work.store.reader.count_inodes(),
        "snapshots": len(snapshots.list_all(work.store.database)),
        "disk_free_bytes": disk.f_bavail * disk.f_frsize,
        **scrub.summary(work.store),
        **_bucket(work.store),
    }


def _bucket(store: Store) -> dict[str, Any]:
    move, before = find_move(store.reader), find_before(store.reader)
    moving = {} if move is None else {"packs_move_to": move.url or "local"}
    if before:
        moving["packs_kept_in"] = ", ".join(place.url or "local" for place in before)
    if store.packs_url is None:
        return moving
    unsent = [path.stat().st_size for path in (store.path / "packs").glob("*.pack")]
    figures = store.objects.figures()
    return {
        "packs_url": store.packs_url,
        "durability": store.config.durability,
        "not_in_bucket_bytes": sum(unsent),
        "cache_bytes": figures["cache_bytes"],
        "bucket_silent_s": figures.get("bucket_silent_s"),
        **moving,
    }


def stats(work: Work, args: NoArguments) -> Reply:
    """Return figures: how much is kept, and where."""
    packs = [size for _, size in work.store.objects.iter_sizes("packs/")]
    wal_bytes = work.store.database.connection.wal_bytes()
    return {
        "operations": work.store.reader.head(),
        "entries": work.store.reader.count_inodes(),
        "snapshots": len(snapshots.list_all(work.store.database)),
        "packs": len(packs),
        "packs_bytes": sum(packs),
        "metadata_bytes": (work.store.path / DATABASE_NAME).stat().st_size,
        "metadata_wal_bytes": wal_bytes,
    }


def log(work: Work, args: LogArguments) -> Reply:
    """Return a page of the log, newest first."""
    # It names what is in directories that not everyone may enter.
    require_keeper(work.store, work.actor)
    first, last = 1, work.store.reader.head()
    if args.since is not None:
        first = moment(work.store, args.since) + 1
    if args.until is not None:
        last = moment(work.store, args.until)
    if args.after is not None:
        first = max(first, args.after + 1)
    if args.before is not None:
        last = min(last, Seq(args.before - 1))
    query = LogQuery(
        path=None if args.path is None else to_path(args.path),
        agent=args.agent,
        pid=args.pid,
        session=args.session,
        kind=args.kind,
        since_seq=Seq(first),
        until_seq=Seq(last),
    )
    return _page(work.store, query, args.limit)


def history(work: Work, args: HistoryArguments) -> Reply:
    """Return the operations at or below a path; each is a moment.

    For whom directories below, or from where a file came, may be closed: those on one file.
    """
    if is_keeper(work.store, work.actor):
        return _page(work.store, LogQuery(path=to_path(args.path)), args.limit)
    path, inode = find(work.store, args.path, work.actor)
    require(work.store.reader, inode, READ, path, work.actor)
    if inode.is_dir:
        require_keeper(work.store, work.actor)
    page = _page(work.store, LogQuery(path=path), args.limit)
    own = [found for found in page["operations"] if found["ino"] == inode.ino]
    return page | {"operations": [found | {"path2": None} for found in own]}


def _page(store: Store, query: LogQuery, limit: int) -> Reply:
    found = list(islice(oplog.entries(store.database, query._replace(limit=limit + 1)), limit + 1))
    return {
        "operations": [operation(entry) for entry in found[:limit]],
        "more": len(found) > limit,
    }


def operation(entry: LogEntry) -> dict[str, Any]:
    """Return a record of the log for a reply."""
    record = entry.record
    return {
        "seq": record.seq,
        "id": record.id.hex(),
        "time": iso_time(record.time_ns),
        "time_ns": record.time_ns,
        "kind": record.kind,
        "ino": record.ino,
        "path": to_text(record.path),
        "path2": None if record.path2 is None else to_text(record.path2),
        "details": parse_details(record.details),
        "undoes": record.undoes,
        "undone": entry.undone,
        "actor": record.actor._asdict(),
    }


def iso_time(time_ns: int) -> str:
    """Return a time as ISO 8601 in UTC; to the microsecond, which is what others can read."""
    return datetime.fromtimestamp(time_ns / 1e9, UTC).isoformat().replace("+00:00", "Z")


def versions(work: Work, args: PathArguments) -> Reply:
    """Return every content that a file had under this path."""
    path = to_path(args.path)
    directory, _, name = path.rpartition(b"/")
    parent = reach(work.store.reader, Path(directory), work.actor)
    require(work.store.reader, parent, READ, path, work.actor)
    found = versions_of(work.store.database, parent.ino, Name(name))
    if not found:
        raise errors.NotFound(f"there never was a file /{args.path}")
    return {"versions": [_version(work, version) for version in found]}


def _version(work: Work, version: Version) -> dict[str, Any]:
    digest = version.digest if _may_read(work, version) else None
    return {
        "seq": version.seq,
        "time": iso_time(version.time_ns),
        "time_ns": version.time_ns,
        "size": version.size,
        "kind": version.kind,
        "sha256": None if digest is None else digest.hex(),
        "actor": version.actor._asdict(),
    }


def _may_read(work: Work, version: Version) -> bool:
    """Tell whether an actor may read a version, by the permissions of then and of now."""
    if is_keeper(work.store, work.actor):
        return True
    path = work.store.reader.find_path(version.ino)
    if path is not None and not may_reach(work.store, path, work.actor):
        return False
    groups = (work.actor.gid, *groups_of(work.actor))
    views = (work.store.reader, work.store.database.as_of(version.seq))
    found = [(view, view.find_inode(version.ino)) for view in views]
    return all(
        inode is None or allows(view, inode, READ, work.actor.uid, groups) for view, inode in found
    )


def diff(work: Work, args: DiffArguments) -> Reply:
    """Return what differs between two moments; of one file also how its text does."""
    require_keeper(work.store, work.actor)
    path = to_path(args.path)
    first = moment(work.store, args.since)
    last = work.store.reader.head() if args.until is None else moment(work.store, args.until)
    found = list(islice(diffing.diff(work.store.database, path, first, last), DIFFERENCES_MAX + 1))
    sides = [
        side for seq in (first, last) if (side := resolve(work.store.database.as_of(seq), path))
    ]
    patch = ""
    if not any(side.is_dir for side in sides):
        patch = "".join(diffing.unified_diff(work.store, path, first, last))
    return {
        "since": first,
        "until": last,
        "changes": [
            {
                "change": difference.kind,
                "path": to_text(difference.path),
                "path2": None if difference.path2 is None else to_text(difference.path2),
            }
            for difference in found[:DIFFERENCES_MAX]
        ],
        "more": len(found) > DIFFERENCES_MAX,
        "patch": patch,
    }


def list_snapshots(work: Work, args: NoArguments) -> Reply:
    """Return every snapshot, newest first."""
    found = reversed(snapshots.list_all(work.store.database))
    return {
        "snapshots": [
            {
                "name": snapshot.name,
                "seq": snapshot.seq,
                "time": iso_time(snapshot.time_ns),
                "time_ns": snapshot.time_ns,
            }
            for snapshot in found
        ]
    }


def list_tags(work: Work, args: PathArguments) -> Reply:
    """Return the tags of what is at a path."""
    path, inode = find(work.store, args.path, work.actor)
    require(work.store.reader, inode, READ, path, work.actor)
    tags = []
    for name in sorted(work.store.reader.xattr_names(inode.ino)):
        if name.startswith(TAG_PREFIX):
            value = work.store.reader.find_xattr(inode.ino, name) or b""
            tags.append({"key": to_text(name[len(TAG_PREFIX) :]), "value": to_text(value)})
    return {"tags": tags}


def iter_content(store: Store, path: str, text: str, actor: Actor) -> Iterator[bytes]:
    """Yield the bytes that the file at a path had at a moment.

    Raises:
        InvalidMoment, NotFound, IsADirectory, NotSupported (no regular file), PermissionDenied.
    """
    seq = moment(store, text)
    view = store.database.as_of(seq)
    where = to_path(path)
    try:
        inode = reach(view, where, actor)
    except errors.NotFound as error:
        raise errors.NotFound(f"there was no /{path} at {text} (op-{seq})") from error
    require(view, inode, READ, where, actor)
    if inode.is_dir:
        raise errors.IsADirectory(f"/{path} was a directory at {text}")
    if not inode.is_file:
        raise errors.NotSupported(f"/{path} was no regular file at {text}")
    for offset in range(0, inode.size, _BLOCK_BYTES):
        yield read_content(store, view, inode, offset, _BLOCK_BYTES)
