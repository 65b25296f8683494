"""Requests that wait, and those that need not."""

from __future__ import annotations

import subprocess

from nexus_engine.meta.connection import DATABASE_NAME, Connection
from tests.conftest import TIMEOUT_S, Mount
from tests.mount.waiting import wait_until

WAITING = 20


def asked_for_mkdir(mount: Mount) -> int:
    lines = (mount.path / ".nexus/status").read_text().splitlines()
    return int(dict(line.split(maxsplit=1) for line in lines)["requests_mkdir"])


def test_requests_that_wait_delay_no_other(mount: Mount) -> None:
    """Somebody writes to the store for long: who only looks and reads is answered meanwhile."""
    directories = [mount.path / f"directory-{number}" for number in range(WAITING)]
    for directory in directories:
        directory.mkdir()
    (mount.path / "file").write_text("content")
    asked = asked_for_mkdir(mount) + WAITING
    writer = Connection(str(mount.store / DATABASE_NAME))
    with writer.without_writers():
        waiting = [subprocess.Popen(["mkdir", directory / "made"]) for directory in directories]
        wait_until(lambda: asked_for_mkdir(mount) == asked, "every mkdir is asked for")
        for number in range(100):
            assert not (mount.path / f"missing-{number}").exists()
            assert (mount.path / "file").read_text() == "content"
        assert {process.poll() for process in waiting} == {None}
    writer.close()
    assert [process.wait(TIMEOUT_S) for process in waiting] == [0] * WAITING
    assert all((directory / "made").is_dir() for directory in directories)
