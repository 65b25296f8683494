"""Programs write while the server is killed, throttles, or is behind a network that fails."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import boto3
import pytest
from botocore.exceptions import BotoCoreError, ClientError

from benchlib.seaweedfs import free_ports, remove_sockets
from tests.backends.conftest import BUCKET, make_s3_bucket
from tests.backends.proxy import Fault, Proxy
from tests.backends.writing import Writer
from tests.mount.buckets import BucketMount
from tests.mount.waiting import wait_until
from tests.servers import COMMANDS, Server, s3_environment

DEADLINE_S, UPLOAD_LIMIT_S = 4, 10
LATEST_S = UPLOAD_LIMIT_S + 2 * DEADLINE_S + 5
"""The longest that any call may take; the machine may be busy."""
EXPECTED = [
    "cannot be used", "can be used again", "takes packs again", "waits in the store's packs",
    "fsync", "read", "flush", "does not know conditional writes", "sending", "they are replaced",
    "wait for the bucket",
]  # fmt: skip
FAULTS: list[Fault] = [
    "slow down", "never arrive", "lose the answer", "cut the request", "cut the body",
    "shorten the body", "damage the body",
]  # fmt: skip


class S3Process:
    """A server that a test may kill; what it stored is on the disk."""

    def __init__(self, kind: str, directory: Path) -> None:
        self._content = directory / "content"
        self._content.mkdir()
        self._log = directory / "server.log"
        (self._port,) = free_ports(1)
        self._command = COMMANDS[kind](self._content, self._port)
        self.endpoint = f"http://127.0.0.1:{self._port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, stdout=log, stderr=log, env=os.environ | s3_environment(),
                cwd=self._content,
            )  # fmt: skip
        wait_until(self._stores, "starting", 60)

    def kill(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
        remove_sockets(self._command)

    def _stores(self) -> bool:
        try:
            make_s3_bucket(Server(self.endpoint, {}))
            with closing(boto3.client("s3", endpoint_url=self.endpoint)) as client:
                client.put_object(Bucket=BUCKET, Key="first", Body=b"")
        except (BotoCoreError, ClientError):
            return False
        return True


@contextmanager
def mounted(directory: Path, endpoint: str) -> Iterator[BucketMount]:
    """Yield a mount; afterwards it must stop cleanly and sound, with everything at the server."""
    directory.mkdir()
    url = f"s3://{BUCKET}/{uuid.uuid4().hex}?endpoint={endpoint}&deadline_s={DEADLINE_S}"
    mount = BucketMount(
        directory, url, upload_limit_s=UPLOAD_LIMIT_S, upload_interval_s=0.5, metadata_interval_s=1
    )
    mount.expected_log += [*EXPECTED, "the copy of the metadata"]
    try:
        yield mount
        wait_until(lambda: mount.figure("backlog_bytes") == 0, "sending", 60)
        mount.umount()
        assert mount.unexpected_log_lines() == []
        assert mount.unsent() == {}
        mount.ctl("--store", str(mount.store), "fsck", "--deep")
    finally:
        mount.detach()


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in s3_environment().items():
        monkeypatch.setenv(name, value)


@contextmanager
def writing(mount: BucketMount, notes: Path, seed: int) -> Iterator[Writer]:
    """Yield a program that writes; afterwards all that it was promised must be at the server."""
    writer = Writer(mount.path, notes, seed)
    try:
        yield writer
    finally:
        writer.stop()
    assert writer.longest_s < LATEST_S
    mount.remount()
    mount.forget_cache()
    writer.require_all()


def write_beside_kills(kind: str, tmp_path: Path, seed: int, *, kills: int, away_s: float) -> None:
    server = S3Process(kind, tmp_path)
    server.start()
    try:
        with (
            mounted(tmp_path / "mounted", server.endpoint) as mount,
            writing(mount, tmp_path / "notes", seed) as writer,
        ):
            for _ in range(kills):
                synced = writer.count("synced")
                wait_until(lambda: writer.count("synced") > synced + 1, "syncing")  # noqa: B023
                server.kill()
                closed, begun_s = writer.count("closed"), time.monotonic()
                wait_until(lambda: writer.count("closed") > closed, "writing")  # noqa: B023
                wait_until(lambda: time.monotonic() > begun_s + away_s, "time")  # noqa: B023
                server.start()
            synced = writer.count("synced")
            wait_until(lambda: writer.count("synced") > synced, "syncing again", 60)
    finally:
        server.kill()


@pytest.mark.usefixtures("environment")
def test_a_server_is_killed_and_started_again(tmp_path: Path, seed: int) -> None:
    write_beside_kills("rclone", tmp_path, seed, kills=1, away_s=1)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("environment")
@pytest.mark.parametrize("kind", ["rclone", "seaweedfs"])
def test_a_server_is_killed_and_started_again_many_times(
    tmp_path: Path, seed: int, kind: str
) -> None:
    write_beside_kills(kind, tmp_path, seed, kills=6, away_s=8)


def write_beside_faults(server: Server, tmp_path: Path, seed: int, files: int) -> None:
    make_s3_bucket(server)
    rng = random.Random(seed)
    with (
        Proxy(server.endpoint).running() as proxy,
        mounted(tmp_path / "mounted", proxy.endpoint) as mount,
    ):
        proxy.fail_at_random(FAULTS, 0.3, rng)
        writer = Writer(mount.path, tmp_path / "notes", seed)
        try:
            wait_until(
                lambda: writer.count("closed") >= files and writer.count("synced") >= files // 8,
                "writing", 240,
            )  # fmt: skip
        finally:
            writer.stop()
            proxy.mend()
        assert writer.longest_s < LATEST_S
        mount.remount()
        mount.forget_cache()
        proxy.fail_at_random(FAULTS, 0.2, rng)
        writer.require_all()
        proxy.mend()


@pytest.mark.usefixtures("environment")
def test_a_network_fails_all_the_time(seaweedfs: Server, tmp_path: Path, seed: int) -> None:
    """Three requests of ten; each in one of the ways that networks and servers know."""
    write_beside_faults(seaweedfs, tmp_path, seed, 40)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("environment")
def test_a_network_fails_all_the_time_for_long(
    seaweedfs: Server, tmp_path: Path, seed: int
) -> None:
    write_beside_faults(seaweedfs, tmp_path, seed, 600)


@pytest.mark.usefixtures("environment")
@pytest.mark.parametrize(
    "fault",
    [
        "slow down",
        pytest.param("never arrive", marks=pytest.mark.slow),
        pytest.param("keep silent", marks=pytest.mark.slow),
        pytest.param("lose the answer", marks=pytest.mark.slow),
        pytest.param("cut the request", marks=pytest.mark.slow),
    ],
)
def test_for_a_while_nothing_gets_through(
    seaweedfs: Server, tmp_path: Path, seed: int, fault: Fault
) -> None:
    make_s3_bucket(seaweedfs)
    with (
        Proxy(seaweedfs.endpoint).running() as proxy,
        mounted(tmp_path / "mounted", proxy.endpoint) as mount,
        writing(mount, tmp_path / "notes", seed) as writer,
    ):
        wait_until(lambda: writer.count("synced") >= 2, "syncing")
        proxy.fail(fault)
        wait_until(lambda: writer.count("failed") >= 1, "failing", 60)
        closed = writer.count("closed")
        wait_until(lambda: writer.count("closed") > closed, "writing")
        proxy.mend()
        synced = writer.count("synced")
        wait_until(lambda: writer.count("synced") > synced, "syncing again", 60)
