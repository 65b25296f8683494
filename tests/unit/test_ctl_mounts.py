"""Finding mounts, and what ``mount`` and ``umount`` refuse before anything is mounted."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from click.testing import CliRunner

from nexus_engine import errors
from nexus_engine.commands import Request
from nexusfuse.ctl import control, mounts, preconditions
from nexusfuse.ctl.main import cli
from nexusfuse.ctl.mounts import Mount
from nexusfuse.ctl.place import normal_path
from nexusfuse.ctl.wanted import Wanted

MOUNTINFO = rb"""21 1 8:1 / / rw - ext4 /dev/sda1 rw
45 21 0:41 / /home/me/my\040files rw - fuse.nexus nexus:/srv/my\040store rw,user_id=1000,group_id=0
46 21 0:41 /sub /mnt/bind rw - fuse.nexus nexus:/srv/s rw,user_id=0
47 45 0:42 / /home/me/my\040files/inner rw shared:7 - tmpfs tmpfs rw
"""


@pytest.fixture
def mountinfo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "mountinfo"
    path.write_bytes(MOUNTINFO)
    monkeypatch.setattr(mounts, "MOUNTINFO", str(path))


@pytest.mark.usefixtures("mountinfo")
def test_the_deepest_mount_around_a_path_is_its_mount() -> None:
    mount = mounts.mount_of(b"/home/me/my files/a/b")
    assert mount == Mount(b"/home/me/my files", b"/", b"fuse.nexus", b"nexus:/srv/my store", 1000)
    assert mount.store == b"/srv/my store"
    assert mount.inside(b"/home/me/my files/a/b") == b"a/b"
    assert mount.inside(b"/home/me/my files") == b""
    assert not mounts.mount_of(b"/home/me/my files/inner/x").is_nexus
    assert not mounts.mount_of(b"/home/me/my filesystem").is_nexus


@pytest.mark.usefixtures("mountinfo")
def test_a_bind_mount_of_a_subtree_knows_where_it_is() -> None:
    assert mounts.mount_of(b"/mnt/bind/x").inside(b"/mnt/bind/x") == b"sub/x"
    assert mounts.mount_of(b"/mnt/bind").inside(b"/mnt/bind") == b"sub"


@pytest.mark.usefixtures("mountinfo")
def test_a_mountpoint_is_exactly_that() -> None:
    assert mounts.mount_at(b"/mnt/bind") is not None
    assert mounts.mount_at(b"/mnt/bind/x") is None


def test_the_machines_own_mounts_can_be_read() -> None:
    assert any(mount.path == b"/" for mount in mounts.read_mounts())


def test_a_path_names_the_symlink_itself_in_the_real_directory(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "real" / "dangling").symlink_to("nowhere")
    found = mounts.real_path(f"{tmp_path}/link/dangling")
    assert found == os.fsencode(tmp_path.resolve() / "real" / "dangling")
    assert mounts.real_path(f"{tmp_path}/link/.") == os.fsencode(tmp_path.resolve() / "real")
    assert mounts.real_path("/") == b"/"


@pytest.mark.parametrize(
    ("text", "below", "path"),
    [
        (".", "a/b", "a/b"),
        ("", "a", "a"),
        ("x", "a", "a/x"),
        ("/x", "a", "x"),
        ("../../../x", "a", "x"),
        ("//x//y/", "", "x/y"),
    ],
)
def test_a_path_in_a_tree_that_is_no_file_system(text: str, below: str, path: str) -> None:
    assert normal_path(text, below) == path


def mount_fails(*arguments: str | Path) -> str:
    """Ask for a mount that cannot be; return the line that says why."""
    result = CliRunner().invoke(cli, ["mount", *map(str, arguments)])
    assert result.exit_code == 1, result.output
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    return result.stderr


@pytest.fixture
def device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Machines without /dev/fuse check everything else as well."""
    monkeypatch.setattr(preconditions, "DEVICE", Path("/dev/null"))


@pytest.mark.usefixtures("device")
def test_mountpoints_that_cannot_be(tmp_path: Path) -> None:
    store = tmp_path / "store"
    (tmp_path / "file").touch()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    assert "mkdir -p" in mount_fails("--store", store, tmp_path / "none")
    assert "not a directory" in mount_fails("--store", store, tmp_path / "file")
    assert "not empty" in mount_fails("--store", store, tmp_path / "full")
    assert not store.exists()


