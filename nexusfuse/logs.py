"""The daemon's log: one line an event, as ``key=value`` pairs; a bug's traceback follows its line.

Under systemd each line carries its priority, so that ``journalctl -p warning`` works.
"""

from __future__ import annotations

import json
import logging
import os
import time
from pathlib import Path

_PRIORITY = {"DEBUG": 7, "INFO": 6, "WARNING": 4, "ERROR": 3, "CRITICAL": 2}


class _KeyValueFormatter(logging.Formatter):
    def __init__(self, *, priorities: bool) -> None:
        super().__init__()
        self._priorities = priorities

    def format(self, record: logging.LogRecord) -> str:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line = (
            f"time={stamp}.{int(record.msecs):03d}Z level={record.levelname}"
            f" source={record.name} message={json.dumps(record.getMessage())}"
        )
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        if not self._priorities:
            return line
        prefix = f"<{_PRIORITY.get(record.levelname, 6)}>"
        return "\n".join(prefix + part for part in line.splitlines())


def _is_worth_a_line(record: logging.LogRecord) -> bool:
    """Leave out what is no error: the kernel does not wait for a RELEASE while it unmounts."""
    text = record.getMessage()
    return not (text.startswith("fuse_release(): fuse_reply_") and "No such file" in text)


def configure(*, debug: bool, log_file: Path | None) -> None:
    """Send the log to a file, or to stderr."""
    handler: logging.Handler
    handler = logging.FileHandler(log_file) if log_file is not None else logging.StreamHandler()
    journal = log_file is None and "JOURNAL_STREAM" in os.environ
    handler.setFormatter(_KeyValueFormatter(priorities=journal))
    logging.raiseExceptions = False  # a log on a full disk is no reason to say more in it
    logging.basicConfig(level=logging.DEBUG if debug else logging.INFO, handlers=[handler])
    # pyfuse3 has a debug line for every task and request.
    logging.getLogger("pyfuse3").setLevel(logging.INFO)
    logging.getLogger("pyfuse3").addFilter(_is_worth_a_line)
