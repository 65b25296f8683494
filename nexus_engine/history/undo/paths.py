"""What people call the things that an undo is about, before it and after it."""

from __future__ import annotations

from nexus_engine.history.undo.names import Names
from nexus_engine.meta.reader import PATH_DEPTH_MAX, Reader
from nexus_engine.meta.undo_queries import Key, UndoQueries
from nexus_engine.types import ROOT_INO, Ino, Path


class Paths:
    """Paths now and after the undo; for what is gone, the last one that it had."""

    def __init__(self, names: Names, queries: UndoQueries, reader: Reader) -> None:
        self._names = names
        self._queries = queries
        self._reader = reader
        self._now: dict[Ino, Path] = {ROOT_INO: Path(b"")}
        self._after: dict[Ino, Path] = {ROOT_INO: Path(b"")}

    def now(self, key: Key) -> Path:
        return _join(self._directory_now(key[0]), key[1])

    def after(self, key: Key) -> Path:
        return _join(self._directory_after(key[0]), key[1])

    def of_inode(self, ino: Ino) -> Path:
        """Return a path of an inode: as it is now, or was last."""
        key = self._key_now(ino) if ino != ROOT_INO else None
        return Path(b"") if key is None else self.now(key)

    def _key_now(self, ino: Ino) -> Key | None:
        rows = self._names.names_now(ino)
        row = rows[0] if rows else self._queries.last_name(ino)
        return None if row is None else (row.parent, row.name)

    def _directory_now(self, ino: Ino) -> Path:
        known = self._now.get(ino)
        if known is None:
            known = self._now[ino] = self._climb(ino, ahead=False)
        return known

    def _directory_after(self, ino: Ino) -> Path:
        known = self._after.get(ino)
        if known is None:
            known = self._after[ino] = self._climb(ino, ahead=True)
        return known

    def _climb(self, ino: Ino, *, ahead: bool) -> Path:
        parts: list[bytes] = []
        known = self._after if ahead else self._now
        while ino not in known and len(parts) < PATH_DEPTH_MAX:
            after = self._names.names_after(ino) if ahead else []
            key = after[0] if after else self._key_now(ino)
            if key is None:
                break
            ino, name = key
            parts.append(name)
        parts.append(known.get(ino, b""))
        return Path(b"/".join(part for part in reversed(parts) if part))


def _join(directory: bytes, name: bytes) -> Path:
    return Path(directory + b"/" + name if directory else name)
