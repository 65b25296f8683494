"""Several processes have one store open; each sees what the others commit."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.conftest import CTL, TIMEOUT_S, Mount
from tests.mount.waiting import wait_until


def store_ctl(mount: Mount, *arguments: str) -> str:
    """Run nexus-ctl on the store itself, in a process of its own."""
    return mount.ctl("--store", str(mount.store), *arguments)


def head(mount: Mount) -> int:
    return int(mount.json("log", "--limit", "1")[0]["seq"])


def test_a_restore_by_another_process_shows_at_once(mount: Mount) -> None:
    """stat, cat and ls, also where the kernel had cached the old content."""
    path = mount.path / "file"
    path.write_text("the old and longer content")
    seq = head(mount)
    path.write_text("new")
    os.chmod(path, 0o600)
    assert path.read_text() == "new"
    assert path.stat().st_size == 3
    store_ctl(mount, "restore", "file", f"op-{seq}")
    assert path.stat().st_size == 26
    assert path.read_text() == "the old and longer content"
    assert path.stat().st_mode & 0o777 == 0o644


def test_a_restored_name_appears_where_its_absence_was_cached(mount: Mount) -> None:
    """The kernel remembers that a name is missing; it is told that it came back."""
    (mount.path / "d/below").mkdir(parents=True)
    (mount.path / "d/below/file").write_text("content")
    ino = (mount.path / "d/below/file").stat().st_ino
    seq = head(mount)
    mount.sh("rm -r d")
    for path in ("d", "d/below", "d/below/file"):
        assert not (mount.path / path).exists()
    assert os.listdir(mount.path) == []
    store_ctl(mount, "restore", "d", f"op-{seq}")
    assert os.listdir(mount.path) == ["d"]
    assert (mount.path / "d/below/file").read_text() == "content"
    assert (mount.path / "d/below/file").stat().st_ino == ino
    assert mount.path.stat().st_nlink == 3


def test_an_undo_by_another_process_shows_at_once(mount: Mount) -> None:
    """Names that go, names that come back, what a directory lists, link counts."""
    (mount.path / "kept").write_text("kept")
    seq = head(mount)
    (mount.path / "new").write_text("new")
    os.rename(mount.path / "kept", mount.path / "renamed")
    (mount.path / "directory").mkdir()
    assert sorted(os.listdir(mount.path)) == ["directory", "new", "renamed"]
    store_ctl(mount, "undo", "--since", f"op-{seq}")
    assert os.listdir(mount.path) == ["kept"]
    assert not (mount.path / "renamed").exists()
    assert not (mount.path / "new").exists()
    assert (mount.path / "kept").read_text() == "kept"
    assert mount.path.stat().st_nlink == 2


def test_an_open_descriptor_reads_what_another_process_restored(mount: Mount) -> None:
    """read(2) after the restore returned gives the restored bytes."""
    path = mount.path / "file"
    path.write_text("first")
    seq = head(mount)
    path.write_text("second")
    with path.open("rb", buffering=0) as file:
        assert file.read() == b"second"
        store_ctl(mount, "restore", "file", f"op-{seq}")
        file.seek(0)
        assert file.read() == b"first"
        assert os.fstat(file.fileno()).st_size == 5


def test_what_the_mount_writes_is_seen_by_the_command_line(mount: Mount) -> None:
    """nexus-ctl --store reads what close(2) returned for."""
    (mount.path / "file").write_text("written")
    assert store_ctl(mount, "cat", "file@now") == "written"
    store_ctl(mount, "tag", "set", "file", "state", "final")
    assert os.getxattr(mount.path / "file", "user.nexus.tag.state") == b"final"


def test_both_write_at_once_and_nothing_is_lost(mount: Mount) -> None:
    """Transactions of several processes take turns; the log has them all, in one order."""
    writer = subprocess.Popen(
        ["bash", "-euc", "for i in $(seq 150); do echo $i > file-$i; done"], cwd=mount.path
    )
    for number in range(5):
        store_ctl(mount, "snapshot", "create", f"s{number}")
    assert writer.wait(60) == 0
    assert len(os.listdir(mount.path)) == 150
    assert all((mount.path / f"file-{i}").read_text() == f"{i}\n" for i in range(1, 151))
    assert len(store_ctl(mount, "--json", "snapshot", "list").splitlines()) == 5


@pytest.fixture
def second(mount: Mount, tmp_path: Path) -> Iterator[Path]:
    """Yield another mountpoint of the same store."""
    path = tmp_path / "second"
    path.mkdir()
    log = tmp_path / "second.log"
    command = [*CTL, "--store", str(mount.store), "mount", "--log-file", str(log), str(path)]
    subprocess.run(command, check=True, timeout=TIMEOUT_S, capture_output=True)
    try:
        yield path
        subprocess.run([*CTL, "umount", path], check=True, timeout=TIMEOUT_S, capture_output=True)
        assert "ERROR" not in log.read_text()
        assert "WARNING" not in log.read_text()
    finally:
        if os.path.ismount(path):
            subprocess.run(["fusermount3", "-uz", path], check=False, timeout=TIMEOUT_S)


def test_two_mounts_of_one_store_show_each_others_changes(mount: Mount, second: Path) -> None:
    """Each is told of the other's commits and has its kernel forget what they made stale."""
    first = mount.path
    assert os.listdir(second) == []
    (first / "a").write_text("from the first")
    wait_until(lambda: (second / "a").exists(), "the second mount sees a new file")
    wait_until(lambda: (second / "a").read_text() == "from the first", "and its content")
    (second / "a").write_text("from the second")
    wait_until(lambda: (first / "a").read_text() == "from the second", "new content arrives")
    os.rename(second / "a", second / "b")
    wait_until(lambda: os.listdir(first) == ["b"], "the rename arrives")
    wait_until(lambda: not (first / "a").exists(), "the old name goes")
    (first / "b").unlink()
    wait_until(lambda: not (second / "b").exists(), "the removal arrives")


