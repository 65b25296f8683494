"""The filesystems that are measured side by side.

A system is started once per run below one directory, so that all of them stand on the same
disk. Its daemon's processes are known by a mark in their environment, which their children
inherit: nothing else on the machine is ever measured or killed by mistake.
"""

from __future__ import annotations

import abc
import importlib.util
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import ClassVar

from benchlib.counting import (
    RequestCounter,
    StatusCounter,
    Tracing,
    processes_marked,
)

SCRIPTS = Path(__file__).resolve().parent.parent
MARK_VARIABLE = "NEXUS_BENCH_SYSTEM"
START_LIMIT_S = 60
STOP_LIMIT_S = 120


class Unavailable(Exception):
    """This system cannot be measured here; the text says why, in one line."""


class System(abc.ABC):
    """Something mounted, or at least a directory, with files in it."""

    key: ClassVar[str]
    about: str

    def __init__(self, base: Path) -> None:
        """Choose the place; nothing is done before ``start``.

        Args:
            base: The directory on the disk under test that all systems share.
        """
        self.label = self.key
        self.root = base / self.key
        self.counter: RequestCounter | None = None

    @abc.abstractmethod
    def start(self, tracing: Tracing | None) -> None:
        """Make ``root`` usable.

        Raises:
            Unavailable: it cannot be measured here.
        """

    @abc.abstractmethod
    def stop(self) -> None:
        """Undo ``start``, also a failed or half-done one. May be called twice."""

    def daemon_pids(self) -> list[int]:
        """Return the processes that serve this system; none for one in the kernel."""
        return []

    def kill(self) -> None:
        """End the daemon at once, so that whoever waits for it gets an error."""
        for pid in self.daemon_pids():
            _signal(pid, signal.SIGKILL)

    @property
    def alive(self) -> bool:
        return True


class PlainDirectory(System):
    """The disk itself, under the name of its filesystem: the floor."""

    key = "ext4"

    def __init__(self, base: Path) -> None:
        super().__init__(base)
        self.label = filesystem_type(base)
        self.root = base / "plain"
        self.about = f"the plain directory on the disk, {self.label}"

    def start(self, tracing: Tracing | None) -> None:
        self.root.mkdir()

    def stop(self) -> None:
        pass


class FuseSystem(System):
    """A mount with a daemon in user space."""

    def __init__(self, base: Path) -> None:
        super().__init__(base)
        self._base = base
        self._mark = f"{base}:{self.key}"

    def start(self, tracing: Tracing | None) -> None:
        if not os.access("/dev/fuse", os.R_OK | os.W_OK):
            raise Unavailable("/dev/fuse is missing, or not yours to open")
        self.root.mkdir()
        self._mount(own_counts=tracing is None)
        if not os.path.ismount(self.root):
            raise Unavailable(f"nothing is mounted on {self.root} after the mount command")
        device = os.stat(self.root).st_dev
        self.counter = tracing.counter(device) if tracing else self._own_counter()

    def stop(self) -> None:
        if self.counter is not None:
            self.counter.close()
            self.counter = None
        try:
            self._unmount()
        finally:
            self._force_down()

    def daemon_pids(self) -> list[int]:
        return processes_marked(f"{MARK_VARIABLE}={self._mark}")

    @property
    def alive(self) -> bool:
        return bool(self.daemon_pids())

    @abc.abstractmethod
    def _mount(self, *, own_counts: bool) -> None:
        """Mount on ``root``; return when it serves."""

    @abc.abstractmethod
    def _unmount(self) -> None:
        """Unmount the polite way. Must not raise when nothing is mounted."""

    @abc.abstractmethod
    def _own_counter(self) -> RequestCounter | None:
        """Return the filesystem's own counts; None when it has none."""

    def _environment(self) -> dict[str, str]:
        return {**os.environ, MARK_VARIABLE: self._mark}

    def _force_down(self) -> None:
        if is_mounted(self.root):
            if os.geteuid() == 0:
                command = ["umount", "--lazy", str(self.root)]
            else:
                command = ["fusermount3", "-u", "-z", str(self.root)]
            subprocess.run(command, capture_output=True, check=False)
        deadline = time.monotonic() + 10
        while self.daemon_pids():
            if time.monotonic() > deadline:
                warn(f"{self.key}: the daemon did not end by itself; killed")
                self.kill()
                break
            time.sleep(0.02)


