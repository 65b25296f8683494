"""What only buckets that speak S3 do."""

from __future__ import annotations

import uuid

import boto3
import pytest

from nexus_engine.backends.retrying import Retrying
from nexus_engine.backends.s3 import S3Bucket
from tests.backends.conftest import BUCKET, make_s3_bucket
from tests.servers import Server

PIECE = 5 << 20  # the least that a part may have, but for the last
CONTENT = bytes(range(256)) * (PIECE // 256 * 2 + 100)


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
