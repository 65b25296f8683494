"""What every `Bucket` promises, at each server."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from nexus_engine.backends.bucket import Bucket, Capability, ObjectInfo
from nexus_engine.backends.urls import open_bucket
from nexus_engine.errors import (
    EngineError,
    NameTooLong,
    NotSupported,
    ObjectChanged,
    ObjectNotFound,
    StoreInaccessible,
)
from tests.backends.conftest import LIVE, Key, Place

pytestmark = pytest.mark.usefixtures("in_parts")

CONTENT = bytes(range(256)) * 40
LARGE_BYTES = (16 << 20) * 2 + 12345  # three parts
PAGE = 1000  # what one listing answers at most
WRITERS = 8
SECOND_NS = 10**9
FILE_CLOCK_LAG_NS = 10**7
"""Times of files are those of the kernel's last tick."""

NAMES = ["plain", "with space", "a/b/c", "ünï/日本", "%41+%2F&=?#;:", "'\"<>|*", "x" * 255]
ODD_NAMES = ["a//b", "/a", "a/", "..", "a/../b", "./a", "a/.", "a\\b", "long"]


@pytest.fixture
def conditional(place: Place, request: pytest.FixtureRequest) -> None:
    """What the test says of conditional puts is not so where the server has none."""
    if Capability.CONDITIONAL_PUT not in place.capabilities:
        reason = f"{place.name} ignores conditions, and `probe` finds that out"
        failed = (AssertionError, pytest.fail.Exception, NotSupported)
        request.applymarker(pytest.mark.xfail(strict=True, raises=failed, reason=reason))


