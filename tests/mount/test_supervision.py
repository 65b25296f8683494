"""A daemon that dies or hangs is replaced, and one that is told to end is not."""

from __future__ import annotations

import errno
import json
import os
import platform
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nexusfuse.ctl import exit_codes, processes
from tests.conftest import CTL, TIMEOUT_S, Mount
from tests.mount.linux import refused
from tests.mount.test_ctl_mount import ctl, require_one_line
from tests.mount.waiting import runs, wait_until

GONE = (errno.ENOTCONN, errno.ECONNABORTED)
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
beneath = pytest.mark.skipif(
    os.geteuid() != 0 or tuple(map(int, platform.release().split(".")[:2])) < (6, 5),
    reason="needs root and Linux 6.5, to mount beneath",
)


@pytest.fixture
def supervised(mount: Mount) -> Mount:
    """Return a mount as ``nexus-ctl mount`` makes it, whose daemon is going to die."""
    mount.umount()
    mount.mount(restart=True)
    mount.expected_log = ["which died", "starting it again"]
    (mount.path / "file").write_text("kept")
    return mount


def daemon(mount: Mount) -> int:
    return int(mount.status()["pid"])


def supervisor(mount: Mount) -> int:
    return int(mount.status()["supervisor"])


def answers(mount: Mount) -> bool:
    """Tell whether programs are served; until then they get an error."""
    try:
        os.statvfs(mount.path)
    except OSError as error:
        if error.errno not in GONE:
            raise
        return False
    return os.path.ismount(mount.path)


def serves_again(mount: Mount, before: int) -> int:
    """Wait until another daemon serves; return it."""
    wait_until(lambda: not runs(before) and answers(mount), "the mountpoint serves again")
    return daemon(mount)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_a_daemon_that_dies_is_replaced(supervised: Mount, number: signal.Signals) -> None:
    """Nobody has to do anything; what close returned for is there; status tells."""
    supervised.expected_log += ["Fatal Python error"]
    before = daemon(supervised)
    os.kill(before, number)
    after = serves_again(supervised, before)
    assert after != before
    assert (supervised.path / "file").read_text() == "kept"
    (supervised.path / "file").write_text("goes on")
    status = supervised.status()
    assert status["restarts"] == 1
    assert status["restarted_after"] == f"signal {number}"
    assert f"daemon {before} ended: signal {number}" in supervised.log.read_text()


@beneath
def test_programs_never_see_the_directory_beneath(supervised: Mount) -> None:
    """What they wrote into it would be hidden from then on."""
    for _ in range(2):
        before = daemon(supervised)
        os.kill(before, signal.SIGKILL)
        seen: set[int] = set()
        while True:
            try:
                (supervised.path / "file").read_text()
            except OSError as error:
                seen.add(error.errno or 0)
            else:
                if not runs(before):
                    break
        assert seen <= set(GONE)


@pytest.mark.slow
def test_who_dies_again_and_again_is_started_ever_later(supervised: Mount) -> None:
    """At once, after a second, after two; each time there is a line in daemon.log."""
    before = daemon(supervised)
    for _ in range(3):
        os.kill(before, signal.SIGKILL)
        before = serves_again(supervised, before)
    lines = [line for line in supervised.log.read_text().splitlines() if "starting it" in line]
    assert [line.partition("again ")[2].split(" (")[0] for line in lines] == [
        "now",
        "in 1 s",
        "in 2 s",
    ]
    assert supervised.status()["restarts"] == 3


def break_store(mount: Mount) -> int:
    """Kill the daemon, and see to it that no other can start; return its supervisor."""
    pid, beside = daemon(mount), supervisor(mount)
    (mount.store / "meta.db").rename(mount.store / "meta.db.away")
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: "in 2 s" in mount.log.read_text(), "it is tried again and again")
    return beside


def mend_store(mount: Mount) -> None:
    (mount.store / "meta.db.away").rename(mount.store / "meta.db")


@pytest.mark.slow
def test_a_daemon_that_cannot_start_is_tried_until_it_can(supervised: Mount) -> None:
    """Giving up would leave the mountpoint dead for ever; programs get errors meanwhile."""
    break_store(supervised)
    with refused(*GONE):
        os.statvfs(supervised.path)
    mend_store(supervised)
    wait_until(lambda: answers(supervised), "the mountpoint serves again")
    assert (supervised.path / "file").read_text() == "kept"


