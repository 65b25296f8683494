"""Stay beside a daemon: when it dies or hangs, start it again, unless it was told to end.

A program of its own, ``python -I -S supervisor.py``, because it stays as long as the mount does: it
imports what the interpreter has loaded anyway, and no other module of ours.

The daemon writes lines into a pipe:

    freed               it is about to take the dead mount before it away
    mounted 0:45        the device number of its mount
    ready               programs are served
    beat                its event loop turns
    stopping            it was unmounted or told to end: whatever follows, it is not started again

and finds in its environment, as ``NEXUS_SUPERVISOR``, what ``Terms`` holds.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import time

VARIABLE = "NEXUS_SUPERVISOR"
STEADY_S = 60.0
"""Who served for so long did not die again and again."""
DELAY_MAX_S = 30.0
TRACEBACK_S = 2.0
"""How long a hung daemon has for writing down where it hangs."""
NAGGING_S = 60.0
CONNECTIONS = "/sys/fs/fuse/connections"
MOUNTINFO = "/proc/self/mountinfo"
_STOPPING = (signal.SIGTERM, signal.SIGINT)


class Terms:
    """What a daemon is told by its supervisor."""

    def __init__(
        self, fd: int, limit_s: float, restarts: int = 0, replaces: str = "", reason: str = ""
    ) -> None:
        self.pid = os.getpid()
        self.fd = fd
        """The pipe to write to."""
        self.limit_s = limit_s
        """A daemon that is silent for so long counts as hung; 0 for never."""
        self.restarts = restarts
        self.replaces = replaces
        """The device number of the dead mount whose place it takes, where there must be one."""
        self.reason = reason
        """Why the one before it ended."""

    def encode(self) -> str:
        words = (self.pid, self.fd, self.limit_s, self.restarts, self.replaces or "-", self.reason)
        return " ".join(map(str, words))

    @classmethod
    def decode(cls, text: str) -> Terms:
        pid, fd, limit_s, restarts, replaces, reason = text.split(" ", 5)
        terms = cls(int(fd), float(limit_s), int(restarts), replaces.strip("-"), reason)
        terms.pid = int(pid)
        return terms


class Supervisor:
    """One mountpoint's; runs one daemon after the other."""

    def __init__(self, mountpoint: str, limit_s: float, command: list[str]) -> None:
        self._mountpoint = os.fsencode(mountpoint)
        self._limit_s = limit_s
        self._command = command
        self._told = False
        """Somebody wants us to end."""
        self._device = ""
        """Of the mount that must be there: where it is gone, somebody unmounted it."""
        self._restarts = 0
        self._reason = ""
        self._daemon: Daemon | None = None
        self._wakeup = self._catch_signals()

    def _catch_signals(self) -> int:
        reading, writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
        for number in _STOPPING:
            signal.signal(number, self._stop)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        return reading

    def _stop(self, *_: object) -> None:
        self._told = True
        if self._daemon is not None:
            self._daemon.kill(signal.SIGTERM)

    def run(self) -> int:
        """Return the exit code: the last daemon's."""
        short_lives = 0
        while True:
            daemon = self._start()
            code = self._watch(daemon)
            self._daemon = None
            if (daemon.stopping and not daemon.hung) or self._told or self._is_unmounted():
                return self._end(code)
            if not daemon.ready_s and not self._restarts:
                return self._end(code)  # whoever waits for the first one is told so
            steady = daemon.ready_s and time.monotonic() - daemon.ready_s >= STEADY_S
            short_lives = 1 if steady else short_lives + 1
            delay_s = 0.0 if short_lives == 1 else min(2.0 ** (short_lives - 2), DELAY_MAX_S)
            self._restarts += 1
            self._reason = "hung" if daemon.hung else ending(code)
            when = f"in {delay_s:g} s" if delay_s else "now"
            self._log(
                "WARNING",
                f"daemon {daemon.pid} ended: {self._reason}; starting it again {when}"
                f" (restart {self._restarts})",
            )
            if not self._pause(delay_s):
                return self._end(code)

    def _start(self) -> Daemon:
        reading, writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        os.set_inheritable(writing, True)
        terms = Terms(writing, self._limit_s, self._restarts, self._device, self._reason)
        command = self._command
        ready = command.index("--ready-fd") if "--ready-fd" in command else 0
        if self._restarts and ready:
            command = command[:ready] + command[ready + 2 :]
        pid = os.posix_spawn(
            command[0],
            command,
            {**os.environ, VARIABLE: terms.encode()},
            setsigdef=[signal.SIGHUP],
        )
        os.close(writing)
        if ready and not self._restarts:
            os.close(int(command[ready + 1]))  # its end tells that the daemon said its word
        self._daemon = Daemon(pid, reading)
        if self._told:
            self._daemon.kill(signal.SIGTERM)
        return self._daemon

    def _watch(self, daemon: Daemon) -> int:
        """Return when the daemon is gone, with its exit code; negative for a signal."""
        poll = select.poll()
        for fd in (daemon.pidfd, daemon.pipe, self._wakeup):
            poll.register(fd, select.POLLIN)
        while True:
            left_s = daemon.silence_left_s(self._limit_s)
            ready = {fd for fd, _ in poll.poll(None if left_s is None else max(0, left_s) * 1000)}
            self._drain_wakeups()
            # Also when it ended: what it wrote last is read before that is judged.
            for word in daemon.words():
                self._note(daemon, word)
            if daemon.pidfd in ready:
                return daemon.close()
            if daemon.pipe_ended and daemon.pipe in ready:
                poll.unregister(daemon.pipe)
            left_s = daemon.silence_left_s(self._limit_s)
            if left_s is not None and left_s <= 0:
                self._free(daemon)

    def _note(self, daemon: Daemon, word: str) -> None:
        name, _, value = word.partition(" ")
        daemon.beat_s = time.monotonic()
        if name == "ready":
            daemon.ready_s = daemon.beat_s
            if self._restarts:
                self._log("INFO", f"daemon {daemon.pid} serves (restart {self._restarts})")
        elif name == "mounted":
            self._device = value
        elif name == "freed":
            self._device = ""
        elif name == "stopping":
            daemon.stopping = True

    def _free(self, daemon: Daemon) -> None:
        """Let go of everybody who waits for a hung daemon, then kill it."""
        daemon.hung = True
        self._log(
            "ERROR",
            f"daemon {daemon.pid} has not answered for {self._limit_s:g} s: it is killed, and"
            " programs that waited for it get errors",
        )
        if self._is_mounted():
            abort(self._device)  # where that is not permitted, the kill does it
        poll = select.poll()
        poll.register(daemon.pidfd, select.POLLIN)
        daemon.kill(signal.SIGABRT)  # it writes down where it hangs
        daemon.kill(signal.SIGCONT)  # also if somebody stopped it
        if not poll.poll(TRACEBACK_S * 1000):
            daemon.kill(signal.SIGKILL)
        while not poll.poll(NAGGING_S * 1000):
            self._log("ERROR", f"daemon {daemon.pid} was killed and is not gone: a disk hangs")

    def _pause(self, delay_s: float) -> bool:
        """Wait; return whether there is still something to start."""
        deadline_s = time.monotonic() + delay_s
        poll = select.poll()
        poll.register(self._wakeup, select.POLLIN)
        with open(MOUNTINFO, "rb") as mountinfo:  # noqa: PTH123 - pathlib would be another import
            poll.register(mountinfo, select.POLLPRI)  # mounts changed: proc_pid_mounts(5)
            while not self._told and not self._is_unmounted():
                left_s = deadline_s - time.monotonic()
                if left_s <= 0:
                    return True
                poll.poll(left_s * 1000)
                self._drain_wakeups()
        return False

    def _end(self, code: int) -> int:
        """Take away what a daemon that died left."""
        if self._is_mounted():
            self._log("INFO", "told to end: freeing the dead mount")
            detach(self._mountpoint)
        return code if code >= 0 else 128 - code

    def _drain_wakeups(self) -> None:
        try:
            os.read(self._wakeup, 4096)
        except BlockingIOError:
            return

    def _is_mounted(self) -> bool:
        return self._device in devices_at(self._mountpoint)

    def _is_unmounted(self) -> bool:
        """Tell whether somebody took away what was mounted."""
        if not self._device or self._is_mounted():
            return False
        self._log("INFO", "unmounted by hand: the daemon is not started again")
        return True

    def _log(self, level: str, message: str) -> None:
        """Write a line as ``nexusfuse.logs`` does, to where the daemon's go."""
        now = time.time()
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now))
        text = message.replace("\\", "\\\\").replace('"', '\\"')
        line = (
            f"time={stamp}.{int(now % 1 * 1000):03d}Z level={level} source=supervisor"
            f' message="{text}"\n'
        )
        try:
            os.write(2, line.encode(errors="backslashreplace"))
        except OSError:
            return  # a full disk must not end the supervision


