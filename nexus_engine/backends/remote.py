"""Objects in a bucket: sent there from a spool on the local disk, read through a cache on it.

::

    STORE/packs/ID.pack   a pack that the bucket does not have yet
    STORE/cache/…         copies of what it has

What lies in the spool is the object; whatever is not there, the bucket has. So nothing else says
where a pack is, and nothing can say it wrongly: the file goes when the bucket has confirmed the
object. Whoever sends or deletes one holds an ``flock`` on the file.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from nexus_engine import errors
from nexus_engine.backends.base import View
from nexus_engine.backends.block_cache import BlockCache
from nexus_engine.backends.cache_files import BLOCK_BYTES
from nexus_engine.backends.fetching import AHEAD_MAX, Fetcher
from nexus_engine.backends.files import translate
from nexus_engine.backends.home import MARK_KEY, Home
from nexus_engine.backends.local import LocalObjectStore
from nexus_engine.backends.sending import is_still, locked, put_pack
from nexus_engine.backends.spool import Spool

CACHE_NAME = "cache"
_NO_OBJECTS = (f"{CACHE_NAME}/", "meta/", MARK_KEY)
_STORED_BYTES = 8 << 20
"""Read at once where what is read comes one after the other, and not from the cache."""
_MARK_AGE_S = 60.0
"""So long the prefix may have been another's before packs stop going there."""
_OTHERS_POLL_S = 0.1
_ELSEWHERE_S = 600.0
"""How long somebody else may be sending what is to be deleted."""


class Limits(NamedTuple):
    """What a store allows its bucket; see `StoreConfig`."""

    cache_bytes: int
    backlog_bytes: int
    upload_limit_s: float


