"""Rounds: programs write, the daemon is killed, the store is mounted again, all is checked."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from nexus_engine.commands import Request, ignore_progress
from nexusfuse.ctl import control, launch, mounts
from tests.crash.campaign.databases import judge_database
from tests.crash.campaign.failpoints import FAILPOINTS
from tests.crash.campaign.steps import count_done, read_notes
from tests.crash.campaign.tree import judge_tree
from tests.crash.campaign.writer import WRITERS
from tests.mount.waiting import wait_until

TIMEOUT_S = 60
ROUNDS_OF_A_STORE = 8
"""Then a new one begins: what is looked at grows with every round."""
MOMENTS = 3
"""As of which everything is read, for each store."""
EXPECTED_LOG = ("which died", "registered but never written")
"""What a kill leaves is finished whole: a write that cannot be is a defect. The file of a pack that
stayed empty goes before its row does."""


class Daemon:
    """A mount, served by nexus-ctl with a failpoint or without."""

    def __init__(self, store: Path, mountpoint: Path, options: str = "") -> None:
        """Start it.

        Raises:
            subprocess.CalledProcessError: It died, or refused, before it served.
        """
        reading, writing = os.pipe()
        log = store.parent / "daemon.log"
        command = [sys.executable, "-m", "tests.crash.campaign.armed", options, "mount"]
        command += ["--foreground", "--store", str(store), "--ready-fd", str(writing)]
        with log.open("ab") as output, os.fdopen(reading, "rb") as pipe:
            self.process = subprocess.Popen(
                [*command, "--", str(mountpoint)], pass_fds=(writing,), stderr=output,
                stdout=output, stdin=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip
            os.close(writing)
            word = pipe.read()
        if not word.startswith(launch.READY):
            code = self.process.wait(TIMEOUT_S)
            raise subprocess.CalledProcessError(code, command, word)

    def arm(self) -> None:
        self.process.send_signal(signal.SIGUSR1)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(TIMEOUT_S)

    def await_death(self) -> None:
        assert self.process.wait(TIMEOUT_S) == -signal.SIGKILL


class Figures:
    """What a campaign did."""

    def __init__(self) -> None:
        self.rounds = 0
        self.promises = 0
        self.in_flight: Counter[str] = Counter()
        self.hits: Counter[str] = Counter()
        self.recovery_s: list[float] = []
        self.files_read = 0
        self.emptied = 0

    def __str__(self) -> str:
        recovery = sorted(self.recovery_s) or [0.0]
        median, longest = recovery[len(recovery) // 2], recovery[-1]
        return (
            f"{self.rounds} rounds; {self.promises} promises checked; {self.files_read} files read;"
            f" {self.emptied} packs emptied meanwhile;"
            f" killed with {self.in_flight.total()} calls in flight, {dict(self.in_flight)};"
            f" at failpoints {self.hits.total()} times, {dict(self.hits)};"
            f" served again after {median:.2f} s (median), {longest:.2f} s (longest)"
        )


class Campaign:
    """Rounds over stores in a directory; everything that is chosen comes from the seed.

    Args:
        new_place: Makes the place of each store's packs, an empty prefix of a bucket.
    """

    def __init__(
        self, directory: Path, seed: int, new_place: Callable[[], str] | None = None
    ) -> None:
        self._directory = directory
        self._new_place = new_place
        self._rng = random.Random(seed)
        self._hits = directory / "hits"
        self._hits.touch()
        self.mountpoint.mkdir()
        self._daemon: Daemon | None = None
        self._emptier: subprocess.Popen[bytes] | None = None
        self._emptied = directory / "emptied"
        self.figures = Figures()

    @property
    def store(self) -> Path:
        return self._directory / "store"

    @property
    def mountpoint(self) -> Path:
        return self._directory / "mount"

    def run(self, rounds: Sequence[Sequence[str]], kinds: Sequence[str] = tuple(WRITERS)) -> None:
        """Do rounds, each with failpoints: at most one amid writers, any while mounting again.

        Without one amid writers the daemon is killed at any instant.
        """
        for points, following in zip(rounds, [*rounds[1:], ()], strict=True):
            self._round(points, following, kinds)
        self._finish_store()

    def _round(self, points: Sequence[str], following: Sequence[str], kinds: Sequence[str]) -> None:
        if self.figures.rounds % ROUNDS_OF_A_STORE == 0:
            self._finish_store()
            self._begin(points)
        assert self._daemon is not None
        self.figures.rounds += 1
        top = self.mountpoint / f"round{self.figures.rounds}"
        manifests = self._directory / top.name
        top.mkdir()
        manifests.mkdir()
        programs = {kind: self._start_writer(kind, top, manifests) for kind in kinds}
        # It might finish what failpoints wait for; and beside it no operation waits for others.
        if not points and self.figures.rounds % 2:
            self._emptier = self._start_emptier()
        self._await_promises(manifests, programs, self._rng.randrange(1, 40 * len(kinds)))
        if self._emptier is not None and self._rng.random() < 0.5:
            wait_until(lambda: self._count_emptied() > self.figures.emptied, "a pack", TIMEOUT_S)
        amid = [point for point in points if not FAILPOINTS[point].at_start]
        if amid:
            self._daemon.arm()
            self._daemon.await_death()
            self._note_hit(amid[0])
        else:
            self._kill_beside(top / "held-open")
        self._kill_emptier()
        for program in programs.values():
            assert program.wait(TIMEOUT_S) == 0
        for point in points:
            if FAILPOINTS[point].at_start:
                self._die_mounting(point)
        self._begin(following)
        if not amid:
            assert (top / "held-open").read_bytes() == b"promised"
        for kind in kinds:
            self._judge(kind, top / kind, manifests / kind)
        self._check_store()

    def close(self) -> None:
        """Unmount, if a round left something mounted, whatever became of it."""
        if self._daemon is not None:
            self._daemon.kill()
            self._daemon = None
        self._kill_emptier()
        unmount_dead(self.mountpoint)

    # -- daemons --

    def _begin(self, points: Sequence[str]) -> None:
        """Start a daemon, which may die later."""
        amid = [point for point in points if not FAILPOINTS[point].at_start]
        if self._new_place is not None and not self.store.exists():
            self._make_store(self._new_place())
        begun = time.monotonic()
        self._daemon = Daemon(self.store, self.mountpoint, self._options(*amid))
        self.figures.recovery_s.append(time.monotonic() - begun)

    def _make_store(self, url: str) -> None:
        command = [sys.executable, "-m", "nexusfuse.ctl.main", "init", "--packs", url]
        subprocess.run([*command, "--store", self.store], check=True, timeout=TIMEOUT_S)
        # So that all of it happens while programs write.
        settings = "metadata_interval_s: 0.3\nupload_interval_s: 0.2\ncache_mib: 4\n"
        (self.store / "store.yaml").write_text(settings)

    def _finish_store(self) -> None:
        """Read all of a store, now and then; unmount it, have fsck look at it, remove it."""
        if self._daemon is None:
            return
        head = self._ask("verify-log", {})["records"]
        moments = [f"op-{self._rng.randint(1, head)}" for _ in range(MOMENTS)]
        for top in [self.mountpoint, *(self.mountpoint / ".nexus/history" / m for m in moments)]:
            for at, _, names in os.walk(top, onerror=_fail):
                for name in names:
                    self.figures.files_read += _read(Path(at, name))
        subprocess.run(["fusermount3", "-u", self.mountpoint], check=True, timeout=TIMEOUT_S)
        assert self._daemon.process.wait(TIMEOUT_S) == 0
        self._daemon = None
        for words in (["fsck", "--deep"], ["verify-log"]):
            command = [sys.executable, "-m", "nexusfuse.ctl.main", "--store", str(self.store)]
            done = subprocess.run(
                [*command, *words], check=False, timeout=TIMEOUT_S, capture_output=True, text=True
            )
            assert done.returncode == 0, done
        self._check_log()
        shutil.rmtree(self.store)

    def _options(self, point: str = "") -> str:
        if not point:
            return ":::small" if self._rng.random() < 0.7 else ""
        nth = 1 if FAILPOINTS[point].at_start else self._rng.choice((1, 1, 2, 3, 7))
        return f"{point}:{nth}:{self._hits}:small"

    def _kill_beside(self, path: Path) -> None:
        """Kill the daemon with a session for recovery to finish, whatever programs are at."""
        assert self._daemon is not None
        fd = os.open(path, os.O_CREAT | os.O_WRONLY)
        try:
            os.write(fd, b"promised")
            os.fsync(fd)
            self._daemon.kill()
        finally:
            with suppress(OSError):  # nobody is there to close it
                os.close(fd)

    def _die_mounting(self, point: str) -> None:
        try:
            daemon = Daemon(self.store, self.mountpoint, self._options(point))
        except subprocess.CalledProcessError:
            self._note_hit(point)
        else:
            daemon.kill()
            raise AssertionError(f"{point} was not reached")

    def _note_hit(self, point: str) -> None:
        self.figures.hits[point] += 1
        assert self._hits.read_text().splitlines().count(point) == self.figures.hits[point]

    # -- programs --

    def _start_writer(self, kind: str, top: Path, manifests: Path) -> subprocess.Popen[bytes]:
        (top / kind).mkdir()
        words = [kind, str(top / kind), str(manifests / kind), str(self._rng.getrandbits(32))]
        command = [sys.executable, "-m", "tests.crash.campaign.writer", *words]
        return subprocess.Popen(command)

    def _start_emptier(self) -> subprocess.Popen[bytes]:
        words = [str(self.store), str(self._rng.getrandbits(32))]
        with self._emptied.open("ab") as output:
            return subprocess.Popen(
                [sys.executable, "-m", "tests.crash.emptying", *words], stdout=output
            )

    def _kill_emptier(self) -> None:
        """Kill it amid whatever it is at; it must not have ended by itself."""
        if self._emptier is not None:
            assert self._emptier.poll() is None
            self._emptier.kill()
            self._emptier.wait(TIMEOUT_S)
            self._emptier = None
            self.figures.emptied = self._count_emptied()

    def _count_emptied(self) -> int:
        return self._emptied.read_bytes().count(b"\n")

    def _await_promises(
        self, manifests: Path, programs: Mapping[str, subprocess.Popen[bytes]], wanted: int
    ) -> None:
        def enough() -> bool:
            for kind, program in programs.items():
                if program.poll() is not None:
                    error = read_notes(manifests / kind).error
                    raise AssertionError(f"{kind} ended: {error}\n{self._log_tail()}")
            counts = [count_done(manifests / kind) for kind in programs]
            return min(counts) >= 1 and sum(counts) >= wanted

        wait_until(enough, "promises", TIMEOUT_S)

    # -- judging --

    def _judge(self, kind: str, directory: Path, manifest: Path) -> None:
        notes = read_notes(manifest)
        assert notes.error is None, f"{directory}: {notes.error}\n{self._log_tail()}"
        judge = judge_database if kind.startswith("sqlite") else judge_tree
        problems = judge(directory, notes)
        assert problems == [], f"{directory}: " + "\n".join(problems[:20])
        self.figures.promises += len(notes.done)
        if notes.in_flight is not None:
            self.figures.in_flight[notes.in_flight[0]] += 1

    def _check_store(self) -> None:
        assert self._ask("verify-log", {})["problems"] == []
        assert self._ask("fsck", {"deep": True})["problems"] == []
        self._check_log()

    def _ask(self, verb: str, arguments: dict[str, Any]) -> dict[str, Any]:
        request = Request(verb, arguments)
        return control.ask(os.fsencode(self.mountpoint), request, ignore_progress)

    def _log_tail(self) -> str:
        return "\n".join((self._directory / "daemon.log").read_text().splitlines()[-40:])

    def _check_log(self) -> None:
        lines = (self._directory / "daemon.log").read_text().splitlines()
        bad = ("WARNING", "ERROR", "CRITICAL", "Traceback")
        found = [line for line in lines if any(word in line for word in bad)]
        assert [line for line in found if not any(part in line for part in EXPECTED_LOG)] == []


def unmount_dead(mountpoint: Path) -> None:
    """Detach what a test left mounted, whatever became of it."""
    if mounts.mount_at(os.fsencode(mountpoint)) is not None:
        subprocess.run(["fusermount3", "-uz", mountpoint], check=True, timeout=TIMEOUT_S)


def _read(path: Path) -> bool:
    """Read a file that is one; what it holds was judged elsewhere."""
    if path.is_symlink():
        return bool(os.readlink(path))
    with path.open("rb") as file:
        while file.read(1 << 20):
            pass
    return True


def _fail(error: OSError) -> None:
    raise error
