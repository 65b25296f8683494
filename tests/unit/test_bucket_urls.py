"""URLs of buckets: what they may say, and what is said of those that say something else."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from nexus_engine.backends.urls import BucketUrl, open_bucket, parse
from nexus_engine.errors import EngineError, InvalidArgument, NotSupported, StoreInaccessible


def test_options_come_from_the_query_and_from_beside_the_url() -> None:
    """These win; and who reads the URL again reads the same."""
    url = parse("s3://b/p/q?region=here&path_style=yes&endpoint=http://h:1", {"region": "there"})
    assert (url.host, url.prefix) == ("b", "p/q/")
    assert (url.text("region"), url.flag("path_style"), url.text("endpoint")) == (
        "there",
        True,
        "http://h:1",
    )
    url.finish()
    assert str(url) == "s3://b/p/q?region=there&path_style=yes&endpoint=http://h:1"


@pytest.mark.parametrize(
    ("text", "prefix"),
    [
        ("s3://b", ""),
        ("s3://b/", ""),
        ("s3://b/a", "a/"),
        ("s3://b/a/", "a/"),
        ("s3://b/a%23b%20c", "a#b c/"),
        ("s3://b//a", "/a/"),
    ],
)
def test_a_path_is_what_keys_begin_with(text: str, prefix: str) -> None:
    assert parse(text, {}).prefix == prefix


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("bucket/prefix", "no URL"),
        ("s3:bucket", "no URL"),
        ("s3:///prefix", "names a bucket"),
        ("gs://", "names a bucket"),
        ("file://host/dir", "three slashes"),
        ("s3://b/a#b", "%23"),
        ("s3://b?regoin=x", "no option regoin"),
        ("gs://b?region=x", "no option region"),
        ("file:///tmp?endpoint=x", "no option endpoint"),
        ("s3://b?path_style=perhaps", "true or false"),
        ("s3://b?deadline_s=soon", "such as 60"),
        ("s3://b?deadline_s=-1", "such as 60"),
        ("s3://b?endpoint=nowhere", "such as http"),
        ("gs://b?endpoint=nas:9000", "such as http"),
    ],
)
def test_a_url_that_is_wrong_is_said_to_be(text: str, said: str) -> None:
    with pytest.raises(InvalidArgument, match=said):
        open_bucket(text)


@pytest.mark.parametrize(
    "url",
    [
        "s3://key:hunter2@bucket/prefix",
        "s3://bucket/prefix?endpoint=http://key:hunter2@nas:9000",
        "s3://bucket/prefix?secret_access_key=hunter2",
        "s3:bucket/prefix?secret_access_key=hunter2",
        "s3://bucket/prefix?secret_access_key=hunter2#there",
    ],
)
def test_a_password_in_a_url_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(InvalidArgument) as error:
        open_bucket(url)
    assert "hunter2" not in str(error.value)


def test_a_scheme_that_nobody_knows_is_said_with_those_that_are_known() -> None:
    with pytest.raises(NotSupported, match=r"ftp://.*file://.*gs://.*s3://"):
        open_bucket("ftp://host/dir")


@pytest.mark.parametrize(
    ("scheme", "package", "extra"),
    [("s3", "boto3", "nexusfs[s3]"), ("gs", "google_crc32c", "nexusfs[gcs]")],
)
def test_an_sdk_that_is_not_installed_is_said_with_what_to_install(
    monkeypatch: pytest.MonkeyPatch, scheme: str, package: str, extra: str
) -> None:
    module = {"s3": "s3", "gs": "gcs"}[scheme]
    monkeypatch.delitem(sys.modules, f"nexus_engine.backends.{module}", raising=False)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(NotSupported, match="pip install") as error:
        open_bucket(f"{scheme}://bucket")
    assert extra in str(error.value)


def test_a_directory_that_is_not_there_is_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(StoreInaccessible, match="make it"):
        open_bucket(f"file://{tmp_path}/missing")


def test_no_google_credentials_are_said_with_where_they_could_be(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("STORAGE_EMULATOR_HOST", raising=False)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "none.json"))
    with pytest.raises(StoreInaccessible, match="gcloud auth"):
        open_bucket("gs://bucket")


def test_an_aws_profile_that_is_not_there_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
    with pytest.raises(StoreInaccessible, match="someone"):
        open_bucket("s3://bucket?profile=someone")


def test_an_opener_that_leaves_an_option_has_not_read_it() -> None:
    url = BucketUrl("s3", "b", "", {"what": "ever"})
    with pytest.raises(EngineError, match="what"):
        url.finish()
