"""The client: does the work, in a process of its own.

A daemon that hangs takes its client with it, in a system call that no signal ends. So the
client is not the process that has to clean up.

One JSON object a line. In: ``{"workload", "place", "scale"}``. Out: ``ready`` with the number of
operations; in: ``go``; out: ``done`` with the seconds; in: ``verify``; out:
``verified``. At any step ``failed`` with the error instead, and then the next job.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchlib.work import WORKLOADS, Place, Scale, VerificationFailed, Workload
from benchlib.work.base import remove_everything

DROP_CACHES = Path("/proc/sys/vm/drop_caches")


def job(workload: str, place: Place, scale: Scale) -> dict[str, Any]:
    """Return the line that asks for one measurement."""
    where = {name: str(path) for name, path in asdict(place).items()}
    return {"workload": workload, "place": where, "scale": asdict(scale)}


def can_drop_caches() -> bool:
    return os.access(DROP_CACHES, os.W_OK)


def serve() -> None:
    for line in sys.stdin:
        request = json.loads(line)
        place = Place(**{name: Path(path) for name, path in request["place"].items()})
        workload = WORKLOADS[request["workload"]](place, Scale(**request["scale"]))
        try:
            _measure(workload)
            remove_everything(place.directory)
        except (OSError, VerificationFailed) as error:
            _send(event="failed", error=f"{type(error).__name__}: {error}")
        else:
            _send(event="verified")


def _measure(workload: Workload) -> None:
    workload.directory.mkdir()
    workload.prepare()
    # What earlier turns left dirty must not be written during this one.
    os.sync()
    if workload.drops_caches:
        DROP_CACHES.write_text(str(workload.drops_caches))
    _send(event="ready", operations=workload.operations)
    sys.stdin.readline()

    gc.collect()
    gc.disable()
    started = time.perf_counter()
    workload.run()
    seconds = time.perf_counter() - started
    gc.enable()
    _send(event="done", seconds=seconds, payload_bytes=workload.payload_bytes)
    sys.stdin.readline()
    workload.verify()


def _send(**message: object) -> None:
    print(json.dumps(message), flush=True)


if __name__ == "__main__":
    serve()