def test_a_mount_finishes_what_another_one_that_died_was_writing(
    mount: Mount, tmp_path: Path
) -> None:
    """What close(2) had returned for shows, without anybody opening the store anew."""
    other, log = tmp_path / "other", tmp_path / "other.log"
    other.mkdir()
    command = [*CTL, "--store", str(mount.store), "mount", "--no-restart", "--log-file", str(log)]
    subprocess.run([*command, other], check=True, timeout=TIMEOUT_S, capture_output=True)
    try:
        pid = mount.json("status", str(other))[0]["pid"]
        fd = os.open(other / "file", os.O_CREAT | os.O_WRONLY)
        os.write(fd, b"promised")
        os.close(os.dup(fd))
        os.kill(pid, signal.SIGKILL)
        with suppress(OSError):  # the daemon is gone
            os.close(fd)
        wait_until(lambda: (mount.path / "file").read_bytes() == b"promised", "its bytes arrive")
    finally:
        subprocess.run(["fusermount3", "-uz", other], check=False, timeout=TIMEOUT_S)
    assert len(list((mount.store / "peers").glob("*.lock"))) == 1
    mount.expected_log.append("took over from process")


def test_two_mounts_create_one_name_once(mount: Mount, second: Path) -> None:
    """open(2), O_EXCL: across mounts too, the transaction decides."""
    won = 0
    for number in range(20):
        for path in (mount.path, second):
            try:
                os.close(os.open(path / f"lock-{number}", os.O_CREAT | os.O_EXCL))
                won += 1
            except FileExistsError:
                continue
    assert won == 20


def test_a_second_mount_ends_without_disturbing_the_first(mount: Mount, second: Path) -> None:
    """Unmounting one leaves the open files of the other alone."""
    with (mount.path / "open").open("w") as file:
        file.write("begun")
        file.flush()
        (second / "other").write_text("x")
        subprocess.run([*CTL, "umount", second], check=True, timeout=TIMEOUT_S, capture_output=True)
        file.write(", ended")
    assert (mount.path / "open").read_text() == "begun, ended"
    command = [*CTL, "--store", str(mount.store), "mount", str(second)]
    subprocess.run(command, check=True, timeout=TIMEOUT_S, capture_output=True)
    assert (second / "open").read_text() == "begun, ended"
