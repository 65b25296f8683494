"""nexus-ctl store migrate: what a user sees, with directories for buckets."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import CTL, TIMEOUT_S, Mount
from tests.mount.buckets import BucketMount
from tests.mount.waiting import wait_until

MIB = 1 << 20


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[BucketMount]:
    """Yield a fresh mount; afterwards it must stop cleanly, silently and sound."""
    (tmp_path / "other").mkdir()
    mounted = BucketMount(tmp_path)
    try:
        yield mounted
        assert mounted.check() == []
        mounted.umount()
        assert mounted.unexpected_log_lines() == []
        mounted.ctl("--store", str(mounted.store), "fsck", "--deep")
    finally:
        mounted.detach()


def migrate(mount: Mount, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*CTL, "--store", mount.store, "store", "migrate", *words],
        capture_output=True, text=True, timeout=TIMEOUT_S, check=False,
    )  # fmt: skip


def write(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def packs(directory: Path) -> set[str]:
    return {path.name for path in (directory / "packs").glob("*.pack")}


def test_the_old_place_is_kept_until_its_deletion_is_asked_for(
    mount: BucketMount, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    write(mount.path / "before", b"before" * 1000)
    kept = packs(mount.bucket)
    moved = migrate(mount, str(other))
    assert f"live in file://{other}" in moved.stdout
    assert f"What was in file://{mount.bucket} is kept" in moved.stdout
    write(mount.path / "after", b"after" * 1000)
    assert packs(mount.bucket) == kept
    assert len(packs(other)) == 2
    assert mount.status()["packs_kept_in"] == f"file://{mount.bucket}"
    assert migrate(mount, "--delete-old").returncode == 0
    assert packs(mount.bucket) == set()
    assert "packs_kept_in" not in mount.status()
    mount.forget_cache()
    assert (mount.path / "before").read_bytes() == b"before" * 1000


def test_the_place_that_is_kept_is_a_store_of_that_moment(
    mount: BucketMount, tmp_path: Path
) -> None:
    write(mount.path / "file", b"before" * 1000)
    mount.remount()
    assert migrate(mount, str(tmp_path / "other")).returncode == 0
    write(mount.path / "file", b"after" * 1000)
    restored = tmp_path / "restored"
    mount.ctl("restore-store", f"file://{mount.bucket}", str(restored))
    shown = mount.ctl("--store", str(restored), "cat", "/file@now")
    assert shown == "before" * 1000


def test_packs_can_go_back_to_where_they_were_kept(mount: BucketMount, tmp_path: Path) -> None:
    write(mount.path / "gone", b"gone" * 1000)
    write(mount.path / "file", b"content" * 1000)
    assert migrate(mount, str(tmp_path / "other")).returncode == 0
    (mount.path / "gone").unlink()
    mount.ctl("purge", "--yes", "gone")
    left = packs(tmp_path / "other")
    assert len(packs(mount.bucket) - left) >= 1
    assert migrate(mount, str(mount.bucket), "--delete-old").returncode == 0
    assert packs(mount.bucket) == left
    assert (mount.path / "file").read_bytes() == b"content" * 1000


def test_a_move_is_one_at_a_time_and_can_be_given_up(mount: BucketMount, tmp_path: Path) -> None:
    """The bucket that is moved from goes away in the middle."""
    other = tmp_path / "other"
    mount.expected_log += ["cannot be used", "can be used again"]
    write(mount.path / "file", b"content" * 1000)
    mark = mount.bucket / "nexus-store.json"
    mark.rename(mark.with_name("away"))
    failed = migrate(mount, str(other))
    assert failed.returncode != 0
    assert "not the place of this store's packs" in failed.stderr
    mark.with_name("away").rename(mark)
    assert mount.status()["packs_move_to"] == f"file://{other}"
    refused = migrate(mount, "local")
    assert refused.returncode == 2
    assert f"being moved to file://{other}" in refused.stderr
    assert migrate(mount, "--cancel").returncode == 0
    assert "packs_move_to" not in mount.status()
    assert {path.name for path in other.iterdir()} <= {".nexus-bucket"}
    assert "no move is under way" in migrate(mount, "--cancel").stderr


def test_nothing_is_switched_while_a_pack_is_missing(mount: BucketMount, tmp_path: Path) -> None:
    write(mount.path / "file", b"content" * 1000)
    (pack,) = (mount.bucket / "packs").glob("*.pack")
    pack.rename(tmp_path / pack.name)
    refused = migrate(mount, str(tmp_path / "other"))
    assert refused.returncode == 4
    assert "does not have all packs" in refused.stderr
    assert mount.status()["packs_url"] == f"file://{mount.bucket}"
    (tmp_path / pack.name).rename(pack)
    assert migrate(mount).returncode == 0
    assert mount.status()["packs_url"] == f"file://{tmp_path}/other"


@pytest.mark.parametrize("where", ["bucket/below", "bucket", "mount/inside"])
def test_places_that_will_not_do_are_refused(
    mount: BucketMount, tmp_path: Path, where: str
) -> None:
    (tmp_path / where).mkdir(exist_ok=True)
    done = migrate(mount, str(tmp_path / where))
    assert (done.returncode, where == "bucket") in ((1, False), (2, False), (0, True))
    assert "packs_move_to" not in mount.status()
    assert mount.status()["packs_url"] == f"file://{mount.bucket}"


def test_every_mount_of_a_store_goes_along(mount: BucketMount, tmp_path: Path) -> None:
    second = tmp_path / "second"
    second.mkdir()
    mount.ctl("--store", str(mount.store), "mount", "--no-restart", str(second))
    write(second / "file", b"content" * 1000)
    try:
        assert migrate(mount, str(tmp_path / "other"), "--delete-old").returncode == 0
        for path in (mount.path, second):
            assert (path / "file").read_bytes() == b"content" * 1000
            before = packs(tmp_path / "other")
            write(path / f"by-{path.name}", b"new" * 1000)
            wait_until(lambda: len(packs(tmp_path / "other")) > len(before), "sending")  # noqa: B023
    finally:
        subprocess.run([*CTL, "umount", second], check=True, timeout=TIMEOUT_S)
    assert packs(mount.bucket) == set()


def test_packs_come_home_and_leave_again(mount: BucketMount, tmp_path: Path) -> None:
    write(mount.path / "file", os.urandom(MIB))
    content = (mount.path / "file").read_bytes()
    assert migrate(mount, "local").returncode == 0
    assert len(packs(mount.store)) >= 1
    assert not list((mount.store / "cache").iterdir())
    mount.remount()
    assert migrate(mount, str(tmp_path / "other")).returncode == 0
    assert list((mount.store / "packs.before").glob("*.pack"))
    assert migrate(mount, "--delete-old").returncode == 0
    assert not (mount.store / "packs.before").exists()
    assert (mount.path / "file").read_bytes() == content
    mount.forget_cache()
    assert (mount.path / "file").read_bytes() == content
