"""``nexus-ctl`` in a process that counts the SQL statements that requests cost.

Usage: ``python -m benchlib.traced DESCRIPTOR ARGUMENT...``. For every byte that comes from the
socket DESCRIPTOR it sends how often each statement ran so far, as one line of JSON. What the daemon
does by itself now and then does not count: only the tasks that answer requests do. A COMMIT comes
when there is a reason, and never by the clock: after each a few rows are read again, and how many
operations share one depends on how fast they come.
"""

from __future__ import annotations

import json
import socket
import sys
import threading
from collections import Counter
from typing import Any

import apsw
import trio

from nexus_engine import services
from nexusfuse.ctl.main import main

_REQUEST_TASKS = "pyfuse-"


class Statements:
    """Counts statements of all connections of this process."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def watch(self, connection: apsw.Connection) -> None:
        connection.exec_trace = self._see

    def _see(self, cursor: apsw.Cursor, sql: str, bindings: Any) -> bool:
        try:
            name = trio.lowlevel.current_task().name
        except RuntimeError:
            return True  # In a thread, or before the loop began.
        if name.startswith(_REQUEST_TASKS):
            self.counts[sql] += 1
        return True


def _answer(asked: socket.socket, statements: Statements) -> None:
    while asked.recv(1):
        asked.sendall(json.dumps(dict(statements.counts)).encode() + b"\n")


if __name__ == "__main__":
    services.SETTLE_DELAY_S = 3600
    statements = Statements()
    apsw.connection_hooks.append(statements.watch)
    asked = socket.socket(fileno=int(sys.argv.pop(1)))
    threading.Thread(target=_answer, args=(asked, statements), daemon=True).start()
    main()
