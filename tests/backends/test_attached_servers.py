"""Attached buckets of which the server, the network or the keys are not as one would like them."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from time import monotonic
from urllib.parse import urlsplit

import boto3
import pytest

from nexus_engine.backends.urls import open_bucket
from tests.backends.attaching import files, info, keys, objects, refresh, serving
from tests.backends.conftest import BUCKET, make_gcs_bucket, make_s3_bucket
from tests.backends.fake_drive import FakeDrive
from tests.backends.proxy import Proxy
from tests.backends.test_gdrive import DOCUMENT
from tests.conftest import Mount
from tests.mount.waiting import wait_until
from tests.servers import Server

MIB = 1 << 20
GIB = 1 << 30
HUGE_BYTES, PART_BYTES = 5 * GIB, 64 * MIB


def test_keys_that_are_no_paths_are_files_all_the_same(
    fake_gcs: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Source: docs/USAGE.md, the table of keys."""
    for name, value in fake_gcs.environment.items():
        monkeypatch.setenv(name, value)
    make_gcs_bucket()
    url = f"gs://{BUCKET}/{uuid.uuid4().hex}"
    shown = {
        "a": "a (object)",
        "a/b": "a/b",
        "a//b": "a/%2Fb",
        "/lead": "%2Flead",
        "full/": "full%2F",
        "x/../y": "x/%2E%2E/y",
        "x/./y": "x/%2E/y",
        ".nexus/control": "%2Enexus/control",
        "ünï/日本": "ünï/日本",
        "e\u0301": "e\u0301",
        "\u00e9": "\u00e9",
    }
    long = "l" * 300
    with serving(tmp_path) as mount, closing(open_bucket(url)) as bucket:
        for key in [*shown, long]:
            bucket.put(key, f"content of {key}".encode())
        bucket.put("marked/", b"")
        mount.ctl("mounts", "add", "data", url)
        found = files(mount.path / "data")
        (cut,) = [path for path in found if path.startswith("lll")]
        assert len(os.fsencode(cut)) <= 255
        expected = {path: f"content of {key}".encode() for key, path in shown.items()}
        assert found == expected | {cut: f"content of {long}".encode()}
        assert (mount.path / "data/marked").is_dir()
        odd = info(mount)["odd_keys"]
        assert isinstance(odd, list)
        assert {"key": "a//b", "path": "a/%2Fb"} in odd
        mount.sh(
            f"""
            cd data
            echo changed > 'a (object)'; echo changed > a/%2Fb; echo changed > {cut}
            rm 'full%2F' x/%2E/y; mv %2Flead lead; rmdir marked
            """
        )
        refresh(mount)
        after = objects(bucket)
        assert {after[key] for key in ("a", "a//b", long)} == {b"changed\n"}
        assert after["lead"] == b"content of /lead"
        assert not after.keys() & {"full/", "x/./y", "/lead", "marked/"}
        bucket.put("c", b"c")
        bucket.put("lead/below", b"below")
        refresh(mount)
        assert (mount.path / "data/lead (object)").read_bytes() == b"content of /lead"
        assert (mount.path / "data/lead/below").read_bytes() == b"below"
        assert keys(bucket) == sorted([*after, "c", "lead/below"])