class RemoteObjectStore:
    """An `ObjectStore` in a bucket; several processes of one machine may use the same one.

    What is replaced while it is being sent or read may be read as it was: packs never are.

    Args:
        root: The store's directory.
        home: The bucket, once it is known to be this store's.
        press: Told whether more is waiting to be sent than should.
        staying: A context in which packs are not moved elsewhere; raises StoreBusy if they are.
        find_next: Returns the object that is probably read after another.
    """

    def __init__(
        self,
        root: Path,
        home: Home,
        limits: Limits,
        *,
        press: Callable[[bool], None] = lambda _: None,
        staying: Callable[[], AbstractContextManager[None]] = nullcontext,
        find_next: Callable[[str], str | None] = lambda _: None,
    ) -> None:
        self._root = root
        self.home = self._home = home
        self._limits = limits
        self._press = press
        self._staying = staying
        self._is_left = False
        self._local = LocalObjectStore(root)
        self._cache = BlockCache(root / CACHE_NAME, limits.cache_bytes)
        self._spool = Spool(
            self._send,
            backlog_bytes=limits.backlog_bytes,
            limit_s=limits.upload_limit_s,
            press=press,
        )
        self._fetcher = Fetcher(
            lambda key, offset, length: home.ask(lambda b: b.read(key, offset, length)),
            has=lambda key, index: self._cache.has(_name(key), index),
            keep=lambda key, index, content: self._cache.put(_name(key), index, content),
            find_next=find_next,
            ahead_max=min(AHEAD_MAX, limits.cache_bytes // BLOCK_BYTES // 4),
        )
        self._away: set[str] = set()
        """Objects that were not in the spool when it was last looked at."""
        self._sizes: dict[str, int] = {}
        """Of objects in the bucket, which never change."""
        self._windows = threading.local()
        """What each thread read last and past the cache: key, offset, content."""

    def prepare(self) -> None:
        self._home.prepare()

    # -- reading --

    def read(self, key: str, offset: int, length: int) -> View:
        if key not in self._away:
            try:
                return self._local.read(key, offset, length)
            except errors.ObjectNotFound:
                self._away.add(key)
        return self._read_far(key, offset, length)

    def read_resident(self, key: str, offset: int, length: int) -> View | None:
        if key not in self._away:
            return self._local.read_resident(key, offset, length)
        name = _name(key)
        parts: list[View] = []
        for index, start, stop in _blocks(offset, length):
            part: View | None = self._fetcher.find(key, index, start, stop - start)
            if part is None:
                part = self._cache.read_resident(name, index, start, stop - start)
            if part is None:
                return None
            parts.append(part)
            self._fetcher.note_read(key, index)
            if len(part) < stop - start:
                break
        return _own(parts)

    def _read_far(self, key: str, offset: int, length: int) -> View:
        name, end = _name(key), offset + length
        parts: list[View] = []
        while offset < end:
            index, start = divmod(offset, BLOCK_BYTES)
            self._fetcher.note_read(key, index)
            wanted = min(BLOCK_BYTES - start, end - offset)
            part: View | None = self._fetcher.find(key, index, start, wanted)
            if part is None:
                part = self._cache.read(name, index, start, wanted)
            if part is None:
                # It may bring the blocks after it as well.
                found = self._fetcher.blocks(key, index, (end - 1) // BLOCK_BYTES)
                wanted = min(max(len(found), BLOCK_BYTES) - start, end - offset)
                part = memoryview(found)[start : start + wanted]
            parts.append(part)
            if len(part) < wanted:
                break
            offset += wanted
        return _own(parts)

    def read_stored(self, key: str, offset: int, length: int) -> View:
        with suppress(errors.ObjectNotFound):
            return self._local.read_stored(key, offset, length)
        window_key, begin, content = getattr(self._windows, "last", ("", 0, b""))
        at = offset - begin
        short = len(content) < _STORED_BYTES  # the object ends there
        if window_key != key or at < 0 or (at + length > len(content) and not short):
            wanted = max(length, _STORED_BYTES)
            content, at = self._home.ask(lambda b: b.read(key, offset, wanted)), 0
            self._windows.last = (key, offset, content)
        return memoryview(content)[at : at + length]

    def distrust(self, key: str) -> bool:
        in_memory = self._fetcher.forget(key)
        return self._cache.forget(_name(key)) or in_memory

    def size(self, key: str) -> int:
        with suppress(errors.ObjectNotFound):
            return self._local.size(key)
        known = self._sizes.get(key)
        if known is None:
            known = self._home.ask(lambda b: b.stat(key)).size
            self._sizes[key] = known
        return known

    def iter_keys(self, prefix: str) -> Iterator[str]:
        for key, _ in self.iter_sizes(prefix):
            yield key

    def iter_sizes(self, prefix: str) -> Iterator[tuple[str, int]]:
        # The spool first: what leaves it meanwhile is in the bucket's list as well.
        seen = dict(self._local.iter_sizes(prefix))
        seen = {key: size for key, size in seen.items() if not key.startswith(_NO_OBJECTS)}
        yield from seen.items()
        listed = self._home.ask(lambda b: list(b.iter_objects(prefix)))
        sizes = {
            found.key: found.size
            for found in listed
            if not (isinstance(found, str) or found.key.startswith(_NO_OBJECTS))
        }
        rest = {key: size for key, size in self._sizes.items() if not key.startswith(prefix)}
        self._sizes = {**rest, **sizes}
        yield from ((key, size) for key, size in sizes.items() if key not in seen)

    def is_near(self, key: str) -> bool:
        return self.is_waiting(key)

    # -- writing --

    def put_file(self, key: str, path: Path) -> None:
        if path == self._root / key and key in self._spool:
            return
        self._local.put_file(key, path)
        self._away.discard(key)
        self._sizes.pop(key, None)
        try:
            self._spool.add(key, self._root / key)
        except FileNotFoundError:
            pass  # an earlier attempt came that far, and it is sent already
        except OSError as error:
            raise translate(error, f"store {key}") from error

    def is_waiting(self, key: str) -> bool:
        return (self._root / key).exists()

    def secure(self, others: Iterable[str] = ()) -> None:
        limit_s = self._limits.upload_limit_s
        deadline_s = time.monotonic() + limit_s
        self._spool.secure(limit_s=limit_s)
        for key in others:
            while self.is_waiting(key) and not self._is_left:
                if time.monotonic() > deadline_s:
                    raise errors.StoreHung(
                        f"another process did not send {key} to {self._home.url} within"
                        f" {limit_s:g} s"
                    )
                time.sleep(_OTHERS_POLL_S)

    def drain(self) -> None:
        self._spool.secure(limit_s=None)

    def await_room(self) -> None:
        self._spool.await_room()

    def sync(self, key: str) -> None:
        # What is in the bucket is durable. Not asked: an fsync must not wait for that.
        with suppress(errors.ObjectNotFound):
            self._local.sync(key)

    def delete(self, key: str) -> None:
        self._home.require_mark()
        self._spool.forget(key)
        with locked(self._root / key, _ELSEWHERE_S):
            self._local.delete(key)
            self._fetcher.forget(key)
            self._cache.forget(_name(key))
            self._home.ask(lambda b: b.delete(key))
        self._sizes.pop(key, None)
        self._away.add(key)

    def keep_copy(self, key: str, path: Path) -> None:
        """Have a file that is the same as the object become a part of the cache, or go."""
        self._cache.adopt(_name(key), path)

    def _send(self, key: str, path: Path) -> None:
        """Bring a file to the bucket; it becomes cache. In a thread of the spool."""
        with self._staying(), locked(path, 0) as fd:
            if fd is None:
                return  # another process sent it, or it was deleted
            self._home.require_mark(within_s=_MARK_AGE_S)
            conditional = self._home.is_conditional()
            put = partial(put_pack, key=key, path=path, conditional=conditional)
            if self._home.ask(put):
                self.distrust(key)  # copies of what was there before
            if not is_still(path, fd):
                if path.exists():
                    raise errors.ObjectStoreFailed(f"{path} was replaced while it was being sent")
                return
            self._sizes[key] = os.fstat(fd).st_size
            self._cache.adopt(_name(key), path)
            self._local.let_go(key)

    def forget_deleted(self) -> None:
        self._local.forget_deleted()
        self._away.clear()  # somebody may have put one back, from a backup
        self._cache.trim()

    def figures(self) -> dict[str, int]:
        return {
            "backlog_bytes": self._spool.backlog_bytes,
            "cache_bytes": self._cache.used_bytes,
            "packs_sent": self._spool.sent,
            "packs_sent_bytes": self._spool.sent_bytes,
            **self._home.figures(),
        }

    def leave(self) -> list[tuple[str, Path]]:
        self._is_left = True
        waiting = self._spool.close()
        self._press(False)
        self._local.leave()
        self._cache.close()
        return waiting

    def close(self) -> None:
        self._spool.close()
        self._local.close()
        self._cache.close()
        self._home.close()


def _blocks(offset: int, length: int) -> Iterator[tuple[int, int, int]]:
    """Yield (index, start, stop) of the blocks of a range, with start and stop in the block."""
    end = offset + length
    for index in range(offset // BLOCK_BYTES, -(-end // BLOCK_BYTES)):
        base = index * BLOCK_BYTES
        yield index, max(offset - base, 0), min(end - base, BLOCK_BYTES)


def _own(parts: list[View]) -> bytes:
    """Return bytes that keep nothing larger in memory, of which they are a part."""
    return bytes(parts[0]) if len(parts) == 1 else b"".join(parts)


def _name(key: str) -> str:
    """Return what the cache calls an object: a pack by its id."""
    return quote(key.removeprefix("packs/").removesuffix(".pack"), safe="")
