"""``mount.nexus``: options and exit codes as mount(8) has them."""

from __future__ import annotations

from pathlib import Path

import pytest

from nexusfuse.ctl.mount_helper import BadUsage, mount, parse_options, run, umount
from nexusfuse.ctl.wanted import Wanted

PLAIN = Wanted(Path("/mnt"), Path("/store"))


@pytest.mark.parametrize(
    ("text", "asked"),
    [
        ("", {}),
        ("rw,relatime,auto,nofail,_netdev,x-systemd.automount,comment=mine,uhelper=nexus", {}),
        ("defaults,suid,dev,exec,async", {}),
        ("ro", {"read_only": True}),
        ("ro,rw", {}),
        ("allow_other,noatime", {"allow_other": True, "noatime": True}),
        ("noexec,nosuid", {"kernel": ("nosuid", "noexec")}),
        ("user", {"kernel": ("nosuid", "nodev", "noexec")}),
        ("user=bob,exec", {"kernel": ("nosuid", "nodev")}),
        ("owner,sync,dirsync", {"kernel": ("nosuid", "nodev", "sync", "dirsync")}),
        ("debug,no_restart", {"debug": True, "restart": False}),
        ("hang_limit=2.5", {"hang_limit_s": 2.5}),
        ("log_file=/var/log/nexus", {"log_file": Path("/var/log/nexus")}),
    ],
)
def test_options_mean_what_mount_8_says(text: str, asked: dict[str, object]) -> None:
    """mount(8): filesystem-independent options; what is for the system is passed over."""
    wanted = parse_options(text, PLAIN, sloppy=False).wanted
    assert {k: v for k, v in wanted._asdict().items() if getattr(PLAIN, k) != v} == asked


@pytest.mark.parametrize(
    "text", ["frobnicate", "uid=0", "allow_root", "hang_limit=soon", "remount"]
)
def test_what_we_do_not_know_is_refused_by_name(text: str) -> None:
    """An option that is silently ignored is a promise that is silently broken."""
    with pytest.raises(BadUsage, match=text):
        parse_options(f"rw,{text}", PLAIN, sloppy=False)


def test_sloppy_passes_over_what_it_does_not_know() -> None:
    """mount(8): -s, tolerate sloppy mount options."""
    asked = parse_options("frobnicate,ro,uid=0", PLAIN, sloppy=True)
    assert asked.wanted == PLAIN._replace(read_only=True)


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["/s"], 1, "usage"),
        (["/s", "/m", "-q"], 1, "-q"),
        (["/s", "/m", "-N", "/proc/1/ns/mnt"], 1, "nsenter"),
        (["/s", "/m", "-o", "rw,frobnicate"], 1, "frobnicate"),
        (["/no/such/store", "/", "-o", "rw"], 32, "no store at /no/such/store"),
        (["-f", "/no/such/store", "/no/such/place", "-o", "nofail"], 0, ""),
        (["-n", "-v", "-t", "nexus", "/no/such/store", "/", "-o", "ro"], 32, "no store"),
    ],
)
def test_mount_exits_as_mount_8_does(
    arguments: list[str], code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """mount(8), EXIT STATUS: 1 usage, 32 mount failure; and one line says why."""
    assert run("mount.nexus", mount, arguments) == code
    error = capsys.readouterr().err
    assert said in error
    assert len(error.splitlines()) == (code != 0)
    assert error.startswith("mount.nexus: " * (code != 0))


def test_umount_of_what_is_no_mount_fails_with_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """umount(8): 32."""
    assert run("umount.nexus", umount, [str(tmp_path), "-n"]) == 32
    assert "not a Nexus mount" in capsys.readouterr().err
    assert run("umount.nexus", umount, []) == 1
