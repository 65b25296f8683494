"""``.nexus``: found by name, in no listing; versions and snapshots; real entries beside it."""

from __future__ import annotations

import errno
import os
import subprocess
from pathlib import Path

import pytest

from tests.conftest import Mount
from tests.mount.linux import refused
from tests.mount.waiting import wait_until

VIRTUAL = {"history", "versions", "snapshots", "control", "status", "log", "events"}


def test_no_walk_of_the_live_tree_enters_nexus(mount: Mount) -> None:
    """find, ls -a, du, rm -rf, tar follow listings, and those do not show it."""
    (mount.path / "a/b").mkdir(parents=True)
    (mount.path / "a/file").write_text("x")
    assert ".nexus" not in mount.sh("find . -print; ls -aR; tar cf - . | tar tf -; du -a .")
    assert set(os.listdir(mount.path / ".nexus")) == VIRTUAL
    assert set(os.listdir(mount.path / "a/b/.nexus")) == VIRTUAL
    mount.sh("rm -rf a")
    assert os.listdir(mount.path) == []


def test_virtual_names_cannot_be_replaced_or_removed(mount: Mount) -> None:
    """Only what is real can be changed; the rest says so."""
    nexus = mount.path / ".nexus"
    (mount.path / "file").touch()
    with refused(errno.EBUSY, errno.EROFS, errno.ENOTEMPTY):
        os.rmdir(nexus)
    for name in ("control", "status"):
        with refused(errno.EROFS, errno.EBUSY, errno.EPERM):
            os.unlink(nexus / name)
    for name in ("history", "versions", "snapshots"):
        with refused(errno.EROFS, errno.EBUSY, errno.EPERM):
            os.rmdir(nexus / name)
    with refused(errno.EROFS, errno.EBUSY, errno.EPERM, errno.ENOTEMPTY, errno.EXDEV):
        os.rename(nexus / "history", mount.path / "stolen")
    with refused(errno.EEXIST):
        os.mkdir(nexus)
    with refused(errno.EEXIST):
        os.mkdir(nexus / "history")
    assert set(os.listdir(nexus)) == VIRTUAL


def test_real_entries_live_beside_virtual_names(mount: Mount) -> None:
    """.nexus/workflows/x.yaml is an ordinary file; then the directory is listed like any other."""
    (mount.path / "project").mkdir()
    nexus = mount.path / "project/.nexus"
    mount.sh("mkdir -p project/.nexus/workflows")
    (nexus / "workflows/x.yaml").write_text("on: write\n")
    assert os.listdir(mount.path / "project") == [".nexus"]
    assert os.listdir(nexus) == ["workflows"]
    assert (nexus / "workflows/x.yaml").read_text() == "on: write\n"
    for name in VIRTUAL:
        assert (nexus / name).exists(), name
    seq = mount.json("log", "--limit", "1")[0]["seq"]
    (nexus / "workflows/x.yaml").write_text("changed\n")
    past = nexus / f"history/op-{seq}/.nexus/workflows/x.yaml"
    assert past.read_text() == "on: write\n"
    found = mount.sh("find project")
    assert found.split() == [
        "project",
        "project/.nexus",
        "project/.nexus/workflows",
        "project/.nexus/workflows/x.yaml",
    ]


def test_rm_rf_of_a_directory_with_real_nexus_entries_works(mount: Mount) -> None:
    """Nothing real is ever hidden, so everything can be removed."""
    mount.sh("mkdir -p project/.nexus/workflows; echo x > project/.nexus/workflows/x.yaml")
    seq = mount.json("log", "--limit", "1")[0]["seq"]
    mount.sh("rm -rf project")
    assert os.listdir(mount.path) == []
    past = mount.path / f".nexus/history/op-{seq}/project/.nexus/workflows/x.yaml"
    assert past.read_text() == "x\n"
    mount.sh("mkdir project")
    assert set(os.listdir(mount.path / "project/.nexus")) == VIRTUAL


def test_a_real_nexus_directory_can_be_moved_and_removed(mount: Mount) -> None:
    """rmdir and rename treat it as what it is."""
    nexus = mount.path / ".nexus"
    (nexus / "skills").mkdir()
    os.rename(nexus, mount.path / "other")
    assert os.listdir(mount.path / "other") == ["skills"]
    assert set(os.listdir(nexus)) == VIRTUAL
    assert not (mount.path / "other/history").exists()
    os.rename(mount.path / "other", nexus)
    assert (nexus / "history").is_dir()
    os.rmdir(nexus / "skills")
    os.rmdir(nexus)
    assert os.listdir(mount.path) == []
    assert set(os.listdir(nexus)) == VIRTUAL


def test_a_real_file_called_like_a_virtual_name_elsewhere_is_ordinary(mount: Mount) -> None:
    """Only below ``.nexus`` do the names mean anything."""
    for name in sorted(VIRTUAL):
        assert not (mount.path / name).exists()
        (mount.path / name).write_text(name)
        assert (mount.path / name).read_text() == name


def contents(directory: Path) -> list[str]:
    """Return the versions of a file, oldest first."""
    return [(directory / name).read_text() for name in sorted(os.listdir(directory), key=int)]


