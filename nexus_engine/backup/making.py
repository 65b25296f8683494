"""Make a backup of a store, beside whoever uses it."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path as FilePath
from typing import NamedTuple

from nexus_engine import __version__, errors
from nexus_engine.backup.layout import (
    FORMAT,
    BackupDirectory,
    Manifest,
    Progress,
    describe,
    explained,
    opened_for_backup,
)
from nexus_engine.backup.packs import PackCopy
from nexus_engine.check.damage import DamagedFile, files_of_chunks
from nexus_engine.clock import Clock, SystemClock
from nexus_engine.config import CONFIG_NAME, load_config
from nexus_engine.meta import backup_queries, check_log_queries
from nexus_engine.meta.backup_queries import PackUse
from nexus_engine.meta.connection import DATABASE_NAME, Connection
from nexus_engine.meta.reader import Reader
from nexus_engine.placing import find_place, open_objects

ATTEMPTS = 10
"""How often packs may be gone by the time when they are copied: gc moves what is in them."""
_MIB = 1 << 20


class Made(NamedTuple):
    """What a backup did."""

    manifest: Manifest
    is_first: bool
    """There was no generation before."""
    copied_packs: int
    copied_bytes: int
    """Of packs."""
    removed: list[str]
    """Generations that were dropped."""
    broken: list[str]
    """Generations whose manifest cannot be read; because of them nothing else is tidied up."""
    diverged: str | None
    """The generation before, if its newest operation is not in the store's log."""
    damaged_files: list[DamagedFile]


def make_backup(
    store: FilePath,
    path: FilePath,
    *,
    keep: int,
    verify: bool,
    progress: Progress,
    clock: Clock | None = None,
) -> Made:
    """Add a generation to a store's backup, or begin one.

    Args:
        store: Its directory. It is not opened as a process that takes part in it does: gc waits for
            these, and a backup may take hours.
        keep: Generations to keep, this one included; >= 1.
        verify: Read again what was copied by earlier backups, and copy it anew where it decayed.

    Raises:
        StoreExists: The directory holds something else.
        StoreBusy: Another backup is under way.
        CorruptMetadata: The store's metadata is damaged: no generation was made of it.
        NoSpace: What there was before is as it was.
        StoreVersion, StoreInaccessible, ObjectStoreFailed.
    """
    with closing(_connect(store)) as connection:
        store_id = str(Reader(connection).store_value("store_id"))
    with opened_for_backup(path, store_id) as backup:
        try:
            making = _Making(store, backup, clock or SystemClock(), progress, verify=verify)
            return making.run(keep)
        except errors.NoSpace as error:
            backup.sweep()
            raise errors.NoSpace(f"the backup in {path} is as it was before: {error}") from error


class _Making:
    def __init__(
        self,
        store: FilePath,
        backup: BackupDirectory,
        clock: Clock,
        progress: Progress,
        *,
        verify: bool,
    ) -> None:
        self._store = store
        self._backup = backup
        self._clock = clock
        self._progress = progress
        self._before = backup.find()
        self._trusted: dict[str, int] = {}
        """Bytes of each pack that an earlier backup copied and verified."""
        if not verify:
            for manifest in self._before.manifests:
                for name in manifest.packs.keys() - manifest.damaged.keys():
                    size = max(manifest.packs[name], self._trusted.get(name, 0))
                    self._trusted[name] = size
        self._copied_packs: set[str] = set()
        self._copied_bytes = 0
        self._total_bytes = 0

    def run(self, keep: int) -> Made:
        lost: set[str] = set()
        for _ in range(ATTEMPTS):
            database = self._backup.new_database()
            with closing(self._copy_database(database)) as copy:
                uses = backup_queries.used_packs(copy)
                backup_queries.detach(copy, uses)
                config = load_config(self._store)
                reader = Reader(copy)
                place = find_place(reader)
                with closing(open_objects(self._store, reader, place, config)) as objects:
                    packs = PackCopy(objects, self._backup.packs, copy, self._count)
                    gone = self._copy_packs(packs, uses)
                # What a second look still finds named, and not there, is no work of gc.
                if gone <= lost:
                    return self._finish(keep, copy, uses, packs, database)
                lost |= gone
        raise errors.StoreBusy("packs went away as fast as they were copied; try again")

    def _copy_database(self, path: FilePath) -> Connection:
        copy = Connection(str(path), alone=True)
        with closing(_connect(self._store)) as source:
            source.copy_to(copy, lambda done, of: self._progress("copying metadata", done, of))
        self._progress("checking metadata", 0, None)
        for flaw in check_log_queries.integrity(copy, thorough=False):
            raise errors.CorruptMetadata(
                f"meta.db is damaged ({flaw}), so that no backup was made of it; earlier ones are"
                " as they were"
            )
        return copy

    def _copy_packs(self, packs: PackCopy, uses: list[PackUse]) -> set[str]:
        """Return the names of packs that are not there."""
        wanted = []
        for number, use in enumerate(uses):
            self._progress("looking at packs", number, len(uses))
            present = packs.present(use, self._trusted.get(use.name, 0))
            if present < use.end:
                wanted.append((use, present))
        self._total_bytes = self._copied_bytes + sum(use.end - present for use, present in wanted)
        gone = set()
        for use, present in wanted:
            try:
                packs.copy(use, present)
            except errors.ObjectNotFound:
                packs.lose(use, present)
                gone.add(use.name)
                continue
            self._copied_packs.add(use.name)
            if use.name not in packs.damaged:
                self._trusted[use.name] = use.end
        return gone

    def _count(self, size_bytes: int) -> None:
        self._copied_bytes += size_bytes
        self._progress(
            "copying MiB of packs", self._copied_bytes // _MIB, self._total_bytes // _MIB
        )

    def _finish(
        self,
        keep: int,
        copy: Connection,
        uses: list[PackUse],
        packs: PackCopy,
        database: FilePath,
    ) -> Made:
        head, head_hash = backup_queries.head_record(copy)
        previous = self._before.manifests[-1] if self._before.manifests else None
        diverged = None
        if previous is not None and not backup_queries.continues(
            copy, previous.head, previous.head_hash
        ):
            diverged = previous.generation
        files = files_of_chunks(copy, packs.damaged_chunks())
        version = backup_queries.version(copy)
        copy.close()
        self._progress("finishing", 0, None)
        now_ns = self._clock.time_ns()
        if previous is not None:
            now_ns = max(now_ns, previous.time_ns + 1)  # the clock may have been set back
        manifest = Manifest(
            nexus_backup=FORMAT,
            nexus_version=__version__,
            generation=self._backup.new_name(now_ns),
            time_ns=now_ns,
            store_id=self._backup.store_id,
            schema_version=version,
            head=head,
            head_hash=head_hash.hex(),
            database=describe(database),
            packs={use.name: use.end for use in uses if use.name},
            settings=self._settings(),
            damaged={
                name: [place.digest.hex() for place in places]
                for name, places in packs.damaged.items()
            },
        )
        self._backup.add(manifest, database)
        obsolete = [*self._before.manifests, manifest][:-keep]
        for old in obsolete:
            self._backup.remove(old)
        self._backup.sweep()
        return Made(
            manifest,
            previous is None,
            len(self._copied_packs),
            self._copied_bytes,
            [old.generation for old in obsolete],
            self._before.broken,
            diverged,
            files,
        )

    def _settings(self) -> str | None:
        path = self._store / CONFIG_NAME
        with explained(f"read {path}"):
            return path.read_text() if path.exists() else None


def _connect(store: FilePath) -> Connection:
    return Connection(str(store / DATABASE_NAME))
