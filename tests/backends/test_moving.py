"""Packs that move from place to place while programs write."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, suppress
from hashlib import sha256
from pathlib import Path

import pytest

from nexus_engine.backends.urls import open_bucket
from tests.backends.conftest import BUCKET, make_gcs_bucket, make_s3_bucket
from tests.conftest import CTL, TIMEOUT_S, Mount
from tests.mount.waiting import wait_until
from tests.servers import Server

MIB = 1 << 20
_WRITER = """
import hashlib, os, random, signal, sys, time
directory, promises, seed = sys.argv[1:]
stopping = []
signal.signal(signal.SIGTERM, lambda *_: stopping.append(True))
rng = random.Random(int(seed))
noted = os.open(promises, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
number = 0
while not stopping:
    name = f"{number % 40}"
    content = rng.randbytes(rng.choice((10, 5_000, 300_000)))
    with open(f"{directory}/{name}.new", "wb") as file:
        file.write(content)
        file.flush()
        if number % 5 == 0:
            os.fsync(file.fileno())
    os.rename(f"{directory}/{name}.new", f"{directory}/{name}")
    os.write(noted, f"{name} {hashlib.sha256(content).hexdigest()}\\n".encode())
    number += 1
    time.sleep(0.01)
"""


class Writer:
    """A program that writes files, and notes outside the mount what each holds."""

    def __init__(self, directory: Path, promises: Path, seed: int) -> None:
        self._directory, self._promises = directory, promises
        self._process = subprocess.Popen(
            [sys.executable, "-c", _WRITER, directory, promises, str(seed)], stderr=subprocess.PIPE
        )

    @property
    def count(self) -> int:
        return len(self._notes())

    def stop(self) -> dict[Path, str]:
        """Return what each file must hold."""
        assert self._process.poll() is None, self._process.communicate()
        self._process.send_signal(signal.SIGTERM)
        _, said = self._process.communicate(timeout=TIMEOUT_S)
        assert said == b""
        return {self._directory / name: digest for name, digest in map(str.split, self._notes())}

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def _notes(self) -> list[str]:
        return self._promises.read_text().splitlines() if self._promises.exists() else []


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Mount]:
    (tmp_path / "store").mkdir()
    settings = "durability: remote\nupload_interval_s: 0.3\n"
    (tmp_path / "store/store.yaml").write_text(settings)
    mounted = Mount(tmp_path)
    try:
        yield mounted
        assert mounted.check() == []
        mounted.umount()
        assert mounted.unexpected_log_lines() == []
        mounted.ctl("--store", str(mounted.store), "fsck", "--deep")
    finally:
        mounted.detach()


@pytest.fixture
def urls(
    seaweedfs: Server, fake_gcs: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> list[str]:
    """Return a prefix at an S3 server, and one at a GCS server."""
    for name, value in (seaweedfs.environment | fake_gcs.environment).items():
        monkeypatch.setenv(name, value)
    make_s3_bucket(seaweedfs)
    make_gcs_bucket()
    return [
        f"s3://{BUCKET}/{tmp_path.name}?endpoint={seaweedfs.endpoint}",
        f"gs://{BUCKET}/{tmp_path.name}",
    ]


def migrate(mount: Mount, *words: str) -> dict[str, object]:
    command = [*CTL, "--json", "--store", str(mount.store), "store", "migrate", *words]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)
    reply: dict[str, object] = json.loads(done.stdout)
    return reply


def migrate_and_die(mount: Mount, hits: Path, nth: int, *words: str) -> None:
    """Have it killed after the Nth pack."""
    armed = ["-m", "tests.crash.campaign.armed", f"moving-copied:{nth}:{hits}"]
    command = [sys.executable, *armed, "--store", str(mount.store), "store", "migrate", *words]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=300)
    assert done.returncode == -signal.SIGKILL, done
    assert hits.read_text().split()[-1] == "moving-copied"


def require(promised: dict[Path, str]) -> None:
    assert promised
    for path, digest in promised.items():
        assert sha256(path.read_bytes()).hexdigest() == digest, path


def move_around(mount: Mount, urls: list[str], tmp_path: Path, seed: int, packs: int) -> None:
    s3, gcs = urls
    for number in range(packs):
        (mount.path / f"before-{number}").write_bytes(random.Random(number).randbytes(100_000))
        mount.remount()  # so that each is in a pack of its own
    writer = Writer(mount.path, tmp_path / "promises", seed)
    try:
        for number, (leg, url) in enumerate(((s3, s3), (gcs, gcs), ("local", None))):
            begun = writer.count
            migrate_and_die(mount, tmp_path / "hits", 1 + number, leg)
            status = mount.status()
            assert status["packs_move_to"] == leg
            wait_until(lambda: writer.count > begun, "writing")  # noqa: B023
            assert migrate(mount, leg)["packs_url"] == url
            wait_until(lambda: mount.status().get("packs_url") == url, "following")  # noqa: B023
    finally:
        promised = writer.stop()
    require(promised)
    mount.remount()
    require(promised)
    for number in range(packs):
        content = (mount.path / f"before-{number}").read_bytes()
        assert content == random.Random(number).randbytes(100_000)


def test_packs_move_from_place_to_place_while_programs_write(
    mount: Mount, urls: list[str], tmp_path: Path, seed: int
) -> None:
    """local, S3, GCS, local; killed in the middle of each leg, and gone on with."""
    move_around(mount, urls, tmp_path, seed, packs=2)
    assert migrate(mount, "--delete-old")["kept_in"] == []
    for url in urls:
        with closing(open_bucket(url)) as bucket:
            assert list(bucket.iter_objects()) == []


@pytest.mark.slow
@pytest.mark.timeout(880)
def test_a_larger_store_moves_around_for_longer(
    mount: Mount, urls: list[str], tmp_path: Path, seed: int
) -> None:
    """Hundreds of MiB, and each leg is killed at some packs before it may end."""
    rng = random.Random(seed)
    big = {f"big-{number}": rng.randbytes(16 * MIB) for number in range(24)}
    for name, content in big.items():
        (mount.path / name).write_bytes(content)
    move_around(mount, urls, tmp_path, seed, packs=12)
    for url in (*urls, "local"):
        for _ in range(3):
            migrate_and_be_killed(mount, rng.uniform(0.5, 4), url)
        migrate(mount, url)
        for name, content in big.items():
            assert (mount.path / name).read_bytes() == content


def migrate_and_be_killed(mount: Mount, after_s: float, *words: str) -> None:
    """Kill it at any instant."""
    command = [*CTL, "--store", str(mount.store), "store", "migrate", *words]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as moving:
        with suppress(subprocess.TimeoutExpired):
            moving.wait(after_s)
        moving.kill()
