"""``kill -9`` during commands (making, undo, snapshot, apply, backup, gc): all or nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from nexus_engine.commands import Request, ignore_progress
from nexusfuse.ctl import control
from tests.conftest import CTL, TIMEOUT_S
from tests.crash.campaign.failpoints import FAILPOINTS
from tests.crash.campaign.kills import Daemon, unmount_dead
from tests.crash.campaign.steps import content_of

OPERATIONS = 2000


def named(prefix: str) -> list[str]:
    return [name for name in FAILPOINTS if name.startswith(prefix)]


def ctl(*words: str | Path) -> str:
    command = [*CTL, *map(str, words)]
    return subprocess.run(
        command, check=True, timeout=TIMEOUT_S, capture_output=True, text=True
    ).stdout


class Place:
    """A store, and where it is mounted."""

    def __init__(self, directory: Path) -> None:
        self.store, self.mountpoint = directory / "store", directory / "mount"
        self.hits = directory / "hits"
        self.mountpoint.mkdir(parents=True)

    def mount(self, failpoint: str = "", nth: int = 1) -> Daemon:
        return Daemon(self.store, self.mountpoint, f"{failpoint}:{nth}:{self.hits}")

    def umount(self, daemon: Daemon) -> None:
        subprocess.run(["fusermount3", "-u", self.mountpoint], check=True, timeout=TIMEOUT_S)
        assert daemon.process.wait(TIMEOUT_S) == 0

    def ask(self, verb: str, **arguments: object) -> dict[str, object]:
        request = Request(verb, arguments)
        return dict(control.ask(os.fsencode(self.mountpoint), request, ignore_progress))

    def ctl(self, *words: str | Path) -> str:
        return ctl("--store", self.store, *words)

    def die(self, failpoint: str, *words: str | Path) -> None:
        """Run nexus-ctl until it kills itself."""
        armed = ["-m", "tests.crash.campaign.armed", f"{failpoint}:1:{self.hits}"]
        command = [sys.executable, *armed, "--store", str(self.store), *map(str, words)]
        done = subprocess.run(command, check=False, timeout=TIMEOUT_S, capture_output=True)
        assert done.returncode == -signal.SIGKILL, done
        assert self.hits.read_text().split()[-1] == failpoint

    def require_sound(self) -> None:
        self.ctl("fsck", "--deep")  # exits 0 only when all is well
        self.ctl("verify-log")


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    yield made
    unmount_dead(made.mountpoint)
    made.require_sound()


@pytest.mark.parametrize("failpoint", named("making"))
def test_a_store_that_was_half_made_is_made_anew(place: Place, failpoint: str) -> None:
    with pytest.raises(subprocess.CalledProcessError):
        place.mount(failpoint)
    assert place.hits.read_text().split() == [failpoint]
    daemon = place.mount()
    (place.mountpoint / "file").write_text("works")
    place.umount(daemon)


@pytest.mark.parametrize(
    ("failpoint", "nth"),
    [
        ("undo-writes", OPERATIONS // 2),
        pytest.param("undo-writes", 1, marks=pytest.mark.slow),
        pytest.param("undo-ends", 1, marks=pytest.mark.slow),
    ],
)
def test_an_undo_of_thousands_happens_as_a_whole(place: Place, failpoint: str, nth: int) -> None:
    daemon = place.mount(failpoint, nth)
    names = {f"f{number}" for number in range(OPERATIONS)}
    for name in names:
        os.mknod(place.mountpoint / name)
    daemon.arm()
    with pytest.raises(OSError, match="connect"):
        place.ask("undo", last=OPERATIONS)
    daemon.await_death()
    daemon = place.mount()
    assert set(os.listdir(place.mountpoint)) == names
    assert place.ask("log", limit=1)["operations"][0]["kind"] == "create"  # type: ignore[index]
    place.ask("undo", last=OPERATIONS)
    assert os.listdir(place.mountpoint) == []
    place.umount(daemon)


def test_a_snapshot_is_there_or_not(place: Place) -> None:
    daemon = place.mount("snapshot-writes")
    (place.mountpoint / "file").write_text("kept")
    snapshots = place.mountpoint / ".nexus/snapshots"
    daemon.arm()
    with pytest.raises(OSError, match="connect"):
        (snapshots / "monday").mkdir()
    daemon.await_death()
    daemon = place.mount()
    assert os.listdir(snapshots) == []
    (snapshots / "monday").mkdir()
    assert (snapshots / "monday/file").read_text() == "kept"
    place.umount(daemon)


def test_entries_of_a_workspace_become_rows_or_not(place: Place) -> None:
    failpoints = ["workspace-appears", "workspace-appeared"]
    daemon = place.mount(failpoints[0], 2)
    base, workspace = place.mountpoint / "base", place.mountpoint / "w"
    base.mkdir()
    names = {f"f{number}" for number in range(600)}  # more than a page
    for name in names:
        (base / name).write_text(name)
    place.ask("workspace-create", name="w", over="base", at="w")
    for following in ("workspace-appeared", ""):
        daemon.arm()
        with pytest.raises(OSError, match=r"connect|abort"):
            os.listdir(workspace)
        daemon.await_death()
        daemon = place.mount(following)
    assert place.hits.read_text().split() == failpoints
    assert set(os.listdir(workspace)) == names
    assert (workspace / "f7").read_text() == "f7"
    place.umount(daemon)


def test_an_apply_happens_as_a_whole(place: Place) -> None:
    daemon = place.mount("workspace-applies", 2)
    base, workspace = place.mountpoint / "base", place.mountpoint / "w"
    base.mkdir()
    for name in ("one", "two", "three"):
        (base / name).write_text(name)
    place.ask("workspace-create", name="w", over="base", at="w")
    for name in ("one", "two", "three"):
        (workspace / name).unlink()
    (workspace / "new").write_text("new")
    daemon.arm()
    with pytest.raises(OSError, match="connect"):
        place.ask("workspace-apply", name="w")
    daemon.await_death()
    daemon = place.mount()
    assert set(os.listdir(base)) == {"one", "two", "three"}
    place.ask("workspace-apply", name="w")
    assert os.listdir(base) == ["new"]
    place.umount(daemon)


def test_a_backup_that_is_cut_short_harms_no_other(place: Place, tmp_path: Path) -> None:
    """Whenever the process dies, the generation before restores; so does the next."""
    backup = tmp_path / "backup"
    daemon = place.mount()
    for number, failpoint in enumerate(["", *named("backup")]):
        (place.mountpoint / f"file{number}").write_bytes(content_of(number, 300_000))
        if failpoint:
            place.die(failpoint, "backup", backup)
        else:
            place.ctl("backup", backup)
    place.umount(daemon)
    restored = Place(tmp_path / "restored")
    ctl("restore-store", backup, restored.store)
    place.ctl("backup", backup)
    ctl("restore-store", backup, tmp_path / "restored-later")
    require_files(restored, 1)
    restored.store = tmp_path / "restored-later"
    require_files(restored, 1 + len(named("backup")))


def require_files(place: Place, count: int) -> None:
    place.require_sound()
    daemon = place.mount()
    require_content(place, count)
    place.umount(daemon)


def require_content(place: Place, count: int) -> None:
    assert len(os.listdir(place.mountpoint)) >= count
    for number in range(count):
        content = (place.mountpoint / f"file{number}").read_bytes()
        assert content == content_of(number, 300_000)


def test_gc_that_is_cut_short_loses_nothing(place: Place) -> None:
    daemon = place.mount()
    for number in range(7):
        (place.mountpoint / f"file{number}").write_bytes(content_of(number, 300_000))
    place.umount(daemon)
    for number, failpoint in enumerate(named("gc"), start=3):
        place.die(failpoint, "purge", "--yes", f"/file{number}")
        place.require_sound()
        place.ctl("gc")
    assert sum(path.stat().st_size for path in (place.store / "packs").iterdir()) < 1_200_000
    require_files(place, 3)


def test_two_mounts_of_a_store_that_die_together_are_both_recovered(
    place: Place, tmp_path: Path
) -> None:
    other = Place(tmp_path / "other")
    other.store = place.store
    daemons = [place.mount(), other.mount()]
    handles = []
    for number, mountpoint in enumerate((place.mountpoint, other.mountpoint)):
        (mountpoint / f"closed{number}").write_bytes(content_of(number, 200_000))
        handle = (mountpoint / f"open{number}").open("wb", buffering=0)
        handle.write(content_of(number, 5000))
        os.fsync(handle.fileno())
        handles.append(handle)
    for daemon in daemons:
        daemon.kill()
    unmount_dead(other.mountpoint)
    daemon = place.mount()
    for number in range(2):
        assert (place.mountpoint / f"closed{number}").read_bytes() == content_of(number, 200_000)
        assert (place.mountpoint / f"open{number}").read_bytes() == content_of(number, 5000)
    place.umount(daemon)
    for handle in handles:
        with pytest.raises(OSError, match="connect"):
            handle.close()


def test_packs_whose_move_is_cut_short_are_all_there_and_the_next_run_goes_on(
    place: Place, tmp_path: Path
) -> None:
    """From the directory to a bucket, to another one, and back; beside a mount."""
    buckets = [tmp_path / "one", tmp_path / "two"]
    on_the_way = ["moving-noted", "moving-put", "moving-copied", "moving-switches"]
    legs: list[tuple[list[str | Path], list[str]]] = [
        ([buckets[0]], [*on_the_way, "moving-switched"]),
        ([buckets[1]], ["moving-copied"]),
        (["local", "--delete-old"], ["moving-placed", "moving-deletes"]),
    ]
    assert sorted(named("moving")) == sorted({name for _, names in legs for name in names})
    daemon = place.mount()
    for number in range(3):
        (place.mountpoint / f"file{number}").write_bytes(content_of(number, 300_000))
    place.umount(daemon)
    daemon = place.mount()
    for bucket in buckets:
        bucket.mkdir()
    for leg, failpoints in legs:
        for failpoint in failpoints:
            place.die(failpoint, "store", "migrate", *leg)
            require_content(place, 3)
        place.ctl("store", "migrate", *leg)
        require_content(place, 3)
    place.umount(daemon)
    require_files(place, 3)
    for bucket in buckets:
        assert {path.name for path in bucket.iterdir()} <= {".nexus-bucket"}
