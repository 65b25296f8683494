"""The directory of a backup: what is where, and what makes a generation one.

::

    BACKUP/backup.json             whose backup this is; also the lock
    BACKUP/generations/NAME.json   a generation: its manifest, put in place last
    BACKUP/generations/NAME.db     its copy of meta.db
    BACKUP/packs/ID.pack           packs, shared by the generations

Without its manifest, nothing is part of a backup: what a process that died left is used by the next
one or removed.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path as FilePath
from typing import Annotated, NamedTuple, TypeVar

import msgspec

from nexus_engine import errors
from nexus_engine.backends.files import sync_directory, translate

FORMAT = 1
_MARKER = "backup.json"
NEW = ".new"
"""Suffix of what is not in place yet."""
_BEFORE = (_MARKER + NEW, "lost+found")
"""What may be in a directory that is to become a backup."""

Progress = Callable[[str, int, int | None], None]
"""Told now and then: what is being done, how much of it is done, of how much (if known)."""

PackName = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{32}$")]
GenerationName = Annotated[str, msgspec.Meta(pattern="^[0-9A-Za-z][0-9A-Za-z-]{0,63}$")]
Hash = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
Size = Annotated[int, msgspec.Meta(ge=0, lt=1 << 62)]


class Marker(msgspec.Struct, frozen=True):
    """``backup.json``."""

    nexus_backup: int
    store_id: str


class DatabaseCopy(msgspec.Struct, frozen=True):
    """``NAME.db``."""

    size: Size
    sha256: Hash


class Manifest(msgspec.Struct, frozen=True):
    """``NAME.json``: everything that belongs to a generation."""

    nexus_backup: int
    """Format of the backup."""
    nexus_version: str
    generation: GenerationName
    time_ns: int
    """When it was made; later than every other generation of the backup."""
    store_id: str
    schema_version: int
    head: Size
    """The last operation that is in it."""
    head_hash: Hash
    database: DatabaseCopy
    packs: dict[PackName, Size]
    """Bytes of each pack that belong to it; the file may have more."""
    settings: str | None = None
    """``store.yaml``."""
    damaged: dict[str, list[Hash]] = {}
    """Pack → chunks in it that could not be read when the generation was made."""


S = TypeVar("S", Marker, Manifest)


class Found(NamedTuple):
    """The generations of a backup, oldest first."""

    manifests: list[Manifest]
    broken: list[str]
    """Generations whose manifest cannot be read."""


class BackupDirectory:
    """A backup, locked by this process."""

    def __init__(self, path: FilePath, marker: Marker) -> None:
        self.path = path
        self.store_id = marker.store_id
        self.generations = path / "generations"
        self.packs = path / "packs"

    def find(self) -> Found:
        manifests, broken = [], []
        for path in self.generations.glob("*.json"):
            try:
                manifest = _read(path, Manifest)
                if manifest.generation != path.stem:
                    raise errors.CorruptMetadata(f"{path} is the manifest of another generation")
            except errors.CorruptMetadata:
                broken.append(path.stem)
            else:
                manifests.append(manifest)
        manifests.sort(key=lambda manifest: manifest.time_ns)
        return Found(manifests, sorted(broken))

    def database(self, generation: str) -> FilePath:
        return self.generations / f"{generation}.db"

    def new_database(self) -> FilePath:
        """Return where the copy of the database is to grow: an empty file."""
        self._drop_unfinished()
        path = self.generations / ("meta.db" + NEW)
        with explained(f"write to {self.generations}"):
            make_private(path)
        return path

    def _drop_unfinished(self) -> None:
        with explained(f"write to {self.path}"):
            for directory in (self.generations, self.packs):
                for found in directory.glob(f"*{NEW}*"):
                    found.unlink()

    def new_name(self, time_ns: int) -> str:
        """Return a name for a generation, by the time."""
        seconds = time.gmtime(time_ns // 1_000_000_000)
        name = plain = time.strftime("%Y-%m-%dT%H%M%SZ", seconds)
        number = 1
        while (self.generations / f"{name}.json").exists():
            number += 1
            name = f"{plain}-{number}"
        return name

    def add(self, manifest: Manifest, database: FilePath) -> None:
        """Make a generation of what was copied. All of it is durable, or it is no generation."""
        with explained(f"write to {self.path}"):
            sync_file(database)
            sync_directory(self.packs)
            database.replace(self.database(manifest.generation))
            sync_directory(self.generations)
            _write(self.generations / f"{manifest.generation}.json", manifest)

    def remove(self, manifest: Manifest) -> None:
        """Remove a generation; its packs are left to ``sweep``."""
        with explained(f"remove {manifest.generation} from {self.path}"):
            (self.generations / f"{manifest.generation}.json").unlink(missing_ok=True)
            sync_directory(self.generations)
            self.database(manifest.generation).unlink(missing_ok=True)

    def sweep(self) -> None:
        """Remove what no generation needs."""
        self._drop_unfinished()
        found = self.find()
        if found.broken:
            return  # nobody knows which packs these need
        packs = {name for manifest in found.manifests for name in manifest.packs}
        databases = {manifest.generation for manifest in found.manifests}
        with explained(f"tidy up {self.path}"):
            for path in self.packs.iterdir():
                if path.stem not in packs:
                    path.unlink()
            for path in self.generations.glob("*.db"):
                if path.stem not in databases:
                    path.unlink()


@contextmanager
def opened_for_backup(path: FilePath, store_id: str) -> Iterator[BackupDirectory]:
    """Open a store's backup, making an empty one where there is nothing.

    Raises:
        StoreExists: The directory holds something else, or the backup of another store.
        StoreBusy: Another process writes to it, or reads it.
        StoreVersion, CorruptMetadata, StoreInaccessible, NoSpace, ObjectStoreFailed.
    """
    with explained(f"make a backup in {path}"):
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not (path / _MARKER).exists():
            if any(found.name not in _BEFORE for found in path.iterdir()):
                raise errors.StoreExists(
                    f"{path} holds something else and no backup: give an empty or a new directory"
                )
            _write(path / _MARKER, Marker(FORMAT, store_id))
            sync_directory(path.parent)
    with _locked(path, fcntl.LOCK_EX) as backup:
        if backup.store_id != store_id:
            raise errors.StoreExists(
                f"{path} is the backup of another store ({backup.store_id}): give another directory"
            )
        with explained(f"make a backup in {path}"):
            for directory in (backup.generations, backup.packs):
                directory.mkdir(mode=0o700, exist_ok=True)
            sync_directory(path)
        yield backup


@contextmanager
def opened_for_reading(path: FilePath) -> Iterator[BackupDirectory]:
    """Open a backup that is there; nobody removes anything from it meanwhile.

    Raises:
        StoreNotFound: There is none.
        StoreBusy: Another process writes to it.
        StoreVersion, CorruptMetadata, StoreInaccessible, ObjectStoreFailed.
    """
    if not (path / _MARKER).exists():
        raise errors.StoreNotFound(f"no backup in {path}; nexus-ctl backup makes one")
    with _locked(path, fcntl.LOCK_SH) as backup:
        yield backup


def choose(backup: BackupDirectory, name: str | None) -> Manifest:
    """Return the generation that a name, or the beginning of one, means; without one the newest.

    Raises:
        NotFound: There is none, or more than one.
        CorruptMetadata: Its manifest cannot be read.
    """
    found = backup.find()
    names = sorted([*(manifest.generation for manifest in found.manifests), *found.broken])
    if not names:
        raise errors.NotFound(f"{backup.path} has no generation yet: no backup was completed")
    if name is None:
        wanted = [names[-1]] if names[-1] in found.broken else [found.manifests[-1].generation]
    else:
        wanted = [name] if name in names else [each for each in names if each.startswith(name)]
    if len(wanted) != 1:
        raise errors.NotFound(
            f"{backup.path} has {'no' if not wanted else 'more than one'} generation {name};"
            f" there are {', '.join(names)}"
        )
    for manifest in found.manifests:
        if manifest.generation == wanted[0]:
            return manifest
    raise errors.CorruptMetadata(
        f"the manifest of the generation {wanted[0]} is damaged: take another one with --generation"
        f" ({_others(names, wanted[0])})"
    )


def others(backup: BackupDirectory, generation: str) -> str:
    """Return the names of the other generations, to be shown."""
    return _others([manifest.generation for manifest in backup.find().manifests], generation)


def _others(names: Iterable[str], name: str) -> str:
    return ", ".join(each for each in names if each != name) or "there is none"


def make_private(path: FilePath) -> None:
    """Make an empty file that is for its owner only."""
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))


def describe(path: FilePath) -> DatabaseCopy:
    """Return what a manifest says of a copy of the database."""
    with explained(f"read {path}"), path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return DatabaseCopy(file.tell(), digest)


@contextmanager
def explained(doing: str) -> Iterator[None]:
    """Turn errors of the operating system into ours.

    Args:
        doing: Completes "cannot …".
    """
    try:
        yield
    except OSError as error:
        raise translate(error, doing) from error


def sync_file(path: FilePath) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextmanager
def _locked(path: FilePath, how: int) -> Iterator[BackupDirectory]:
    with explained(f"open the backup {path}"):
        writes = how == fcntl.LOCK_EX
        fd = os.open(path / _MARKER, (os.O_RDWR if writes else os.O_RDONLY) | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(fd, how | fcntl.LOCK_NB)
        except BlockingIOError:
            raise errors.StoreBusy(f"another process is using the backup {path}") from None
        yield BackupDirectory(path, _read(path / _MARKER, Marker))
    finally:
        os.close(fd)


def _write(path: FilePath, value: Marker | Manifest) -> None:
    """Put a file in place, whole and durable."""
    new = path.with_name(path.name + NEW)
    text = msgspec.json.format(msgspec.json.encode(value), indent=1) + b"\n"
    fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(text)
        file.flush()
        os.fsync(fd)
    new.replace(path)
    sync_directory(path.parent)


def _read(path: FilePath, type_: type[S]) -> S:
    with explained(f"read {path}"):
        text = path.read_bytes()
    try:
        value = msgspec.json.decode(text, type=type_)
    except (msgspec.DecodeError, UnicodeError) as error:
        raise errors.CorruptMetadata(f"{path} is damaged: {error}") from error
    if value.nexus_backup != FORMAT:
        raise errors.StoreVersion(
            f"{path} has format {value.nexus_backup}, this Nexus knows {FORMAT}: upgrade"
        )
    return value
