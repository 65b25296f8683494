"""What every `ObjectStore` promises, run over each implementation."""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest

from nexus_engine.backends import files
from nexus_engine.backends.base import ObjectStore
from nexus_engine.backends.home import Home, Mark, claim_prefix
from nexus_engine.backends.local import LocalObjectStore
from nexus_engine.backends.remote import Limits, RemoteObjectStore
from nexus_engine.backends.urls import open_bucket
from nexus_engine.errors import NoSpace, ObjectNotFound, ObjectStoreFailed, StoreInaccessible

TMPFS, NFS = 0x01021994, 0x6969  # statfs(2)
CONTENT = bytes(range(256)) * 40


def _local(tmp_path: Path) -> ObjectStore:
    root = tmp_path / "objects"
    root.mkdir()
    return LocalObjectStore(root)


class _Sent(RemoteObjectStore):
    """Everything is in the bucket, and nothing is cached, before anybody asks for it."""

    def put_file(self, key: str, path: Path) -> None:
        super().put_file(key, path)
        self.secure()
        self.distrust(key)


def _remote(kind: type[RemoteObjectStore], tmp_path: Path) -> ObjectStore:
    root = tmp_path / "objects"
    root.mkdir()
    (tmp_path / "bucket").mkdir()
    mark = Mark(1, "this", "here")
    with closing(open_bucket(f"file://{tmp_path}/bucket")) as bucket:
        claim_prefix(bucket, mark)
    home = Home("a bucket", lambda: open_bucket(f"file://{tmp_path}/bucket"), mark)
    return kind(root, home, Limits(64 << 20, 64 << 20, 20))


@pytest.fixture(
    params=[_local, partial(_remote, RemoteObjectStore), partial(_remote, _Sent)],
    ids=["local", "remote", "sent"],
)
def objects(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ObjectStore]:
    make: Callable[[Path], ObjectStore] = request.param
    objects = make(tmp_path)
    yield objects
    objects.close()


@pytest.fixture
def put(objects: ObjectStore, tmp_path: Path) -> Callable[..., None]:
    def put_content(key: str, content: bytes = CONTENT) -> None:
        path = tmp_path / "upload"
        path.write_bytes(content)
        objects.put_file(key, path)

    return put_content


def test_an_object_reads_back_as_put(objects: ObjectStore, put: Callable[..., None]) -> None:
    """Any range, and its size."""
    put("packs/ab/abcdef.pack")
    assert objects.size("packs/ab/abcdef.pack") == len(CONTENT)
    assert objects.read("packs/ab/abcdef.pack", 0, len(CONTENT)) == CONTENT
    assert objects.read("packs/ab/abcdef.pack", 1000, 300) == CONTENT[1000:1300]


def test_a_read_is_short_only_where_the_object_ends(
    objects: ObjectStore, put: Callable[..., None]
) -> None:
    """Past the end there is nothing, and that is no error."""
    put("a")
    assert objects.read("a", len(CONTENT) - 10, 300) == CONTENT[-10:]
    assert objects.read("a", len(CONTENT), 300) == b""
    assert objects.read("a", len(CONTENT) + 5, 300) == b""


def test_what_is_resident_is_what_a_read_returns(
    objects: ObjectStore, put: Callable[..., None]
) -> None:
    """``None`` is always allowed; other bytes never are."""
    put("a")
    ranges = [(0, len(CONTENT)), (17, 100), (len(CONTENT) - 10, 300), (len(CONTENT) + 1, 5)]
    for offset, length in ranges:
        expected = objects.read("a", offset, length)
        assert objects.read_resident("a", offset, length) in (None, expected)


def test_an_object_that_is_not_there_is_said_to_be_missing(objects: ObjectStore) -> None:
    """By the calls that may wait; `read_resident` leaves it to them."""
    calls: list[Callable[[], object]] = [
        lambda: objects.read("packs/none", 0, 1),
        lambda: objects.size("packs/none"),
    ]
    if isinstance(objects, LocalObjectStore):
        calls.append(lambda: objects.sync("packs/none"))
    for call in calls:
        with pytest.raises(ObjectNotFound, match="packs/none"):
            call()
    assert objects.read_resident("packs/none", 0, 1) is None


