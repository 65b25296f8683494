"""What a daemon tells those who watch over it: systemd, the supervisor of ``nexus-ctl mount``.

That it is alive is told by a task of the event loop, so that a loop that is stuck is not reported
alive. What waits for a disk does so in threads, and does not count.

Source: sd_notify(3), sd_watchdog_enabled(3).
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket

import trio

from nexusfuse.ctl.supervisor import VARIABLE, Terms

log = logging.getLogger(__name__)

BEAT_MAX_S = 5.0
"""More often than at half of what is granted: other processes' transactions may keep a loop for 30
seconds, and it is still in time."""


class Watchers:
    """Those who watch over this process, and the words for each."""

    def __init__(self) -> None:
        text = os.environ.pop(VARIABLE, None)
        self.terms = Terms.decode(text) if text is not None else None
        if self.terms is not None and self.terms.pid != os.getppid():
            self.terms = None  # inherited from a shell in a mount of its own
        if self.terms is not None:
            os.set_inheritable(self.terms.fd, False)
        self.told_stopping = False
        self.told_restarting = False
        """The next daemon goes on with the mount: nobody is told that it ends."""

    def figures(self) -> dict[str, object]:
        """Return what status displays show of it."""
        if self.terms is None:
            return {"supervisor": "systemd" if "NOTIFY_SOCKET" in os.environ else "none"}
        found: dict[str, object] = {"supervisor": self.terms.pid, "restarts": self.terms.restarts}
        if self.terms.reason:
            found["restarted_after"] = self.terms.reason
        return found

    def freed(self) -> None:
        """Tell that the dead mount before us is about to go."""
        self._write("freed")

    def mounted(self, device: str) -> None:
        """Tell which mount is ours."""
        self._write(f"mounted {device}")

    def ready(self) -> None:
        """Tell that programs are served."""
        self._write("ready")
        _notify_systemd("READY=1")

    def stopping(self) -> None:
        """Tell that we end because somebody wants it."""
        if not self.told_stopping:
            self.told_stopping = True
            self._write("stopping")
            _notify_systemd("STOPPING=1")

    async def beat(self) -> None:
        """Tell that the event loop turns, for ever."""
        limits_s = [self.terms.limit_s] if self.terms is not None and self.terms.limit_s else []
        limits_s += _systemd_limit_s()
        if not limits_s:
            return
        interval_s = min(BEAT_MAX_S, *(limit_s / 2 for limit_s in limits_s))
        while True:
            self._write("beat")
            _notify_systemd("WATCHDOG=1")
            await trio.sleep(interval_s)

    def _write(self, word: str) -> None:
        if self.terms is None:
            return
        try:
            os.write(self.terms.fd, word.encode() + b"\n")
        except BlockingIOError:
            return  # it was stopped for hours; beats that it has not read are enough
        except BrokenPipeError:
            log.warning("the supervisor is gone: nobody starts this daemon again if it dies")
            os.close(self.terms.fd)
            self.terms = None


def _systemd_limit_s() -> list[float]:
    limit_us = os.environ.get("WATCHDOG_USEC", "")
    mine = os.environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
    return [int(limit_us) / 1e6] if mine and limit_us.isdigit() and int(limit_us) else []


def _notify_systemd(state: str) -> None:
    """Tell the service manager, where there is one."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with (
        contextlib.suppress(OSError),
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as notifier,
    ):
        notifier.sendto(state.encode(), address)
