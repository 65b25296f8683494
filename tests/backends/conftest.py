"""Buckets at real servers. Each test has a prefix of its own in them."""

from __future__ import annotations

import contextlib
import enum
import json
import os
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import boto3
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from google.api_core.exceptions import Conflict
from google.cloud import storage

from nexus_engine.backends import s3
from nexus_engine.backends.bucket import Bucket, Capability
from nexus_engine.backends.urls import open_bucket
from tests.backends.fake_drive import ACCOUNT, FakeDrive
from tests.servers import Server

BUCKET = "contract"
LIVE = {
    "aws": "NEXUS_TEST_S3_URL",
    "google": "NEXUS_TEST_GCS_URL",
    "other": "NEXUS_TEST_BUCKET_URL",
}
"""Where these variables hold a URL, the same tests run there: CONTRIBUTING.md."""


class Key(enum.Enum):
    """What a server makes of a key that is no usual path."""

    KEPT = "an object of its own, listed under this key"
    MERGED = "an object, but listed under another key, or one with another's"
    REFUSED = "an error, and nothing stored"
    HALF = "an error, but it is listed all the same"


@dataclass(frozen=True)
class Place:
    """One kind of server, and what is known of it."""

    name: str
    capabilities: Capability
    keys: dict[str, Key]
    """Where they are not kept."""
    one_time: bool = True
    """An object has one time, which a listing and a look at it tell, to the second at least. Else
    one tells when the request came, and the other when the object was there."""


_ORDERED = Capability.ORDERED_LISTING | Capability.COPY
_CONDITIONAL = (
    Capability.CONDITIONAL_PUT | Capability.CONDITIONAL_PARTS | Capability.CONDITIONAL_DELETE
)
_DOTS = dict.fromkeys(("..", "a/../b", "./a", "a/."), Key.REFUSED)
_NO_PATHS = dict.fromkeys(("a//b", "/a", "a/", "long"), Key.REFUSED) | _DOTS
_FOLDERS = {key: kind for key, kind in _NO_PATHS.items() if key != "long"}
_A_TREE = dict.fromkeys(("a//b", "/a", "a/", "a\\b"), Key.MERGED) | {"long": Key.REFUSED} | _DOTS

PLACES = [
    Place("directory", _ORDERED | _CONDITIONAL | Capability.PROGRAMS, _NO_PATHS),
    Place("seaweedfs", Capability.COPY | _CONDITIONAL, _A_TREE),
    Place("rclone", _ORDERED, _NO_PATHS | {"a/": Key.MERGED, "long": Key.HALF}, one_time=False),
    Place("fake-gcs", _ORDERED | Capability.CONDITIONAL_PUT, {}),
    Place("google", _ORDERED | _CONDITIONAL, {}),
    Place("fake-drive", _ORDERED | Capability.VERSIONS | Capability.CHANGE_FEED, _FOLDERS),
    Place("aws", _ORDERED | _CONDITIONAL, {}),
    Place("other", Capability(0), {}),  # what it says that it can do
]
_FIXTURES = {"fake-gcs": "fake_gcs", "rclone": "rclone_s3", "seaweedfs": "seaweedfs"}
REACHABLE = [place for place in PLACES if LIVE.get(place.name, "PATH") in os.environ]


@pytest.fixture
def in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have files go to S3 in parts that are larger than one; they would have to be 96 MiB."""
    monkeypatch.setattr(s3, "WHOLE_BYTES", s3.PART_BYTES)


@pytest.fixture(params=REACHABLE, ids=[place.name for place in REACHABLE])
def place(request: pytest.FixtureRequest) -> Place:
    chosen: Place = request.param
    if chosen.name == "other":
        with contextlib.closing(open_bucket(os.environ[LIVE["other"]])) as bucket:
            return replace(chosen, capabilities=bucket.probe())
    return chosen


@pytest.fixture
def url(
    place: Place, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> str:
    """Return where this test may write."""
    if place.name == "directory":
        (tmp_path / "bucket").mkdir()
        return f"file://{tmp_path}/bucket"
    if place.name in LIVE:
        head, _, query = os.environ[LIVE[place.name]].partition("?")
        return f"{head.rstrip('/')}/{uuid.uuid4().hex}?{query}"
    if place.name == "fake-drive":
        drive: FakeDrive = request.getfixturevalue("fake_drive")
        return f"gdrive://{drive.root}/{uuid.uuid4().hex}?endpoint={drive.endpoint}"
    server: Server = request.getfixturevalue(_FIXTURES[place.name])
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    if place.name == "fake-gcs":
        make_gcs_bucket()
        return f"gs://{BUCKET}/{uuid.uuid4().hex}"
    make_s3_bucket(server)
    return f"s3://{BUCKET}/{uuid.uuid4().hex}?endpoint={server.endpoint}"


@pytest.fixture(scope="session")
def account_key() -> str:
    """Return a private key, such as Google makes for a service account."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    ).decode()


@pytest.fixture
def fake_drive(
    account_key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[FakeDrive]:
    """Yield a Drive that is empty, with an account that google-auth finds."""
    with FakeDrive().running() as drive:
        account = {
            "type": "service_account", "project_id": "tests", "private_key_id": "1",
            "private_key": account_key, "client_email": ACCOUNT,
            "token_uri": f"{drive.endpoint}/token",
            # Not Google's: then the account signs for itself, and nothing is asked for outside.
            "universe_domain": "tests.example",
        }  # fmt: skip
        (tmp_path / "account.json").write_text(json.dumps(account))
        monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "account.json"))
        yield drive


@pytest.fixture
def bucket(url: str, place: Place) -> Iterator[Bucket]:
    opened = open_bucket(url)
    yield opened
    if place.name in LIVE:  # others end with the tests
        for item in opened.iter_objects():
            assert not isinstance(item, str)
            opened.delete(item.key)
    opened.close()


@pytest.fixture
def open_again(url: str) -> Iterator[Callable[[], Bucket]]:
    """Return what opens the same bucket as another client."""
    opened: list[Bucket] = []

    def again() -> Bucket:
        opened.append(open_bucket(url))
        return opened[-1]

    yield again
    for each in opened:
        each.close()


def make_s3_bucket(server: Server) -> None:
    client = boto3.client("s3", endpoint_url=server.endpoint)
    there = (client.exceptions.BucketAlreadyExists, client.exceptions.BucketAlreadyOwnedByYou)
    with contextlib.suppress(*there):
        client.create_bucket(Bucket=BUCKET)
    # The first object of all takes SeaweedFS seconds, also where another worker is waiting for it.
    client.put_object(Bucket=BUCKET, Key="first", Body=b"")
    client.close()


def make_gcs_bucket() -> None:
    client = storage.Client()
    with contextlib.suppress(Conflict):
        client.create_bucket(BUCKET)
    client.close()
