"""Objects in a bucket that fails, hangs and forgets: nothing is lost, and nobody waits for ever."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nexus_engine import errors
from nexus_engine.backends.bucket import Bucket, Capability, ObjectInfo
from nexus_engine.backends.cache_files import BLOCK_BYTES
from nexus_engine.backends.directory import DirectoryBucket
from nexus_engine.backends.home import MARK_KEY, Home, Mark, claim_prefix
from nexus_engine.backends.remote import Limits, RemoteObjectStore
from tests.mount.waiting import wait_until

MIB = 1 << 20
KEY = "packs/0123.pack"


class FaultyBucket(DirectoryBucket):
    """A bucket that can be told to fail, and counts what it is asked."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.failure: Callable[[str], errors.EngineError | None] = lambda _: None
        self.asked: list[str] = []
        self.holds = threading.Event()
        self.holds.set()
        """While it is cleared, puts wait."""
        self.conditional = True

    def _meet(self, what: str) -> None:
        self.asked.append(what)
        failure = self.failure(what)
        if failure is not None:
            raise failure

    def probe(self) -> Capability:
        return super().probe() if self.conditional else Capability.COPY

    def read(self, key: str, offset: int, length: int, *, etag: str = "") -> bytes:
        if key != MARK_KEY:
            self._meet(f"read {offset // BLOCK_BYTES}+{-(-length // BLOCK_BYTES)}")
        return super().read(key, offset, length, etag=etag)

    def stat(self, key: str) -> ObjectInfo:
        self._meet("stat")
        return super().stat(key)

    def put(
        self, key: str, content: bytes | Path, *, if_absent: bool = False, if_match: str = ""
    ) -> ObjectInfo:
        self.holds.wait(30)
        self._meet("put")
        assert self.conditional or not (if_absent or if_match)
        return super().put(key, content, if_absent=if_absent, if_match=if_match)

    def delete(self, key: str, *, if_match: str = "") -> None:
        self._meet("delete")
        super().delete(key, if_match=if_match)


class World:
    """A store's directory and its bucket."""

    def __init__(self, root: Path) -> None:
        self.root = root / "store"
        self.root.mkdir()
        (self.root / "packs").mkdir()
        self.bucket_root = root / "bucket"
        self.bucket_root.mkdir()
        self.bucket = FaultyBucket(self.bucket_root)
        claim_prefix(self.bucket, Mark(1, "me", "here"))
        self.bucket.asked.clear()
        self.opened: list[RemoteObjectStore] = []
        self.pressed = False

    def open(
        self,
        *,
        cache_mib: int = 64,
        backlog_mib: int = 64,
        limit_s: float = 20,
        store_id: str = "me",
        following: dict[str, str] | None = None,
    ) -> RemoteObjectStore:
        def press(pressed: bool) -> None:
            self.pressed = pressed

        def connect() -> Bucket:
            return self.bucket

        objects = RemoteObjectStore(
            self.root,
            Home(self.bucket.url, connect, Mark(1, store_id, "here")),
            Limits(cache_mib * MIB, backlog_mib * MIB, limit_s),
            press=press,
            find_next=(following or {}).get,
        )
        self.opened.append(objects)
        return objects

    def write(self, content: bytes, key: str = KEY) -> Path:
        path = self.root / key
        path.write_bytes(content)
        return path

    def put(self, objects: RemoteObjectStore, content: bytes, key: str = KEY) -> None:
        objects.put_file(key, self.write(content, key))

    def sent(self, key: str = KEY) -> bytes | None:
        path = self.root.parent / "bucket" / key
        return path.read_bytes() if path.exists() else None


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    yield world
    world.bucket.holds.set()
    for objects in world.opened:
        objects.close()


def hung(_: str) -> errors.EngineError:
    return errors.StoreHung("no answer")


def broken(_: str) -> errors.EngineError:
    return errors.ObjectStoreFailed("it does not work")


