"""Objects as files below one directory."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
import threading
import uuid
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from pathlib import Path

from nexus_engine.backends.base import View
from nexus_engine.backends.files import OpenFile, sync_directory, translate, write_again
from nexus_engine.errors import EngineError, ObjectNotFound

_PARTIAL = ".partial"
"""Suffix of a copy that is not complete yet; no key may end in it."""

_REGULAR = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
"""No object is a link that leads out of the store, or a pipe that nobody writes to."""

_GONE = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR)


class LocalObjectStore:
    """An `ObjectStore` in a directory; several processes may use the same one.

    Args:
        root: An existing directory.
        max_open: Files kept open for reading.
    """

    def __init__(self, root: Path, *, max_open: int = 128) -> None:
        self._root = root
        self._max_open = max_open
        self._lock = threading.Lock()
        self._open: OrderedDict[str, OpenFile] = OrderedDict()
        self._unsure: set[str] = set()
        """Objects whose last sync failed, or is under way."""

    def prepare(self) -> None:
        pass

    def read(self, key: str, offset: int, length: int) -> View:
        try:
            return self._get_file(key).read(offset, length)
        except OSError as error:
            raise _explain(error, "read", key) from error

    def read_resident(self, key: str, offset: int, length: int) -> View | None:
        file = self._find_open(key)
        if file is None:
            # open(2) may wait for a directory block; the first read of a file goes through
            # `read`, and those after it come here.
            return None
        try:
            return file.read_resident(offset, length)
        except OSError as error:
            raise _explain(error, "read", key) from error

    def read_stored(self, key: str, offset: int, length: int) -> View:
        # What is in the kernel's cache says nothing of the disk, and all content once would push
        # out what programs use.
        try:
            fd = os.open(self._path(key), os.O_RDONLY | _REGULAR)
            try:
                os.posix_fadvise(fd, offset, length, os.POSIX_FADV_DONTNEED)
                content = os.pread(fd, length, offset)
                os.posix_fadvise(fd, offset, length, os.POSIX_FADV_DONTNEED)
                return content
            finally:
                os.close(fd)
        except OSError as error:
            raise _explain(error, "read", key) from error

    def distrust(self, key: str) -> bool:
        return False

    def size(self, key: str) -> int:
        try:
            return os.fstat(self._get_file(key).fd).st_size
        except OSError as error:
            raise _explain(error, "read", key) from error

    def put_file(self, key: str, path: Path) -> None:
        target = self._path(key)
        try:
            self._make_parents(target.parent)
            self._move(path, target)
            sync_directory(target.parent)
        except OSError as error:
            raise translate(error, f"store {key}") from error
        finally:
            self._drop(key)

    def is_waiting(self, key: str) -> bool:
        return False

    def secure(self, others: Iterable[str] = ()) -> None:
        pass

    def drain(self) -> None:
        pass

    def await_room(self) -> None:
        pass

    def sync(self, key: str) -> None:
        path = self._path(key)
        with self._lock:
            unsure = key in self._unsure
            self._unsure.add(key)
        try:
            _sync_file(path, again=unsure)
            sync_directory(path.parent)
        except FileNotFoundError as error:
            self._sure_of(key)
            raise _explain(error, "sync", key) from error
        except OSError as error:
            raise _explain(error, "sync", key) from error
        self._sure_of(key)

    def iter_keys(self, prefix: str) -> Iterator[str]:
        folder = prefix.rpartition("/")[0]
        top = self._path(folder) if folder else self._root
        try:
            for directory, _, names in os.walk(top, onerror=_raise_unless_gone):
                for name in names:
                    key = (Path(directory) / name).relative_to(self._root).as_posix()
                    if key.startswith(prefix) and not key.endswith(_PARTIAL):
                        yield key
        except OSError as error:
            raise translate(error, f"list {prefix or self._root}") from error

    def iter_sizes(self, prefix: str) -> Iterator[tuple[str, int]]:
        for key in self.iter_keys(prefix):
            with contextlib.suppress(FileNotFoundError):
                yield key, self._path(key).stat().st_size

    def is_near(self, key: str) -> bool:
        return True

    def delete(self, key: str) -> None:
        path = self._path(key)
        self._drop(key)
        try:
            path.unlink(missing_ok=True)
            sync_directory(path.parent)
        except OSError as error:
            if error.errno not in _GONE:
                raise translate(error, f"delete {key}") from error

    def let_go(self, key: str) -> None:
        """Close an object's file: it was moved away."""
        self._drop(key)

    def figures(self) -> dict[str, int]:
        return {}

    def leave(self) -> list[tuple[str, Path]]:
        self.close()
        return []

    def close(self) -> None:
        with self._lock:
            self._open.clear()

    def forget_deleted(self) -> None:
        with self._lock:
            files = list(self._open.items())
        # Without the lock: far away, a stat waits.
        for key, file in files:
            if not os.fstat(file.fd).st_nlink:
                self._drop(key)

    def _get_file(self, key: str) -> OpenFile:
        file = self._find_open(key)
        if file is not None:
            return file
        file = OpenFile(os.open(self._path(key), os.O_RDONLY | _REGULAR))
        if not stat.S_ISREG(os.fstat(file.fd).st_mode):
            raise IsADirectoryError(errno.EISDIR, "not an object")
        with self._lock:
            # Where two threads opened it, the later one wins and the other's copy is closed
            # when that thread is done with it.
            self._open[key] = file
            while len(self._open) > self._max_open:
                self._open.popitem(last=False)
        return file

    def _find_open(self, key: str) -> OpenFile | None:
        with self._lock:
            file = self._open.get(key)
            if file is not None:
                self._open.move_to_end(key)
            return file

    def _drop(self, key: str) -> None:
        with self._lock:
            self._open.pop(key, None)

    def _sure_of(self, key: str) -> None:
        with self._lock:
            self._unsure.discard(key)

    def _path(self, key: str) -> Path:
        parts = key.split("/")
        if "\0" in key or key.endswith(_PARTIAL) or any(part in ("", ".", "..") for part in parts):
            raise ValueError(f"not an object key: {key!r}")
        return self._root.joinpath(*parts)

    def _make_parents(self, directory: Path) -> None:
        if directory.is_dir():
            return
        self._make_parents(directory.parent)
        directory.mkdir(exist_ok=True)
        sync_directory(directory.parent)

    def _move(self, path: Path, target: Path) -> None:
        try:
            # Synced before it gets its name: a crash must not leave half an object under it.
            _sync_file(path)
            path.replace(target)
        except FileNotFoundError:
            # An earlier attempt may have come this far and failed to sync.
            if not target.exists():
                raise
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            self._copy(path, target)

    def _copy(self, path: Path, target: Path) -> None:
        partial = target.with_name(f"{target.name}.{uuid.uuid4().hex}{_PARTIAL}")
        try:
            shutil.copy(path, partial)
            _sync_file(partial)
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)
        # Durable before the original goes.
        sync_directory(target.parent)
        path.unlink()


def _sync_file(path: Path, *, again: bool = False) -> None:
    """Sync a file; ``again``: after an attempt that failed."""
    fd = os.open(path, (os.O_RDWR if again else os.O_RDONLY) | _REGULAR)
    try:
        if again:
            write_again(fd)
        os.fsync(fd)
    finally:
        os.close(fd)


def _explain(error: OSError, verb: str, key: str) -> EngineError:
    if error.errno in _GONE:
        return ObjectNotFound(f"there is no object {key}")
    return translate(error, f"{verb} {key}")


def _raise_unless_gone(error: OSError) -> None:
    if error.errno not in _GONE:
        raise error
