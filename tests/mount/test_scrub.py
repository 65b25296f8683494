"""A mount reads all content again by itself, and stops at once when it is unmounted."""

from __future__ import annotations

import random
import subprocess
import time

from tests.conftest import CTL, TIMEOUT_S, Mount
from tests.mount.waiting import wait_until


def remount_with(mount: Mount, settings: str) -> None:
    mount.umount()
    (mount.store / "store.yaml").write_text(settings)
    mount.mount()


def test_a_mount_scrubs_by_itself_and_names_what_decayed(mount: Mount) -> None:
    content = random.Random(3).randbytes(100_000)
    (mount.path / "victim").write_bytes(content)
    (mount.path / "bystander").write_text("whole")
    mount.umount()
    (pack,) = (p for p in (mount.store / "packs").iterdir() if content in p.read_bytes())
    sound = pack.read_bytes()
    damaged = bytearray(sound)
    damaged[sound.index(content) + 5000] ^= 1
    pack.write_bytes(damaged)
    (mount.store / "store.yaml").write_text("scrub: {interval: 1s, rate: 1G}\n")
    mount.mount()
    mount.expected_log = ["scrub: "]
    wait_until(lambda: mount.status()["scrub_damaged_files"] == 1, "a scrub", 30)
    (line,) = {line for line in mount.log.read_text().splitlines() if "/victim" in line}
    assert "bytes 0-99999 are lost" in line
    assert "bystander" not in mount.log.read_text()
    # As a person would: nexus-ctl, beside the mount.
    done = subprocess.run(
        [*CTL, "scrub", "--restart", "--rate", "1G"], cwd=mount.path, capture_output=True,
        text=True, timeout=TIMEOUT_S, check=False,
    )  # fmt: skip
    assert done.returncode == 4
    assert "content-lost  /victim" in done.stdout
    mount.umount()
    pack.write_bytes(sound)
    mount.mount()
    wait_until(lambda: mount.status()["scrub_damaged_files"] == 0, "another scrub", 30)
    assert (mount.path / "victim").read_bytes() == content


def test_a_scrub_under_way_does_not_hold_an_unmount(mount: Mount) -> None:
    for number in range(20):
        (mount.path / f"f{number}").write_bytes(random.Random(number).randbytes(100_000))
    remount_with(mount, "scrub: {interval: 1s, rate: 100K}\n")
    wait_until(lambda: mount.status()["scrub_read_bytes"] is not None, "it begins", 30)
    started = time.monotonic()
    mount.umount()
    assert time.monotonic() - started < 10
    mount.mount()
    assert mount.status()["scrub_read_bytes"] > 0
