"""Dying daemons, damaged packs, full disks: nothing that was promised is lost."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import CTL, TIMEOUT_S, Mount
from tests.mount.linux import NOBODY, refused, run_as
from tests.mount.waiting import runs, wait_until

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to mount a small disk")
MIB = 1 << 20
RECOVERED = "which died"


def test_what_close_returned_for_survives_kill_9(mount: Mount) -> None:
    """Content and actor, for small and large files, new and overwritten ones."""
    large = random.Random(5).randbytes(3 * MIB)
    (mount.path / "overwritten").write_text("old")
    (mount.path / "large").write_bytes(large)
    mount.sh("echo kept > small; echo new > overwritten; echo more >> large", agent="alice")
    os.rename(mount.path / "small", mount.path / "renamed")
    mount.kill()
    mount.expected_log = [RECOVERED]
    mount.mount()
    assert (mount.path / "renamed").read_text() == "kept\n"
    assert (mount.path / "overwritten").read_text() == "new\n"
    assert (mount.path / "large").read_bytes() == large + b"more\n"
    written = {r["path"] for r in mount.json("log", "--kind", "write", "--agent", "alice")}
    assert written == {"small", "overwritten", "large"}


def test_what_was_flushed_but_is_still_open_survives_kill_9(mount: Mount) -> None:
    """A second descriptor's close flushes; the record has the process that wrote."""
    script = """
import os, sys
fd = os.open("open", os.O_WRONLY | os.O_CREAT)
os.write(fd, b"flushed")
os.close(os.dup(fd))
print(os.getpid(), flush=True)
sys.stdin.read()
"""
    writer = subprocess.Popen(
        [sys.executable, "-c", script], cwd=mount.path, stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, env={**os.environ, "NEXUS_AGENT": "alice"},
    )  # fmt: skip
    assert writer.stdout is not None
    pid = int(writer.stdout.readline())
    mount.kill()
    writer.communicate(b"", timeout=60)
    mount.expected_log = [RECOVERED]
    mount.mount()
    assert (mount.path / "open").read_text() == "flushed"
    actor = mount.json("log", "--kind", "write", "--limit", "1")[0]["actor"]
    assert (actor["pid"], actor["agent"]) == (pid, "alice")


def test_sigterm_keeps_what_was_closed_and_what_is_open(mount: Mount) -> None:
    """The daemon drains and syncs; nothing that was written is lost."""
    fd = os.open(mount.path / "open", os.O_WRONLY | os.O_CREAT)
    os.write(fd, b"written, not closed")
    (mount.path / "closed").write_text("closed")
    pid = int(mount.status()["pid"])
    os.kill(pid, signal.SIGTERM)
    wait_until(lambda: not runs(pid), "the daemon ends")
    with refused(errno.ENOTCONN):
        os.close(fd)
    if os.path.ismount(mount.path):
        subprocess.run(["fusermount3", "-uz", mount.path], check=True, timeout=TIMEOUT_S)
    mount.mount()
    assert (mount.path / "closed").read_text() == "closed"
    assert (mount.path / "open").read_text() == "written, not closed"