@pytest.fixture
def proxy(seaweedfs: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    for name, value in seaweedfs.environment.items():
        monkeypatch.setenv(name, value)
    make_s3_bucket(seaweedfs)
    with Proxy(seaweedfs.endpoint).running() as running:
        yield running


@pytest.fixture
def huge(proxy: Proxy, seaweedfs: Server) -> Iterator[tuple[str, bytes]]:
    """Yield the prefix of an object of 5 GiB, ``huge``, and the part that it is made of."""
    part, prefix = os.urandom(PART_BYTES), uuid.uuid4().hex
    place = {"Bucket": BUCKET, "Key": f"{prefix}/huge"}
    with closing(boto3.client("s3", endpoint_url=seaweedfs.endpoint)) as client:
        client.put_object(Bucket=BUCKET, Key="part", Body=part)
        upload = client.create_multipart_upload(**place)["UploadId"]
        parts = []
        for number in range(1, HUGE_BYTES // PART_BYTES + 1):
            done = client.upload_part_copy(
                **place, UploadId=upload, PartNumber=number,
                CopySource={"Bucket": BUCKET, "Key": "part"},
            )  # fmt: skip
            parts.append({"PartNumber": number, "ETag": done["CopyPartResult"]["ETag"]})
        client.complete_multipart_upload(**place, UploadId=upload, MultipartUpload={"Parts": parts})
        yield prefix, part
        client.delete_object(**place)
        client.delete_object(Bucket=BUCKET, Key="part")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_middle_of_five_gib_at_a_server_is_read_without_all_of_it(
    proxy: Proxy, huge: tuple[str, bytes], tmp_path: Path
) -> None:
    prefix, part = huge
    url = f"s3://{BUCKET}/{prefix}?endpoint={proxy.endpoint}"
    with serving(tmp_path) as mount:
        mount.ctl("mounts", "add", "data", url, "--read-only", "-o", "interval=0")
        assert (mount.path / "data/huge").stat().st_size == HUGE_BYTES
        assert proxy.count("^GET .*/huge") == 0
        with (mount.path / "data/huge").open("rb", buffering=0) as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
            for offset in (HUGE_BYTES // 2 + 12345, HUGE_BYTES - 4096):
                file.seek(offset)
                assert file.read(4096) == part[offset % PART_BYTES :][:4096]
        assert proxy.count("^GET .*/huge") == 2
        assert proxy.bytes_answered("^GET .*/huge") == 2 * 4 * MIB
        print(f"of {HUGE_BYTES:,} bytes {proxy.bytes_answered():,} were fetched, lists included")  # noqa: T201


@pytest.fixture
def url(proxy: Proxy) -> str:
    return f"s3://{BUCKET}/{uuid.uuid4().hex}?endpoint={proxy.endpoint}&deadline_s=4"


@pytest.fixture
def mount(tmp_path: Path, url: str) -> Iterator[Mount]:
    with serving(tmp_path) as mounted:
        yield mounted


def test_a_workspace_over_a_bucket_is_applied_to_it(mount: Mount, url: str) -> None:
    """Source: docs/USAGE.md, "Workspaces"."""
    with closing(open_bucket(url)) as bucket:
        bucket.put("d/one", b"one\n")
        bucket.put("two", b"two\n")
        made = mount.json("workspace", "create", "w", "--over", url)[0]
        assert made["url"] == url
        mount.sh("cd workspaces/w; echo more >> d/one; rm two; echo three > three")
        mount.ctl("workspace", "apply", "w", "d", "three")
        assert objects(bucket) == {"d/one": b"one\nmore\n", "three": b"three\n", "two": b"two\n"}
        bucket.put("two", b"theirs\n")
        assert "conflict   removed    two" in mount.ctl("workspace", "apply", "w", check=False)
        (applied,) = mount.json("log", "--kind", "apply")
        mount.ctl("undo", f"op-{applied['seq']}")
        wait_until(lambda: "three" not in keys(bucket), "the undo is at the server")
        assert objects(bucket) == {"d/one": b"one\n", "two": b"theirs\n"}


def test_reading_on_takes_few_requests_and_the_middle_one(
    mount: Mount, url: str, proxy: Proxy
) -> None:
    big = os.urandom(15 * MIB)
    url = url.replace("deadline_s=4", "deadline_s=30")
    with closing(open_bucket(url)) as bucket:
        bucket.put("big", big)
        bucket.put("other", big[: 3 * MIB])
    mount.ctl("mounts", "add", "data", url, "--read-only", "-o", "interval=0")
    before = proxy.count("^GET .*/big")
    assert (mount.path / "data/big").read_bytes() == big
    assert proxy.count("^GET .*/big") - before <= 8
    before = proxy.count("^GET .*/other")
    with (mount.path / "data/other").open("rb", buffering=0) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
        assert os.pread(file.fileno(), 100, 2 * MIB) == big[2 * MIB :][:100]
        assert os.pread(file.fileno(), 100, 2 * MIB + 5000) == big[2 * MIB + 5000 :][:100]
    assert proxy.count("^GET .*/other") - before == 1


@pytest.mark.slow
def test_a_server_that_keeps_silent_ends_calls_and_loses_nothing(
    mount: Mount, url: str, proxy: Proxy
) -> None:
    with closing(open_bucket(url)) as bucket:
        for name in ("one", "two", "three"):
            bucket.put(name, name.encode())
    mount.ctl("mounts", "add", "data", url, "-o", "interval=0")
    data = mount.path / "data"
    assert (data / "one").read_bytes() == b"one"
    mount.expected_log += ["read(", "trying again", "does not answer"]
    proxy.fail("keep silent")
    begun_s = monotonic()
    for name in ("two", "three"):
        with pytest.raises(OSError, match=r"timed out|Input/output error"):
            (data / name).read_bytes()
    assert monotonic() - begun_s < 12
    assert (data / "one").read_bytes() == b"one"
    (data / "new").write_bytes(b"written meanwhile")
    (data / "one").write_bytes(b"changed meanwhile")
    wait_until(lambda: bool(mount.json("mounts", "list")[0]["trouble"]), "it is told")
    assert info(mount)["waiting"] == 2
    proxy.mend()
    wait_until(lambda: info(mount)["waiting"] == 0, "all is pushed", timeout_s=60)
    with closing(open_bucket(url)) as bucket:
        assert objects(bucket) == files(data)


def test_what_is_cut_damaged_or_lost_on_the_way_is_asked_for_again(
    mount: Mount, url: str, proxy: Proxy
) -> None:
    content = os.urandom(3 * MIB)
    with closing(open_bucket(url)) as bucket:
        bucket.put("big", content)
        mount.ctl("mounts", "add", "data", url, "-o", "interval=0")
        for fault in ("cut the body", "shorten the body", "slow down"):
            proxy.fail(fault, "^GET .*/big", times=1)
        assert (mount.path / "data/big").read_bytes() == content
        proxy.fail("lose the answer", "^PUT .*/new", times=1)
        proxy.fail("lose the answer", "^DELETE .*/big", times=1)
        mount.sh("echo new > data/new; rm data/big")
        refresh(mount)
        assert objects(bucket) == {"new": b"new\n"}
    assert info(mount)["conflicts"] == []


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_ten_thousand_objects_of_a_server_are_attached(
    mount: Mount, url: str, proxy: Proxy, seaweedfs: Server
) -> None:
    client = boto3.client("s3", endpoint_url=seaweedfs.endpoint)
    prefix = urlsplit(url).path.strip("/")

    def put(number: int) -> None:
        key = f"{prefix}/{number % 100}/{number}"
        client.put_object(Bucket=BUCKET, Key=key, Body=b"")

    with ThreadPoolExecutor(8) as threads:
        assert len(list(threads.map(put, range(10_000)))) == 10_000
    client.close()
    before = proxy.count()
    begun_s = monotonic()
    mount.ctl("mounts", "add", "data", url, "--read-only", "-o", "interval=0")
    took_s = monotonic() - begun_s
    asked = proxy.count() - before
    print(f"10,000 objects: {took_s:.1f} s, {asked} requests")  # noqa: T201
    assert sum(len(names) for _, _, names in os.walk(mount.path / "data")) == 10_000
    assert asked <= 15


def test_documents_of_a_drive_are_files_and_its_changes_are_asked_for(
    fake_drive: FakeDrive, tmp_path: Path
) -> None:
    """Google's own documents can be read; a feed says whether a listing would bring anything."""
    document = fake_drive.add("Report", [fake_drive.root], DOCUMENT, b"text")
    fake_drive.add("notes.txt", [fake_drive.root], "text/plain", b"notes\n")
    url = f"gdrive://{fake_drive.root}?endpoint={fake_drive.endpoint}"
    with serving(tmp_path) as mount:
        mount.ctl("mounts", "add", "data", url, "-o", "interval=0")
        report = mount.path / "data/Report.docx"
        content = report.read_bytes()
        assert content.endswith(b"text")
        assert report.stat().st_size == len(content)
        before = len(fake_drive.requests)
        refresh(mount)
        asked = fake_drive.requests[before:]
        assert [each for each in asked if "/changes" in each] == asked
        mount.ctl("snapshot", "create", "before")
        with closing(open_bucket(url)) as bucket:
            bucket.put("notes.txt", b"written by others, and nobody here had read what was there\n")
        assert refresh(mount)["changed"] == 1
        # A Drive keeps revisions: what no other source would have any more.
        past = mount.path / ".nexus/history/before/data/notes.txt"
        assert past.read_bytes() == b"notes\n"
        document.revisions.append(b"new text")
        fake_drive.touch(document)
        assert refresh(mount)["changed"] == 1
        assert report.read_bytes().endswith(b"new text")
        report.write_bytes(b"mine")
        refresh(mount)
        (stuck,) = mount.json("mounts", "info", "data")[0]["unpushed"]
        assert stuck["path"] == "Report.docx"
        assert "only be read" in stuck["reason"]
        assert report.read_bytes() == b"mine"
        mount.expected_log += ["stays here", "is not at"]
