"""The servers that tests start leave nothing behind, killed as they are."""

from __future__ import annotations

import fcntl
import os
import re
import subprocess
import sys
from pathlib import Path

from tests import servers
from tests.mount.waiting import wait_until


def test_seaweedfs_leaves_nothing_outside_of_its_directory(tmp_path: Path) -> None:
    """In /tmp it would have its logs, by process, and sockets, by port, for every run."""
    with (tmp_path / "users").open("a") as users:
        fcntl.flock(users, fcntl.LOCK_SH)
        with subprocess.Popen(
            [sys.executable, servers.__file__, "seaweedfs", str(tmp_path)],
            stdout=subprocess.PIPE, text=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        ) as keeper:  # fmt: skip
            assert keeper.stdout is not None
            assert keeper.stdout.readline() == "ready\n"
            server, words = _child(keeper.pid)
            ports = re.findall(r"port(?:\.\w+)?=(\d{4,})", words)
            assert len(ports) == 8
            wait_until(lambda: len(_sockets(ports)) == 4, "all of it serves", 30)
            fcntl.flock(users, fcntl.LOCK_UN)
    assert keeper.returncode == 0
    assert _sockets(ports) == []
    assert list(Path("/tmp").glob(f"weed.*.{server}")) == []


def _sockets(ports: list[str]) -> list[Path]:
    return [path for port in ports for path in Path("/tmp").glob(f"*-{port}.sock")]


def _child(parent: int) -> tuple[int, str]:
    (child,) = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    return int(child), Path(f"/proc/{child}/cmdline").read_text()
