"""The asynchronous face of a bucket: whole files by path, for programs under trio or asyncio."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from types import TracebackType
from typing import NamedTuple, TypeVar

from anyio import CapacityLimiter, to_thread

from nexus_engine.backends.bucket import Bucket, Capability, ObjectInfo
from nexus_engine.backends.retrying import REQUESTS_AT_ONCE
from nexus_engine.backends.urls import open_bucket
from nexus_engine.errors import BackendError, ObjectNotFound

T = TypeVar("T")

_PIECE = 16 << 20


class FileStat(NamedTuple):
    size: int
    """Bytes; 0 of a directory."""
    mtime_ns: int
    etag: str
    """Of this version; empty of a directory."""
    is_directory: bool


class BackendAdapter:
    """Files at a bucket. A path is a key, with or without a slash before it.

    Directories are what keys have in common up to a slash: they come and go with the files in them.
    Every method may raise what the bucket's does. One that is cancelled still ends first, within
    the bucket's deadline: a file must not be half known to be written.
    """

    def __init__(self, bucket: Bucket, capabilities: Capability) -> None:
        self.bucket = bucket
        self.capabilities = capabilities
        self._limiter = CapacityLimiter(REQUESTS_AT_ONCE)

    async def __aenter__(self) -> BackendAdapter:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._run(self.bucket.close)

    async def read(self, path: str) -> bytes:
        """Return the whole file, all of one version.

        Raises:
            ObjectNotFound: there is none.
            ObjectChanged: it was written meanwhile.
        """
        return await self._run(partial(_read_whole, self.bucket, _key(path)))

    async def read_range(self, path: str, offset: int, length: int, *, etag: str = "") -> bytes:
        """As `Bucket.read`."""
        read = partial(self.bucket.read, _key(path), offset, length, etag=etag)
        return await self._run(lambda: bytes(read()))

    async def write(
        self, path: str, data: bytes, *, if_absent: bool = False, if_match: str = ""
    ) -> FileStat:
        """Store a file, whole or not at all; conditions are those of `Bucket.put`."""
        put = partial(self.bucket.put, _key(path), data, if_absent=if_absent, if_match=if_match)
        return _stat_of(await self._run(put))

    async def delete(self, path: str, *, if_match: str = "") -> None:
        """Remove a file; no error if there is none."""
        await self._run(partial(self.bucket.delete, _key(path), if_match=if_match))

    async def copy(self, source: str, target: str) -> FileStat:
        """Store a file under another path as well, without sending it."""
        return _stat_of(await self._run(partial(self.bucket.copy, _key(source), _key(target))))

    async def list(self, path: str) -> list[str]:
        """Return the names in a directory, in order, directories with a slash.

        Raises:
            ObjectNotFound: there is no such directory.
        """
        prefix = f"{_key(path).rstrip('/')}/".removeprefix("/")
        items = await self._run(lambda: list(self.bucket.iter_objects(prefix, delimiter="/")))
        names = [(item if isinstance(item, str) else item.key)[len(prefix) :] for item in items]
        if prefix and not names:
            raise ObjectNotFound(f"there is no directory {path}")
        return sorted(filter(None, names))

    async def exists(self, path: str) -> bool:
        """Tell whether there is such a file, or directory."""
        try:
            await self.stat(path)
        except ObjectNotFound:
            return False
        return True

    async def stat(self, path: str) -> FileStat:
        """Return what is known of a file, or a directory.

        Raises:
            ObjectNotFound: there is neither.
        """
        return await self._run(partial(_stat, self.bucket, _key(path)))

    async def _run(self, call: Callable[[], T]) -> T:
        return await to_thread.run_sync(call, limiter=self._limiter)


async def open_backend(
    url: str, options: Mapping[str, str] | None = None, *, read_only: bool = False
) -> BackendAdapter:
    """Return the backend of a URL, having tried what its server can do.

    Args:
        read_only: Nothing is tried, and nothing known: trying needs writing.
    """

    def opened() -> BackendAdapter:
        bucket = open_bucket(url, options)
        try:
            return BackendAdapter(bucket, Capability(0) if read_only else bucket.probe())
        except BackendError:
            bucket.close()
            raise

    return await to_thread.run_sync(opened)


def _key(path: str) -> str:
    return path.removeprefix("/")


def _read_whole(bucket: Bucket, key: str) -> bytes:
    found = bucket.stat(key)
    pieces = [
        bucket.read(key, offset, min(_PIECE, found.size - offset), etag=found.etag)
        for offset in range(0, found.size, _PIECE)
    ]
    return b"".join(pieces)


def _stat(bucket: Bucket, key: str) -> FileStat:
    directory = FileStat(0, 0, "", is_directory=True)
    if not key:
        return directory
    try:
        return _stat_of(bucket.stat(key.rstrip("/")))
    except ObjectNotFound:
        if any(True for _ in bucket.iter_objects(f"{key.rstrip('/')}/")):
            return directory
        raise


def _stat_of(info: ObjectInfo) -> FileStat:
    return FileStat(info.size, info.mtime_ns, info.etag, is_directory=False)