def test_the_prefix_of_a_key_is_no_object(objects: ObjectStore, put: Callable[..., None]) -> None:
    """Keys have slashes, but there are no directories to be seen."""
    put("packs/a")
    with pytest.raises(ObjectNotFound):
        objects.read("packs", 0, 1)
    with pytest.raises(ObjectNotFound):
        objects.size("packs")
    with pytest.raises(ObjectNotFound):
        objects.read("packs/a/b", 0, 1)
    objects.delete("packs")
    assert list(objects.iter_keys("")) == ["packs/a"]


def test_put_replaces_and_later_reads_see_it(
    objects: ObjectStore, put: Callable[..., None]
) -> None:
    """Also where the old object was read before."""
    put("a", b"old")
    assert objects.read("a", 0, 10) == b"old"
    objects.secure()
    put("a", b"newer")
    assert objects.read("a", 0, 10) == b"newer"
    assert objects.read_resident("a", 0, 10) in (None, b"newer")
    assert objects.size("a") == 5


def test_put_takes_the_file_over(objects: ObjectStore, tmp_path: Path) -> None:
    """What remains at the path, if anything, is not the caller's any more."""
    path = tmp_path / "upload"
    path.write_bytes(CONTENT)
    objects.put_file("a", path)
    path.unlink(missing_ok=True)
    assert objects.read("a", 0, len(CONTENT)) == CONTENT


def test_keys_are_listed_by_any_prefix(objects: ObjectStore, put: Callable[..., None]) -> None:
    """A prefix need not end at a slash, as on S3."""
    keys = {"packs/ab/1", "packs/ab/2", "packs/ac/3", "packs-old/4", "other"}
    for key in keys:
        put(key)
    assert set(objects.iter_keys("")) == keys
    assert set(objects.iter_keys("packs/")) == {"packs/ab/1", "packs/ab/2", "packs/ac/3"}
    assert set(objects.iter_keys("packs/ab")) == {"packs/ab/1", "packs/ab/2"}
    assert set(objects.iter_keys("packs")) == keys - {"other"}
    assert list(objects.iter_keys("packs/ab/1")) == ["packs/ab/1"]
    assert list(objects.iter_keys("none/at/all")) == []


def test_delete_is_idempotent_and_reads_see_it(
    objects: ObjectStore, put: Callable[..., None]
) -> None:
    """Also where the object was read before, and may be open still."""
    put("packs/a")
    objects.read("packs/a", 0, 10)
    objects.delete("packs/a")
    objects.delete("packs/a")
    objects.delete("never/was")
    with pytest.raises(ObjectNotFound):
        objects.read("packs/a", 0, 10)
    assert objects.read_resident("packs/a", 0, 10) is None
    assert list(objects.iter_keys("")) == []


@pytest.mark.parametrize(
    "key", ["", "/etc/passwd", "../escape", "packs/../../escape", "a//b", "a/", "./a", "a\0b"]
)
def test_a_key_that_leads_elsewhere_is_refused(
    objects: ObjectStore, tmp_path: Path, key: str
) -> None:
    """Such a key is a bug of the caller, and must not reach a path."""
    path = tmp_path / "upload"
    path.write_bytes(CONTENT)
    calls: list[Callable[[], object]] = [
        lambda: objects.read(key, 0, 1),
        lambda: objects.read_resident(key, 0, 1) or objects.size(key),
        lambda: objects.sync(key),
        lambda: objects.put_file(key, path),
        lambda: objects.delete(key),
    ]
    for call in calls:
        with pytest.raises(ValueError):
            call()
    assert path.exists()


