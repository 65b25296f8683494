"""Files at a bucket, for programs that wait asynchronously; and schemes of other packages."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import pytest

from nexus_engine.backends.adapter import BackendAdapter, open_backend
from nexus_engine.backends.bucket import Capability
from nexus_engine.backends.urls import open_bucket
from nexus_engine.errors import NotSupported, ObjectChanged, ObjectNotFound


@pytest.fixture
async def backend(tmp_path: Path) -> AsyncIterator[BackendAdapter]:
    async with await open_backend(f"file://{tmp_path}") as opened:
        yield opened


async def test_a_file_reads_back_as_written(backend: BackendAdapter) -> None:
    written = await backend.write("/a/b.txt", b"hello")
    assert await backend.read("a/b.txt") == b"hello"
    assert await backend.read_range("a/b.txt", 1, 3, etag=written.etag) == b"ell"
    assert await backend.stat("/a/b.txt") == written
    assert (written.size, written.is_directory) == (5, False)
    await backend.write("empty", b"")
    assert await backend.read("empty") == b""


async def test_directories_are_where_files_are(backend: BackendAdapter) -> None:
    """They come with the first one and go with the last."""
    for path in ("a/b/c", "a/b.txt", "d"):
        await backend.write(path, b"")
    assert await backend.list("/") == ["a/", "d"]
    assert await backend.list("a") == await backend.list("/a/") == ["b.txt", "b/"]
    assert (await backend.stat("a")).is_directory
    assert await backend.exists("a/b")
    assert await backend.exists("")
    await backend.delete("a/b/c")
    assert not await backend.exists("a/b")
    for call in (backend.list, backend.stat, backend.read):
        with pytest.raises(ObjectNotFound):
            await call("a/b")


async def test_conditions_are_those_of_the_bucket(backend: BackendAdapter) -> None:
    assert Capability.CONDITIONAL_PUT in backend.capabilities
    first = await backend.write("a", b"1", if_absent=True)
    with pytest.raises(ObjectChanged):
        await backend.write("a", b"2", if_absent=True)
    await backend.write("a", b"2", if_match=first.etag)
    with pytest.raises(ObjectChanged):
        await backend.delete("a", if_match=first.etag)
    assert await backend.read("a") == b"2"
    await backend.copy("a", "b")
    assert await backend.read("b") == b"2"


def test_it_runs_under_asyncio_too(tmp_path: Path) -> None:
    async def program() -> bytes:
        async with await open_backend(f"file://{tmp_path}", read_only=True) as backend:
            assert backend.capabilities == Capability(0)
            await backend.write("a", b"1")
            return await backend.read("a")

    assert anyio.run(program, backend="asyncio") == b"1"


def test_another_package_may_bring_a_scheme(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By an entry point in the group nexus.backends."""
    (tmp_path / "theirs.py").write_text(
        "from pathlib import Path\n"
        "from nexus_engine.backends.directory import DirectoryBucket\n"
        "def open_theirs(url):\n"
        "    where = Path(url.text('where'))\n"
        "    url.finish()\n"
        "    return DirectoryBucket(where)\n"
    )
    about = tmp_path / "theirs-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[nexus.backends]\ntheirs = theirs:open_theirs\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "theirs", raising=False)

    bucket = open_bucket(f"theirs://host?where={tmp_path}")
    assert bucket.read("theirs-1.0.dist-info/METADATA", 0, 8) == b"Metadata"
    with pytest.raises(NotSupported, match="theirs://"):
        open_bucket("nobodys://host")