class Nexus(FuseSystem):
    key = "nexus"
    about = "Nexus: SQLite and pack files in one store directory"

    def __init__(self, base: Path, ctl: Path, *, store: Path | None = None) -> None:
        """Args: store: One that is there already; otherwise a new one is made."""
        super().__init__(base)
        self._ctl = ctl
        self._store = store or base / "nexus-store"

    def _mount(self, *, own_counts: bool) -> None:
        if not self._ctl.exists():
            raise Unavailable(f"{self._ctl} is missing: run scripts/start once, or --nexus-ctl")
        self._run_ctl(START_LIMIT_S, "mount", "--store", str(self._store), str(self.root))

    def _unmount(self) -> None:
        if not is_mounted(self.root):
            return
        try:
            self._run_ctl(STOP_LIMIT_S, "umount", str(self.root))
        except Unavailable as error:
            warn(f"nexus: {error}; unmounted by force")

    def _own_counter(self) -> RequestCounter | None:
        status = self.root / ".nexus" / "status"
        try:
            return StatusCounter("the mount's own .nexus/status", status.read_text)
        except OSError:
            return None

    def _run_ctl(self, limit_s: float, *arguments: str) -> None:
        # Into a file: the daemon inherits the descriptors, and a pipe would never end.
        log = self._base / "nexus-ctl.log"
        with log.open("wb") as output:
            try:
                code = subprocess.run(
                    [self._ctl, *arguments],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    env=self._environment(),
                    start_new_session=True,
                    timeout=limit_s,
                    check=False,
                ).returncode
            except subprocess.TimeoutExpired:
                raise Unavailable(
                    f"nexus-ctl {arguments[0]} took more than {limit_s:.0f} s"
                ) from None
            except OSError as error:
                raise Unavailable(f"{self._ctl} cannot be run: {error.strerror}") from error
        if code != 0:
            lines = log.read_text(errors="replace").strip().splitlines() or ["no output"]
            raise Unavailable(f"nexus-ctl {arguments[0]} failed ({code}): {lines[-1]}")


class Memfs(FuseSystem):
    key = "memfs"
    about = "an in-memory pyfuse3 filesystem that does nothing else, stock trio: the ceiling"
    arguments: tuple[str, ...] = ()

    def __init__(self, base: Path) -> None:
        super().__init__(base)
        self._process: subprocess.Popen[bytes] | None = None

    def _mount(self, *, own_counts: bool) -> None:
        if importlib.util.find_spec("pyfuse3") is None:
            raise Unavailable(f"{sys.executable} has no pyfuse3: run scripts/start once")
        counting = ["--count"] if own_counts else []
        log = self._base / f"{self.key}.log"
        with log.open("wb") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "benchlib.memfs", self.root, *self.arguments, *counting],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env={**self._environment(), "PYTHONPATH": str(SCRIPTS)},
                start_new_session=True,
            )
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], START_LIMIT_S)
        if not ready or self._process.stdout.readline() != b"ready\n":
            lines = log.read_text(errors="replace").strip().splitlines() or ["no output"]
            raise Unavailable(f"memfs did not start: {lines[-1]}")

    def _unmount(self) -> None:
        if self._process is None:
            return
        process, self._process = self._process, None
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.close()
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()

    def _own_counter(self) -> RequestCounter | None:
        def read() -> str:
            return os.getxattr(self.root, "user.bench.requests").decode()

        return StatusCounter("memfs's own handlers", read)


class MemfsFlush(Memfs):
    key = "memfs-flush"
    about = "memfs, but answering flush, so that close costs the request a promise costs"
    arguments = ("--flush",)


def default_nexus_ctl() -> Path:
    """Return the project's own nexus-ctl, or that of the running environment."""
    own = SCRIPTS.parent / ".venv" / "bin" / "nexus-ctl"
    beside = Path(sys.executable).parent / "nexus-ctl"
    return beside if not own.exists() and beside.exists() else own


def filesystem_type(path: Path) -> str:
    """Return the type of the filesystem that holds ``path``, as in /proc/mounts."""
    device = os.stat(path).st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        if before.split(" ")[2] == wanted:
            return after.split(" ")[0]
    # A btrfs subvolume has a device of its own that is in no list.
    command = ["stat", "--file-system", "--format=%T", str(path)]
    found = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    return found or "disk"


def remove_base(base: Path) -> None:
    """Delete everything, unless something is still mounted below."""
    for entry in base.iterdir():
        if is_mounted(entry):
            warn(f"{entry} is still mounted; {base} was left for you to look at")
            return
    shutil.rmtree(base)


def warn(line: str) -> None:
    print(f"bench: {line}", file=sys.stderr, flush=True)


def is_mounted(path: Path) -> bool:
    # Not os.path.ismount: stat on the mount of a dead daemon fails.
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    return any(line.split(" ")[4] == str(path).replace(" ", "\\040") for line in mounts)


def _signal(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)
