"""Pruning and gc beside programs that use the mount."""

from __future__ import annotations

import hashlib
import os
import subprocess
import threading
import time
from pathlib import Path

import pytest

from tests.conftest import CTL, Mount
from tests.mount.waiting import wait_until

KEPT_S = 1
POLICY = (
    f"retention:\n  keep_all: {KEPT_S}s\n"
    f"  classes:\n  - {{names: [node_modules], keep: {KEPT_S}s}}\n"
)


def refusal(mount: Mount, *arguments: str) -> str:
    done = subprocess.run(
        [*CTL, *arguments], cwd=mount.path, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode != 0
    return done.stderr


def packs_bytes(mount: Mount) -> int:
    return sum(path.stat().st_size for path in (mount.store / "packs").iterdir())


@pytest.fixture
def pruned(mount: Mount) -> Mount:
    """Return a mount whose store keeps nothing older than a second."""
    (mount.store / "store.yaml").write_text(POLICY)
    mount.remount()
    return mount


def test_space_comes_back_while_files_are_written_and_read(pruned: Mount) -> None:
    """Live content stays right under the feet of its readers and writers."""
    mount = pruned
    kept = {f"kept{i}": os.urandom(1_000_000) for i in range(10)}
    for name, content in kept.items():
        (mount.path / name).write_bytes(content)
    for i in range(30):
        (mount.path / "big").write_bytes(os.urandom(5_000_000) + b"%d" % i)
    old_s = time.time() + KEPT_S
    (mount.path / "node_modules").mkdir()
    (mount.path / "node_modules/x").write_bytes(os.urandom(1_000_000))
    (mount.path / "node_modules/x").unlink()
    mount.remount()  # packs are sealed
    before = packs_bytes(mount)
    wait_until(lambda: time.time() > old_s, "what was written to be old")
    stop = threading.Event()
    wrong: list[str] = []
    written: list[int] = []

    def work() -> None:
        count = 0
        while not stop.is_set():
            for name, content in kept.items():
                if (mount.path / name).read_bytes() != content:
                    wrong.append(name)
            target = mount.path / f"new{count % 5}"
            content = kept[f"kept{count % 10}"][: 500_000 + count] + os.urandom(1000)
            target.write_bytes(content)
            written.append(len(content))
            if target.read_bytes() != content:
                wrong.append(target.name)
            count += 1

    worker = threading.Thread(target=work)
    worker.start()
    try:
        foreseen = mount.json("prune", "--dry-run")[0]
        done = mount.json("prune")[0]
    finally:
        stop.set()
        worker.join()
    assert wrong == []
    assert foreseen["freed_bytes"] > 100_000_000
    assert done["packs"] >= 2
    assert done["rows"] > 0
    assert packs_bytes(mount) < before - 100_000_000 + sum(written)
    mount.remount()
    for name, content in kept.items():
        assert (mount.path / name).read_bytes() == content


def test_what_is_not_kept_is_refused_and_not_shown_half(pruned: Mount) -> None:
    mount = pruned
    (mount.path / "file").write_bytes(b"first")
    old = mount.status()["head"]
    (mount.path / "file").write_bytes(b"second")
    (mount.path / ".nexus/snapshots/pinned").mkdir()
    (mount.path / "file").write_bytes(b"third")
    past = mount.path / f".nexus/history/op-{old}/file"
    assert past.read_bytes() == b"first"
    mount.sh("sleep 1.2; touch later")
    mount.ctl("prune")
    assert not Path(past.parent).exists()
    assert (mount.path / ".nexus/history/pinned/file").read_bytes() == b"second"
    assert f"op-{old}" in refusal(mount, "cat", f"file@op-{old}")
    assert "too old" in refusal(mount, "undo", f"op-{old}")


def test_without_a_policy_nothing_goes(mount: Mount) -> None:
    assert "everything is kept" in refusal(mount, "prune")


def raw_bytes(mount: Mount) -> bytes:
    return b"".join(path.read_bytes() for path in mount.store.rglob("*") if path.is_file())


def test_purged_content_is_nowhere(mount: Mount) -> None:
    """Not in the tree, not in the past, not in a snapshot, not on the disk."""
    secret, other = os.urandom(100_000), os.urandom(100_000)
    file = mount.path / "secret"
    file.write_bytes(secret)
    (mount.path / "other").write_bytes(other)
    (mount.path / ".nexus/snapshots/before").mkdir()
    file.write_bytes(secret[:50_000] + b"more")
    mount.sh("mv secret renamed; mv renamed secret")
    assert secret[1000:2000] in raw_bytes(mount)
    mount.ctl("purge", "--yes", "secret")
    assert secret[1000:2000] not in raw_bytes(mount)
    assert file.read_bytes() == b""
    assert (mount.path / ".nexus/history/before/secret").read_bytes() == b""
    assert (mount.path / ".nexus/history/before/other").read_bytes() == other
    assert (mount.path / "other").read_bytes() == other
    record = mount.json("log", "--kind", "purge")[0]
    assert record["path"] == "secret"
    mount.ctl("undo", "--last", "4")  # not the purge, but what came before it
    assert file.read_bytes() == b""


def test_a_purged_chunk_is_zeros_wherever_it_was(mount: Mount) -> None:
    content = os.urandom(10_000)
    for name in ("a", "b"):
        (mount.path / name).write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    assert "/b holds" in mount.ctl("purge", "--yes", "a")
    assert (mount.path / "b").read_bytes() == content
    mount.ctl("purge", "--yes", digest)
    assert (mount.path / "b").read_bytes() == bytes(10_000)
    assert content[:100] not in raw_bytes(mount)


def test_purged_attributes_are_nowhere(mount: Mount) -> None:
    """Not in a page of the database that was given back, nor in its write-ahead log."""
    first, second = (os.urandom(300).hex().encode() for _ in range(2))
    other = os.urandom(300).hex().encode()
    for number in range(300):
        (mount.path / f"file{number}").touch()
        os.setxattr(mount.path / f"file{number}", "user.filler", other)
    file = mount.path / "secret"
    file.write_bytes(b"content")
    os.setxattr(file, "user.secret", first)
    os.setxattr(file, "user.secret", second)
    (mount.path / ".nexus/snapshots/before").mkdir()
    os.removexattr(file, "user.secret")
    for number in range(150):
        (mount.path / f"file{number}").unlink()
    assert first in raw_bytes(mount)
    mount.ctl("purge", "--yes", "secret")
    raw = raw_bytes(mount)
    assert first not in raw
    assert second not in raw
    assert other in raw
    assert os.listxattr(mount.path / ".nexus/history/before/secret") == []
    assert os.getxattr(mount.path / "file200", "user.filler") == other


def test_purge_finds_what_no_version_ever_had(mount: Mount) -> None:
    """What was in the file at an fsync, and overwritten before its session ended."""
    passing = os.urandom(50_000)
    (mount.path / "other").write_bytes(b"other")
    with (mount.path / "secret").open("wb", buffering=0) as file:
        file.write(passing)
        os.fsync(file.fileno())
        file.seek(0)
        file.write(os.urandom(50_000))
    assert passing[1000:2000] in raw_bytes(mount)
    mount.ctl("purge", "--yes", "secret")
    assert passing[1000:2000] not in raw_bytes(mount)
    assert (mount.path / "other").read_bytes() == b"other"
