"""Who has a store open, and who died."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from nexus_engine.owners import claim, one_recovery, owners, take_over

HOLDER = """
import pathlib, sys
from nexus_engine.owners import claim
lock = claim(pathlib.Path(sys.argv[1]))
print(lock.owner, flush=True)
sys.stdin.read()
"""


def test_a_living_owner_is_not_taken_over(tmp_path: Path) -> None:
    lock = claim(tmp_path)
    assert owners(tmp_path) == [lock.owner]
    assert take_over(tmp_path, lock.owner) is None
    lock.release()
    assert owners(tmp_path) == []


def test_a_killed_owner_is_taken_over_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """flock(2): the kernel lets go of a lock when its holder ends, reaped or not."""
    monkeypatch.setattr("nexus_engine.owners.DYING_LIMIT_S", 0.5)
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdout is not None
    owner = holder.stdout.readline().decode().strip()
    assert take_over(tmp_path, owner) is None
    os.kill(holder.pid, signal.SIGKILL)
    lock = take_over(tmp_path, owner)  # still a zombie: nobody has waited for it
    assert lock is not None
    assert take_over(tmp_path, owner) is None
    lock.release()
    holder.communicate()


def test_one_recovers_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two at once each would take some of those that died together."""
    monkeypatch.setattr("nexus_engine.owners.DYING_LIMIT_S", 0.05)
    with one_recovery(tmp_path) as first, one_recovery(tmp_path) as second:
        assert (first, second) == (True, False)
    with one_recovery(tmp_path) as third:
        assert third