def test_versions_hold_every_content_of_a_file(mount: Mount) -> None:
    """versions/<name>/<seq>, also after it was deleted, also after a rename."""
    path, versions = mount.path / "file", mount.path / ".nexus/versions"
    for text in ("one", "two", "three"):
        path.write_text(text)
    assert [text for text in contents(versions / "file") if text] == ["one", "two", "three"]
    path.unlink()
    assert [text for text in contents(versions / "file") if text] == ["one", "two", "three"]
    path.write_text("reborn")
    os.rename(path, mount.path / "renamed")
    (mount.path / "renamed").write_text("later")
    kept = ["one", "two", "three", "reborn"]
    assert [text for text in contents(versions / "file") if text][:4] == kept
    assert contents(versions / "renamed")[-1] == "later"
    assert {"file", "renamed"} <= set(os.listdir(versions))
    assert not (versions / "never").exists()
    with refused(errno.EROFS):
        newest = max(os.listdir(versions / "renamed"), key=int)
        os.open(versions / "renamed" / newest, os.O_WRONLY)
    assert len(mount.json("versions", "renamed")) >= 2


def test_a_file_replaced_by_rename_keeps_its_versions(mount: Mount) -> None:
    """What editors do: write a new file, rename it over the old one."""
    for text in ("first", "second", "third"):
        (mount.path / "new").write_text(text)
        os.rename(mount.path / "new", mount.path / "file")
    found = contents(mount.path / ".nexus/versions/file")
    assert [text for text in found if text] == ["first", "second", "third"]


def test_snapshots_are_made_and_dropped_as_directories(mount: Mount) -> None:
    """mkdir names the present, rmdir forgets the name; nexus-ctl sees the same."""
    snapshots = mount.path / ".nexus/snapshots"
    (mount.path / "file").write_text("then")
    (snapshots / "release 1").mkdir()
    mount.ctl("snapshot", "create", "second")
    (mount.path / "file").write_text("now")
    assert sorted(os.listdir(snapshots)) == ["release 1", "second"]
    for directory in (snapshots, mount.path / ".nexus/history"):
        assert (directory / "release 1" / "file").read_text() == "then"
    with refused(errno.EEXIST):
        (snapshots / "second").mkdir()
    with refused(errno.EINVAL):
        (snapshots / "2h").mkdir()
    with refused(errno.EILSEQ, errno.EINVAL):
        os.mkdir(os.fsencode(snapshots) + b"/\xff")
    with refused(errno.ENOENT):
        (snapshots / "missing").rmdir()
    with refused(errno.EROFS):
        (snapshots / "second/file").write_text("x")
    (snapshots / "second").rmdir()
    assert os.listdir(snapshots) == ["release 1"]
    assert not (mount.path / ".nexus/history/second").exists()
    mount.remount()
    assert (snapshots / "release 1/file").read_text() == "then"


def test_a_snapshot_holds_what_was_written_a_moment_ago(mount: Mount) -> None:
    """Also what is in files that are still open."""
    with open(mount.path / "file", "w") as file:
        file.write("not closed yet")
        file.flush()
        (mount.path / ".nexus/snapshots/s").mkdir()
        file.write(", and more")
    assert (mount.path / ".nexus/history/s/file").read_text() == "not closed yet"
    assert (mount.path / "file").read_text() == "not closed yet, and more"


def test_status_log_and_events_can_be_read(mount: Mount) -> None:
    """status: ``key value`` lines; log: JSON lines, newest last, of what is below."""
    (mount.path / "a").mkdir()
    events = os.open(mount.path / "a/.nexus/events", os.O_RDONLY)
    (mount.path / "a/file").write_text("x")
    (mount.path / "elsewhere").write_text("x")
    status = dict(
        line.split(" ", 1) for line in (mount.path / ".nexus/status").read_text().splitlines()
    )
    assert int(status["pid"]) == int(mount.status()["pid"])
    log = (mount.path / "a/.nexus/log").read_text()
    assert '"path":"a/file"' in log.splitlines()[-1]
    assert "elsewhere" not in log
    happened = os.read(events, 65536).decode()
    os.close(events)
    assert "a/file" in happened
    assert "elsewhere" not in happened


def test_tail_follows_events(mount: Mount) -> None:
    """tail -f prints records as they are committed."""
    tail = subprocess.Popen(
        ["tail", "-f", "-n", "+1", mount.path / ".nexus/events"], stdout=subprocess.PIPE
    )
    try:
        assert tail.stdout is not None

        # Opened once the kernel shows it among the process's descriptors.
        def is_open() -> bool:
            fds = Path(f"/proc/{tail.pid}/fd")
            return any(str(fd.readlink()).endswith("events") for fd in fds.iterdir())

        wait_until(is_open, "tail has the file open")
        (mount.path / "file").write_text("x")
        assert b'"path":"file"' in tail.stdout.readline()
    finally:
        tail.kill()
        tail.wait(10)


@pytest.mark.parametrize("name", ["x" * 255, b"\xff\xfe"])
def test_odd_names_have_versions(mount: Mount, name: str | bytes) -> None:
    """A name is bytes, in ``versions`` too."""
    top, encoded = os.fsencode(mount.path), os.fsencode(name)
    for content in (b"1", b"2"):
        with open(top + b"/" + encoded, "wb") as file:
            file.write(content)
    directory = top + b"/.nexus/versions/" + encoded
    assert encoded in os.listdir(top + b"/.nexus/versions")
    found = {
        Path(os.fsdecode(directory + b"/" + seq)).read_bytes() for seq in os.listdir(directory)
    }
    assert {b"1", b"2"} <= found