@pytest.mark.parametrize("command", [[*CTL, "umount"], ["fusermount3", "-u"]])
def test_between_two_daemons_umount_ends_it(supervised: Mount, command: list[str]) -> None:
    """Also where only the supervisor is left to be ended."""
    beside = break_store(supervised)
    subprocess.run([*command, supervised.path], check=True, timeout=TIMEOUT_S, cwd="/")
    wait_until(lambda: not runs(beside), "the supervisor ends")
    assert not os.path.ismount(supervised.path)
    mend_store(supervised)
    supervised.mount()
    assert (supervised.path / "file").read_text() == "kept"


def by_signal(find: Callable[[Mount], int]) -> Callable[[Mount], None]:
    return lambda mount: os.kill(find(mount), signal.SIGTERM)


def by_command(*command: str) -> Callable[[Mount], None]:
    def end(mount: Mount) -> None:
        subprocess.run([*command, mount.path], check=True, timeout=TIMEOUT_S, cwd="/")

    return end


@pytest.mark.parametrize(
    "end",
    [
        by_signal(supervisor),
        by_signal(daemon),
        by_command("umount"),
        by_command(*CTL, "umount", "--lazy"),
    ],
    ids=["supervisor", "daemon", "umount", "lazy"],
)
def test_who_is_told_to_end_ends_for_good(supervised: Mount, end: Callable[[Mount], None]) -> None:
    """Daemon and supervisor, orderly: nothing is left for the next mount to take over."""
    both = daemon(supervised), supervisor(supervised)
    end(supervised)
    wait_until(lambda: not any(map(runs, both)), "both end")
    assert not os.path.ismount(supervised.path)
    assert list((supervised.store / "peers").iterdir()) == []
    supervised.expected_log.clear()


def test_umount_returns_when_daemon_and_supervisor_are_gone(supervised: Mount) -> None:
    """So that whoever removes the store next finds nobody in it."""
    both = daemon(supervised), supervisor(supervised)
    supervised.umount()
    assert not any(map(runs, both))
    supervised.expected_log.clear()


@pytest.mark.slow
def test_a_daemon_outlives_its_supervisor(supervised: Mount) -> None:
    """And says that nobody starts it again; umount works as before."""
    pid = daemon(supervised)
    os.kill(supervisor(supervised), signal.SIGKILL)
    wait_until(lambda: supervised.status()["supervisor"] == "none", "it is noticed")
    assert daemon(supervised) == pid
    supervised.expected_log += ["the supervisor is gone"]
    supervised.umount()
    assert not runs(pid)


def test_a_first_start_that_fails_leaves_nobody_behind(mount: Mount) -> None:
    """Who asked for the mount is told; nothing is tried again."""
    mount.umount()
    (mount.path / "file").touch()
    require_one_line(ctl("mount", "--store", mount.store, mount.path), "not empty")
    assert processes.behind(os.fsencode(mount.path)) == (None, [])
    (mount.path / "file").unlink()


def test_files_beneath_are_hidden_only_when_asked_to(mount: Mount) -> None:
    """fstab(5) and services do; the log says what is hidden."""
    mount.umount()
    (mount.path / "beneath").touch()
    mount.expected_log = ["beneath is hidden"]
    mount.mount("--nonempty")
    assert os.listdir(mount.path) == []
    assert "beneath is hidden" in mount.log.read_text()
    mount.umount()
    (mount.path / "beneath").unlink()


@pytest.fixture
def hanging(tmp_path: Path) -> Iterator[Mount]:
    """Yield a mount that counts as hung soon, and whose daemon is stopped by the test."""
    mounted = Mount(tmp_path, "--hang-limit", "1", restart=True)
    mounted.expected_log = ["has not answered for 1 s", "which died", "starting it again", "Fatal"]
    (mounted.path / "file").write_text("kept")
    try:
        yield mounted
        assert mounted.check() == []
        mounted.umount()
        assert mounted.unexpected_log_lines() == []
    finally:
        if os.path.ismount(mounted.path):
            subprocess.run([*CTL, "umount", "--force", mounted.path], check=False, timeout=60)


def reader(mount: Mount) -> subprocess.Popen[str]:
    """Start a program that waits for the daemon."""
    script = (
        f"import os\ntry:\n os.statvfs({str(mount.path)!r})\nexcept OSError as e: print(e.errno)"
    )
    return subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)


