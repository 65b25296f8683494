"""What a mount does about attachments by itself, and what programs see of it.

Source: docs/USAGE.md, "Attached buckets and folders".
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from tests.conftest import Mount
from tests.mount.waiting import wait_until

GIB = 1 << 30


@pytest.fixture
def source(tmp_path: Path) -> Path:
    directory = tmp_path / "source"
    (directory / "sub").mkdir(parents=True)
    (directory / "file").write_text("old\n")
    (directory / "sub/other").write_text("other\n")
    return directory


def attach(mount: Mount, source: Path, *options: str) -> Path:
    mount.ctl("mounts", "add", "data", f"file://{source}", *options)
    return mount.path / "data"


def test_changes_go_to_the_source_and_come_from_it_by_themselves(
    mount: Mount, source: Path
) -> None:
    data = attach(mount, source, "-o", "interval=1s")
    mount.sh("echo new > data/file; mv data/sub data/moved")
    wait_until(lambda: (source / "moved/other").exists(), "the rename is at the source")
    wait_until(lambda: not (source / "sub/other").exists(), "the old name is gone")
    assert (source / "file").read_text() == "new\n"
    (source / "file").write_text("theirs\n")
    (source / "more").write_text("more\n")
    wait_until(lambda: (data / "more").exists(), "what others made is found")
    assert (data / "file").read_text() == "theirs\n"
    (who,) = {each["actor"]["agent"] for each in mount.json("log", "--path", "data/more")}
    assert who == "external"


def test_a_file_that_is_open_shows_what_others_wrote(mount: Mount, source: Path) -> None:
    data = attach(mount, source)
    with (data / "file").open() as file:
        assert file.read() == "old\n"
        (source / "file").write_text("theirs, and longer\n")
        mount.ctl("mounts", "refresh", "data")
        file.seek(0)
        assert file.read() == "theirs, and longer\n"


def test_who_writes_to_a_file_that_becomes_a_conflict_goes_on_in_his_own(
    mount: Mount, source: Path
) -> None:
    data = attach(mount, source, "-o", "interval=0")
    with (data / "file").open("a") as file:
        file.write("ours\n")
        file.flush()
        (source / "file").write_text("theirs\n")
        mount.ctl("mounts", "refresh", "data")
        file.write("more of ours\n")
    (aside,) = data.glob("file.conflict-*")
    assert aside.read_text() == "old\nours\nmore of ours\n"
    assert (data / "file").read_text() == "theirs\n"
    assert "conflict" in mount.ctl("log", "--path", "data")


def test_an_unmount_waits_until_changes_are_at_the_source(mount: Mount, source: Path) -> None:
    attach(mount, source, "-o", "interval=0")
    mount.sh("echo last > data/last")
    mount.umount()
    assert (source / "last").read_text() == "last\n"
    mount.mount()
    assert (mount.path / "data/last").read_text() == "last\n"


def test_what_could_not_be_pushed_is_by_the_next_mount(mount: Mount, source: Path) -> None:
    attach(mount, source, "-o", "interval=0")
    away = source.rename(source.with_name("away"))
    mount.sh("echo last > data/last")
    mount.umount()
    assert "1 change is not at" in mount.log.read_text()
    away.rename(source)
    mount.mount()
    wait_until(lambda: (source / "last").exists(), "the next mount brings it there")
    mount.expected_log += ["is there no", "is its disk mounted", "is not at", "cannot use"]


@pytest.mark.slow
def test_a_source_that_is_empty_all_of_a_sudden_is_not_believed(mount: Mount, source: Path) -> None:
    data = attach(mount, source, "-o", "interval=1s")
    mount.umount()
    away = source.rename(source.with_name("away"))
    source.mkdir()
    mount.mount()
    wait_until(lambda: "is empty" in mount.ctl("mounts", "info", "data"), "it is told")
    assert sorted(os.listdir(data)) == ["file", "sub"]
    source.rmdir()
    away.rename(source)
    mount.remount()
    mount.ctl("mounts", "refresh", "data")
    assert (data / "sub/other").read_text() == "other\n"
    for path in (source / "file", source / "sub/other"):
        path.unlink()
    mount.ctl("mounts", "refresh", "data")
    assert os.listdir(data) == []
    mount.expected_log += ["is empty", "is its disk mounted"]


def test_a_source_that_is_gone_fails_what_needs_it_and_nothing_else(
    mount: Mount, source: Path
) -> None:
    data = attach(mount, source, "-o", "interval=0")
    assert (data / "file").read_text() == "old\n"
    away = source.rename(source.with_name("away"))
    assert (data / "file").read_text() == "old\n"
    with pytest.raises(OSError, match="Input/output error"):
        (data / "sub/other").read_text()
    mount.sh("echo works > elsewhere; echo works > data/new; ls -lR data; cat data/new")
    assert mount.ctl("mounts", "list").count("/data") >= 1
    away.rename(source)
    assert (data / "sub/other").read_text() == "other\n"
    mount.ctl("mounts", "refresh", "data")
    assert (source / "new").read_text() == "works\n"
    mount.expected_log += ["read(", "cannot use", "is its disk mounted"]


def test_the_directory_of_an_attachment_is_busy(mount: Mount, source: Path) -> None:
    data = attach(mount, source)
    mount.sh("rm -r data/file data/sub")
    with pytest.raises(OSError, match="busy") as raised:
        data.rmdir()
    assert raised.value.errno == errno.EBUSY


def test_the_middle_of_a_large_object_is_read_without_all_of_it(mount: Mount, source: Path) -> None:
    with (source / "huge").open("wb") as file:
        file.truncate(5 * GIB)
        file.seek(5 * GIB // 2)
        file.write(b"in the middle")
    data = attach(mount, source)
    assert (data / "huge").stat().st_size == 5 * GIB
    with (data / "huge").open("rb", buffering=0) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
        file.seek(5 * GIB // 2)
        assert file.read(13) == b"in the middle"
    (info,) = mount.json("mounts", "info", "data")
    assert 0 < info["fetched_bytes"] <= 8 << 20
    mount.ctl("mounts", "remove", "data")


def test_ten_thousand_objects_are_listed(mount: Mount, source: Path) -> None:
    for number in range(10_000):
        directory = source / f"{number % 10}"
        directory.mkdir(exist_ok=True)
        (directory / f"{number}").touch()
    data = attach(mount, source)
    assert sum(len(files) for _, _, files in os.walk(data)) == 10_002
    mount.ctl("mounts", "remove", "data")