def test_reads_from_many_threads_get_their_own_object(
    objects: ObjectStore, put: Callable[..., None]
) -> None:
    """While another thread replaces and deletes."""
    contents = {f"packs/{n}": bytes([n]) * 5000 for n in range(12)}
    for key, content in contents.items():
        put(key, content)
    stop = threading.Event()

    def read_all() -> int:
        wrong = 0
        for _ in range(60):
            for key, content in contents.items():
                wrong += objects.read(key, 100, 4000) != content[100:4100]
                wrong += objects.read_resident(key, 0, 10) not in (None, content[:10])
        return wrong

    def churn() -> None:
        while not stop.is_set():
            put("packs/churn")
            objects.read("packs/churn", 0, 10)
            objects.delete("packs/churn")

    with ThreadPoolExecutor(5) as pool:
        churning = pool.submit(churn)
        readers = [pool.submit(read_all) for _ in range(4)]
        assert [reader.result() for reader in readers] == [0, 0, 0, 0]
        stop.set()
        churning.result()


class TestLocal:
    """What is particular to a directory on this machine."""

    @pytest.fixture
    def root(self, tmp_path: Path) -> Path:
        root = tmp_path / "objects"
        root.mkdir()
        (root / "packs").mkdir()
        return root

    def test_a_file_already_in_place_stays_there(self, root: Path) -> None:
        """Open packs live where their object will be: sealing one moves nothing."""
        path = root / "packs" / "a"
        path.write_bytes(CONTENT)
        inode = path.stat().st_ino
        LocalObjectStore(root).put_file("packs/a", path)
        assert path.stat().st_ino == inode
        assert path.read_bytes() == CONTENT

    def test_a_put_that_failed_late_can_be_repeated(
        self, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The file has moved already when the sync of the directory fails."""
        path = tmp_path / "upload"
        path.write_bytes(CONTENT)
        objects = LocalObjectStore(root)
        real = os.fsync
        failed: list[int] = []

        def fail_on_directories(fd: int) -> None:
            if stat.S_ISDIR(os.fstat(fd).st_mode) and not failed:
                failed.append(fd)
                raise OSError(errno.EIO, "injected")
            real(fd)

        monkeypatch.setattr(os, "fsync", fail_on_directories)
        with pytest.raises(ObjectStoreFailed, match="cannot store packs/a: Input/output error"):
            objects.put_file("packs/a", path)
        assert failed
        objects.put_file("packs/a", path)
        assert objects.read("packs/a", 0, len(CONTENT)) == CONTENT

    def test_a_file_of_another_filesystem_is_copied(
        self, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """rename(2): EXDEV."""
        path = tmp_path / "upload"
        path.write_bytes(CONTENT)
        real = Path.replace

        def replace(source: Path, target: Path) -> Path:
            if source == path:
                raise OSError(errno.EXDEV, "injected")
            return real(source, target)

        monkeypatch.setattr(Path, "replace", replace)
        objects = LocalObjectStore(root)
        objects.put_file("packs/a", path)
        assert objects.read("packs/a", 0, len(CONTENT)) == CONTENT
        assert not path.exists()
        assert list(objects.iter_keys("")) == ["packs/a"]

    def test_half_a_copy_is_no_object(self, root: Path) -> None:
        """A crash may leave one; it is neither listed nor to be had."""
        (root / "packs" / "a.0123.partial").write_bytes(CONTENT)
        objects = LocalObjectStore(root)
        assert list(objects.iter_keys("packs/")) == []
        with pytest.raises(ValueError):
            objects.read("packs/a.0123.partial", 0, 1)

    def test_open_files_are_bounded(self, root: Path) -> None:
        """A store of many packs must not use up the process's descriptors."""
        objects = LocalObjectStore(root, max_open=4)
        for number in range(40):
            (root / "packs" / str(number)).write_bytes(CONTENT)
            objects.read(f"packs/{number}", 0, 1)
        links = []
        for link in Path("/proc/self/fd").iterdir():
            try:
                links.append(link.readlink())
            except FileNotFoundError:
                continue
        assert sum(link.is_relative_to(root) for link in links) == 4

    def test_no_file_is_closed_under_a_reader(self, root: Path) -> None:
        """With room for one open file, each read evicts what another thread is reading."""
        objects = LocalObjectStore(root, max_open=1)
        contents = {f"packs/{n}": bytes([n]) * 70_000 for n in range(8)}
        for key, content in contents.items():
            (root / key).write_bytes(content)

        def read_all() -> int:
            return sum(
                objects.read(key, 0, 70_000) != content
                for _ in range(100)
                for key, content in contents.items()
            )

        with ThreadPoolExecutor(4) as pool:
            readers = [pool.submit(read_all) for _ in range(4)]
            assert [reader.result() for reader in readers] == [0, 0, 0, 0]

    def test_pages_in_memory_are_resident(self, root: Path) -> None:
        """Just written, and opened by a first read: then nothing has to wait."""
        (root / "packs" / "a").write_bytes(CONTENT)
        objects = LocalObjectStore(root)
        assert objects.read_resident("packs/a", 0, 100) is None
        objects.read("packs/a", 0, 1)
        assert objects.read_resident("packs/a", 5, 100) == CONTENT[5:105]
        assert objects.read_resident("packs/a", len(CONTENT) - 3, 100) == CONTENT[-3:]

    def test_pages_that_are_partly_in_memory_are_not_resident(
        self, root: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """preadv2(2) returns what it has, then EAGAIN: no short read may come of that."""
        (root / "packs" / "a").write_bytes(CONTENT)
        objects = LocalObjectStore(root)
        objects.read("packs/a", 0, 1)
        real, calls = os.preadv, []

        def preadv(fd: int, buffers: list[memoryview], offset: int, flags: int) -> int:
            calls.append(offset)
            if offset > 0:
                raise BlockingIOError(errno.EAGAIN, "injected")
            return real(fd, [memoryview(buffers[0])[:4096]], offset, flags)

        monkeypatch.setattr(os, "preadv", preadv)
        assert objects.read_resident("packs/a", 0, 8192) is None
        assert calls == [0, 4096]

    @pytest.mark.parametrize("in_memory", [True, False])
    def test_a_filesystem_without_nowait_is_read_plainly_only_if_it_is_memory(
        self, root: Path, monkeypatch: pytest.MonkeyPatch, in_memory: bool
    ) -> None:
        """preadv2(2): EOPNOTSUPP; asked once per file only. Others may wait for a network."""
        monkeypatch.setattr(files, "_type", lambda _: TMPFS if in_memory else NFS)
        (root / "packs" / "a").write_bytes(CONTENT)
        objects = LocalObjectStore(root)
        objects.read("packs/a", 0, 1)
        calls = []

        def preadv(fd: int, buffers: list[memoryview], offset: int, flags: int) -> int:
            calls.append(offset)
            raise OSError(errno.EOPNOTSUPP, "injected")

        monkeypatch.setattr(os, "preadv", preadv)
        for offset in (5, 6):
            found = objects.read_resident("packs/a", offset, 100)
            assert found == (CONTENT[offset : offset + 100] if in_memory else None)
        assert calls == [5]

    @pytest.mark.parametrize(
        ("number", "expected"),
        [
            (errno.ENOSPC, NoSpace),
            (errno.EDQUOT, NoSpace),
            (errno.EACCES, StoreInaccessible),
            (errno.EROFS, StoreInaccessible),
            (errno.EIO, ObjectStoreFailed),
        ],
    )
    def test_errors_of_the_system_become_ours(
        self,
        root: Path,
        monkeypatch: pytest.MonkeyPatch,
        number: int,
        expected: type[Exception],
    ) -> None:
        """One line that says what could not be done, and why."""
        (root / "packs" / "a").write_bytes(CONTENT)
        objects = LocalObjectStore(root)

        def fail(*_: object) -> bytes:
            raise OSError(number, "injected")

        monkeypatch.setattr(os, "pread", fail)
        with pytest.raises(expected) as caught:
            objects.read("packs/a", 0, 1)
        assert str(caught.value) == f"cannot read packs/a: {os.strerror(number)}"
