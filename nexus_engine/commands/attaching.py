"""Verbs about attachments: add, list, look at, refresh, remove. For the store's owner and root."""

from __future__ import annotations

import os
import re
from contextlib import closing
from functools import partial
from pathlib import Path as FilePath
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

from nexus_engine import errors
from nexus_engine.attached.attaching import Wanted, attach, detach
from nexus_engine.attached.exchanging import exchange
from nexus_engine.attached.pushing import count_waiting
from nexus_engine.attached.refreshing import Refreshing
from nexus_engine.attached.turns import turn
from nexus_engine.backends.bucket import Bucket, Capability
from nexus_engine.backends.home import MARK_KEY
from nexus_engine.backends.urls import open_bucket
from nexus_engine.commands import Reply, Work
from nexus_engine.commands.arguments import (
    MountsAddArguments,
    MountsRemoveArguments,
    NoArguments,
    PathArguments,
    to_path,
    to_text,
)
from nexus_engine.commands.reading import iso_time
from nexus_engine.commands.walking import require_keeper
from nexus_engine.config import seconds
from nexus_engine.meta import attachment_queries
from nexus_engine.meta.attachment_queries import Attachment
from nexus_engine.store import Store
from nexus_engine.types import Path

INTERVAL = "60s"
"""Between two looks at a source, unless told otherwise."""
SHOWN_MAX = 1000
"""Files that are not at the source, odd keys and conflicts that a reply names."""


class Attached(NamedTuple):
    made: Attachment
    objects: int


def add(work: Work, args: MountsAddArguments) -> Reply:
    """Attach a source at a path, and show what is there."""
    done = attach_at(work, args)
    return _facts(work, done.made) | {"added": done.objects}


def attach_at(work: Work, args: MountsAddArguments, *, make_parents: bool = False) -> Attached:
    """Attach a source at a path, once what is there is known to be reachable and nobody's packs.

    Args:
        make_parents: Directories on the way that are missing are made.
    """
    require_keeper(work.store, work.actor)
    _require_own_rights(work)
    store = work.store
    options = dict(args.options)
    interval = options.pop("interval", INTERVAL)
    try:
        interval_s = 0 if interval == "0" else seconds(interval)
    except ValueError as error:
        raise errors.InvalidArgument(f"interval: {error}") from error
    _require_apart(store, args.url)
    with closing(open_bucket(args.url, options)) as bucket:
        if args.read_only:
            capabilities = Capability(0)
            next(iter(bucket.iter_objects()), None)  # it must be there
        else:
            _require_no_packs(bucket)
            capabilities = bucket.probe()
    wanted = Wanted(args.url, options, args.read_only, interval_s, capabilities.value)
    made = store.transact(attach, work.actor, to_path(args.path), wanted, make_parents=make_parents)
    try:
        with turn(store, made):
            done = Refreshing(store, made, work.keep, progress=work.progress).run(first=True)
    except errors.EngineError:
        store.transact(detach, work.actor, made, work.keep)
        raise
    return Attached(made, done.added)


def _require_own_rights(work: Work) -> None:
    """Refuse who would read with the rights, and the credentials, of somebody else's daemon.

    Raises:
        OperationNotPermitted.
    """
    if work.actor.uid not in (0, os.geteuid()):
        raise errors.OperationNotPermitted(
            "what is attached is read with the rights of the mount's daemon: only root and whoever"
            " it runs as may attach something"
        )


def _require_no_packs(bucket: Bucket) -> None:
    """Refuse to have packs of a store, this one or another, removed and renamed like files.

    Raises:
        InvalidArgument.
    """
    try:
        bucket.stat(MARK_KEY)
    except errors.ObjectNotFound:
        return
    raise errors.InvalidArgument(f"{bucket.url} holds the packs of a store: attach it --read-only")


def _require_apart(store: Store, url: str) -> None:
    """Refuse to attach a directory that the store, or a mount of one, is in.

    Raises:
        InvalidArgument.
    """
    parts = urlsplit(url)
    if parts.scheme != "file":
        return
    path = FilePath(unquote(parts.path)).resolve()
    places = [store.path.resolve(), *map(FilePath, _own_mounts())]
    for place in places:
        if place.is_relative_to(path) or path.is_relative_to(place):
            raise errors.InvalidArgument(f"{path} is in {place}, or the other way round")