class Daemon:
    """One daemon, from its start to its end."""

    def __init__(self, pid: int, pipe: int) -> None:
        self.pid = pid
        self.pidfd = os.pidfd_open(pid)
        self.pipe = pipe
        self.pipe_ended = False
        self.ready_s = 0.0
        self.beat_s = 0.0
        self.stopping = False
        self.hung = False
        self._rest = b""

    def silence_left_s(self, limit_s: float) -> float | None:
        """Return how much longer it may be silent; ``None`` for as long as it likes.

        Before it serves it may have to read all that a dead one left; when it ends it may have to
        write for as long as the disk takes.
        """
        if not limit_s or not self.ready_s or self.stopping or self.hung or self.pipe_ended:
            return None
        return self.beat_s + limit_s - time.monotonic()

    def words(self) -> list[str]:
        """Return the lines that it wrote since."""
        try:
            data = os.read(self.pipe, 4096)
        except BlockingIOError:
            return []
        self.pipe_ended = not data
        *lines, self._rest = (self._rest + data).split(b"\n")
        return [line.decode(errors="backslashreplace") for line in lines]

    def kill(self, number: signal.Signals) -> None:
        try:
            signal.pidfd_send_signal(self.pidfd, number)
        except ProcessLookupError:
            return  # it has just ended

    def close(self) -> int:
        """Return the exit code of the daemon, which has ended."""
        code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        os.close(self.pipe)
        os.close(self.pidfd)
        return code


