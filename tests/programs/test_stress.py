"""Many at once in one tree, and the programs that were made to break filesystems."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.conftest import Mount
from tests.programs.programs import join, needs, run, sh, start_python

CREATOR = """
import os, sys
me, rounds = sys.argv[1], int(sys.argv[2])
for number in range(rounds):
    directory = f"tree/{number % 40}/{me}"
    try:
        os.makedirs(directory, exist_ok=True)
        with open(f"{directory}/{number}", "w") as file:
            file.write(str(number))
        os.rename(f"{directory}/{number}", f"{directory}/renamed-{number}")
        os.symlink("x", f"{directory}/link-{number}")
    except FileNotFoundError:
        pass  # removed while we were at it
    with open(f"kept/{me}-{number}", "w") as file:
        file.write(str(number))
"""


def remove_under_creation(place: Path, entries: int, rounds: int) -> None:
    """Remove a tree of many entries, again and again, while others make more in it."""
    (place / "kept").mkdir()
    fill = f"seq -f tree/$d/%g {entries // 40} | xargs touch"
    sh(f"for d in {{0..39}}; do mkdir -p tree/$d; {fill}; done", place, timeout_s=500)
    creators = [start_python(CREATOR, name, str(rounds), cwd=place) for name in ("a", "b")]
    try:
        while any(creator.poll() is None for creator in creators):
            command = ["rm", "-rf", "tree"]
            done = subprocess.run(
                command, cwd=place, capture_output=True, text=True, timeout=300, check=False
            )
            for line in done.stderr.splitlines():
                # Something new came into a directory between its last entry and its rmdir.
                assert line.endswith(": Directory not empty"), line
    finally:
        join(creators)
    run("rm", "-rf", "tree", cwd=place)
    for name in (names := os.listdir(place / "kept")):
        assert (place / "kept" / name).read_text() == name.partition("-")[2]
    assert len(names) == 2 * rounds
    assert os.listdir(place) == ["kept"]


def test_rm_removes_a_tree_while_others_create_in_it(place: Path) -> None:
    """rm(1) -rf: what goes goes whole, and nothing else does."""
    remove_under_creation(place, 2000, 80)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_rm_removes_50000_entries_while_others_create(place: Path) -> None:
    """The same, as large as a real tree."""
    remove_under_creation(place, 50_000, 4000)


FIO = ["fio", "--output-format=terse", "--name=job", "--filename=data", "--verify=crc32c"]
FIO += ["--do_verify=1", "--verify_fatal=1", "--verify_state_save=0", "--fallocate=none"]
FIO_JOBS = {
    "random": "--rw=randwrite --bs=4k --size=16m --norandommap=0",
    "sequential": "--rw=write --bs=128k --size=64m",
    "mapped": "--rw=randwrite --bs=4k --size=16m --ioengine=mmap",
    "odd sizes": "--rw=randwrite --bsrange=512-70000 --bs_unaligned --size=16m",
    "odd and sequential": "--rw=write --bsrange=513-9999 --bs_unaligned --size=16m",
    "many at once": "--rw=randwrite --bs=16k --size=32m --ioengine=libaio --iodepth=16",
    "direct": "--rw=randwrite --bs=4k --size=16m --direct=1 --ioengine=libaio --iodepth=8",
    "synced": "--rw=randwrite --bs=8k --size=4m --fsync=4",
    "mixed": "--rw=randrw --bs=4k --size=16m",
}


@pytest.mark.slow
@pytest.mark.timeout(300)
@needs("fio", "fio")
@pytest.mark.parametrize("job", FIO_JOBS)
def test_fio_reads_what_it_wrote_and_a_remount_keeps_it(
    place: Path, shared_mount: Mount, job: str
) -> None:
    """fio(1) --verify=crc32c: each block holds its checksum, its offset and a pattern."""
    run(*FIO, *FIO_JOBS[job].split(), cwd=place, timeout_s=250)
    before = run("sha256sum", "data", cwd=place)
    shared_mount.remount()
    assert run("sha256sum", "data", cwd=place) == before


@pytest.mark.slow
@pytest.mark.timeout(3600)
@needs("stress-ng", "stress-ng")
def test_stress_ng_finds_no_fault(place: Path) -> None:
    """stress-ng(1), the class of filesystem stressors, with --verify, one after another.

    fsize stands by itself: its stand-in for fallocate(2), stopped by the end of the time, counts
    as a fault.
    """
    for choice in (
        "--class filesystem --sequential 1 --timeout 3 --exclude fsize",
        "--fsize 1 --fsize-ops 50",
    ):
        stress(place, *choice.split())


def stress(place: Path, *choice: str) -> None:
    command = ["stress-ng", *choice, "--verify", "--temp-path", str(place), "--oom-avoid"]
    done = subprocess.run(
        command, cwd=place, capture_output=True, text=True, timeout=3000, check=False
    )
    assert done.returncode == 0, [
        line for line in done.stderr.splitlines() + done.stdout.splitlines() if "fail" in line
    ]


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "command",
    [
        pytest.param(
            "dbench -t 20 -D . -c /usr/share/dbench/client.txt 4", marks=needs("dbench", "dbench")
        ),
        pytest.param(
            "bonnie++ -d . -f -s 64 -r 16 -n 1:4096:16:4 -u root -q",
            marks=needs("bonnie++", "bonnie++"),
        ),
        pytest.param("fs_mark -d . -n 500 -s 10240 -t 2 -S 1 -k", marks=needs("fs_mark", "fsmark")),
    ],
    ids=["dbench", "bonnie", "fs_mark"],
)
def test_a_benchmark_runs_to_its_end(place: Path, command: str) -> None:
    """dbench(1) replays a file server, bonnie++(8) checks what it reads, fs_mark syncs."""
    assert run(*command.split(), cwd=place, timeout_s=280)
