"""What is to go to a bucket: files on the local disk, and the threads that send them.

A file stays in the spool until it is sent, however often that fails and whoever dies meanwhile.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path

from nexus_engine import errors

log = logging.getLogger(__name__)

THREADS = 2
"""Send at once. Packs are large: more only share the line."""
_FIRST_PAUSE_S = 1.0
_LAST_PAUSE_S = 4.0
"""Between two attempts at one file."""
_BUSY_PAUSE_S = 0.2
_PRESSURE = 0.5
"""From this part of the backlog on, nobody begins a pack without asking whether there is room."""


class _Item:
    """A file that is to be sent."""

    __slots__ = ("attempts", "error", "key", "next_s", "path", "pause_s", "size", "under_way")

    def __init__(self, key: str, path: Path, size: int) -> None:
        self.key = key
        self.path = path
        self.size = size
        self.under_way = False
        self.attempts = 0
        """That failed."""
        self.error: errors.EngineError | None = None
        self.next_s = 0.0
        self.pause_s = _FIRST_PAUSE_S


class Spool:
    """Thread-safe.

    Args:
        send: Sends a file; in a thread of ours. When it returns, the file is none of ours. Ends
            within a deadline of its own. Raises StoreBusy where another process is sending it.
        backlog_bytes: How much may wait before whoever begins more has to.
        limit_s: How long they wait, at most.
        press: Told whether it is getting much.
    """

    def __init__(
        self,
        send: Callable[[str, Path], None],
        *,
        backlog_bytes: int,
        limit_s: float,
        press: Callable[[bool], None] = lambda _: None,
    ) -> None:
        self._send = send
        self._backlog_limit = backlog_bytes
        self._limit_s = limit_s
        self._press = press
        self._changed = threading.Condition()
        self._items: dict[str, _Item] = {}
        self._threads = 0
        self._stopping = False
        self._stuck = False
        """Somebody waited for room in vain, and nothing was sent since."""
        self._said = ""
        self.sent = 0
        """Files."""
        self.sent_bytes = 0

    @property
    def backlog_bytes(self) -> int:
        with self._changed:
            return self._backlog()

    def add(self, key: str, path: Path) -> None:
        """Have a file sent, soon; one that is waiting already waits on.

        Raises:
            OSError: as stat(2).
        """
        size = path.stat().st_size
        with self._changed:
            if key not in self._items and not self._stopping:
                self._items[key] = _Item(key, path, size)
                self._start_threads()
            self._changed.notify_all()
            self._press(self._backlog() >= self._backlog_limit * _PRESSURE)

    def __contains__(self, key: object) -> bool:
        with self._changed:
            return key in self._items

    def forget(self, key: str) -> None:
        """Don't send a file that nobody wants any more."""
        with self._changed:
            self._items.pop(key, None)
            self._changed.notify_all()

    def await_room(self) -> None:
        """Wait until less waits than may.

        Raises:
            ObjectStoreFailed: It took too long; for others before us, too, at once.
        """
        with self._changed:
            room = self._changed.wait_for(
                lambda: self._backlog() < self._backlog_limit or self._stuck, self._limit_s
            )
            if not room or self._backlog() >= self._backlog_limit:
                self._stuck = True
                mib = self._backlog() >> 20
                raise errors.ObjectStoreFailed(
                    f"{mib} MiB wait for the bucket, and no more may"
                    f" ({self._said or 'it is too slow'}): nothing more is taken until it goes on"
                )

    def secure(self, *, limit_s: float | None) -> None:
        """Wait until all that waits now is sent.

        Args:
            limit_s: How long; ``None`` as long as no attempt fails.

        Raises:
            EngineError: An attempt failed, or it took too long. All of it is still to be sent.
        """
        deadline_s = None if limit_s is None else time.monotonic() + limit_s
        with self._changed:
            wanted = [(item, item.attempts) for item in self._items.values()]
            for item, _ in wanted:
                item.next_s = 0.0
            self._start_threads()
            self._changed.notify_all()
            while left := [pair for pair in wanted if self._items.get(pair[0].key) is pair[0]]:
                for item, attempts in left:
                    if item.error is not None and item.attempts > attempts:
                        raise type(item.error)(*item.error.args)
                rest_s = None if deadline_s is None else deadline_s - time.monotonic()
                if rest_s is not None and rest_s <= 0:
                    mib = sum(item.size for item, _ in left) / (1 << 20)
                    raise errors.StoreHung(
                        f"{mib:.1f} MiB did not get to the bucket within {limit_s:g} s"
                    )
                self._changed.wait(rest_s)

    def close(self) -> list[tuple[str, Path]]:
        """Send no more; what is left stays in the spool. Waits for nobody.

        Returns:
            What is left: key and file.
        """
        with self._changed:
            self._stopping = True
            left = [(item.key, item.path) for item in self._items.values()]
            self._items.clear()
            self._changed.notify_all()
            return left

    def _backlog(self) -> int:
        return sum(item.size for item in self._items.values())

    def _start_threads(self) -> None:
        while self._threads < min(THREADS, len(self._items)):
            self._threads += 1
            # A daemon: what it is at can be done again, and a bucket may be slow to answer.
            threading.Thread(target=self._work, name="upload", daemon=True).start()

    def _work(self) -> None:
        ended = False
        try:
            while (item := self._take()) is not None:
                self._try(item)
            ended = True
        finally:
            if not ended:  # a bug; its traceback is in the log
                with self._changed:
                    self._threads -= 1

    def _try(self, item: _Item) -> None:
        error: errors.EngineError | None = errors.ObjectStoreFailed(f"{item.key} was not sent")
        try:
            self._send(item.key, item.path)
            error = None
        except errors.EngineError as caught:
            error = caught
        finally:
            self._note(item, error)  # after a bug, too: somebody may wait for it

    def _take(self) -> _Item | None:
        """Return the next file to send, when it is time; ``None`` for the thread to end."""
        with self._changed:
            while True:
                idle = [item for item in self._items.values() if not item.under_way]
                if not idle or self._stopping:
                    self._threads -= 1
                    return None
                item = min(idle, key=lambda item: item.next_s)
                wait_s = item.next_s - time.monotonic()
                if wait_s <= 0:
                    item.under_way = True
                    return item
                self._changed.wait(wait_s)

    def _note(self, item: _Item, error: errors.EngineError | None) -> None:
        with self._changed:
            item.under_way = False
            if error is None:
                if self._items.get(item.key) is item:
                    del self._items[item.key]
                self.sent += 1
                self.sent_bytes += item.size
                self._stuck = False
                self._press(self._backlog() >= self._backlog_limit * _PRESSURE)
            elif isinstance(error, errors.StoreBusy):
                item.next_s = time.monotonic() + _BUSY_PAUSE_S  # no trouble: another sends it
            else:
                item.attempts += 1
                item.error = error
                item.next_s = time.monotonic() + item.pause_s
                item.pause_s = min(2 * item.pause_s, _LAST_PAUSE_S)
            if not isinstance(error, errors.StoreBusy):
                self._say("" if error is None else str(error))
            self._changed.notify_all()

    def _say(self, trouble: str) -> None:
        if trouble and trouble != self._said:
            log.error("%s; what is to go to the bucket waits in the store's packs", trouble)
        elif not trouble and self._said:
            log.warning("the bucket takes packs again")
        self._said = trouble
