"""Stores whose packs live at real servers, mounted."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from nexus_engine.backends.bucket import Bucket
from tests.backends.conftest import Place
from tests.mount.buckets import BucketMount
from tests.mount.main_job import FILES_MIN, GIT, do_the_main_job, fingerprint, make_source

MIB = 1 << 20


@pytest.fixture
def mount(tmp_path: Path, url: str, place: Place) -> Iterator[BucketMount]:
    """Yield a fresh mount; afterwards it must stop cleanly, silently and sound."""
    (tmp_path / "mounted").mkdir()
    mounted = BucketMount(tmp_path / "mounted", url)
    if place.name in ("rclone", "fake-drive"):
        mounted.expected_log += ["does not know conditional writes"]
    try:
        yield mounted
        if os.path.ismount(mounted.path):
            assert mounted.check() == []
            mounted.umount()
        assert mounted.unexpected_log_lines() == []
        mounted.ctl("--store", str(mounted.store), "fsck", "--deep")
    finally:
        mounted.detach()


def packs(bucket: Bucket) -> list[str]:
    found = bucket.iter_objects("packs/")
    return [item.key for item in found if not isinstance(item, str)]


def test_a_mount_with_packs_at_a_server(mount: BucketMount, bucket: Bucket) -> None:
    big = os.urandom(3 * MIB + 17)
    (mount.path / "big").write_bytes(big)
    for number in range(100):
        (mount.path / f"small-{number}").write_text(f"{number}\n")
    with (mount.path / "promise").open("wb") as file:
        file.write(b"kept")
        file.flush()
        os.fsync(file.fileno())
        assert len(packs(bucket)) == 1
    mount.forget_cache()
    assert (mount.path / "big").read_bytes() == big
    assert (mount.path / "promise").read_bytes() == b"kept"
    for number in range(100):
        assert (mount.path / f"small-{number}").read_text() == f"{number}\n"


@pytest.mark.timeout(300)
@pytest.mark.parametrize("files", [400, pytest.param(FILES_MIN, marks=pytest.mark.slow)])
def test_the_main_job_at_a_server(
    mount: BucketMount, bucket: Bucket, url: str, place: Place, tmp_path: Path, files: int
) -> None:
    """And then another machine has all of it: the tree, its past, and undo."""
    if place.name in ("directory", "rclone", "fake-drive"):
        pytest.skip("once is enough")
    if place.name == "fake-gcs" and files < FILES_MIN:
        pytest.skip("with --slow")
    make_source(tmp_path / "source.tar", files)
    do_the_main_job(mount, tmp_path / "source.tar", mount.forget_cache, files)
    assert 1 <= len(packs(bucket)) < 50
    here, head = fingerprint(mount.path / "source"), mount.status()["head"]
    mount.umount()
    mount.store = tmp_path / "elsewhere"
    mount.log = mount.store / "daemon.log"
    assert "and checked it" in mount.ctl("restore-store", url, str(mount.store))
    assert not any((mount.store / "packs").iterdir())
    mount.mount()
    assert mount.status()["head"] == head
    assert fingerprint(mount.path / "source") == here
    mount.sh(f"cd source && {GIT} fsck --no-progress")
    mount.sh("rm -rf source", agent="careless")
    mount.ctl("undo", "--agent", "careless")
    assert fingerprint(mount.path / "source") == here
