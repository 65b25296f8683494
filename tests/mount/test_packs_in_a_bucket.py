"""A store whose packs live in a bucket: a directory here, a server elsewhere."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import CTL, TIMEOUT_S
from tests.mount.buckets import BucketMount
from tests.mount.waiting import wait_until

MIB = 1 << 20


@pytest.fixture
def settings() -> dict[str, Any]:
    """Return the store's settings; a test overrides them by parametrising."""
    return {}


@pytest.fixture
def mount(tmp_path: Path, settings: dict[str, Any]) -> Iterator[BucketMount]:
    """Yield a fresh mount; afterwards it must stop cleanly, silently and sound."""
    mounted = BucketMount(tmp_path, **settings)
    try:
        yield mounted
        if os.path.ismount(mounted.path):
            assert mounted.check() == []
            mounted.umount()
        assert mounted.unexpected_log_lines() == []
        assert mounted.unsent() == {}
        mounted.ctl("--store", str(mounted.store), "fsck", "--deep")
    finally:
        mounted.detach()


def test_a_store_is_read_back_with_an_empty_cache(mount: BucketMount) -> None:
    big = os.urandom(3 * MIB + 17)
    (mount.path / "big").write_bytes(big)
    for number in range(100):
        (mount.path / f"small-{number}").write_text(f"{number}\n")
    mount.forget_cache()
    assert (mount.path / "big").read_bytes() == big
    for number in range(100):
        assert (mount.path / f"small-{number}").read_text() == f"{number}\n"
    assert mount.figure("cache_bytes") >= 3 * MIB


def test_a_thousand_small_files_are_one_object(mount: BucketMount) -> None:
    for number in range(1000):
        (mount.path / str(number)).write_text(f"{number}\n")
    mount.umount()
    assert len(mount.sent()) == 1


def test_what_was_fsynced_is_in_the_bucket(mount: BucketMount) -> None:
    with (mount.path / "promise").open("wb") as file:
        file.write(b"kept" * 1000)
        file.flush()
        assert mount.sent() == {}
        os.fsync(file.fileno())
        assert len(mount.sent()) == 1
        assert mount.unsent() == {}


@pytest.mark.parametrize("settings", [{"durability": "local"}])
def test_with_local_durability_fsync_waits_for_this_disk_alone(mount: BucketMount) -> None:
    with (mount.path / "promise").open("wb") as file:
        file.write(b"kept" * 1000)
        file.flush()
        os.fsync(file.fileno())
        assert mount.sent() == {}
        assert len(mount.unsent()) == 1


@pytest.mark.parametrize("settings", [{"upload_interval_s": 0.5}])
def test_what_was_not_fsynced_gets_to_the_bucket_by_itself(mount: BucketMount) -> None:
    (mount.path / "file").write_bytes(b"later" * 1000)
    wait_until(lambda: len(mount.sent()) == 1 and mount.unsent() == {}, "sending")


@pytest.mark.parametrize("settings", [{"durability": "local"}])
def test_what_a_killed_daemon_had_not_sent_the_next_one_sends(mount: BucketMount) -> None:
    """close(2) was told that the bytes survive the death of the daemon."""
    big = os.urandom(2 * MIB)
    (mount.path / "big").write_bytes(big)
    descriptor = os.open(mount.path / "open", os.O_WRONLY | os.O_CREAT)
    os.write(descriptor, b"flushed")
    os.fsync(descriptor)
    mount.kill()
    with suppress(OSError):
        os.close(descriptor)
    assert mount.sent() == {}
    mount.expected_log += ["took over from process"]
    mount.mount()
    assert (mount.path / "big").read_bytes() == big
    assert (mount.path / "open").read_bytes() == b"flushed"
    wait_until(lambda: len(mount.sent()) == 1, "sending")
    mount.forget_cache()
    assert (mount.path / "big").read_bytes() == big


@pytest.mark.parametrize("settings", [{"cache_mib": 4}])
def test_the_cache_stays_within_its_limit(mount: BucketMount) -> None:
    contents = [os.urandom(3 * MIB) for _ in range(4)]
    for number, content in enumerate(contents):
        (mount.path / str(number)).write_bytes(content)
    mount.forget_cache()
    for _ in range(2):
        for number, content in enumerate(contents):
            assert (mount.path / str(number)).read_bytes() == content
            assert mount.figure("cache_bytes") <= 4 * MIB
    assert sum(p.stat().st_size for p in (mount.store / "cache").iterdir()) <= 4.1 * MIB


def test_a_flipped_bit_in_the_cache_is_healed(mount: BucketMount) -> None:
    content = os.urandom(2 * MIB)
    (mount.path / "file").write_bytes(content)
    mount.umount()
    for path in (mount.store / "cache").glob("*.pack"):
        _flip(path)
    mount.mount()
    assert (mount.path / "file").read_bytes() == content


def test_a_flipped_bit_in_the_bucket_is_named_by_scrub(mount: BucketMount) -> None:
    (mount.path / "file").write_bytes(os.urandom(2 * MIB))
    mount.umount()
    (pack,) = (mount.bucket / "packs").glob("*.pack")
    _flip(pack)
    mount.mount()
    assert "/file" in mount.ctl("--json", "scrub", "--rate", "1G", check=False)
    _flip(pack)


def _flip(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(MIB + 1000)
        byte = file.read(1)
        file.seek(MIB + 1000)
        file.write(bytes([byte[0] ^ 4]))


def test_a_prefix_belongs_to_one_store(mount: BucketMount, tmp_path: Path) -> None:
    again = subprocess.run(
        [*CTL, "init", "--store", tmp_path / "other", "--packs", f"file://{mount.bucket}"],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert again.returncode != 0
    assert "place of another store" in again.stderr
    assert not (tmp_path / "other/meta.db").exists()


def test_the_wrong_bucket_is_refused(mount: BucketMount) -> None:
    mount.umount()
    mark = mount.bucket / "nexus-store.json"
    kept = mark.read_bytes()
    mark.write_text('{"nexus_store": 1, "store_id": "another"}')
    refused = subprocess.run(
        [*CTL, "--store", mount.store, "mount", mount.path],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert refused.returncode != 0
    assert "the packs of another store" in refused.stderr
    mark.write_bytes(kept)
    mount.mount()
