"""A sync that failed is not forgotten: what it did not write, the next one writes.

The kernel reports a failed write-back once and then takes the pages for clean, so that an fsync
which just succeeds the second time has written nothing. Source: fsync(2), errors.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from nexus_engine.backends.local import LocalObjectStore
from nexus_engine.engine import Engine
from nexus_engine.errors import ObjectStoreFailed
from nexus_engine.fs import namespace
from nexus_engine.store import Store
from nexus_engine.types import ROOT_INO, Actor, Name

ALICE = Actor(uid=0, gid=0, pid=1, command="a", session=1, agent="alice")


class ForgettingKernel:
    """Fails the first fsync of a file, and knows what was written to it since."""

    def __init__(self, patch: pytest.MonkeyPatch, path: Path) -> None:
        self._path = path
        self._fsync, self._pwrite = os.fsync, os.pwrite
        self.failed = False
        self.on_disk = bytearray()
        """What is surely there, as far as it was written after the failure."""
        self._dirty: list[tuple[int, bytes]] = []
        patch.setattr(os, "fsync", self.fsync)
        patch.setattr(os, "pwrite", self.pwrite)

    def _is_mine(self, fd: int) -> bool:
        return self._path.exists() and os.path.samestat(os.fstat(fd), self._path.stat())

    def fsync(self, fd: int) -> None:
        if self._is_mine(fd):
            if not self.failed:
                self.failed = True
                raise OSError(errno.EIO, "injected")
            for offset, content in self._dirty:
                self.on_disk[offset : offset + len(content)] = content
        self._fsync(fd)

    def pwrite(self, fd: int, content: bytes, offset: int) -> int:
        if self._is_mine(fd):
            self._dirty.append((offset, bytes(content)))
        return self._pwrite(fd, content, offset)


async def test_the_log_is_written_again_after_a_sync_that_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "store"
    Store.create(path, ALICE).close()
    engine = Engine.start(path)
    log = path / "meta.db-wal"
    handle, _ = await engine.create(ROOT_INO, Name(b"file"), 0o644, ALICE)
    kernel = ForgettingKernel(monkeypatch, log)
    with pytest.raises(ObjectStoreFailed):
        await engine.fsync(handle)
    await engine.fsync(handle)
    assert kernel.failed
    assert kernel.on_disk == log.read_bytes() != b""
    await engine.release(handle)
    await engine.close()


async def test_the_log_is_synced_when_anybody_has_written_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An fsync of content alone need not wait for it."""
    path = tmp_path / "store"
    Store.create(path, ALICE).close()
    engine = Engine.start(path)
    log, fsync = path / "meta.db-wal", os.fsync
    synced: list[bool] = []

    def note(fd: int) -> None:
        synced.append(os.path.samestat(os.fstat(fd), log.stat()))
        fsync(fd)

    monkeypatch.setattr(os, "fsync", note)
    handle, _ = await engine.create(ROOT_INO, Name(b"file"), 0o644, ALICE)

    async def syncs_the_log() -> bool:
        synced.clear()
        await engine.write(handle, 0, os.urandom(100))
        await engine.fsync(handle)
        return any(synced)

    assert await syncs_the_log()
    assert not await syncs_the_log()
    await engine.make(ROOT_INO, Name(b"directory"), 0o040755, ALICE)
    assert await syncs_the_log()
    assert not await syncs_the_log()

    def make(peer: Store) -> None:
        peer.transact(namespace.make, ALICE, ROOT_INO, Name(b"other"), 0o040755)

    await engine.in_peer(make)
    assert await syncs_the_log()
    assert not await syncs_the_log()
    await engine.release(handle)
    await engine.close()


def test_an_object_is_written_again_after_a_sync_that_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of another process's pack that a file of ours relies on."""
    content = os.urandom(3 << 20)
    (tmp_path / "packs").mkdir()
    (tmp_path / "packs" / "a").write_bytes(content)
    objects = LocalObjectStore(tmp_path)
    kernel = ForgettingKernel(monkeypatch, tmp_path / "packs" / "a")
    with pytest.raises(ObjectStoreFailed):
        objects.sync("packs/a")
    objects.sync("packs/a")
    assert kernel.on_disk == content