def test_a_damaged_pack_gives_eio_for_what_it_held_and_nothing_else(mount: Mount) -> None:
    """A flipped byte is noticed at the read, named in the log and by fsck --deep."""
    (mount.path / "victim").write_bytes(random.Random(1).randbytes(100_000))
    (mount.path / "bystander").write_text("unharmed")
    mount.umount()
    sound = {
        path: path.read_bytes() for path in (mount.store / "packs").rglob("*") if path.is_file()
    }
    needle = random.Random(1).randbytes(100_000)[50_000:50_100]
    damaged = [path for path, content in sound.items() if needle in content]
    assert len(damaged) == 1
    content = bytearray(sound[damaged[0]])
    content[content.index(needle)] ^= 1
    damaged[0].write_bytes(content)
    mount.mount()
    with refused(errno.EIO):
        (mount.path / "victim").read_bytes()
    assert (mount.path / "bystander").read_text() == "unharmed"
    (mount.path / "new").write_text("still works")
    assert (mount.path / "new").read_text() == "still works"
    lines = [line for line in mount.log.read_text().splitlines() if "ERROR" in line]
    assert len(lines) >= 1
    assert damaged[0].name.split(".")[0] in " ".join(lines), "the log names the pack"
    assert "Traceback" not in mount.log.read_text()
    mount.expected_log = ["ERROR"]
    deep = mount.ctl("--json", "fsck", "--deep", check=False)
    problems = json.loads(deep.splitlines()[-1])["problems"]
    assert len(problems) >= 1
    assert "victim" in str(problems) or damaged[0].name.split(".")[0] in str(problems)
    mount.umount()
    damaged[0].write_bytes(sound[damaged[0]])
    mount.mount()
    assert (mount.path / "victim").read_bytes() == random.Random(1).randbytes(100_000)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Yield a directory on a disk of 24 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(disk)]
    if subprocess.run(command, check=False, capture_output=True, timeout=60).returncode != 0:
        pytest.skip("no permission to mount a tmpfs")
    yield disk
    subprocess.run(["umount", "-l", disk], check=True, timeout=60)


@as_root
def test_a_full_disk_says_enospc_and_loses_nothing(small_disk: Path) -> None:
    """write, close or fsync says so; what was there stays; with room again all works."""
    mount = Mount(small_disk)
    mount.expected_log = ["ERROR", "WARNING"]
    try:
        content = random.Random(3).randbytes(4 * MIB)
        (mount.path / "early").write_bytes(content)
        with refused(errno.ENOSPC):
            for number in range(40):
                with (mount.path / f"filler-{number}").open("wb", buffering=0) as file:
                    file.write(os.urandom(MIB))
                    os.fsync(file.fileno())
        assert (mount.path / "early").read_bytes() == content
        assert mount.sh("ls").count("filler") > 5
        subprocess.run(["mount", "-o", "remount,size=96m", small_disk], check=True, timeout=60)
        (mount.path / "late").write_bytes(content)
        assert (mount.path / "late").read_bytes() == content
        mount.umount()
        mount.mount()
        assert (mount.path / "early").read_bytes() == content
        assert (mount.path / "late").read_bytes() == content
        assert mount.check() == []
        assert "Traceback" not in mount.log.read_text()
        mount.umount()
    finally:
        mount.detach()


@as_root
def test_a_store_without_permission_is_one_clear_error(tmp_path: Path) -> None:
    """Whoever may not read the store is told so, and nothing is mounted."""
    with tempfile.TemporaryDirectory() as reachable:
        os.chmod(reachable, 0o755)
        _require_refused(Path(reachable), tmp_path)


def _require_refused(reachable: Path, tmp_path: Path) -> None:
    path, mount = _made(reachable / "mount"), Mount(_made(tmp_path / "owner"))
    mount.umount()
    store = reachable / "store"
    shutil.copytree(mount.store, store)
    os.chown(path, NOBODY, NOBODY)
    if run_as(NOBODY, NOBODY, lambda: os.stat(os.path.realpath(sys.executable))) != 0:
        pytest.skip("nobody cannot run this Python")
    command = [*CTL, "--store", str(store), "mount", str(path)]
    done = subprocess.run(
        command,
        user=NOBODY, group=NOBODY, extra_groups=[], capture_output=True, text=True,
        check=False, timeout=60, cwd="/", env={**os.environ, "PYTHONPATH": os.getcwd()},
    )  # fmt: skip
    assert done.returncode in (1, 6), done
    assert len(done.stderr.splitlines()) == 1
    assert "permission" in done.stderr
    assert not os.path.ismount(path)


def _made(directory: Path) -> Path:
    directory.mkdir()
    return directory
