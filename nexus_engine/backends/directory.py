"""A bucket in a local directory: no server needed, and no keys that could not be paths."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from nexus_engine.backends.bucket import Bucket, Capability, ObjectInfo, executable
from nexus_engine.backends.content import opened
from nexus_engine.backends.files import OpenFile, sync_directory, translate
from nexus_engine.backends.keys import order_of
from nexus_engine.backends.trees import walk
from nexus_engine.backends.urls import BucketUrl
from nexus_engine.errors import (
    InvalidArgument,
    InvalidName,
    NameTooLong,
    ObjectChanged,
    ObjectNotFound,
    StoreInaccessible,
)

_OWN = ".nexus-bucket"
"""A directory at the top: what is not finished yet, and the lock of conditions. In none below it
is this a name either, for there may be a bucket in a directory of another."""
_PIECE = 1 << 20
_NAME_BYTES_MAX = 255
_REGULAR = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_GONE = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP)


def open_directory(url: BucketUrl) -> Bucket:
    """Return the bucket of a ``file://`` URL."""
    url.finish()
    if url.host or not url.path.startswith("/"):
        raise InvalidArgument("a file:// URL has three slashes: file:///srv/objects")
    root = Path(url.path)
    if not root.is_dir():
        raise StoreInaccessible(f"there is no directory {root}: make it, or correct the URL")
    return DirectoryBucket(root)


