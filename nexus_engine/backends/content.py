"""What is to be stored: bytes, or a local file that is read piece by piece."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from nexus_engine.backends.base import View
from nexus_engine.backends.files import OpenFile, translate
from nexus_engine.errors import ObjectStoreFailed


class Content(Protocol):
    size: int
    """Bytes."""

    def read(self, offset: int, length: int) -> bytes:
        """Return exactly these bytes; they lie within the size.

        Raises:
            ObjectStoreFailed: they cannot be read any more.
        """
        ...


@contextmanager
def opened(content: bytes | Path) -> Iterator[Content]:
    """Hold a content open for reading."""
    if isinstance(content, Path):
        try:
            yield _OfFile(content)
        except OSError as error:
            raise translate(error, f"read {content}") from error
    else:
        yield OfBytes(content)


class OfBytes:
    def __init__(self, content: View) -> None:
        self._content = content
        self.size = len(content)

    def read(self, offset: int, length: int) -> bytes:
        return bytes(self._content[offset : offset + length])


class Slice:
    """A range of another content."""

    def __init__(self, content: Content, offset: int, size: int) -> None:
        self._content = content
        self._offset = offset
        self.size = size

    def read(self, offset: int, length: int) -> bytes:
        return self._content.read(self._offset + offset, length)


class _OfFile:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = OpenFile(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
        self.size = os.fstat(self._file.fd).st_size

    def read(self, offset: int, length: int) -> bytes:
        content = self._file.read(offset, length)
        if len(content) != length:
            raise ObjectStoreFailed(f"{self._path} became shorter while it was being sent")
        return content
