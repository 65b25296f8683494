"""Rounds and turns: every workload on every system, A B C, then B C A, and so on.

Taking turns within a workload keeps what drifts (a noisy neighbour, a warming disk) from
falling on one system only; beginning each round with another system keeps the order from
mattering.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from benchlib.counting import (
    cpu_ns,
    growth,
    peak_memory_bytes,
    reset_peak_memory,
    wait_until_idle,
    written_bytes,
)
from benchlib.report import Failure, Outcome, Sample
from benchlib.systems import SCRIPTS, Nexus, System
from benchlib.work import WORKLOADS, Place, Scale
from benchlib.worker import job

STEP_LIMIT_S = 600.0
IDLE_LIMIT_S = 5.0


class WorkerLost(Exception):
    """The client died or hangs."""


class Worker:
    """The client process; see worker.py for what is said."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._received = b""

    def send(self, message: dict[str, Any]) -> None:
        process = self._process or self._start()
        assert process.stdin is not None
        try:
            process.stdin.write(json.dumps(message).encode() + b"\n")
            process.stdin.flush()
        except BrokenPipeError:
            raise WorkerLost("the client process died") from None

    def receive(self) -> dict[str, Any]:
        """Return the next message.

        Raises:
            WorkerLost: none came in time.
        """
        assert self._process is not None
        assert self._process.stdout is not None
        fd = self._process.stdout.fileno()
        deadline = time.monotonic() + STEP_LIMIT_S
        while b"\n" not in self._received:
            ready, _, _ = select.select([fd], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise WorkerLost(f"no end after {STEP_LIMIT_S:.0f} s")
            data = os.read(fd, 65536)
            if not data:
                raise WorkerLost("the client process died")
            self._received += data
        line, _, self._received = self._received.partition(b"\n")
        message: dict[str, Any] = json.loads(line)
        return message

    def stop(self) -> None:
        """End the client; the next ``send`` starts another."""
        if self._process is None:
            return
        process, self._process, self._received = self._process, None, b""
        process.kill()
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.close()
        process.stdout.close()
        # A client that waits for a hung daemon ends when that daemon does, not before.
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=5)

    def _start(self) -> subprocess.Popen[bytes]:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchlib.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(SCRIPTS)},
            start_new_session=True,
        )
        return self._process


def run_rounds(
    systems: Sequence[System],
    workloads: Sequence[str],
    rounds: int,
    scale: Scale,
    scratch: Path,
    worker: Worker,
    record: Callable[[str, str, int, Outcome], None],
) -> None:
    """Measure everything in turns; ``record`` gets workload, system label, round, outcome."""
    for number in range(rounds):
        for workload in workloads:
            turns = [*systems[number % len(systems) :], *systems[: number % len(systems)]]
            for system in turns:
                if WORKLOADS[workload].nexus_only and system.key != Nexus.key:
                    continue
                place = Place(
                    directory=system.root / f"{workload}-{number}",
                    shared=system.root / "shared",
                    scratch=scratch,
                )
                request = job(workload, place, scale)
                record(workload, system.label, number, measure(system, worker, request))


def measure(system: System, worker: Worker, request: dict[str, Any]) -> Outcome:
    """Do one workload on one system."""
    if not system.alive:
        return Failure("its daemon is dead")
    try:
        worker.send(request)
        message = worker.receive()
        if message["event"] == "failed":
            return Failure(message["error"])
        operations = int(message["operations"])
        return _measure_ready(system, worker, operations)
    except WorkerLost as error:
        system.kill()
        worker.stop()
        return Failure(str(error))


def _measure_ready(system: System, worker: Worker, operations: int) -> Outcome:
    pids = system.daemon_pids()
    wait_until_idle(pids, IDLE_LIMIT_S)
    if system.counter is not None:
        system.counter.start()
    reset_peak_memory(pids)
    before, written_before = cpu_ns(pids), written_bytes(pids)

    worker.send({"go": True})
    message = worker.receive()

    # The daemon may have work left that these operations caused: it counts.
    wait_until_idle(pids, IDLE_LIMIT_S)
    pids = system.daemon_pids()
    after, written = cpu_ns(pids), written_bytes(pids)
    peak = peak_memory_bytes(pids)
    requests = system.counter.stop() if system.counter is not None else None
    if message["event"] == "failed":
        return Failure(message["error"])
    seconds, payload = float(message["seconds"]), int(message["payload_bytes"])

    worker.send({"verify": True})
    message = worker.receive()
    if message["event"] == "failed":
        return Failure(message["error"])
    return Sample(
        seconds=seconds,
        operations=operations,
        requests=requests,
        cpu_us=growth(before, after) / 1000 if pids else None,
        written=growth(written_before, written) / payload if pids and payload else None,
        peak_bytes=peak if pids else None,
    )
