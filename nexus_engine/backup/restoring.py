"""Make a store from a generation of a backup."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path as FilePath
from typing import NamedTuple

from nexus_engine import errors
from nexus_engine.backends.files import sync_directory
from nexus_engine.backends.local import LocalObjectStore
from nexus_engine.backup.layout import (
    NEW,
    BackupDirectory,
    Manifest,
    Progress,
    choose,
    describe,
    explained,
    make_private,
    opened_for_reading,
    others,
    sync_file,
)
from nexus_engine.backup.packs import PackCopy
from nexus_engine.check.damage import DamagedFile, files_of_chunks
from nexus_engine.check.fsck import Problem, check
from nexus_engine.clock import SystemClock
from nexus_engine.config import CONFIG_NAME, load_config
from nexus_engine.meta import backup_queries, check_log_queries, schema
from nexus_engine.meta.connection import DATABASE_NAME, Connection, migrate
from nexus_engine.meta.database import Database
from nexus_engine.oplog.verify import verify_log
from nexus_engine.placing import move_out
from nexus_engine.store import Store

_MIB = 1 << 20


class Restored(NamedTuple):
    """What a restore made."""

    manifest: Manifest
    copied_bytes: int
    """Of packs."""
    problems: list[Problem]
    """What is wrong with the new store; it is kept all the same."""
    damaged_files: list[DamagedFile]


def restore_store(
    backup: FilePath, path: FilePath, *, generation: str | None, progress: Progress
) -> Restored:
    """Make a store of a generation, and check it.

    Damaged packs cost the files that are in them, and no more: the rest is restored.

    Args:
        path: A new or empty directory.
        generation: Its name or the beginning of it; ``None`` means the newest.

    Raises:
        StoreNotFound, NotFound: No backup; no such generation.
        StoreExists: There is something in the directory.
        CorruptMetadata: The generation's metadata is damaged; nothing was restored.
        StoreBusy, StoreVersion, NoSpace, StoreInaccessible, ObjectStoreFailed.
    """
    with opened_for_reading(backup) as source:
        manifest = choose(source, generation)
        if manifest.schema_version > schema.VERSION:
            raise errors.StoreVersion(
                f"the generation {manifest.generation} has format {manifest.schema_version}, this"
                f" Nexus knows up to {schema.VERSION}: upgrade"
            )
        with new_store(path) as database:
            copied = _fill(source, manifest, path, database, progress)
    progress("checking the store", 0, None)
    store = Store.open(path)
    try:
        problems = check(store)
    finally:
        store.close()
    return copied._replace(problems=[*copied.problems, *problems])


@contextmanager
def new_store(path: FilePath, *, allow_packs: bool = False) -> Iterator[FilePath]:
    """Give the place for a new store's database; with its success, there is a store.

    Args:
        allow_packs: The directory may have packs already.

    Raises:
        StoreExists: There is something else in the directory.
    """
    allowed = {"packs", CONFIG_NAME} if allow_packs else set()
    with explained(f"make a store in {path}"):
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        before = {found.name for found in path.iterdir()}
        if before - allowed:
            raise errors.StoreExists(f"{path} is not empty: give an empty or a new directory")
        for name in ("packs", "peers"):
            (path / name).mkdir(mode=0o700, exist_ok=True)
    database = path / (DATABASE_NAME + NEW)
    done = False
    try:
        with explained(f"make a store in {path}"):
            make_private(database)
        yield database
        with explained(f"make a store in {path}"):
            sync_file(database)
            sync_directory(path / "packs")
            database.rename(path / DATABASE_NAME)
            sync_directory(path)
            sync_directory(path.parent)
        done = True
    finally:
        if not done:
            _clear(path, before)


def _clear(path: FilePath, before: set[str]) -> None:
    for found in path.iterdir():
        if found.name in before:
            continue
        if found.is_dir():
            shutil.rmtree(found, ignore_errors=True)
        else:
            found.unlink()


def _fill(
    source: BackupDirectory,
    manifest: Manifest,
    path: FilePath,
    database: FilePath,
    progress: Progress,
) -> Restored:
    progress("copying metadata", 0, None)
    _copy_database(source, manifest, database)
    unusable = restore_settings(manifest.settings, path)
    copied = 0
    total = sum(manifest.packs.values())

    def count(size_bytes: int) -> None:
        nonlocal copied
        copied += size_bytes
        progress("copying MiB of packs", copied // _MIB, total // _MIB)

    with closing(Connection(str(database), alone=True)) as index:
        migrate(index)
        # The copy has its packs with it; the bucket is the original's.
        move_out(Database(index, SystemClock()))
        progress("checking metadata", 0, None)
        for flaw in check_log_queries.integrity(index, thorough=False):
            raise errors.CorruptMetadata(
                f"the metadata of {manifest.generation} is damaged: {flaw}"
            )
        problems = unusable + check_log(index, manifest.head, manifest.head_hash, progress)
        packs = PackCopy(LocalObjectStore(source.path), path / "packs", index, count)
        for use in backup_queries.used_packs(index):
            try:
                packs.copy(use, 0)
            except errors.ObjectNotFound:
                packs.lose(use, 0)
        files = files_of_chunks(index, packs.damaged_chunks())
        for name, places in packs.damaged.items():
            known = " already when it was backed up" if name in manifest.damaged else ""
            message = f"{len(places)} of its chunks are damaged{known}; look in another generation"
            problems.append(Problem("chunk-record", f"pack {name}", message))
    return Restored(manifest, copied, problems, files)


def restore_settings(text: str | None, path: FilePath) -> list[Problem]:
    """Write the settings; those that would keep the store from being opened stay where they are."""
    if text is None:
        return []
    settings = path / CONFIG_NAME
    with explained(f"write to {settings}"):
        settings.write_text(text)
        try:
            load_config(path)
        except errors.InvalidArgument as error:
            settings.unlink()
            return [Problem("store", CONFIG_NAME, f"{error}: left out")]
    return []


def _copy_database(source: BackupDirectory, manifest: Manifest, path: FilePath) -> None:
    original = source.database(manifest.generation)
    with explained(f"copy {original}"):
        if original.exists():
            with original.open("rb") as file, open(path, "wb", opener=private) as target:
                shutil.copyfileobj(file, target, _MIB)
    if not original.exists() or describe(path) != manifest.database:
        raise errors.CorruptMetadata(
            f"{original} is damaged or gone: take another generation with --generation"
            f" ({others(source, manifest.generation)})"
        )


def private(path: str, flags: int) -> int:
    """Open a file that is for its owner only; an ``opener`` of ``open``."""
    return os.open(path, flags | os.O_CLOEXEC, 0o600)


def check_log(
    connection: Connection, head: int, head_hash: str, progress: Progress
) -> list[Problem]:
    """Check that the log is the one that ended with this record."""
    report = verify_log(
        Database(connection, SystemClock()),
        progress=lambda done: progress("verifying the log", done, head),
    )
    if report.holds and report.head_hash.hex() == head_hash:
        return []
    reason = report.reason or "the log does not end with the record that it should"
    return [Problem("log-chain", f"op-{report.records}", reason)]