def test_an_object_that_was_put_is_read_before_during_and_after_the_upload(world: World) -> None:
    objects = world.open()
    content = os.urandom(3 * MIB)
    world.bucket.holds.clear()
    world.put(objects, content)
    assert objects.read(KEY, 1000, 50) == content[1000:1050]
    assert objects.size(KEY) == len(content)
    world.bucket.holds.set()
    objects.secure()
    assert world.sent() == content
    assert not (world.root / KEY).exists()
    assert objects.read(KEY, MIB - 10, 20) == content[MIB - 10 : MIB + 10]
    assert objects.size(KEY) == len(content)
    assert list(objects.iter_keys("packs/")) == [KEY]
    assert not any(what.startswith("read") for what in world.bucket.asked)  # the cache has it


def test_a_failing_upload_is_tried_again_and_nothing_is_lost(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    objects = world.open()
    world.bucket.failure = broken
    world.put(objects, b"content")
    with pytest.raises(errors.ObjectStoreFailed):
        objects.secure()
    assert (world.root / KEY).read_bytes() == b"content"
    world.bucket.failure = lambda _: None
    objects.secure()
    assert world.sent() == b"content"
    assert "takes packs again" in caplog.text


def test_an_upload_that_was_cut_short_after_the_bucket_had_it_is_no_conflict(world: World) -> None:
    """Killed between the server's confirmation and the removal of the file."""
    world.bucket.put(KEY, b"content")
    objects = world.open()
    world.put(objects, b"content")
    objects.secure()
    assert world.sent() == b"content"
    assert not (world.root / KEY).exists()


def test_a_good_copy_that_is_put_back_replaces_a_decayed_object(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """As a user does who takes a pack from a backup."""
    world.bucket.put(KEY, b"cOntent")
    objects = world.open()
    world.put(objects, b"content")
    objects.secure()
    assert world.sent() == b"content"
    assert "they are replaced" in caplog.text


def test_a_server_without_conditions_is_asked_first(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.bucket.conditional = False
    DirectoryBucket.put(
        world.bucket, MARK_KEY, b'{"nexus_store":1,"store_id":"me","holder":"here"}'
    )
    objects = world.open()
    world.put(objects, b"content")
    objects.secure()
    assert world.bucket.asked == ["stat", "put"]
    assert world.sent() == b"content"
    assert "does not know conditional writes" in caplog.text


def test_who_writes_more_than_may_wait_gets_an_error_in_time(world: World) -> None:
    objects = world.open(backlog_mib=4, limit_s=0.3)
    world.bucket.holds.clear()
    for number in range(4):
        objects.await_room()
        world.put(objects, bytes(MIB), f"packs/{number}.pack")
    assert world.pressed
    with pytest.raises(errors.ObjectStoreFailed, match="4 MiB wait for the bucket"):
        objects.await_room()
    with pytest.raises(errors.ObjectStoreFailed):
        objects.await_room()  # at once
    world.bucket.holds.set()
    wait_until(lambda: not world.pressed, "sending")
    objects.await_room()
    objects.secure()
    assert all(world.sent(f"packs/{number}.pack") == bytes(MIB) for number in range(4))


def test_waiting_for_a_bucket_that_is_slow_ends_in_time(world: World) -> None:
    objects = world.open(limit_s=0.3)
    world.bucket.holds.clear()
    world.put(objects, b"content")
    with pytest.raises(errors.StoreHung):
        objects.secure()
    world.bucket.holds.set()
    objects.drain()
    assert world.sent() == b"content"


def test_while_the_bucket_hangs_the_cache_is_read_and_the_rest_fails_at_once(world: World) -> None:
    objects = world.open()
    content = os.urandom(3 * MIB)
    world.bucket.put(KEY, content)
    world.bucket.put("packs/other.pack", content)
    for block in (2, 1, 0):  # backwards: nothing is fetched ahead
        assert objects.read(KEY, block * MIB, MIB) == content[block * MIB : (block + 1) * MIB]
    world.bucket.asked.clear()
    world.bucket.failure = hung
    for _ in range(5):
        with pytest.raises(errors.StoreHung):
            objects.read("packs/other.pack", 0, 100)
    assert world.bucket.asked == ["read 0+1"]
    assert objects.read(KEY, MIB, 100) == content[MIB : MIB + 100]
    assert objects.figures()["bucket_silent_s"] >= 1


def test_another_stores_bucket_is_not_used(world: World) -> None:
    objects = world.open(store_id="somebody else")
    world.put(objects, b"content")
    with pytest.raises(errors.StoreInaccessible, match="another store"):
        objects.secure()
    with pytest.raises(errors.StoreInaccessible, match="another store"):
        objects.read("packs/other.pack", 0, 1)
    assert world.sent() is None
    assert world.bucket.asked == []


def test_what_asking_a_bucket_takes_is_loaded_before_it_is_asked(world: World) -> None:
    made: list[Bucket] = []

    def connect() -> Bucket:
        made.append(world.bucket)
        return world.bucket

    (world.bucket_root / MARK_KEY).rename(world.root / "mark")
    home = Home(world.bucket.url, connect, Mark(1, "me", "here"))
    home.prepare()
    (world.root / "mark").rename(world.bucket_root / MARK_KEY)
    home.require_mark()
    assert len(made) == 1


def test_reading_on_fetches_ahead_in_few_requests(world: World) -> None:
    objects = world.open()
    content = os.urandom(32 * MIB)
    world.bucket.put(KEY, content)
    world.bucket.asked.clear()
    got = b"".join(bytes(objects.read(KEY, at, MIB // 8)) for at in range(0, 32 * MIB, MIB // 8))
    assert got == content
    assert len(world.bucket.asked) <= 12


def test_what_was_fetched_ahead_is_not_asked_for_again_where_no_copy_can_be_kept(
    world: World,
) -> None:
    objects = world.open()
    (world.root / "cache").rmdir()
    (world.root / "cache").touch()  # nothing can be written below it
    content = os.urandom(32 * MIB)
    world.bucket.put(KEY, content)
    world.bucket.asked.clear()
    for at in range(0, 32 * MIB, MIB):
        assert objects.read(KEY, at, MIB) == content[at : at + MIB]
    asked = [map(int, what.removeprefix("read ").split("+")) for what in world.bucket.asked]
    blocks = [block for first, count in asked for block in range(first, first + count)]
    assert sorted(block for block in blocks if block < 32) == list(range(32))


def test_what_was_fetched_ahead_and_is_wrong_is_fetched_again(world: World) -> None:
    objects = world.open()
    (world.root / "cache").rmdir()
    (world.root / "cache").touch()
    world.bucket.put(KEY, bytes(8 * MIB))
    for at in range(0, 5 * MIB, MIB):
        objects.read(KEY, at, MIB)
    content = os.urandom(8 * MIB)
    world.bucket.put(KEY, content)
    assert objects.read(KEY, 4 * MIB, MIB) == bytes(MIB)
    assert objects.distrust(KEY)
    assert objects.read(KEY, 4 * MIB, MIB) == content[4 * MIB : 5 * MIB]


def test_who_reads_on_to_the_end_of_an_object_finds_the_next_one_begun(world: World) -> None:
    """As a large file does, whose packs follow each other."""
    objects = world.open(following={KEY: "packs/4567.pack"})
    content = os.urandom(20 * MIB)
    world.bucket.put(KEY, os.urandom(20 * MIB))
    world.bucket.put("packs/4567.pack", content)
    world.bucket.asked.clear()
    for at in range(0, 20 * MIB, MIB):
        objects.read(KEY, at, MIB)

    def begun() -> int:
        return len([what for what in world.bucket.asked if what.startswith("read 0+")])

    wait_until(lambda: begun() == 2, "fetching ahead")
    for at in range(0, 20 * MIB, MIB):
        assert objects.read("packs/4567.pack", at, MIB) == content[at : at + MIB]
    assert begun() == 2


def test_a_read_far_from_the_last_one_fetches_one_block(world: World) -> None:
    objects = world.open()
    world.bucket.put(KEY, bytes(32 * MIB))
    world.bucket.asked.clear()
    for block in (20, 3, 11, 29):
        objects.read(KEY, block * MIB + 5, 10)
    assert world.bucket.asked == ["read 20+1", "read 3+1", "read 11+1", "read 29+1"]


def test_many_who_want_one_block_share_a_request(world: World) -> None:
    objects = world.open()
    content = os.urandom(MIB)
    world.bucket.put(KEY, content)
    world.bucket.asked.clear()
    found: list[bytes] = []

    def read() -> None:
        found.append(bytes(objects.read(KEY, 0, MIB)))

    threads = [threading.Thread(target=read) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [content] * 8
    assert len(world.bucket.asked) == 1


def test_without_room_for_a_cache_everything_is_read_all_the_same(world: World) -> None:
    objects = world.open(cache_mib=0)
    content = os.urandom(3 * MIB)
    world.put(objects, content)
    objects.secure()
    assert objects.read(KEY, 100, 2 * MIB) == content[100 : 2 * MIB + 100]
    assert list((world.root / "cache").iterdir()) == []


def test_what_is_deleted_is_gone_from_everywhere(world: World) -> None:
    objects, other = world.open(), world.open()
    world.put(objects, os.urandom(MIB))
    objects.secure()
    other.delete(KEY)
    assert world.sent() is None
    assert list((world.root / "cache").iterdir()) == []
    with pytest.raises(errors.ObjectNotFound):
        other.read(KEY, 0, 1)


def test_what_is_deleted_while_it_is_being_sent_does_not_come_back(world: World) -> None:
    objects = world.open()
    world.bucket.holds.clear()
    world.put(objects, b"content")
    deleting = threading.Thread(target=objects.delete, args=(KEY,))
    deleting.start()
    world.bucket.holds.set()
    deleting.join()
    objects.secure()
    assert world.sent() is None
    assert not (world.root / KEY).exists()


def test_two_processes_do_not_send_the_same_file(world: World) -> None:
    objects, other = world.open(), world.open()
    world.bucket.holds.clear()
    world.put(objects, b"content")
    other.put_file(KEY, world.root / KEY)
    world.bucket.holds.set()
    objects.secure()
    other.drain()
    assert world.bucket.asked.count("put") == 1
    assert world.sent() == b"content"


def test_a_list_has_what_is_sent_and_what_is_not(world: World) -> None:
    objects = world.open()
    world.put(objects, b"sent")
    objects.secure()
    world.bucket.holds.clear()
    world.put(objects, b"waiting", "packs/4567.pack")
    assert dict(objects.iter_sizes("packs/")) == {KEY: 4, "packs/4567.pack": 7}
    assert objects.is_near("packs/4567.pack")
    assert not objects.is_near(KEY)


def test_what_is_stored_is_read_past_the_cache_in_large_pieces(world: World) -> None:
    objects = world.open()
    content = os.urandom(10 * MIB)
    world.put(objects, content)
    objects.secure()
    world.bucket.asked.clear()
    for at in range(0, 10 * MIB, 1000 * 1000):
        assert objects.read_stored(KEY, at, 1000 * 1000) == content[at : at + 1000 * 1000]
    assert len(world.bucket.asked) == 2


def test_a_bucket_whose_disk_is_not_mounted_gets_nothing(world: World) -> None:
    """A file:// bucket on a NAS: beneath its mountpoint is an empty directory."""
    objects = world.open()
    world.put(objects, b"before", "packs/before.pack")
    objects.secure()
    bucket = world.root.parent / "bucket"
    bucket.rename(bucket.with_name("away"))
    bucket.mkdir()
    world.put(objects, b"content")
    with pytest.raises(errors.StoreInaccessible):
        objects.secure()
    assert list(bucket.iterdir()) == []
    objects.distrust("packs/before.pack")
    with pytest.raises(errors.StoreInaccessible):
        objects.read("packs/before.pack", 0, 6)
    bucket.rmdir()
    bucket.with_name("away").rename(bucket)
    assert (world.root / KEY).read_bytes() == b"content"