@pytest.mark.usefixtures("device")
def test_store_and_mountpoint_lie_apart(tmp_path: Path) -> None:
    inside = tmp_path / "store" / "mnt"
    inside.mkdir(parents=True)
    assert "apart" in mount_fails("--store", tmp_path / "store", inside)
    assert "apart" in mount_fails("--store", inside / "store", inside)


@pytest.mark.usefixtures("device")
def test_a_directory_of_something_else_is_no_store(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").touch()
    (tmp_path / "mnt").mkdir()
    result = CliRunner().invoke(cli, ["mount", "--store", f"{tmp_path}/photos", f"{tmp_path}/mnt"])
    assert result.exit_code == 6
    assert "something else" in result.stderr


def test_without_the_device_it_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preconditions, "DEVICE", tmp_path / "fuse")
    assert "modprobe fuse" in mount_fails(tmp_path)


@pytest.mark.usefixtures("device")
def test_a_user_is_told_of_fusermount_and_allow_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(preconditions, "FUSE_CONF", tmp_path / "fuse.conf")
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert "apt install fuse3" in mount_fails(tmp_path)
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    assert "user_allow_other" in mount_fails("--allow-other", tmp_path)
    (tmp_path / "fuse.conf").write_text("#user_allow_other\n")
    assert "user_allow_other" in mount_fails("--allow-other", tmp_path)


def test_unmounting_what_is_not_mounted(tmp_path: Path) -> None:
    result = CliRunner().invoke(cli, ["umount", str(tmp_path)])
    assert result.exit_code == 1
    assert "not a Nexus mount" in result.stderr


def test_the_daemon_is_asked_for_what_the_command_was() -> None:
    wanted = Wanted(Path("/mnt/-x"), Path("/s"), allow_other=True, log_file=Path("/l"))
    words = wanted.arguments()
    assert words[:2] == ["mount", "--foreground"]
    assert words[-2:] == ["--", "/mnt/-x"]
    assert {"--allow-other", "--log-file", "/l"} <= set(words)
    assert "--read-only" not in words


# -- the control file --


def test_a_request_survives_the_way() -> None:
    request = Request("log", {"path": "b\udcff", "limit": 3})
    assert control.decode_request(control.encode_request(request).decode()) == request


@pytest.mark.parametrize(
    "text",
    ["{", "[]", "{}", '{"verb": 3, "args": {}}', '{"verb": "log", "args": []}', "[" * 100_000,
     '{"verb": "log", "args": {}, "sudo": true}'],
)  # fmt: skip
def test_what_is_no_json_request_is_refused(text: str) -> None:
    with pytest.raises(errors.InvalidCommand):
        control.decode_request(text)


def answering(tmp_path: Path, lines: list[bytes]) -> bytes:
    """Make a directory whose control file already holds an answer after the request."""
    (tmp_path / ".nexus").mkdir()
    request = control.encode_request(Request("status", {}))
    (tmp_path / ".nexus/control").write_bytes(b" " * len(request) + b"".join(lines))
    return os.fsencode(tmp_path)


def test_progress_comes_before_the_reply(tmp_path: Path) -> None:
    told: list[tuple[str, int, int | None]] = []
    mount = answering(
        tmp_path,
        [
            control.encode_progress("reading", 1, 2),
            control.encode_progress("reading", 2, None),
            control.encode_reply({"name": "b\udcff"}),
        ],
    )
    reply = control.ask(mount, Request("status", {}), lambda *step: told.append(step))
    assert reply == {"name": "b\udcff"}
    assert told == [("reading", 1, 2), ("reading", 2, None)]


def test_an_error_of_the_daemon_is_that_error_here(tmp_path: Path) -> None:
    mount = answering(tmp_path, [control.encode_error(errors.NoSpace("the disk is full"))])
    with pytest.raises(errors.NoSpace, match="the disk is full"):
        control.ask(mount, Request("status", {}), lambda *_: None)


def test_no_answer_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(errors.EngineError, match="no answer"):
        control.ask(answering(tmp_path, []), Request("status", {}), lambda *_: None)