def _own_mounts() -> list[str]:
    """Return where stores are mounted. Source: proc_pid_mountinfo(5)."""
    text = FilePath("/proc/self/mountinfo").read_bytes()
    found = (line.split(b" - ") for line in text.splitlines() if b" - fuse.nexus " in line)
    return [
        re.sub(rb"\\([0-7]{3})", lambda code: bytes([int(code[1], 8)]), head.split()[4]).decode(
            errors="surrogateescape"
        )
        for head, *_ in found
    ]


def list_all(work: Work, args: NoArguments) -> Reply:
    """Return every attachment, oldest first."""
    require_keeper(work.store, work.actor)
    found = attachment_queries.living(work.store.database.connection)
    return {"mounts": [_facts(work, each) for each in found]}


def info(work: Work, args: PathArguments) -> Reply:
    """Return what is known of an attachment: how it gets on with its source, and what is odd."""
    require_keeper(work.store, work.actor)
    attachment = named(work, args.path)
    connection, number = work.store.database.connection, attachment.number
    tally = attachment_queries.tally(connection, number)
    top = work.store.reader.find_path(attachment.ino) or Path(b"")
    return _facts(work, attachment) | {
        "objects": tally.objects,
        "size_bytes": tally.size_bytes,
        "fetched_bytes": tally.fetched_bytes,
        "capabilities": _names(attachment),
        "unpushed": [
            {"path": to_text(path), "reason": reason}
            for path, reason in attachment_queries.unpushed(connection, number).items()
        ][:SHOWN_MAX],
        "odd_keys": [
            {"key": to_text(each.key), "path": to_text(each.path)}
            for each in attachment_queries.odd_objects(connection, number, SHOWN_MAX)
        ],
        "conflicts": [
            {
                "seq": seq,
                "time": iso_time(time_ns),
                "path": to_text(path),
                "path2": to_text(path2) or None,
            }
            for seq, time_ns, path, path2 in attachment_queries.conflicts(
                connection, top, SHOWN_MAX
            )
        ],
    }


def refresh(work: Work, args: PathArguments) -> Reply:
    """Bring what was changed here to the source, and take over what others changed there."""
    require_keeper(work.store, work.actor)
    attachment = named(work, args.path)
    done = exchange(work.store, attachment, keep=work.keep, trusting=True, progress=work.progress)
    return _facts(work, named(work, args.path)) | {
        "pushed": done.pushed.puts + done.pushed.deletes,
        **done.imported._asdict(),
    }


def remove(work: Work, args: MountsRemoveArguments) -> Reply:
    """Take an attachment away; its source stays as it is."""
    require_keeper(work.store, work.actor)
    attachment = named(work, args.path)
    reply = _facts(work, attachment)
    if reply["waiting"] and not args.force:
        exchange(work.store, attachment, keep=work.keep, refresh=False)
        left = waiting(work, attachment)
        if left:
            raise errors.InUse(
                f"{left} changes are not at the source, which nexus-ctl mounts info tells more"
                " about; --force leaves them to the past"
            )
    seq = work.store.transact(detach, work.actor, attachment, work.keep)
    return reply | {"seq": seq}


def named(work: Work, text: str) -> Attachment:
    """Return the attachment at a path, or that it is in.

    Raises:
        NotFound: There is none.
    """
    reader, path = work.store.reader, to_path(text)
    roots = {a.ino: a for a in attachment_queries.living(work.store.database.connection)}
    for ino, attachment in roots.items():
        top = reader.find_path(ino)
        if top is not None and (path == top or path.startswith(top + b"/")):
            return attachment
    raise errors.NotFound(f"nothing is attached at /{text}; nexus-ctl mounts list shows all")


def _facts(work: Work, attachment: Attachment) -> dict[str, Any]:
    path = work.store.reader.find_path(attachment.ino)
    return {
        "path": to_text(path or b""),
        "url": attachment.url,
        "options": attachment.options,
        "read_only": attachment.read_only,
        "interval_s": attachment.interval_s,
        "listed": iso_time(attachment.listed_ns) if attachment.listed_ns else None,
        "waiting": waiting(work, attachment),
        "trouble": attachment.trouble or None,
    }


def waiting(work: Work, attachment: Attachment) -> int:
    """Return how many objects are not yet what the files here are."""
    return work.store.look(partial(count_waiting, attachment=attachment))


def _names(attachment: Attachment) -> list[str]:
    return [str(each.name).lower() for each in Capability(attachment.capabilities)]
