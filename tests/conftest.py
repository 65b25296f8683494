"""What every test may use. ``mount`` is a real daemon on a real mountpoint."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.servers import fake_gcs, rclone_s3, seaweedfs

__all__ = ["fake_gcs", "rclone_s3", "seaweedfs"]

CTL = [sys.executable, "-m", "nexusfuse.ctl.main"]
TIMEOUT_S = 60


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run the slow tests as well")
    parser.addoption("--seed", type=int, help="what random tests begin with; default: by chance")


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """Return what this test's choices come from; shown when it fails."""
    chosen = request.config.getoption("--seed")
    chosen = random.randrange(1 << 32) if chosen is None else int(chosen)
    print(f"--seed {chosen}")  # noqa: T201
    return chosen


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--slow"):
        return
    slow = [item for item in items if item.get_closest_marker("slow")]
    if slow:
        config.hook.pytest_deselected(items=slow)
        items[:] = [item for item in items if item not in slow]


class Mount:
    """A mounted store, driven as a person would: programs, files and nexus-ctl."""

    def __init__(self, directory: Path, *options: str, restart: bool = False) -> None:
        self.store = directory / "store"
        self.path = directory / "mount"
        self.path.mkdir()
        self.log = self.store / "daemon.log"
        self.expected_log: list[str] = []
        """Parts of warnings and errors that the test provokes."""
        self.mount(*options, restart=restart)

    def mount(self, *options: str, restart: bool = False) -> None:
        """Mount; a daemon that dies stays dead, for the tests to look at, unless ``restart``."""
        options = (*options, *["--no-restart"] * (not restart))
        self._ctl("--store", str(self.store), "mount", *options, str(self.path))

    def umount(self) -> None:
        self._ctl("umount", str(self.path))

    def remount(self) -> None:
        self.umount()
        self.mount()

    def kill(self) -> None:
        """``kill -9`` the daemon, and clean up the dead mountpoint."""
        pid = self.status()["pid"]
        os.kill(pid, signal.SIGKILL)
        subprocess.run(["fusermount3", "-uz", self.path], check=True, timeout=TIMEOUT_S)

    def detach(self) -> None:
        """Take away what a test that failed left mounted."""
        if os.path.ismount(self.path):
            subprocess.run(["fusermount3", "-uz", self.path], check=False, timeout=TIMEOUT_S)

    def ctl(self, *arguments: str, agent: str | None = None, check: bool = True) -> str:
        """Run nexus-ctl in the mount; return what it prints."""
        return self._ctl(*arguments, agent=agent, check=check)

    def json(self, *arguments: str) -> list[dict[str, Any]]:
        """Run nexus-ctl --json in the mount; return its objects."""
        return [json.loads(line) for line in self._ctl("--json", *arguments).splitlines()]

    def sh(self, script: str, *, agent: str | None = None, check: bool = True) -> str:
        """Run a shell script in the mount; return what it prints."""
        return self._run(["bash", "-euo", "pipefail", "-c", script], agent=agent, check=check)

    def status(self) -> dict[str, Any]:
        return dict(self.json("status", str(self.path))[0])

    def check(self) -> list[str]:
        """Return what fsck and verify-log have to say against the store."""
        reply = json.loads(self._ctl("--json", "fsck", check=False).splitlines()[0])
        self._ctl("verify-log")
        return [str(problem) for problem in reply["problems"]]

    def _ctl(self, *arguments: str, agent: str | None = None, check: bool = True) -> str:
        return self._run([*CTL, *arguments], agent=agent, check=check)

    def _run(self, command: list[str], *, agent: str | None, check: bool) -> str:
        environment = {k: v for k, v in os.environ.items() if k != "NEXUS_AGENT"}
        if agent is not None:
            environment["NEXUS_AGENT"] = agent
        inside = os.path.ismount(self.path) and "umount" not in command
        cwd = self.path if inside else self.path.parent
        done = subprocess.run(
            command,
            cwd=cwd,
            env=environment,
            capture_output=True,
            text=True,
            errors="surrogateescape",
            timeout=TIMEOUT_S,
            check=False,
        )
        if check and done.returncode != 0:
            pytest.fail(f"{command} exited {done.returncode}:\n{done.stdout}{done.stderr}")
        return done.stdout

    def unexpected_log_lines(self) -> list[str]:
        lines = self.log.read_text().splitlines()
        return [
            line
            for line in lines
            if any(word in line for word in ("WARNING", "ERROR", "CRITICAL", "Traceback"))
            and not any(part in line for part in self.expected_log)
        ]


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Mount]:
    """Yield a fresh mount; afterwards it must stop cleanly, silently and sound."""
    mounted = Mount(tmp_path)
    try:
        yield mounted
        if os.path.ismount(mounted.path):
            assert mounted.check() == []
            mounted.umount()
        assert mounted.unexpected_log_lines() == []
        mounted.ctl("--store", str(mounted.store), "fsck")  # exits 0 only when all is well
    finally:
        mounted.detach()