@pytest.fixture(scope="session")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("large") / "large"
    path.write_bytes((CONTENT * (LARGE_BYTES // len(CONTENT) + 1))[:LARGE_BYTES])
    return path


def test_what_a_server_can_do_is_found_out_by_trying(bucket: Bucket, place: Place) -> None:
    """One that ignores If-None-Match without a word is found out; nothing is left behind."""
    assert bucket.probe() == place.capabilities
    assert list(bucket.iter_objects()) == []


def test_an_object_reads_back_as_put(bucket: Bucket) -> None:
    """Any range, its size, and a time that the server's clock says."""
    info = bucket.put("a/b.pack", CONTENT)
    assert (info.key, info.size) == ("a/b.pack", len(CONTENT))
    assert bucket.read("a/b.pack", 0, len(CONTENT)) == CONTENT
    assert bucket.read("a/b.pack", 1000, 300) == CONTENT[1000:1300]
    found = bucket.stat("a/b.pack")
    assert (found.key, found.size, found.etag) == ("a/b.pack", len(CONTENT), info.etag)
    assert abs(found.mtime_ns - info.mtime_ns) <= 2 * 10**9
    assert abs(found.mtime_ns - time.time_ns()) < 600 * 10**9


def test_a_read_is_short_only_where_the_object_ends(bucket: Bucket) -> None:
    """Past the end there is nothing, and that is no error; nor is a range of no bytes."""
    bucket.put("a", CONTENT)
    end = len(CONTENT)
    assert bucket.read("a", end - 10, 300) == CONTENT[-10:]
    assert bucket.read("a", end, 300) == b""
    assert bucket.read("a", end + 5, 300) == b""
    assert bucket.read("a", 10, 0) == b""


def test_an_empty_object_is_one(bucket: Bucket) -> None:
    """No range of it can be satisfied; it is there all the same."""
    assert bucket.put("empty", b"").size == 0
    assert bucket.stat("empty").size == 0
    assert bucket.read("empty", 0, 100) == b""
    assert bucket.read("empty", 5, 100) == b""


def test_an_object_that_is_not_there_is_said_to_be_missing(bucket: Bucket) -> None:
    """Also for a range of no bytes, and as the source of a copy."""
    calls: list[Callable[[], object]] = [
        lambda: bucket.read("none", 0, 1),
        lambda: bucket.read("none", 0, 0),
        lambda: bucket.stat("none"),
        lambda: bucket.copy("none", "other"),
    ]
    for call in calls:
        with pytest.raises(ObjectNotFound):
            call()
    bucket.delete("none")


def test_a_put_replaces_the_whole_object(bucket: Bucket, place: Place) -> None:
    """Whoever reads the version that was there before gets that one, or is told."""
    old = bucket.put("a", CONTENT)
    new = bucket.put("a", b"short")
    assert old.etag != new.etag
    assert bucket.read("a", 0, 100) == b"short"
    assert bucket.read("a", 0, 100, etag=new.etag) == b"short"
    if Capability.VERSIONS in place.capabilities:
        assert bucket.read("a", 0, 1 << 20, etag=old.etag) == CONTENT
        return
    for length in (100, 0):
        with pytest.raises(ObjectChanged):
            bucket.read("a", 0, length, etag=old.etag)


def test_what_is_deleted_is_gone(bucket: Bucket) -> None:
    """And its neighbours stay."""
    bucket.put("a/b", b"1")
    bucket.put("a/c", b"2")
    bucket.delete("a/b")
    with pytest.raises(ObjectNotFound):
        bucket.read("a/b", 0, 1)
    assert _keys(bucket.iter_objects()) == ["a/c"]


def test_a_copy_has_the_same_content(bucket: Bucket) -> None:
    """Onto itself, it changes nothing."""
    bucket.put("a", CONTENT)
    assert bucket.copy("a", "b/c").size == len(CONTENT)
    assert bucket.read("b/c", 0, len(CONTENT)) == CONTENT
    assert bucket.copy("a", "a").size == len(CONTENT)
    assert bucket.read("a", 0, len(CONTENT)) == CONTENT


def test_a_large_file_arrives_whole(bucket: Bucket, large: Path) -> None:
    """In parts; read back from the middle, across the edge of one."""
    info = bucket.put("large", large)
    assert info.size == bucket.stat("large").size == LARGE_BYTES
    assert info.etag == bucket.stat("large").etag
    edge = (16 << 20) - 100
    content = large.read_bytes()
    assert bucket.read("large", edge, 1000) == content[edge : edge + 1000]
    assert bucket.read("large", 0, LARGE_BYTES) == content


def test_a_file_that_cannot_be_read_stores_nothing(bucket: Bucket, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="missing"):
        bucket.put("a", tmp_path / "missing")
    assert _keys(bucket.iter_objects()) == []


@pytest.mark.usefixtures("conditional")
def test_if_absent_never_overwrites(bucket: Bucket, place: Place, large: Path) -> None:
    """Small or in parts, over what is small or in parts."""
    contents = _contents(place, large)
    first = bucket.put("a", b"mine", if_absent=True)
    for content in contents:
        with pytest.raises(ObjectChanged):
            bucket.put("a", content, if_absent=True)
    assert bucket.read("a", 0, 100, etag=first.etag) == b"mine"
    bucket.delete("a")
    bucket.put("a", large, if_absent=True)
    with pytest.raises(ObjectChanged):
        bucket.put("a", b"theirs", if_absent=True)
    assert bucket.stat("a").size == LARGE_BYTES


@pytest.mark.usefixtures("conditional")
def test_if_match_replaces_only_the_version_that_is_meant(
    bucket: Bucket, place: Place, large: Path
) -> None:
    """Nor does it make an object where there is none."""
    contents = _contents(place, large)
    old = bucket.put("a", b"old")
    new = bucket.put("a", b"new", if_match=old.etag)
    for content in contents:
        with pytest.raises(ObjectChanged):
            bucket.put("a", content, if_match=old.etag)
    assert bucket.read("a", 0, 100) == b"new"
    newest = bucket.put("a", large, if_match=new.etag)
    assert bucket.stat("a").etag == newest.etag
    with pytest.raises(ObjectChanged):
        bucket.put("none", b"", if_match=new.etag)
    assert _keys(bucket.iter_objects()) == ["a"]


@pytest.mark.usefixtures("conditional")
def test_of_writers_at_once_one_wins(open_again: Callable[[], Bucket], bucket: Bucket) -> None:
    """Each with connections of its own; the object is the winner's."""
    clients = [open_again() for _ in range(WRITERS)]
    barrier = threading.Barrier(WRITERS)

    def write(number: int) -> int | None:
        barrier.wait(30)
        try:
            clients[number].put("a", b"%d" % number, if_absent=True)
        except ObjectChanged:
            return None
        return number

    with ThreadPoolExecutor(WRITERS) as pool:
        winners = [number for number in pool.map(write, range(WRITERS)) if number is not None]
    assert len(winners) == 1
    assert bucket.read("a", 0, 10) == b"%d" % winners[0]


def test_a_conditional_delete_spares_another_version(bucket: Bucket, place: Place) -> None:
    """Where the server cannot, it is said after `probe`, and nothing is deleted."""
    old = bucket.put("a", b"old")
    new = bucket.put("a", b"new")
    if Capability.CONDITIONAL_DELETE not in place.capabilities:
        bucket.probe()
        with pytest.raises(NotSupported):
            bucket.delete("a", if_match=new.etag)
        assert bucket.read("a", 0, 3) == b"new"
        return
    with pytest.raises(ObjectChanged):
        bucket.delete("a", if_match=old.etag)
    bucket.delete("a", if_match=new.etag)
    bucket.delete("a", if_match=new.etag)
    assert _keys(bucket.iter_objects()) == []


def test_a_server_that_ignores_conditions_is_not_given_any(
    bucket: Bucket, place: Place, large: Path
) -> None:
    """After `probe` has found it out: it would overwrite, and say that all is well."""
    bucket.put("a", b"mine")
    bucket.probe()
    contents: list[tuple[Capability, bytes | Path]] = [
        (Capability.CONDITIONAL_PUT, b"theirs"),
        (Capability.CONDITIONAL_PARTS, large),
    ]
    for needed, content in contents:
        expected = ObjectChanged if needed in place.capabilities else NotSupported
        with pytest.raises(expected):
            bucket.put("a", content, if_absent=True)
    assert bucket.read("a", 0, 10) == b"mine"


@pytest.mark.parametrize("key", NAMES)
def test_a_key_may_have_any_characters(bucket: Bucket, key: str) -> None:
    bucket.put(key, key.encode())
    assert bucket.read(key, 0, 1000) == key.encode()
    assert bucket.stat(key).key == key
    assert _keys(bucket.iter_objects()) == [key]
    assert _keys(bucket.iter_objects(key)) == [key]
    bucket.delete(key)
    assert _keys(bucket.iter_objects()) == []


@pytest.mark.parametrize("key", ODD_NAMES)
def test_a_key_that_is_no_path_is_kept_or_refused(url: str, place: Place, key: str) -> None:
    """Whatever the server makes of it, nothing else is touched."""
    # Some refuse by "Internal Error", which is tried again and again.
    bucket = open_bucket(url, {} if place.name == "directory" else {"deadline_s": "2"})
    expected = place.keys.get(key, Key.KEPT) if place.name != "other" else None
    key = "k" * 900 if key == "long" else key
    bucket.put("other", b"other")
    try:
        bucket.put(key, CONTENT)
    except EngineError:
        found = Key.REFUSED if _keys(bucket.iter_objects()) == ["other"] else Key.HALF
    else:
        listed = sorted(_keys(bucket.iter_objects()))
        found = Key.KEPT if listed == sorted(["other", key]) else Key.MERGED
    assert found is (expected or found)
    if found is Key.KEPT:
        assert bucket.read(key, 0, len(CONTENT)) == CONTENT
    assert bucket.read("other", 0, 10) == b"other"
    bucket.delete("other")
    if found is Key.KEPT:
        bucket.delete(key)
    bucket.close()


def test_no_server_is_asked_for_a_key_that_cannot_be(bucket: Bucket) -> None:
    for key in ("", "a\0b", "\udcff" if not bucket.url.startswith("file") else "a\0"):
        with pytest.raises(EngineError):
            bucket.put(key, b"")
    with pytest.raises(NameTooLong):
        bucket.put("k" * 1025, b"")


def test_a_listing_is_complete_and_in_order(
    bucket: Bucket, place: Place, open_again: Callable[[], Bucket]
) -> None:
    """Over several pages, from anywhere; UTF-8 decides where the server can."""
    # Whoever has short pages gets by with fewer.
    first = PAGE - 20 if place.name == "fake-drive" else 0
    names = [*(f"d/{n:04}" for n in range(first, PAGE + 30)), "a", "d.x", "d/ä", "e/z"]
    keys = sorted((f"t/{name}" for name in names), key=str.encode)
    clients = [open_again() for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        began_ns = time.time_ns()
        list(pool.map(lambda n: clients[n % 4].put(keys[n], b"%d" % n), range(len(keys))))
        ended_ns = time.time_ns()

    bucket.probe()
    listed = list(bucket.iter_objects())
    in_order = sorted(_keys(iter(listed)), key=str.encode)
    assert in_order == keys
    assert _keys(iter(listed)) == keys or Capability.ORDERED_LISTING not in place.capabilities
    for info in (listed[0], listed[30], listed[-1]):
        assert isinstance(info, ObjectInfo)
        found = bucket.stat(info.key)
        assert (info.size, info.etag) == (found.size, found.etag)
        if place.one_time:
            assert info.mtime_ns // SECOND_NS == found.mtime_ns // SECOND_NS
        if place.name not in LIVE:  # others have clocks of their own
            earliest_ns = (began_ns - FILE_CLOCK_LAG_NS) // SECOND_NS * SECOND_NS
            assert earliest_ns <= info.mtime_ns <= ended_ns
            assert earliest_ns <= found.mtime_ns <= ended_ns
    assert _keys(bucket.iter_objects("t/d/")) == [key for key in keys if key.startswith("t/d/")]
    assert _keys(bucket.iter_objects("t/d/102")) == [f"t/d/{n:04}" for n in range(1020, 1030)]
    assert _keys(bucket.iter_objects("nothing")) == _keys(bucket.iter_objects("t/aa")) == []
    for key in ("t/d.x", "t/d/1001", "t/d/1001x"):
        after = [name for name in keys if name.encode() > key.encode()]
        assert sorted(_keys(bucket.iter_objects(start_after=key)), key=str.encode) == after

    def entries(prefix: str, start_after: str = "") -> list[str]:
        items = bucket.iter_objects(prefix, delimiter="/", start_after=start_after)
        return sorted(item if isinstance(item, str) else item.key for item in items)

    assert entries("t/") == ["t/a", "t/d.x", "t/d/", "t/e/"]
    assert entries("t/d") == ["t/d.x", "t/d/"]
    assert entries("t/e/") == ["t/e/z"]
    assert entries("t/", "t/d/") == ["t/e/"]
    assert entries("t/", "t/a") == ["t/d.x", "t/d/", "t/e/"]


def test_a_prefix_is_a_world_of_its_own(url: str, bucket: Bucket) -> None:
    """What lies beside it is neither listed nor reached."""
    head, mark, query = url.partition("?")
    bucket.put("inner/a", b"1")
    bucket.put("inner2/a", b"2")
    if url.startswith("file"):
        head = head.rstrip("/")
    inner = open_bucket(f"{head}/inner{mark}{query}")
    assert _keys(inner.iter_objects()) == ["a"]
    assert inner.read("a", 0, 1) == b"1"
    inner.put("b", b"3")
    assert _keys(bucket.iter_objects()) == ["inner/a", "inner/b", "inner2/a"]
    inner.close()


def test_a_bucket_that_is_not_there_is_no_empty_one(url: str) -> None:
    """A wrong name, or one that was removed, must not look like deleted objects."""
    name = f"nexus-none-{uuid.uuid4().hex}"
    parts = urlsplit(url)
    missing = parts._replace(netloc=name) if parts.netloc else parts._replace(path=f"/{name}")
    calls: list[Callable[[Bucket], object]] = [
        lambda bucket: bucket.stat("a"),
        lambda bucket: bucket.read("a", 0, 1),
        lambda bucket: bucket.put("a", b""),
        lambda bucket: list(bucket.iter_objects()),
    ]
    for call in calls:
        with pytest.raises(StoreInaccessible, match="there is no"):
            call(open_bucket(missing.geturl()))


def _keys(items: Iterator[ObjectInfo | str]) -> list[str]:
    found = []
    for item in items:
        assert isinstance(item, ObjectInfo)
        found.append(item.key)
    return found


def _contents(place: Place, large: Path) -> list[bytes | Path]:
    """Return what conditions can be tried with at this server."""
    return [b"theirs", large] if Capability.CONDITIONAL_PARTS in place.capabilities else [b"theirs"]
