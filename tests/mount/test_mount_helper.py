"""``mount -t nexus`` and fstab: what mount(8) calls."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

from nexusfuse.ctl import processes
from tests.conftest import TIMEOUT_S
from tests.mount.conftest import serving
from tests.mount.linux import refused
from tests.mount.waiting import runs


def helper(name: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run ``mount.nexus`` or ``umount.nexus`` as mount(8) does: hardly any environment."""
    script = f"from nexusfuse.ctl.mount_helper import {name}_main as main; main()"
    return subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": os.getcwd()},
        cwd="/",
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )


def test_the_helpers_of_mount_8_mount_and_unmount(tmp_path: Path) -> None:
    """A line of fstab(5); the source is shown as it is written there, so that mount -a sees it."""
    store, path = tmp_path / "store", tmp_path / "mount"
    path.mkdir()
    done = helper("mount", store, path, "-o", "rw,nofail")
    assert (done.returncode, done.stderr.count("no store")) == (32, 1)
    done = helper("mount", store, path, "-o", "create,noexec,nofail,_netdev,x-systemd.automount")
    assert done.returncode == 0, done
    (line,) = (row for row in Path("/proc/mounts").read_text().splitlines() if f" {path} " in row)
    assert line.startswith(f"{store} {path} fuse.nexus rw,")
    program = path / "program"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    with refused(errno.EACCES):
        subprocess.run([program], check=False)
    assert helper("mount", store, path).returncode == 32, "already mounted"
    both = processes.behind(os.fsencode(path))
    done = helper("umount", path)
    assert done.returncode == 0, done
    assert both.supervisor is not None
    assert not any(map(runs, (*both.daemons, both.supervisor)))


def test_a_store_with_a_comma_in_its_name_can_be_mounted(tmp_path: Path) -> None:
    """FUSE's options are separated by commas."""
    directory = tmp_path / "a,b \\ c"
    directory.mkdir()
    with serving(directory) as mounted:
        assert mounted.status()["store"] == str(mounted.store)
        assert f"store {mounted.store}" in mounted.ctl("status")