def test_a_daemon_that_hangs_is_replaced(hanging: Mount) -> None:
    """Who waits for it gets an error instead of waiting for ever."""
    before = daemon(hanging)
    os.kill(before, signal.SIGSTOP)
    program = reader(hanging)
    output, _ = program.communicate(timeout=TIMEOUT_S)
    assert int(output) in GONE
    assert serves_again(hanging, before) != before
    assert (hanging.path / "file").read_text() == "kept"
    assert hanging.status()["restarted_after"] == "hung"
    log = hanging.log.read_text()
    assert f"daemon {before} has not answered for 1 s" in log
    assert "Fatal Python error: Aborted" in log, "it wrote down where it hung"


def test_a_hung_mount_is_named_by_doctor_and_freed_by_force(mount: Mount) -> None:
    """Without supervision nothing happens by itself; the command that doctor names helps."""
    pid = daemon(mount)
    os.kill(pid, signal.SIGSTOP)
    program = reader(mount)
    done = ctl("doctor", "--limit", "1", "--json", mount.path)
    assert done.returncode == 1
    findings = {finding["check"]: finding for finding in json.loads(done.stdout)["findings"]}
    assert str(pid) in findings["hung"]["what"]
    assert findings["hung"]["command"] == f"nexus-ctl umount --force {mount.path}"
    assert program.poll() is None, "it waits"
    done = ctl("umount", "--force", mount.path)
    assert done.returncode == 0, done
    output, _ = program.communicate(timeout=TIMEOUT_S)
    assert int(output) in GONE
    assert not runs(pid)
    assert not os.path.ismount(mount.path)
    mount.expected_log = ["what was mapped", "aborted"]  # the daemon ended in order


def test_a_dead_mount_is_named_by_doctor(mount: Mount) -> None:
    """With the line that mounts it again."""
    os.kill(daemon(mount), signal.SIGKILL)
    wait_until(lambda: not answers(mount), "the mount is dead")
    done = ctl("doctor", mount.path)
    assert done.returncode == 1
    assert "is dead" in done.stdout
    assert f"$ nexus-ctl mount --store {mount.store} {mount.path}" in done.stdout
    assert "died with" in done.stdout, "and nobody took over from it yet"
    mount.expected_log = ["which died"]
    assert ctl("umount", mount.path).returncode == 0


@as_root
def test_an_aborted_connection_is_made_anew(supervised: Mount) -> None:
    """umount(8), -f, of a mount in use: it fails, but whoever waited for the daemon is free."""
    supervised.expected_log += ["aborted"]
    before = daemon(supervised)
    fd = os.open(supervised.path, os.O_RDONLY)
    try:
        done = subprocess.run(["umount", "-i", "-f", supervised.path], check=False, timeout=60)
        assert done.returncode != 0
        serves_again(supervised, before)
    finally:
        os.close(fd)
    assert (supervised.path / "file").read_text() == "kept"


def test_a_service_manager_hears_that_the_loop_turns(tmp_path: Path) -> None:
    """sd_watchdog_enabled(3): WATCHDOG=1 at half of WATCHDOG_USEC, and none when it hangs."""
    (tmp_path / "mount").mkdir()
    address = f"@nexus-test-watchdog-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.settimeout(TIMEOUT_S)
        manager.bind("\0" + address[1:])
        service = subprocess.Popen(
            [*CTL, "mount", "--foreground", "--store", tmp_path / "store", tmp_path / "mount"],
            env={**os.environ, "NOTIFY_SOCKET": address, "WATCHDOG_USEC": "200000"},
        )
        heard = [manager.recv(4096) for _ in range(6)]
        assert heard.count(b"WATCHDOG=1") == 5
        assert b"READY=1" in heard
        service.send_signal(signal.SIGSTOP)
        while select.select([manager], [], [], 1)[0]:
            manager.recv(4096)
        service.send_signal(signal.SIGCONT)
        assert manager.recv(4096) == b"WATCHDOG=1"
        service.send_signal(signal.SIGTERM)
        while manager.recv(4096) != b"STOPPING=1":
            pass
        assert service.wait(TIMEOUT_S) == 0


def test_a_held_mount_stays_for_the_next_daemon(tmp_path: Path) -> None:
    """systemctl restart: programs get errors in between, and never the directory beneath."""
    (tmp_path / "mount").mkdir()
    command = [*CTL, "mount", "--foreground", "--hold", "--store", str(tmp_path / "store")]
    for _ in range(2):
        service = subprocess.Popen([*command, tmp_path / "mount"])
        wait_until(lambda: _statvfs(tmp_path / "mount") == 0, "it serves")
        service.send_signal(signal.SIGTERM)
        assert service.wait(TIMEOUT_S) == 0
        assert _statvfs(tmp_path / "mount") in GONE
    assert ctl("umount", tmp_path / "mount").returncode == 0


