"""``Inode`` to ``EntryAttributes`` and back, and how long the kernel may believe them."""

from __future__ import annotations

import errno

import pyfuse3

from nexus_engine import errors
from nexus_engine.fs.attributes import NewAttributes
from nexus_engine.times import pack_time, unpack_time
from nexus_engine.types import Inode

CACHE_TIMEOUT_S = 3600.0
"""Long, because whatever changes behind the kernel's back is invalidated."""
BLOCK_BYTES = 4096


def to_entry(inode: Inode, ino: int | None = None, *, stored: int = -1) -> pyfuse3.EntryAttributes:
    """Return the attributes as the kernel takes them.

    Args:
        ino: The number to show, where it is not the inode's own (history).
        stored: Bytes that are not holes; -1 for all.
    """
    entry = pyfuse3.EntryAttributes()
    # Unpacked at once: listings do this for each name.
    own, _, mode, uid, gid, nlink, rdev, size, atime_ns, mtime_ns, ctime_ns, _, _, _ = inode
    entry.st_ino = own if ino is None else ino
    entry.entry_timeout = entry.attr_timeout = CACHE_TIMEOUT_S
    entry.st_mode = mode
    entry.st_nlink = nlink
    entry.st_uid = uid
    entry.st_gid = gid
    entry.st_rdev = rdev
    entry.st_size = size
    entry.st_blksize = BLOCK_BYTES
    entry.st_blocks = ((size if stored < 0 else stored) + 511) >> 9
    entry.st_atime_ns = unpack_time(atime_ns)
    entry.st_mtime_ns = unpack_time(mtime_ns)
    entry.st_ctime_ns = unpack_time(ctime_ns)
    return entry


def negative_entry() -> pyfuse3.EntryAttributes:
    """Return "no such name", for the kernel to remember: most lookups of a build miss."""
    entry = pyfuse3.EntryAttributes()
    entry.st_ino = 0
    entry.entry_timeout = CACHE_TIMEOUT_S
    return entry


def from_entry(entry: pyfuse3.EntryAttributes, fields: pyfuse3.SetattrFields) -> NewAttributes:
    """Return what a SETATTR request wants changed.

    A new size sets the mtime by itself: the one that the kernel sends with it is older than now.
    """
    if fields.update_size and entry.st_size < 0:
        raise errors.InvalidArgument("negative size")
    update_mtime = fields.update_mtime and not fields.update_size
    return NewAttributes(
        mode=entry.st_mode if fields.update_mode else None,
        uid=entry.st_uid if fields.update_uid else None,
        gid=entry.st_gid if fields.update_gid else None,
        size=entry.st_size if fields.update_size else None,
        atime_ns=pack_time(entry.st_atime_ns) if fields.update_atime else None,
        mtime_ns=pack_time(entry.st_mtime_ns) if update_mtime else None,
    )


def read_only() -> pyfuse3.FUSEError:
    """Return what every change in the past answers."""
    return pyfuse3.FUSEError(errno.EROFS)
