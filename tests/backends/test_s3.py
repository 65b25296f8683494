"""What only buckets that speak S3 do."""

from __future__ import annotations

import os
import uuid
from pathlib import Path

import boto3
import pytest

from nexus_engine.backends.retrying import Retrying
from nexus_engine.backends.s3 import S3Bucket
from nexus_engine.backends.urls import open_bucket
from tests.backends.conftest import BUCKET, make_s3_bucket
from tests.backends.proxy import Fault, Proxy
from tests.servers import Server

PIECE = 5 << 20  # the least that a part may have, but for the last
CONTENT = bytes(range(256)) * (PIECE // 256 * 2 + 100)


@pytest.mark.parametrize(
    ("fault", "requests"),
    [(None, 1), ("slow down", 2), ("lose the answer", 2), ("never arrive", 7)],
)
def test_a_pack_is_one_request_and_goes_in_parts_after_a_cut(
    seaweedfs: Server,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    fault: Fault | None,
    requests: int,
) -> None:
    """What was there when the answer was lost is not sent again."""
    for name, value in seaweedfs.environment.items():
        monkeypatch.setenv(name, value)
    make_s3_bucket(seaweedfs)
    content = os.urandom(20 << 20)
    (tmp_path / "pack").write_bytes(content)
    with Proxy(seaweedfs.endpoint).running() as proxy:
        bucket = open_bucket(f"s3://{BUCKET}/{uuid.uuid4().hex}?endpoint={proxy.endpoint}")
        if fault is not None:
            proxy.fail(fault, "^PUT", times=1)
        bucket.put("pack", tmp_path / "pack", if_absent=True)
        assert len([r for r in proxy.requests if not r.startswith("GET")]) == requests
        assert bucket.read("pack", 0, 1 << 30) == content
        bucket.close()


def test_the_signature_of_a_content_covers_its_md5(
    seaweedfs: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without TLS boto3 would hash all of it once more."""
    for name, value in seaweedfs.environment.items():
        monkeypatch.setenv(name, value)
    make_s3_bucket(seaweedfs)
    with Proxy(seaweedfs.endpoint).running() as proxy:
        bucket = open_bucket(f"s3://{BUCKET}/{uuid.uuid4().hex}?endpoint={proxy.endpoint}")
        bucket.put("key", b"content")
        bucket.close()
    assert proxy.headers["X-Amz-Content-SHA256"] == "UNSIGNED-PAYLOAD"
    assert "content-md5" in proxy.headers["Authorization"]


def test_a_very_large_object_is_copied_in_parts(
    seaweedfs: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """5 GiB are the most for one request; here, 5 MiB."""
    for name, value in seaweedfs.environment.items():
        monkeypatch.setenv(name, value)
    make_s3_bucket(seaweedfs)
    client = boto3.client("s3", endpoint_url=seaweedfs.endpoint)
    bucket = S3Bucket(
        client, BUCKET, f"{uuid.uuid4().hex}/", url="s3://tests", retrying=Retrying(20),
        copy_bytes=PIECE,
    )  # fmt: skip
    bucket.put("a", CONTENT)
    assert bucket.copy("a", "b").size == len(CONTENT)
    assert bucket.read("b", 0, 1 << 30) == CONTENT
    bucket.close()