def _statvfs(path: Path) -> int:
    if not os.path.ismount(path) and os.path.exists(path):
        return -1
    try:
        os.statvfs(path)
    except OSError as error:
        return error.errno or -1
    return 0


_WRITER = """
import os, sys
name, manifest = sys.argv[1], os.open(sys.argv[2], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
for number in range(2000):
    path = f"{name}-{number}"
    try:
        with open(path, "w") as file:
            file.write(path * 3000)
    except OSError:
        break
    os.write(manifest, (path + "\\n").encode())
"""


def test_sigterm_amid_heavy_writes_loses_nothing(supervised: Mount, tmp_path: Path) -> None:
    """What close returned for is there, byte for byte, and nothing had to be recovered."""
    manifest = tmp_path / "manifest"
    manifest.touch()
    both = daemon(supervised), supervisor(supervised)
    writers = [
        subprocess.Popen([sys.executable, "-c", _WRITER, f"w{n}", manifest], cwd=supervised.path)
        for n in range(3)
    ]
    wait_until(lambda: manifest.read_bytes().count(b"\n") > 60, "promises")
    os.kill(both[0], signal.SIGTERM)
    for writer in writers:
        assert writer.wait(TIMEOUT_S) == 0
    wait_until(lambda: not any(map(runs, both)), "both end")
    supervised.expected_log.clear()
    supervised.mount()
    for name in manifest.read_text().splitlines():
        assert (supervised.path / name).read_text() == name * 3000


_MAPPER = """
import mmap, sys
with open("mapped", "r+b") as file:
    mapped = mmap.mmap(file.fileno(), 8192)
mapped[:6] = b"mapped"
print(flush=True)
sys.stdin.read()
"""


def test_sigterm_keeps_what_was_mapped_and_never_synced(supervised: Mount) -> None:
    """mmap(2), MAP_SHARED: the kernel has it; it is asked for before the connection is cut."""
    path = supervised.path / "mapped"
    path.write_bytes(bytes(8192))
    pid = daemon(supervised)
    program = subprocess.Popen(
        [sys.executable, "-c", _MAPPER],
        cwd=supervised.path,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert program.stdout is not None
    program.stdout.readline()
    os.kill(pid, signal.SIGTERM)
    wait_until(lambda: not runs(pid), "the daemon ends")
    program.communicate(b"", timeout=TIMEOUT_S)
    supervised.expected_log.clear()
    supervised.mount()
    assert path.read_bytes()[:6] == b"mapped"


def test_a_held_mount_stays_held_when_the_next_daemon_cannot_start(mount: Mount) -> None:
    """Programs get errors and write nothing beneath; with the cause mended the next takes over."""
    mount.umount()
    daemon = [*CTL, "--store", str(mount.store), "mount", "--foreground", "--hold", "--nonempty"]

    def start() -> subprocess.Popen[bytes]:
        return subprocess.Popen([*daemon, str(mount.path)], stderr=subprocess.DEVNULL)

    first = start()
    wait_until(lambda: answers_mounted(mount), "the first one serves")
    first.terminate()
    assert first.wait(TIMEOUT_S) == 0
    for setting, code in (("nonsense: 1", exit_codes.USAGE), (None, exit_codes.STORE_UNUSABLE)):
        if setting is None:
            (mount.store / "meta.db").rename(mount.store / "meta.db.away")
            (mount.store / "meta.db").mkdir()
        else:
            (mount.store / "store.yaml").write_text(setting)
        assert start().wait(TIMEOUT_S) == code
        (mount.store / "store.yaml").unlink(missing_ok=True)
        with refused(*GONE):
            (mount.path / "new").write_text("beneath?")
    (mount.store / "meta.db").rmdir()
    mend_store(mount)
    last = start()
    wait_until(lambda: answers_mounted(mount), "the next one takes its place")
    (mount.path / "new").write_text("kept")
    mount.umount()
    assert last.wait(TIMEOUT_S) == 0
    mount.mount()
    assert (mount.path / "new").read_text() == "kept"


def answers_mounted(mount: Mount) -> bool:
    return os.path.ismount(mount.path) and answers(mount)
