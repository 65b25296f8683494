"""Whether a file and an object have the same content, where nothing but their bytes tells."""

from __future__ import annotations

from nexus_engine import errors
from nexus_engine.attached.naming import text_of
from nexus_engine.backends.bucket import Bucket
from nexus_engine.history.versions import read_content
from nexus_engine.store import Store
from nexus_engine.types import Inode, Seq

_PIECE = 4 << 20


def same_content(
    store: Store, inode: Inode, bucket: Bucket, key: bytes, etag: str, *, as_of: Seq | None = None
) -> bool:
    """Compare a file with a version of an object that has its size.

    Args:
        as_of: The file after this operation; ``None``: now.
    """
    view = store.reader if as_of is None else store.database.as_of(as_of)
    for offset in range(0, inode.size, _PIECE):
        length = min(_PIECE, inode.size - offset)
        try:
            theirs = bucket.read(text_of(key), offset, length, etag=etag)
            ours = read_content(store, view, inode, offset, length)
        except (errors.ObjectChanged, errors.ObjectNotFound):
            return False
        if ours != theirs:
            return False
    return True
