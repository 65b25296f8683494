"""What networks and servers do, while objects are read, stored and listed: the right result, or the
right error within the deadline, and nothing left behind."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import boto3
import pytest

from benchlib.seaweedfs import free_ports
from nexus_engine.backends.bucket import Bucket, ObjectInfo
from nexus_engine.backends.urls import open_bucket
from nexus_engine.errors import (
    EngineError,
    ObjectChanged,
    ObjectStoreFailed,
    StoreHung,
    StoreInaccessible,
)
from tests.backends.conftest import BUCKET, make_gcs_bucket, make_s3_bucket
from tests.backends.proxy import Fault, Proxy
from tests.servers import Server

pytestmark = pytest.mark.usefixtures("in_parts")

CONTENT = bytes(range(256)) * 40
LARGE = CONTENT * 2000  # 20 MB: two parts
DEADLINE_S = 4  # a quarter of it is the longest silence
LATEST_S = DEADLINE_S + 1.5

PUT = r"^(PUT|POST) .*"
DATA = r"^PUT .*(partNumber|upload_id)"  # of what goes in parts
GET = r"^GET .*(/a|/b|alt=media)"
LIST = r"^GET .*(list-type|/o\?)"


@pytest.fixture(params=["s3", "gs"])
def scheme(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def proxy(
    scheme: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Proxy]:
    server: Server = request.getfixturevalue("seaweedfs" if scheme == "s3" else "fake_gcs")
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    if scheme == "s3":
        make_s3_bucket(server)
    else:
        make_gcs_bucket()
    with Proxy(server.endpoint).running() as running:
        yield running


@pytest.fixture
def prefix() -> str:
    return uuid.uuid4().hex


@pytest.fixture
def near(proxy: Proxy, scheme: str, prefix: str) -> Iterator[Bucket]:
    """Yield the same bucket without the proxy."""
    bucket = open_bucket(f"{scheme}://{BUCKET}/{prefix}?endpoint=http://{proxy.upstream}")
    yield bucket
    bucket.close()


@pytest.fixture
def bucket(proxy: Proxy, scheme: str, prefix: str) -> Iterator[Bucket]:
    """Yield a bucket behind the proxy; afterwards no thread of it is left."""
    before = threading.active_count()
    options = {"endpoint": proxy.endpoint, "deadline_s": str(DEADLINE_S)}
    opened = open_bucket(f"{scheme}://{BUCKET}/{prefix}", options)
    yield opened
    opened.close()
    proxy_threads = [t for t in threading.enumerate() if "process_request" in t.name]
    assert threading.active_count() - len(proxy_threads) <= before


@pytest.fixture
def large(tmp_path: Path) -> Path:
    path = tmp_path / "large"
    path.write_bytes(LARGE)
    return path


@contextmanager
def within_the_deadline() -> Iterator[None]:
    begun_s = time.monotonic()
    yield
    assert time.monotonic() - begun_s < LATEST_S


PASSING: list[Fault] = ["slow down", "never arrive", "lose the answer", "keep silent"]
BODIES: list[Fault] = ["cut the body", "shorten the body"]


@pytest.mark.parametrize("fault", [*PASSING, *BODIES])
def test_a_read_is_right_or_tried_again(
    bucket: Bucket, near: Bucket, proxy: Proxy, fault: Fault
) -> None:
    """A body that is too short is no end of the object, whatever Content-Length says."""
    near.put("a", CONTENT)
    proxy.fail(fault, GET, times=1)
    with within_the_deadline():
        assert bucket.read("a", 1000, 5000) == CONTENT[1000:6000]
    assert proxy.count(GET) == 2


def test_an_object_that_arrives_damaged_is_fetched_again(
    bucket: Bucket, near: Bucket, proxy: Proxy
) -> None:
    """All of it: nobody has a checksum of a part, but for who stored it."""
    near.put("a", CONTENT)
    proxy.fail("damage the body", GET, times=1)
    assert bucket.read("a", 0, 1 << 20) == CONTENT
    assert proxy.count(GET) == 2


@pytest.mark.parametrize("fault", [*PASSING, *BODIES])
def test_a_listing_is_right_or_tried_again(
    bucket: Bucket, near: Bucket, proxy: Proxy, fault: Fault
) -> None:
    """Half a page is no end of a listing."""
    names = [f"{number:02}" for number in range(20)]
    for name in names:
        near.put(name, b"")
    proxy.fail(fault, LIST, times=1)
    with within_the_deadline():
        listed = list(bucket.iter_objects())
    assert [item.key for item in listed if isinstance(item, ObjectInfo)] == names
    assert proxy.count(LIST) == 2


@pytest.mark.parametrize("fault", PASSING)
def test_a_put_is_done_once_it_returns(
    bucket: Bucket, near: Bucket, proxy: Proxy, fault: Fault
) -> None:
    """Where the answer was lost, the retry knows its own object again."""
    proxy.fail(fault, PUT, times=2)
    with within_the_deadline():
        info = bucket.put("a", CONTENT, if_absent=True)
    assert near.read("a", 0, 1 << 20, etag=info.etag) == CONTENT
    assert proxy.count(PUT) == 3


def test_a_put_that_lost_its_answer_does_not_take_anothers_object_for_its_own(
    bucket: Bucket, near: Bucket, proxy: Proxy
) -> None:
    """Also where the other wrote the very same bytes."""
    near.put("a", CONTENT)
    proxy.fail("slow down", PUT, times=1)
    with pytest.raises(ObjectChanged):
        bucket.put("a", CONTENT, if_absent=True)


@pytest.mark.parametrize("pattern", [PUT, DATA], ids=["whole", "part"])
def test_what_arrives_damaged_at_the_server_is_not_taken_for_stored(
    bucket: Bucket, near: Bucket, proxy: Proxy, scheme: str, large: Path, pattern: str
) -> None:
    """S3 refuses it, and it is sent again. fake-gcs-server stores it: that is an error."""
    content = CONTENT if pattern == PUT else LARGE
    proxy.fail("damage the request", pattern, times=1)
    if scheme == "gs":
        with pytest.raises(ObjectStoreFailed, match="something else"):
            bucket.put("a", content if pattern == PUT else large)
        return
    bucket.put("a", content if pattern == PUT else large)
    assert near.read("a", 0, 1 << 30) == content


@pytest.mark.parametrize("fault", PASSING)
def test_a_large_file_goes_on_where_it_was_cut(
    bucket: Bucket, near: Bucket, proxy: Proxy, large: Path, fault: Fault
) -> None:
    """What arrived is not sent again as a whole."""
    proxy.fail(fault, DATA, times=1)
    bucket.put("a", large)
    assert near.read("a", 0, 1 << 30) == LARGE
    assert proxy.count(r"^POST .*(\?uploads|uploadType=resumable)") == 1


@pytest.mark.parametrize(
    "fault",
    [
        "lose the answer",
        pytest.param("never arrive", marks=pytest.mark.slow),
        pytest.param("slow down", marks=pytest.mark.slow),
    ],
)
def test_a_large_file_arrives_whichever_request_fails(
    bucket: Bucket, near: Bucket, proxy: Proxy, large: Path, fault: Fault
) -> None:
    """The first one, the second one, and so on, until there are no more."""
    failed = 0
    while True:
        proxy.requests.clear()
        proxy.fail(fault, rf"/a{failed}\b|name=.*a{failed}\b|upload_id", skip=failed, times=1)
        info = bucket.put(f"a{failed}", large, if_absent=True)
        assert near.stat(f"a{failed}").etag == info.etag
        assert near.read(f"a{failed}", (16 << 20) - 5, 10) == LARGE[(16 << 20) - 5 :][:10]
        if failed >= len(proxy.requests):
            break
        failed += 1
    assert failed >= 3
    assert len(list(near.iter_objects())) == failed + 1


@pytest.mark.parametrize("scheme", ["s3"])
def test_a_large_file_whose_last_answer_was_lost_is_there(
    bucket: Bucket, near: Bucket, proxy: Proxy, large: Path
) -> None:
    """The server has forgotten the upload by then; the object says whose it is."""
    proxy.fail("lose the answer", r"^POST .*uploadId=", times=1)
    info = bucket.put("a", large, if_absent=True)
    assert near.stat("a").etag == info.etag
    assert proxy.count(r"^POST .*uploadId=") == 2


@pytest.mark.parametrize("scheme", ["s3"])
def test_a_large_file_that_fails_leaves_no_parts(
    bucket: Bucket, proxy: Proxy, prefix: str, large: Path
) -> None:
    """They would be paid for, and nobody sees them."""
    proxy.fail("slow down", DATA)
    with pytest.raises(ObjectStoreFailed, match="SlowDown"):
        bucket.put("a", large)
    client = boto3.client("s3", endpoint_url=f"http://{proxy.upstream}")
    uploads = client.list_multipart_uploads(Bucket=BUCKET, Prefix=prefix)
    client.close()
    assert uploads.get("Uploads", []) == []
    assert list(bucket.iter_objects()) == []


CALLS: dict[str, Callable[[Bucket, Path], object]] = {
    "read": lambda bucket, _: bucket.read("a", 0, 100),
    "stat": lambda bucket, _: bucket.stat("a"),
    "list": lambda bucket, _: list(bucket.iter_objects()),
    "put": lambda bucket, _: bucket.put("a", b"1"),
    "put large": lambda bucket, large: bucket.put("a", large),
    "delete": lambda bucket, _: bucket.delete("a"),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
def test_a_server_that_keeps_silent_is_given_up_at_the_deadline(
    bucket: Bucket, proxy: Proxy, large: Path, call: Callable[[Bucket, Path], object]
) -> None:
    """Each request waits a quarter of it, so that some are tried again."""
    proxy.fail("keep silent")
    with within_the_deadline(), pytest.raises(StoreHung, match="attempts"):
        call(bucket, large)
    assert 2 <= len(proxy.requests) <= 4


def test_a_server_that_throttles_is_asked_less_and_less_often(bucket: Bucket, proxy: Proxy) -> None:
    """And the error says what it says."""
    proxy.fail("slow down")
    with within_the_deadline(), pytest.raises(ObjectStoreFailed, match="503"):
        bucket.put("a", b"1")
    assert 3 <= len(proxy.requests) <= 20


def test_a_pause_that_the_server_asks_for_is_made(bucket: Bucket, proxy: Proxy) -> None:
    """Source: RFC 9110, 10.2.3."""
    proxy.fail("slow down", times=1, Retry_After="2")
    begun_s = time.monotonic()
    bucket.put("a", b"1")
    assert 2 <= time.monotonic() - begun_s < LATEST_S


def test_a_body_that_trickles_in_ends_at_the_deadline(
    bucket: Bucket, near: Bucket, proxy: Proxy
) -> None:
    """No silence is long, and it would take hours all the same."""
    near.put("a", CONTENT)
    proxy.fail("trickle", GET)
    with within_the_deadline(), pytest.raises((StoreHung, ObjectStoreFailed)):
        bucket.read("a", 0, len(CONTENT))


def test_a_server_that_is_gone_is_an_error_in_time(
    scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Connections are refused: the network is there."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "nothing")
    endpoint = f"http://127.0.0.1:{free_ports(1)[0]}"
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", endpoint)
    bucket = open_bucket(f"{scheme}://{BUCKET}?endpoint={endpoint}&deadline_s={DEADLINE_S}")
    with within_the_deadline(), pytest.raises(ObjectStoreFailed):
        bucket.stat("a")
    bucket.close()


def test_who_is_closed_does_not_wait_any_more(bucket: Bucket, proxy: Proxy) -> None:
    """A daemon that ends has no time for pauses."""
    proxy.fail("slow down", Retry_After="3")
    failed: list[EngineError] = []

    def put() -> None:
        try:
            bucket.put("a", b"1")
        except EngineError as error:
            failed.append(error)

    thread = threading.Thread(target=put)
    thread.start()
    while not proxy.requests:
        time.sleep(0.01)
    begun_s = time.monotonic()
    bucket.close()
    thread.join()
    assert time.monotonic() - begun_s < 2
    assert "1 attempts" in str(failed[0])


@pytest.mark.parametrize("scheme", ["s3"])
@pytest.mark.parametrize("name", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"])
def test_wrong_credentials_are_said_at_once(
    proxy: Proxy, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Without what they are."""
    monkeypatch.setenv(name, "not-this-one")
    bucket = open_bucket(f"s3://{BUCKET}?endpoint={proxy.endpoint}")
    for call in (CALLS["read"], CALLS["stat"], CALLS["put"], CALLS["list"]):
        with pytest.raises(StoreInaccessible, match="credentials") as error:
            call(bucket, Path())
        assert "not-this-one" not in str(error.value)
    assert len(proxy.requests) == 4
    bucket.close()


@pytest.mark.parametrize("scheme", ["s3"])
def test_no_credentials_at_all_are_said_at_once(
    proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And where they could be."""
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    bucket = open_bucket(f"s3://{BUCKET}?endpoint={proxy.endpoint}")
    with pytest.raises(StoreInaccessible, match="AWS_PROFILE"):
        bucket.stat("a")
    assert proxy.requests == []
    bucket.close()
