"""Mounts with packs at a server, and what the network does in between; how much is asked of it."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.backends.conftest import BUCKET, make_s3_bucket
from tests.backends.proxy import Proxy
from tests.mount.buckets import BucketMount
from tests.mount.waiting import wait_until
from tests.servers import Server

MIB = 1 << 20
PUT_PACK, GET_PACK = r"^PUT .*/packs/", r"^GET .*/packs/"


@pytest.fixture
def proxy(seaweedfs: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    for name, value in seaweedfs.environment.items():
        monkeypatch.setenv(name, value)
    make_s3_bucket(seaweedfs)
    with Proxy(seaweedfs.endpoint).running() as running:
        yield running


@pytest.fixture
def mount(tmp_path: Path, proxy: Proxy) -> Iterator[BucketMount]:
    """Yield a mount behind the proxy; afterwards it must stop cleanly and sound."""
    url = f"s3://{BUCKET}/{uuid.uuid4().hex}?endpoint={proxy.endpoint}&deadline_s=4"
    mounted = BucketMount(tmp_path, url, upload_limit_s=10, metadata_interval_s=0)
    try:
        yield mounted
        proxy.mend()
        wait_until(lambda: mounted.figure("backlog_bytes") == 0, "sending")
        mounted.umount()
        assert mounted.unexpected_log_lines() == []
        assert mounted.unsent() == {}
        mounted.ctl("--store", str(mounted.store), "fsck", "--deep")
    finally:
        mounted.detach()


def test_a_thousand_small_files_cost_few_requests(mount: BucketMount, proxy: Proxy) -> None:
    for number in range(1000):
        (mount.path / str(number)).write_text(f"{number}\n")
    mount.forget_cache()
    assert proxy.count(PUT_PACK) == 1
    before = proxy.count()
    for number in range(1000):
        assert (mount.path / str(number)).read_text() == f"{number}\n"
    assert proxy.count(GET_PACK) == 1
    assert proxy.count() - before <= 2  # and the mark


def test_many_fsyncs_at_one_time_share_uploads(mount: BucketMount, proxy: Proxy) -> None:
    mount.sh("""
    for n in $(seq 20); do
        (dd if=/dev/urandom of=$n bs=1k count=1 conv=fsync status=none) &
    done
    wait
    """)
    assert 1 <= proxy.count(PUT_PACK) <= 15
    assert mount.figure("packs_sent_bytes") >= 20 * 1024


def test_an_answer_that_is_lost_is_no_conflict(mount: BucketMount, proxy: Proxy) -> None:
    proxy.fail("lose the answer", PUT_PACK, times=1)
    proxy.fail("never arrive", PUT_PACK, times=1)
    with (mount.path / "file").open("wb") as file:
        file.write(os.urandom(5000))
        file.flush()
        os.fsync(file.fileno())
    assert mount.figure("packs_sent_bytes") >= 5000


def test_what_arrives_damaged_or_cut_is_asked_for_again(mount: BucketMount, proxy: Proxy) -> None:
    content = os.urandom(3 * MIB)
    (mount.path / "file").write_bytes(content)
    mount.forget_cache()
    for fault in ("damage the body", "cut the body", "shorten the body", "slow down"):
        proxy.fail(fault, GET_PACK, times=1)
    assert (mount.path / "file").read_bytes() == content


def test_a_server_that_keeps_silent_costs_time_and_nothing_else(
    mount: BucketMount, proxy: Proxy
) -> None:
    """Every call ends; what is cached is read; what was written is sent when it answers again."""
    mount.expected_log += ["cannot be used", "can be used again", "takes packs again"]
    mount.expected_log += ["waits in the store's packs", "fsync", "read"]
    content = os.urandom(2 * MIB)
    (mount.path / "far").write_bytes(content)
    mount.forget_cache()
    (mount.path / "near").write_bytes(b"near" * 1000)
    proxy.fail("keep silent")
    with (mount.path / "new").open("wb") as file:
        file.write(b"new" * 1000)
        file.flush()
        with pytest.raises(OSError, match=r"timed out|Input/output error"):
            os.fsync(file.fileno())
    with pytest.raises(OSError, match=r"timed out|Input/output error"):
        (mount.path / "far").read_bytes()
    assert (mount.path / "near").read_bytes() == b"near" * 1000
    proxy.mend()
    wait_until(lambda: mount.figure("backlog_bytes") == 0, "sending")
    wait_until(lambda: _reads(mount.path / "far") == content, "reading")


def _reads(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:
        return None
