"""What is Drive's own: names that are not unique, documents, the trash, changes, failures."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from nexus_engine.backends.bucket import Bucket, ObjectInfo
from nexus_engine.backends.gdrive import DriveBucket
from nexus_engine.backends.urls import open_bucket
from nexus_engine.errors import (
    NotSupported,
    ObjectChanged,
    ObjectNotFound,
    ObjectStoreFailed,
    StoreInaccessible,
)
from tests.backends.fake_drive import FOLDER, FakeDrive, Item
from tests.backends.proxy import Fault, Proxy

PLAIN = "text/plain"
DOCUMENT = "application/vnd.google-apps.document"
FORM = "application/vnd.google-apps.form"
CONTENT = bytes(range(256)) * 40


@pytest.fixture
def bucket(fake_drive: FakeDrive) -> Iterator[DriveBucket]:
    opened = open_bucket(f"gdrive://{fake_drive.root}?endpoint={fake_drive.endpoint}")
    assert isinstance(opened, DriveBucket)
    yield opened
    opened.close()


def test_files_of_one_name_are_all_there(bucket: Bucket, fake_drive: FakeDrive) -> None:
    """The oldest has the name, the others their id in it; each is read and written by its own."""
    first = _add(fake_drive, "a.txt", b"first")
    second = _add(fake_drive, "a.txt", b"second")
    twin = f"a [{second.id}].txt"
    assert _keys(bucket) == [twin, "a.txt"]
    assert bucket.read("a.txt", 0, 10) == b"first"
    assert bucket.read(twin, 0, 10) == b"second"
    bucket.put(twin, b"third")
    assert (first.revisions[-1], second.revisions[-1]) == (b"first", b"third")
    bucket.delete("a.txt")
    assert _keys(bucket) == ["a.txt"]
    assert bucket.read("a.txt", 0, 10) == b"third"


def test_a_slash_in_a_name_is_no_folder(bucket: Bucket, fake_drive: FakeDrive) -> None:
    _add(fake_drive, "this/that", b"1")
    assert _keys(bucket) == ["this／that"]  # noqa: RUF001
    assert bucket.read("this／that", 0, 1) == b"1"  # noqa: RUF001
    with pytest.raises(ObjectNotFound):
        bucket.stat("this/that")


def test_a_quote_in_a_name_ends_no_query(bucket: Bucket, fake_drive: FakeDrive) -> None:
    """Nor does a backslash."""
    for name in ("it's", "a\\", "' or name != '"):
        _add(fake_drive, name, name.encode())
        assert bucket.read(name, 0, 100) == name.encode()
    with pytest.raises(ObjectNotFound):
        bucket.stat("x' or name = 'it's")


def test_documents_are_exported_files(bucket: Bucket, fake_drive: FakeDrive) -> None:
    """They can be read, and their size is known then; forms are nothing that a file could hold."""
    document = fake_drive.add("Report", [fake_drive.root], DOCUMENT, b"text")
    fake_drive.add("Survey", [fake_drive.root], FORM)
    (listed,) = bucket.iter_objects()
    assert isinstance(listed, ObjectInfo)
    assert (listed.key, listed.size) == ("Report.docx", -1)
    content = bytes(bucket.read("Report.docx", 0, 1000))
    assert content.endswith(b"wordprocessingml.document: text")
    found = bucket.stat("Report.docx")
    assert (found.size, found.etag) == (len(content), listed.etag)
    assert bucket.read("Report.docx", 5, 10, etag=found.etag) == content[5:15]

    document.revisions.append(b"new text")
    fake_drive.touch(document)
    assert bytes(bucket.read("Report.docx", 0, 1000)).endswith(b"new text")
    with pytest.raises(ObjectChanged):
        bucket.read("Report.docx", 0, 10, etag=found.etag)
    with pytest.raises(NotSupported, match="only be read"):
        bucket.put("Report.docx", b"mine")
    assert bucket.copy("Report.docx", "Copy.docx").key == "Copy.docx"


def test_what_is_deleted_is_in_the_trash(bucket: Bucket, fake_drive: FakeDrive) -> None:
    """Drive keeps it for 30 days."""
    item = _add(fake_drive, "a", b"1")
    bucket.delete("a")
    assert item.trashed
    assert _keys(bucket) == []


def test_folders_are_made_once(bucket: Bucket, fake_drive: FakeDrive) -> None:
    """And found again by another client."""
    bucket.put("a/b/c", b"1")
    bucket.put("a/b/d", b"2")
    again = open_bucket(f"gdrive://{fake_drive.root}/a?endpoint={fake_drive.endpoint}")
    again.put("b/e", b"3")
    again.close()
    folders = [item.name for item in fake_drive.items.values() if item.mime_type == FOLDER]
    assert folders == ["My Drive", "a", "b"]
    assert _keys(bucket) == ["a/b/c", "a/b/d", "a/b/e"]


def test_changes_are_noticed(bucket: DriveBucket, fake_drive: FakeDrive) -> None:
    """Over several pages of them."""
    position = bucket.changes_end()
    assert bucket.changed_since(position) == (False, position)
    for number in range(20):
        _add(fake_drive, f"{number}", b"")
    changed, following = bucket.changed_since(position)
    assert changed
    assert bucket.changed_since(following) == (False, following)


def test_a_folder_that_is_not_there_is_no_empty_one(fake_drive: FakeDrive) -> None:
    bucket = open_bucket(f"gdrive://no-such-folder?endpoint={fake_drive.endpoint}")
    calls: list[Callable[[], object]] = [
        lambda: list(bucket.iter_objects()), lambda: bucket.stat("a"), lambda: bucket.probe(),
        lambda: bucket.put("a", b""),
    ]  # fmt: skip
    for call in calls:
        with pytest.raises(StoreInaccessible, match="share it"):
            call()
    bucket.close()


@pytest.mark.parametrize(
    "fault",
    [
        "lose the answer",
        pytest.param("never arrive", marks=pytest.mark.slow),
        pytest.param("slow down", marks=pytest.mark.slow),
    ],
)
def test_a_put_makes_one_file_whichever_request_fails(fake_drive: FakeDrive, fault: Fault) -> None:
    """An answer that is lost makes no second file, and no second folder."""
    for number in range(20):
        with Proxy(fake_drive.endpoint).running() as proxy:
            url = f"gdrive://{fake_drive.root}?endpoint={proxy.endpoint}&deadline_s=4"
            bucket = open_bucket(url)
            proxy.fail(fault, skip=number, times=1)
            bucket.put(f"{number}/a", CONTENT)
            assert bucket.read(f"{number}/a", 0, 1 << 20) == CONTENT
            bucket.close()
            if number >= len(proxy.requests):
                break
    assert number >= 6
    names = [item.name for item in fake_drive.items.values()]
    assert sorted(names) == sorted(
        ["My Drive", *["a"] * (number + 1), *map(str, range(number + 1))]
    )


def test_damage_on_the_way_is_noticed(fake_drive: FakeDrive) -> None:
    """Drive tells the MD5 of a file, and takes none."""
    with Proxy(fake_drive.endpoint).running() as proxy:
        bucket = open_bucket(f"gdrive://{fake_drive.root}?endpoint={proxy.endpoint}")
        proxy.fail("damage the request", "^PUT ", times=1)
        with pytest.raises(ObjectStoreFailed, match="store it again"):
            bucket.put("a", CONTENT)
        bucket.put("a", CONTENT)
        proxy.fail("damage the body", "alt=media", times=1)
        assert bucket.read("a", 0, 1 << 20) == CONTENT
        assert proxy.count("alt=media") == 2
        bucket.close()


def _add(drive: FakeDrive, name: str, content: bytes) -> Item:
    return drive.add(name, [drive.root], PLAIN, content)


def _keys(bucket: Bucket) -> list[str]:
    return [item if isinstance(item, str) else item.key for item in bucket.iter_objects()]
