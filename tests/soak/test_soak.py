"""Hours of use: what the daemon holds stays as it was, and the store grows as its policy says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import pytest

from tests.conftest import Mount

AGENTS = ("ada", "bob", "cyd")
POLICY = """\
chunk_cache_mib: 8
retention:
  keep_all: 60s
  thin:
  - {every: 1m, until: 5m}
  interval: 30s
  keep_log: 5m
"""
SAMPLES = 40
MIB = 1 << 20
ALLOWANCE = {"descriptors": 4, "memory": 8 * MIB, "database": 32 * MIB, "packs": 256 * MIB}
"""What may come and go between the second quarter and the last: four packs, say."""


@dataclass(frozen=True)
class Sample:
    """What the daemon and its store take up."""

    memory: int
    descriptors: int
    """Without those of known processes, of which there are at most so many."""
    database: int
    packs: int
    operations: int


@pytest.mark.parametrize(
    "minutes",
    [
        0.2,
        pytest.param(60, marks=[pytest.mark.slow, pytest.mark.timeout(2 * 3600)]),
    ],
)
def test_memory_descriptors_and_store_stay_flat(mount: Mount, minutes: float) -> None:
    (mount.store / "store.yaml").write_text(POLICY)
    mount.remount()
    pid = int(mount.status()["pid"])
    workers = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.soak.worker", mount.path, str(seed), str(minutes * 60)],
            env=os.environ | {"NEXUS_AGENT": agent},
            stdout=subprocess.PIPE,
        )
        for seed, agent in enumerate(AGENTS)
    ]
    samples = [sample(mount, pid)]
    try:
        while any(worker.poll() is None for worker in workers):
            wait_for_one(workers, minutes * 60 / SAMPLES)
            samples.append(sample(mount, pid))
            sys.stdout.write(f"{samples[-1]}\n")
        done = [json.loads(worker.communicate()[0] or "{}") for worker in workers]
        assert [worker.returncode for worker in workers] == [0] * len(workers)
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
    sys.stdout.write(f"{done}\n")
    assert all(counts["undo"] and counts["past"] for counts in done)
    samples.append(sample(mount, pid))
    quarter = len(samples) // 4

    def grown(field: str) -> bool:
        sizes = [getattr(each, field) for each in samples]
        early, late = median(sizes[quarter : 2 * quarter]), median(sizes[-quarter:])
        return bool(late > early * 1.1 + ALLOWANCE[field])

    assert not grown("descriptors")
    if minutes > 10:
        assert [field for field in ("memory", "database", "packs") if grown(field)] == []


def wait_for_one(workers: list[subprocess.Popen[bytes]], seconds: float) -> None:
    """Return when a worker that runs has ended, and after ``seconds`` at the latest."""
    running = next(worker for worker in workers if worker.poll() is None)
    try:
        running.wait(seconds)
    except subprocess.TimeoutExpired:
        return


def sample(mount: Mount, pid: int) -> Sample:
    status = Path(f"/proc/{pid}/status").read_text().splitlines()
    # Not VmRSS: pages of the database that are mapped are the kernel's cache, and go when it likes.
    anonymous = next(line.split()[1] for line in status if line.startswith("RssAnon:"))
    descriptors = []
    for entry in os.scandir(f"/proc/{pid}/fd"):
        with suppress(FileNotFoundError):  # closed since
            descriptors.append(os.readlink(entry))
    store = mount.store
    return Sample(
        memory=int(anonymous) * 1024,
        descriptors=len([fd for fd in descriptors if not fd.startswith("/proc/")]),
        database=sum((store / name).stat().st_size for name in ("meta.db", "meta.db-wal")),
        packs=sum(entry.stat().st_size for entry in os.scandir(store / "packs")),
        operations=int(mount.status()["head"]),
    )