def ending(code: int) -> str:
    """Return how a process ended."""
    return f"signal {-code}" if code < 0 else f"exit {code}"


def devices_at(path: bytes) -> list[str]:
    """Return the device numbers of what is mounted on a path, the topmost last.

    Source: proc_pid_mountinfo(5).
    """
    for character in b"\\ \t\n":
        path = path.replace(b"%c" % character, b"\\%03o" % character)
    with open(MOUNTINFO, "rb") as file:  # noqa: PTH123
        lines = [line.split(b" ", 5) for line in file]
    return [fields[2].decode() for fields in lines if fields[4] == path]


def abort(device: str) -> bool:
    """Have every request that waits for a FUSE daemon fail, now and from now on.

    Returns:
        Whether that was permitted; never where fusectl is not mounted.

    Source: Documentation/filesystems/fuse.rst, "Aborting a filesystem connection".
    """
    try:
        fd = os.open(f"{CONNECTIONS}/{device.partition(':')[2]}/abort", os.O_WRONLY | os.O_CLOEXEC)
    except OSError:
        return False
    os.write(fd, b"1")
    os.close(fd)
    return True


def detach(mountpoint: bytes) -> None:
    """Take a dead mount away."""
    for command in ([b"fusermount3", b"-uz", b"--"], [b"umount", b"-i", b"-l", b"--"]):
        try:
            pid = os.posix_spawnp(command[0], [*command, mountpoint], os.environ)
        except FileNotFoundError:
            continue
        if os.waitpid(pid, 0)[1] == 0:
            return


def main() -> int:
    """Run as ``supervisor.py MOUNTPOINT HANG_LIMIT_S COMMAND...``."""
    mountpoint, limit_s, *command = sys.argv[1:]
    os.chdir("/")
    return Supervisor(mountpoint, float(limit_s), command).run()


if __name__ == "__main__":
    sys.exit(main())