class DirectoryBucket:
    """A `Bucket` whose objects are the regular files below a directory.

    The etag is of inode, size and time of change, so that a file which another program overwrites
    is a new version. Conditions are atomic among those that use this class.

    Args:
        root: An existing directory.
    """

    def __init__(self, root: Path) -> None:
        self._root = root.resolve()
        self.url = f"file://{self._root}"
        self._identity = self._find_identity()

    def probe(self) -> Capability:
        return ~(Capability.VERSIONS | Capability.CHANGE_FEED)

    def read(self, key: str, offset: int, length: int, *, etag: str = "") -> bytes:
        path = self._path(key)
        with _explained(f"read {key}"):
            file = OpenFile(os.open(path, os.O_RDONLY | _REGULAR))
            if not stat.S_ISREG(os.fstat(file.fd).st_mode):
                raise IsADirectoryError(errno.EISDIR, "not an object")
            content = file.read(offset, length)
            # Afterwards: what was overwritten while we read has another time by now.
            if etag and etag != _etag(os.fstat(file.fd)):
                raise _changed(key)
            return content

    def stat(self, key: str) -> ObjectInfo:
        path = self._path(key)
        with _explained(f"look up {key}"):
            return _info(key, path.lstat())

    def put(
        self, key: str, content: bytes | Path, *, if_absent: bool = False, if_match: str = ""
    ) -> ObjectInfo:
        target = self._path(key)
        with _explained(f"store {key}"):
            unfinished = self._own() / uuid.uuid4().hex
            try:
                _write(unfinished, content, _find_file(target))
                with self._locked():
                    if if_absent or if_match:
                        self._require(key, target, if_match)
                    self._make_parents(key, target.parent)
                    if target.is_dir() and not target.is_symlink():
                        raise InvalidName(f"{key}: there are keys below it, and it is a directory")
                    unfinished.replace(target)
                    info = _info(key, target.lstat())
            finally:
                unfinished.unlink(missing_ok=True)
            sync_directory(target.parent)
            return info

    def delete(self, key: str, *, if_match: str = "") -> None:
        path = self._path(key)
        with _explained(f"delete {key}"):
            if not os.path.lexists(path):
                return
            with self._locked():
                try:
                    found = _info(key, path.lstat())
                except (ObjectNotFound, FileNotFoundError):
                    return
                if if_match and found.etag != if_match:
                    raise _changed(key)
                path.unlink()
                sync_directory(path.parent)
                self._remove_empty(path.parent)

    def copy(self, source: str, target: str) -> ObjectInfo:
        info = self.stat(source)
        return info if source == target else self.put(target, self._path(source))

    def make_program(self, key: str, *, if_match: str) -> ObjectInfo:
        path = self._path(key)
        with _explained(f"make {key} executable"), self._locked():
            self._require(key, path, if_match)
            path.chmod(executable(stat.S_IMODE(path.lstat().st_mode)))
            return _info(key, path.lstat())

    def iter_objects(
        self, prefix: str = "", *, start_after: str = "", delimiter: str = ""
    ) -> Iterator[ObjectInfo | str]:
        self._require_root()
        with _explained(f"list {prefix or self.url}"):
            yield from walk(self._children, prefix, start_after, delimiter)

    def close(self) -> None:
        """Nothing is kept open."""

    def _children(self, folder: str) -> Iterator[ObjectInfo | str]:
        try:
            with os.scandir(self._root / folder) as entries:
                for entry in entries:
                    key = f"{folder}{entry.name}"
                    if entry.is_dir(follow_symlinks=False):
                        if entry.name != _OWN:
                            yield f"{key}/"
                    elif info := self._find(key):
                        yield info
        except OSError as error:
            if error.errno not in _GONE:
                raise

    def _find(self, key: str) -> ObjectInfo | None:
        try:
            return _info(key, (self._root / key).lstat())
        except (ObjectNotFound, FileNotFoundError):
            return None

    def _find_identity(self) -> tuple[int, int]:
        try:
            found = self._root.stat()
        except OSError as error:
            raise StoreInaccessible(f"cannot use {self._root}: {error.strerror}") from error
        return found.st_dev, found.st_ino

    def _require_root(self) -> None:
        """Refuse the empty directory that is there while a disk, or a server's, is not mounted.

        Raises:
            StoreInaccessible.
        """
        if self._find_identity() != self._identity:
            raise StoreInaccessible(
                f"{self._root} is another directory than it was: is its disk mounted?"
            )

    def _path(self, key: str) -> Path:
        self._require_root()
        parts = key.split("/")
        if "\0" in key or _OWN in parts or any(part in ("", ".", "..") for part in parts):
            raise InvalidName(f"{key!r} is no path; {self.url} holds files")
        if any(len(order_of(part)) > _NAME_BYTES_MAX for part in parts):
            raise NameTooLong(f"{key[:40]}…: a name has {_NAME_BYTES_MAX} bytes at most")
        path = self._root / key
        if path.parent.resolve() != path.parent:
            raise InvalidName(f"{key!r} leads through a symbolic link")
        return path

    def _require(self, key: str, path: Path, if_match: str) -> None:
        """Raises ObjectChanged unless the version is this one; empty: unless there is none."""
        found = self._find(key)
        if (found.etag if found else "") != if_match or (found is None and os.path.lexists(path)):
            raise _changed(key)

    def _make_parents(self, key: str, directory: Path) -> None:
        if directory.is_dir():
            return
        self._make_parents(key, directory.parent)
        try:
            directory.mkdir(exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            raise InvalidName(f"{key}: {directory} is a file, and no directory") from error
        sync_directory(directory.parent)

    def _remove_empty(self, directory: Path) -> None:
        while directory != self._root:
            try:
                directory.rmdir()
            except OSError as error:
                if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT):
                    return
                raise
            directory = directory.parent

    def _own(self) -> Path:
        """Return the directory of what is ours; git takes no notice of it."""
        own = self._root / _OWN
        if not own.is_dir():
            own.mkdir(exist_ok=True)
            (own / ".gitignore").write_text("*\n")
        return own

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Keep out all who use this class, in this process and in others."""
        fd = os.open(self._own() / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)


@contextmanager
def _explained(doing: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in _GONE:
            raise ObjectNotFound(f"cannot {doing}: there is none") from error
        raise translate(error, doing) from error


def _changed(key: str) -> ObjectChanged:
    return ObjectChanged(f"{key} is another version by now")


def _etag(found: os.stat_result) -> str:
    return f"{found.st_ino:x}-{found.st_size:x}-{found.st_ctime_ns:x}"


def _info(key: str, found: os.stat_result) -> ObjectInfo:
    if not stat.S_ISREG(found.st_mode):
        raise ObjectNotFound(f"{key} is no object: not a regular file")
    program = bool(found.st_mode & stat.S_IXUSR)
    return ObjectInfo(key, found.st_size, _etag(found), found.st_mtime_ns, program)


def _find_file(path: Path) -> os.stat_result | None:
    try:
        found = path.lstat()
    except OSError:
        return None  # also where the path is none: that is told later
    return found if stat.S_ISREG(found.st_mode) else None


def _write(path: Path, content: bytes | Path, like: os.stat_result | None) -> None:
    """Write a new file, durably.

    Args:
        like: What it takes the place of: it belongs to the same, as far as we may, and nobody else
            can read it meanwhile.
    """
    mode = 0o666 if like is None else stat.S_IMODE(like.st_mode)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    with os.fdopen(fd, "wb") as file, opened(content) as source:
        if like is not None:
            with suppress(PermissionError):
                os.fchown(file.fileno(), like.st_uid, like.st_gid)
            os.fchmod(file.fileno(), mode)
        for offset in range(0, source.size, _PIECE):
            file.write(source.read(offset, min(_PIECE, source.size - offset)))
        file.flush()
        os.fsync(file.fileno())
