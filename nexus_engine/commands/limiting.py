"""Verbs of quotas. For the store's owner and root."""

from __future__ import annotations

from typing import Any

from nexus_engine.commands import Reply, Work
from nexus_engine.commands.arguments import NoArguments, PathArguments, QuotaArguments, to_text
from nexus_engine.commands.walking import find, require_keeper
from nexus_engine.fs.quotas import remove_quota, set_quota
from nexus_engine.meta import quotas
from nexus_engine.meta.quotas import Quota


def set_limits(work: Work, args: QuotaArguments) -> Reply:
    """Give a directory limits."""
    require_keeper(work.store, work.actor)
    path, inode = find(work.store, args.path, work.actor)
    quota = work.store.transact(set_quota, work.actor, inode.ino, args.bytes, args.inodes)
    return _quota(quota, to_text(path))


def remove_limits(work: Work, args: PathArguments) -> Reply:
    """Lift the limits of a directory."""
    require_keeper(work.store, work.actor)
    path, inode = find(work.store, args.path, work.actor)
    work.store.transact(remove_quota, work.actor, inode.ino)
    return {"path": to_text(path)}


def list_limits(work: Work, args: NoArguments) -> Reply:
    """Return every quota of a directory that is there, with what is used of it."""
    require_keeper(work.store, work.actor)
    reader = work.store.reader
    found = [
        (path, quota)
        for quota in quotas.all_quotas(work.store.database.connection)
        if reader.find_inode(quota.ino) and (path := reader.find_path(quota.ino)) is not None
    ]
    return {"quotas": [_quota(quota, to_text(path)) for path, quota in sorted(found)]}


def _quota(quota: Quota, path: str) -> dict[str, Any]:
    return {
        "path": path,
        "max_bytes": quota.max_bytes,
        "bytes": quota.used.bytes,
        "max_inodes": quota.max_inodes,
        "inodes": quota.used.inodes,
    }
