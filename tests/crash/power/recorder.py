"""Watch what this process asks of the files of a store: through ``os``, and through SQLite.

Whether it misses anything can be told: with every event applied, the image equals the directory.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import apsw

from tests.crash.power.events import (
    Event,
    FileId,
    MadeDirectory,
    Moved,
    Name,
    Named,
    Note,
    Recording,
    Sync,
    SyncDirectory,
    Truncate,
    Unnamed,
    Write,
)

_FORGOTTEN = "-shm"
"""SQLite makes these anew after a crash; written through memory, so that nobody could watch."""


class Recorder:
    """One for a process.

    Args:
        recording: Of a process that was killed; what it left unsynced is so still.
    """

    def __init__(self, store: Path, recording: Recording | None = None) -> None:
        self.recording = recording or Recording.of(store)
        self._store = str(store)
        self._names, _ = self.recording.names_after(self.recording.events)
        named = [event.file for event in self.recording.events if isinstance(event, Named)]
        self._files = max(named, default=len(self.recording.contents))
        self._fds: dict[int, FileId | str] = {}
        self._lock = threading.RLock()
        self._vfs: apsw.VFS | None = None

    def install(self) -> None:
        for name in _WATCHED:
            setattr(os, name, self._wrapped(getattr(os, name), getattr(self, f"_{name}")))
        self._vfs = _Vfs(self)

    def note(self, writer: str, step: list[Any], *, done: bool) -> None:
        self.add(Note(writer, done, step))

    def add(self, event: Event) -> None:
        with self._lock:
            self.recording.events.append(event)

    def position(self) -> int:
        return len(self.recording.events)

    def split(self, path: str | os.PathLike[str]) -> Name | None:
        """Return a path's name within the store; ``None`` for what is elsewhere."""
        text = os.path.normpath(os.fspath(path))
        if not text.startswith(self._store + "/") or text.endswith(_FORGOTTEN):
            return None
        directory, name = os.path.split(os.path.relpath(text, self._store))
        return directory or ".", name

    def named(self, name: Name) -> FileId:
        """Return the file that a name means; it is there, new if it was not known."""
        with self._lock:
            known = self._names.get(name)
            if known is not None:
                return known
            self._files += 1
            self._names[name] = self._files
            self.add(Named(name, self._files))
            return self._files

    def removed(self, name: Name) -> None:
        with self._lock:
            if self._names.pop(name, None) is not None:
                self.add(Unnamed(name))

    def _wrapped(self, real: Callable[..., Any], watch: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            return watch(real, *args, **kwargs)

        return call

    # -- calls; each event comes when its call has returned --

    def _open(
        self, real: Any, path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None
    ) -> int:
        fd = int(real(path, flags, mode, dir_fd=dir_fd))
        with self._lock:
            self._fds.pop(fd, None)
            if isinstance(path, (str, os.PathLike)):
                self._opened(fd, os.fspath(path), flags)
        return fd

    def _opened(self, fd: int, path: str, flags: int) -> None:
        if os.path.isdir(path):
            if path == self._store or self.split(path) is not None:
                self._fds[fd] = os.path.relpath(path, self._store)
            return
        name = self.split(path)
        if name is not None:
            self._fds[fd] = self.named(name)
            if flags & os.O_TRUNC:
                self.add(Truncate(self.named(name), 0))

    def _file(self, fd: int) -> FileId | None:
        file = self._fds.get(fd)
        return file if isinstance(file, int) else None

    def _pwrite(self, real: Any, fd: int, data: Any, offset: int) -> int:
        count = int(real(fd, data, offset))
        file = self._file(fd)
        if file is not None:
            self.add(Write(file, offset, bytes(data[:count])))
        return count

    def _pwritev(self, real: Any, fd: int, buffers: Sequence[bytes], offset: int) -> int:
        count = int(real(fd, buffers, offset))
        file = self._file(fd)
        if file is not None:
            self.add(Write(file, offset, b"".join(buffers)[:count]))
        return count

    def _ftruncate(self, real: Any, fd: int, size: int) -> None:
        real(fd, size)
        file = self._file(fd)
        if file is not None:
            self.add(Truncate(file, size))

    def _posix_fallocate(self, real: Any, fd: int, offset: int, length: int) -> None:
        real(fd, offset, length)
        file = self._file(fd)
        if file is not None:
            self.add(Truncate(file, os.fstat(fd).st_size))

    def _fsync(self, real: Any, fd: int) -> None:
        covers = self.position()
        real(fd)
        match self._fds.get(fd):
            case int(file):
                self.add(Sync(file, covers))
            case str(directory):
                self.add(SyncDirectory(directory, covers))

    _fdatasync = _fsync

    def _unlink(self, real: Any, path: Any, *, dir_fd: int | None = None) -> None:
        real(path, dir_fd=dir_fd)
        name = self.split(path)
        if name is not None:
            self.removed(name)

    def _rename(self, real: Any, path: Any, new: Any, **kwargs: Any) -> None:
        real(path, new, **kwargs)
        source, target = self.split(path), self.split(new)
        if source is not None and target is not None:
            with self._lock:
                self._names[target] = self._names.pop(source)
                self.add(Moved(source, target))

    _replace = _rename

    def _mkdir(self, real: Any, path: Any, mode: int = 0o777, **kwargs: Any) -> None:
        real(path, mode, **kwargs)
        name = self.split(path)
        if name is not None:
            self.add(MadeDirectory(name))


_WATCHED = (
    "open", "pwrite", "pwritev", "ftruncate", "fsync", "fdatasync", "unlink", "rename", "replace",
    "mkdir", "posix_fallocate",
)  # fmt: skip


class _File(apsw.VFSFile):
    def __init__(
        self, recorder: Recorder, name: str | apsw.URIFilename | None, flags: list[int]
    ) -> None:
        path = name.filename() if isinstance(name, apsw.URIFilename) else name
        place = None if path is None else recorder.split(path)
        super().__init__("unix", name, flags)
        self._recorder = recorder
        self._file = None if place is None else recorder.named(place)
        # unixSync() syncs the directory, too, after the first write to a new journal.
        journals = apsw.SQLITE_OPEN_MAIN_JOURNAL | apsw.SQLITE_OPEN_WAL
        self._syncs_directory = place is not None and bool(flags[0] & journals)
        self._directory = "" if place is None else place[0]

    def xWrite(self, data: bytes, offset: int) -> None:
        super().xWrite(data, offset)
        if self._file is not None:
            self._recorder.add(Write(self._file, offset, bytes(data)))

    def xTruncate(self, size: int) -> None:
        super().xTruncate(size)
        if self._file is not None:
            self._recorder.add(Truncate(self._file, size))

    def xSync(self, flags: int) -> None:
        covers = self._recorder.position()
        super().xSync(flags)
        if self._file is not None:
            self._recorder.add(Sync(self._file, covers))
        if self._syncs_directory:
            self._recorder.add(SyncDirectory(self._directory, covers))
            self._syncs_directory = False


class _Vfs(apsw.VFS):
    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        super().__init__("recording", "unix", makedefault=True)

    def xOpen(self, name: str | apsw.URIFilename | None, flags: list[int]) -> apsw.VFSFile:
        return _File(self._recorder, name, flags)

    def xDelete(self, path: str, sync_directory: bool) -> None:
        covers = self._recorder.position()
        super().xDelete(path, sync_directory)
        name = self._recorder.split(path)
        if name is not None:
            self._recorder.removed(name)
            if sync_directory:
                self._recorder.add(SyncDirectory(name[0], covers + 1))
