"""A store whose packs live in a bucket: a directory here, a server elsewhere."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from nexusfuse.ctl.exit_codes import UNFINISHED
from tests.conftest import CTL, TIMEOUT_S
from tests.mount.buckets import BucketMount
from tests.mount.conftest import small_disk
from tests.mount.waiting import wait_until

MIB = 1 << 20
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to mount a small disk")


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


def test_a_thousand_small_files_are_one_object_and_a_few_questions(mount: BucketMount) -> None:
    for number in range(1000):
        (mount.path / str(number)).write_text(f"{number}\n")
    assert mount.figure("bucket_questions") == 0
    mount.forget_cache()
    assert len(mount.sent()) == 1
    for number in range(1000):
        assert (mount.path / str(number)).read_text() == f"{number}\n"
    assert mount.figure("bucket_questions") <= 2


def test_what_was_fsynced_is_in_the_bucket(mount: BucketMount) -> None:
    with (mount.path / "promise").open("wb") as file:
        file.write(os.urandom(4000))
        file.flush()
        assert mount.sent() == {}
        os.fsync(file.fileno())
        assert sum(mount.sent().values()) >= 4000


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
    mark.write_text('{"nexus_store": 1, "store_id": "another", "holder": "there"}')
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


def test_gc_makes_one_pack_of_many_small_ones(mount: BucketMount) -> None:
    """Each fsync leaves a pack."""
    for number in range(20):
        with (mount.path / str(number)).open("wb") as file:
            file.write(b"%d" % number * 1000)
            file.flush()
            os.fsync(file.fileno())
    assert len(mount.sent()) == 20
    wait_until(lambda: mount.json("gc")[0]["packs"] >= 16, "gc")
    assert len(mount.sent()) <= 4
    mount.forget_cache()
    for number in range(20):
        assert (mount.path / str(number)).read_bytes() == b"%d" % number * 1000


def test_the_bucket_goes_and_comes_back(mount: BucketMount) -> None:
    """Cached content is read, writing goes on, fsync says that it is not there."""
    mount.expected_log += ["cannot be used", "can be used again", "bucket takes packs again"]
    mount.expected_log += ["waits in the store's packs", "fsync"]
    (mount.path / "cached").write_bytes(b"cached" * 1000)
    mount.remount()
    away = mount.bucket.with_name("away")
    mount.bucket.rename(away)
    assert (mount.path / "cached").read_bytes() == b"cached" * 1000
    with (mount.path / "new").open("wb") as file:
        file.write(b"new" * 1000)
        file.flush()
        with pytest.raises(OSError, match=r"Input/output error|timed out"):
            os.fsync(file.fileno())
    assert (mount.path / "new").read_bytes() == b"new" * 1000
    assert mount.figure("backlog_bytes") > 0
    away.rename(mount.bucket)
    wait_until(lambda: mount.figure("backlog_bytes") == 0, "sending")
    assert len(mount.sent()) >= 2


def test_umount_says_what_the_bucket_has_not_got_and_the_next_mount_sends_it(
    mount: BucketMount,
) -> None:
    mount.expected_log += ["cannot be used", "can be used again", "bucket takes packs again"]
    mount.expected_log += ["waits in the store's packs", "not everything is in"]
    (mount.path / "file").write_bytes(b"content" * 1000)
    away = mount.bucket.with_name("away")
    mount.bucket.rename(away)
    done = subprocess.run(
        [*CTL, "umount", mount.path], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == UNFINISHED
    assert f"are not in file://{mount.bucket} yet" in done.stderr
    away.rename(mount.bucket)
    mount.mount()
    wait_until(lambda: len(mount.sent()) == 1, "sending")
    assert (mount.path / "file").read_bytes() == b"content" * 1000


def test_fsync_covers_what_a_daemon_that_was_killed_had_written(mount: BucketMount) -> None:
    """POSIX: fsync is of the file, whoever wrote to it, and when."""
    mount.expected_log += ["cannot be used", "took over from process"]
    away = mount.bucket.with_name("away")
    mount.bucket.rename(away)
    (mount.path / "file").write_bytes(b"content" * 1000)
    mount.kill()
    away.rename(mount.bucket)
    mount.mount()
    with (mount.path / "file").open("rb") as file:
        os.fsync(file.fileno())
        assert mount.unsent() == {}
    assert len(mount.sent()) == 1


def test_what_a_killed_daemon_could_not_send_is_sent_later(mount: BucketMount) -> None:
    mount.expected_log += ["cannot be used", "waits in the store's packs", "took over from process"]
    away = mount.bucket.with_name("away")
    mount.bucket.rename(away)
    contents = {name: os.urandom(100_000) for name in ("one", "two", "three")}
    for name, content in contents.items():
        (mount.path / name).write_bytes(content)
    mount.kill()
    away.rename(mount.bucket)
    mount.mount()
    assert {name: (mount.path / name).read_bytes() for name in contents} == contents
    wait_until(lambda: mount.unsent() == {}, "sending")
    mount.forget_cache()
    assert {name: (mount.path / name).read_bytes() for name in contents} == contents


@pytest.mark.parametrize(
    "settings",
    [
        {
            "durability": "local",
            "upload_interval_s": 0.1,
            "upload_backlog_mib": 1,
            "upload_limit_s": 1,
        }
    ],
)
def test_more_than_may_wait_for_the_bucket_is_refused(mount: BucketMount) -> None:
    mount.expected_log += ["cannot be used", "can be used again", "bucket takes packs again"]
    mount.expected_log += ["waits in the store's packs", "wait for the bucket"]
    (mount.path / "before").write_bytes(b"before")
    wait_until(lambda: len(mount.sent()) == 1, "sending")
    away = mount.bucket.with_name("away")
    mount.bucket.rename(away)
    kept = {"first": os.urandom(MIB)}
    (mount.path / "first").write_bytes(kept["first"])
    wait_until(lambda: mount.figure("backlog_bytes") >= MIB, "sealing")
    with pytest.raises(OSError, match="Input/output error"):
        (mount.path / "second").write_bytes(os.urandom(MIB))
    assert (mount.path / "before").read_bytes() == b"before"
    away.rename(mount.bucket)
    wait_until(lambda: mount.unsent() == {}, "sending")
    (mount.path / "after").write_bytes(b"after")
    assert {name: (mount.path / name).read_bytes() for name in kept} == kept


@needs_root
def test_a_full_disk_of_the_cache_only_costs_time(mount: BucketMount, tmp_path: Path) -> None:
    mount.expected_log = ["nothing is kept in"]  # if more came at once than there was room for
    content = os.urandom(6 * MIB)
    (mount.path / "file").write_bytes(content)
    mount.umount()
    cache = mount.store / "cache"
    shutil.rmtree(cache)
    with small_disk(tmp_path, "tmpfs", 2 * MIB) as disk:
        cache.symlink_to(disk)
        mount.mount()
        assert (mount.path / "file").read_bytes() == content
        (mount.path / "more").write_bytes(content[:MIB])
        mount.remount()
        assert (mount.path / "more").read_bytes() == content[:MIB]
        mount.umount()
    cache.unlink()
    mount.mount()


def test_doctor_and_status_tell_of_the_bucket(mount: BucketMount) -> None:
    (mount.path / "file").write_bytes(b"content")
    status = mount.status()
    assert status["packs_url"] == f"file://{mount.bucket}"
    assert status["not_in_bucket_bytes"] > 0
    mount.umount()
    away = mount.bucket.with_name("away")
    mount.bucket.rename(away)
    done = subprocess.run(
        [*CTL, "doctor", "--store", mount.store], capture_output=True, text=True, timeout=60,
        check=False,
    )  # fmt: skip
    assert f"file://{mount.bucket} cannot be used" in done.stdout
    away.rename(mount.bucket)
    mount.mount()


def test_a_backup_is_a_store_of_its_own(mount: BucketMount, tmp_path: Path) -> None:
    content = os.urandom(2 * MIB)
    (mount.path / "file").write_bytes(content)
    mount.forget_cache()
    mount.ctl("backup", str(tmp_path / "backup"))
    before = mount.sent()
    restored = tmp_path / "restored"
    mount.ctl("restore-store", str(tmp_path / "backup"), str(restored))
    shown = mount.ctl("--store", str(restored), "status")
    assert "packs_url" not in shown
    done = subprocess.run(
        [*CTL, "--store", restored, "cat", "/file@now"], capture_output=True, timeout=60,
        check=False,
    )  # fmt: skip
    assert done.stdout == content, done.stderr
    assert mount.sent() == before


def test_another_machine_goes_on_with_what_is_in_the_bucket(
    mount: BucketMount, tmp_path: Path
) -> None:
    content = os.urandom(2 * MIB)
    (mount.path / "file").write_bytes(content)
    (mount.path / "gone").write_bytes(b"as it was")
    mount.ctl("snapshot", "create", "before")
    (mount.path / "gone").unlink()
    mount.umount()
    restored = tmp_path / "restored"
    shown = mount.ctl("restore-store", f"file://{mount.bucket}", str(restored))
    assert "and checked it" in shown
    assert not any((restored / "packs").iterdir())
    # The first machine is still there, and must keep its hands off.
    refused = subprocess.run(
        [*CTL, "--store", mount.store, "mount", mount.path],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert refused.returncode != 0
    assert "restored elsewhere" in refused.stderr
    mount.store = restored
    mount.log = restored / "daemon.log"
    mount.mount()
    assert (mount.path / "file").read_bytes() == content
    assert (mount.path / ".nexus/snapshots/before/gone").read_bytes() == b"as it was"
    (mount.path / "new").write_bytes(b"new")


def test_a_copy_of_the_metadata_names_what_gc_left(mount: BucketMount, tmp_path: Path) -> None:
    """A machine that dies after gc, and never comes back."""
    contents = {str(number): os.urandom(1000) for number in range(20)}
    for name, content in contents.items():
        with (mount.path / name).open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    mount.remount()
    wait_until(lambda: mount.json("gc")[0]["packs"] >= 16, "gc")
    mount.expected_log += ["took over from process"]
    mount.kill()
    restored = tmp_path / "restored"
    shown = mount.ctl("restore-store", f"file://{mount.bucket}", str(restored))
    assert "and checked it" in shown
    mount.store = restored
    mount.log = restored / "daemon.log"
    mount.mount()
    assert {name: (mount.path / name).read_bytes() for name in contents} == contents


@pytest.mark.parametrize("settings", [{"metadata_interval_s": 0.5}])
def test_the_metadata_goes_to_the_bucket_now_and_then(mount: BucketMount) -> None:
    (mount.path / "file").write_bytes(b"content")
    latest = mount.bucket / "meta/latest.json"
    wait_until(lambda: latest.exists() and json.loads(latest.read_bytes())["head"] == 3, "copying")
    assert len(mount.sent()) == 1
    for number in range(5):
        (mount.path / str(number)).mkdir()
        head = 4 + number
        wait_until(lambda: json.loads(latest.read_bytes())["head"] == head, "copying")  # noqa: B023
    wait_until(lambda: len(list((mount.bucket / "meta").glob("*.zst"))) == 3, "tidying up")


def test_fsync_waits_for_content_that_another_mount_has_not_sent(
    mount: BucketMount, tmp_path: Path
) -> None:
    """Equal content is stored once, by whoever wrote it first."""
    content = os.urandom(200_000)
    (mount.path / "first").write_bytes(content)
    other = tmp_path / "other"
    other.mkdir()
    mount.ctl("--store", str(mount.store), "mount", "--no-restart", str(other))
    try:
        assert mount.sent() == {}
        with (other / "second").open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        assert sum(mount.sent().values()) >= len(content)
    finally:
        mount.ctl("umount", str(other))


def test_what_was_fsynced_survives_the_loss_of_everything_but_metadata_and_bucket(
    mount: BucketMount, tmp_path: Path, seed: int
) -> None:
    """kill -9 at any moment, and then the packs and the cache of this machine are gone."""
    chance = random.Random(seed)
    manifest = tmp_path / "manifest"
    mount.expected_log += ["took over from process", "did not reach the disk", "cannot be finished"]
    mount.expected_log += ["registered but never written"]
    for round_ in range(2):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, mount.path, manifest, str(round_)],
            stderr=subprocess.DEVNULL,
        )
        promised = chance.randint(3, 12)
        wait_until(lambda: len(_lines(manifest)) >= promised * (round_ + 1), "writing")  # noqa: B023
        mount.kill()
        writer.wait(TIMEOUT_S)
        for path in [*(mount.store / "packs").iterdir(), *(mount.store / "cache").iterdir()]:
            path.unlink()
        mount.mount()
        for line in _lines(manifest):
            name, digest = line.split()
            assert sha256((mount.path / name).read_bytes()).hexdigest() == digest


WRITER = """
import hashlib, os, pathlib, random, sys
top, manifest, round_ = sys.argv[1:]
for number in range(10000):
    name, content = f"{round_}-{number}", random.randbytes(random.randint(1, 200_000))
    fd = os.open(f"{top}/{name}", os.O_WRONLY | os.O_CREAT)
    os.write(fd, content[:1000])
    os.fsync(fd)
    os.write(fd, content[1000:])
    os.fsync(fd)
    os.close(fd)
    with open(manifest, "a") as file:
        file.write(f"{name} {hashlib.sha256(content).hexdigest()}\\n")
"""


def _lines(manifest: Path) -> list[str]:
    text = manifest.read_text() if manifest.exists() else ""
    return [line for line in text.splitlines(keepends=True) if line.endswith("\n")]
