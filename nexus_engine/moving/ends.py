"""From where packs are moved, and to where: a bucket, or the store's own directory."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from nexus_engine import errors
from nexus_engine.backends.base import View
from nexus_engine.backends.bucket import Bucket, Capability
from nexus_engine.backends.files import OpenFile, sync_directory
from nexus_engine.backends.home import Home
from nexus_engine.backends.sending import is_same, put_pack
from nexus_engine.backup.layout import explained, sync_file
from nexus_engine.cas.pack import PACK_HEADER_SIZE, RecordScan, ScanStop, pack_key
from nexus_engine.store import Store

MOVING_NAME = "moving"
"""In the store's directory, while packs are moved: what is on its way; its lock."""
_VERIFIED = "verified"
"""In there: the names of packs that the bucket has, and that were read back."""
_PACKS = "packs/"
_SUFFIX = ".pack"
_PIECE = 8 << 20


class OwnPacks:
    """Packs in the store's directory, to be moved: those that nobody appends to."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._packs = store.path / "packs"

    def sizes(self) -> dict[str, int]:
        found = {}
        for path in self._packs.glob(f"*{_SUFFIX}"):
            with suppress(FileNotFoundError):
                size = path.stat().st_size
                if size > PACK_HEADER_SIZE and self._store.reader.is_sealed(path.stem):
                    found[path.stem] = size
        return found

    @contextmanager
    def fetched(self, name: str, size: int) -> Iterator[Path]:
        path = self._packs / f"{name}{_SUFFIX}"
        if not path.exists():
            raise errors.ObjectNotFound(f"there is no {path}")
        yield path


class BucketPacks:
    """Packs in a bucket, to be moved.

    Args:
        copies: Directories of this machine that may have some of them.
    """

    def __init__(self, home: Home, directory: Path, copies: tuple[Path, ...]) -> None:
        self._home = home
        self._directory = directory
        self._copies = copies

    def sizes(self) -> dict[str, int]:
        return self._home.ask(_sizes)

    @contextmanager
    def fetched(self, name: str, size: int) -> Iterator[Path]:
        path = self._directory / f"{name}.part"
        with explained(f"write {path}"):
            try:
                if not self._copied(name, size, path):
                    self._download(name, size, path)
                    if not is_whole(path):
                        self._require_again(name, size, path)
                yield path
            finally:
                path.unlink(missing_ok=True)

    def _copied(self, name: str, size: int, path: Path) -> bool:
        """Take a copy that is near, if it is as good."""
        for directory in self._copies:
            copy = directory / path.with_suffix(_SUFFIX).name
            with suppress(OSError, errors.EngineError):
                if copy.stat().st_size == size:
                    _copy(copy, path)
                    if is_whole(path):
                        return True
        return False

    def _download(self, name: str, size: int, path: Path) -> None:
        with path.open("wb") as file:
            for at in range(0, size, _PIECE):
                file.write(self._read(name, at, min(_PIECE, size - at)))

    def _require_again(self, name: str, size: int, path: Path) -> None:
        """Read once more what ends in bytes that are no record, as after a crash: or was it us?

        Raises:
            ObjectStoreFailed: The bucket says something else each time.
        """
        with path.open("rb") as file:
            for at in range(0, size, _PIECE):
                piece = file.read(_PIECE)
                if self._read(name, at, len(piece)) != piece:
                    raise errors.ObjectStoreFailed(
                        f"{self._home.url} gives other bytes each time for pack {name}"
                    )

    def _read(self, name: str, at: int, length: int) -> View:
        piece = self._home.ask(lambda bucket: bucket.read(pack_key(name), at, length))
        if len(piece) != length:
            raise errors.ObjectNotFound(f"pack {name} became shorter")
        return piece


class ToBucket:
    """A bucket that packs are moved to.

    What it is said to have stored is read back. Which packs that was done for is noted here: after
    a kill, not all of them are read again.
    """

    def __init__(self, bucket: Bucket, directory: Path) -> None:
        self._bucket = bucket
        self._noted = directory / _VERIFIED
        self._lock = threading.Lock()
        needed = Capability.CONDITIONAL_PUT | Capability.CONDITIONAL_PARTS
        self._conditional = needed in bucket.probe()

    def present(self) -> dict[str, int]:
        verified = set()
        with explained(f"read {self._noted}"), suppress(FileNotFoundError):
            verified = set(self._noted.read_text().splitlines())
        return {name: size for name, size in _sizes(self._bucket).items() if name in verified}

    def listed(self) -> set[str]:
        return set(_sizes(self._bucket))

    def take(self, name: str, path: Path) -> None:
        key = pack_key(name)
        put_pack(self._bucket, key=key, path=path, conditional=self._conditional)
        if not is_same(self._bucket, key, path, self._bucket.stat(key)):
            raise errors.ObjectStoreFailed(f"{self._bucket.url} has not what was put: pack {name}")
        with self._lock, explained(f"write {self._noted}"), self._noted.open("a") as file:
            file.write(f"{name}\n")

    def drop(self, name: str) -> None:
        self._bucket.delete(pack_key(name))


class ToDirectory:
    """The store's own directory; packs wait beside `packs` until all of them are here.

    In there they would be taken for packs that the bucket does not have.
    """

    def __init__(self, store: Store, directory: Path) -> None:
        self._packs = store.path / "packs"
        self._directory = directory

    def present(self) -> dict[str, int]:
        return {path.stem: path.stat().st_size for path in self._directory.glob(f"*{_SUFFIX}")}

    def listed(self) -> set[str]:
        return set(self.present())

    def take(self, name: str, path: Path) -> None:
        with explained(f"write {path}"):
            sync_file(path)
            path.replace(self._path(name))
            sync_directory(self._directory)

    def drop(self, name: str) -> None:
        with explained(f"remove pack {name}"):
            self._path(name).unlink(missing_ok=True)

    def put_in_place(self) -> None:
        """Move the packs to where they belong."""
        with explained(f"write {self._packs}"):
            for name in self.present():
                self._path(name).replace(self._packs / f"{name}{_SUFFIX}")
            sync_directory(self._packs)

    def _path(self, name: str) -> Path:
        return self._directory / f"{name}{_SUFFIX}"


def is_whole(path: Path) -> bool:
    """Tell whether a pack is records from its beginning to its end, each with its checksum."""
    scan = RecordScan(OpenFile(os.open(path, os.O_RDONLY | os.O_CLOEXEC)).read)
    for _ in scan:
        pass
    return scan.stop is ScanStop.END


def _sizes(bucket: Bucket) -> dict[str, int]:
    return {
        found.key.removeprefix(_PACKS).removesuffix(_SUFFIX): found.size
        for found in bucket.iter_objects(_PACKS)
        if not isinstance(found, str) and found.key.endswith(_SUFFIX)
    }


def _copy(source: Path, target: Path) -> None:
    with source.open("rb") as file, target.open("wb") as copy:
        while piece := file.read(_PIECE):
            copy.write(piece)
