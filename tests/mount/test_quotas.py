"""Quotas as programs meet them: EDQUOT, df, du; for every user, at once."""

from __future__ import annotations

import errno
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import TIMEOUT_S, Mount
from tests.mount.conftest import serving
from tests.mount.linux import NOBODY, refused, run_as

MIB = 1 << 20

# Does things that change what is there, and prints how many worked.
_MIX = """
import os, random, sys
rng, done = random.Random(sys.argv[1]), 0
directories = [b"a", b"a/in", b"b", b"c"]
for name in directories:
    os.mkdir(name)
def place():
    return rng.choice(directories) + b"/%d" % rng.randrange(25)
for _ in range(int(sys.argv[2])):
    path, other = place(), place()
    try:
        match rng.randrange(9):
            case 0 | 1:
                with open(path, "wb") as file:
                    file.write(bytes(rng.randrange(200_000)))
            case 2:
                with open(path, "ab") as file:
                    file.write(b"more")
            case 3:
                os.truncate(path, rng.randrange(300_000))
            case 4:
                os.link(path, other)
            case 5:
                os.unlink(path)
            case 6:
                os.symlink(b"x" * rng.randrange(1, 99), path)
            case 7:
                os.mkdir(path)
            case 8:
                os.rename(path, other)
        done += 1
    except OSError:
        pass
print(done)
"""


@pytest.fixture
def everybodys(tmp_path: Path) -> Iterator[Mount]:
    """Yield a mount that other users may enter and write to."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to be somebody else")
    with serving(tmp_path, "--allow-other") as mounted:
        yield mounted


def limit(mount: Mount, path: str, *options: str) -> None:
    mount.ctl("quota", "set", path, *options)


def used(mount: Mount, path: str) -> tuple[int, int]:
    """Return (bytes, inodes) that a quota counts."""
    (found,) = [q for q in mount.json("quota", "list") if q["path"] == path]
    return found["bytes"], found["inodes"]


def du(path: Path) -> tuple[int, int]:
    """Return (bytes, inodes) of a directory. Source: du(1)."""
    found = []
    for option in ("--apparent-size", "--inodes"):
        command = ["du", "-s", option, *(["-B1"] if option != "--inodes" else []), str(path)]
        output = subprocess.run(command, check=True, capture_output=True, timeout=TIMEOUT_S).stdout
        found.append(int(output.split()[0]))
    return found[0], found[1]


def df(path: Path, option: str) -> tuple[int, int]:
    """Return (total, available) as df says: ``-B1`` in bytes, ``-i`` in inodes."""
    columns = "size,avail" if option == "-B1" else "itotal,iavail"
    command = ["df", *([option] if option == "-B1" else []), f"--output={columns}", str(path)]
    output = subprocess.run(command, check=True, capture_output=True, timeout=TIMEOUT_S).stdout
    total, available = output.splitlines()[1].split()
    return int(total), int(available)


def test_counters_agree_with_du_after_a_random_mix(mount: Mount) -> None:
    """Hard links, sparse files, symlinks, moved directories, an undo of part of it."""
    for name in ("x", "y"):
        (mount.path / name).mkdir()
    limit(mount, "x", "--bytes", "10G")
    limit(mount, ".", "--inodes", "1000000")
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")  # noqa: T201 - shown when it fails
    for name in ("x", "y"):
        command = [sys.executable, "-c", _MIX, f"{seed}{name}", "400"]
        done = subprocess.run(
            command, cwd=mount.path / name, check=True, capture_output=True, timeout=TIMEOUT_S
        )
        assert int(done.stdout) > 100
    os.rename(mount.path / "y/b", mount.path / "x/b2")
    os.rename(mount.path / "x/a", mount.path / "y/a2")
    for path in ("x", ""):
        assert used(mount, path) == du(mount.path / path), path
    mount.ctl("undo", "--last", "150", "--force", check=False)
    for path in ("x", ""):
        assert used(mount, path) == du(mount.path / path), path


def test_a_write_gets_what_fits_and_then_edquot(mount: Mount) -> None:
    """Also for root; what the file has then is what write(2) said. Other directories go on."""
    top = mount.path / "limited"
    top.mkdir()
    limit(mount, "limited", "--bytes", "3M", "--inodes", "5")
    fd = os.open(top / "file", os.O_WRONLY | os.O_CREAT)
    taken = 0
    with refused(errno.EDQUOT):
        for _ in range(100):
            taken += os.write(fd, bytes(700_001))
    os.close(fd)
    assert taken == 3 * MIB == (top / "file").stat().st_size
    with refused(errno.EDQUOT):
        os.truncate(top / "file", 3 * MIB + 1)
    (mount.path / "free").write_bytes(bytes(5 * MIB))
    with refused(errno.EDQUOT):
        os.rename(mount.path / "free", top / "free")
    with refused(errno.EDQUOT):
        os.link(mount.path / "free", top / "free")
    for number in range(3):
        (top / f"d{number}").mkdir()
    with refused(errno.EDQUOT):
        (top / "one too many").mkdir()
    os.unlink(top / "file")
    (top / "room again").write_bytes(bytes(3 * MIB))
    with refused(errno.EDQUOT), (mount.path / ".nexus/control").open("w") as control:
        control.write("undo --last 1 limited/file")
    limit(mount, "limited", "--bytes", "4M")  # at once
    os.truncate(top / "room again", 4 * MIB)


def test_df_shows_what_a_quota_leaves(mount: Mount) -> None:
    """By path and by descriptor; of several quotas the fullest; elsewhere the disk."""
    inner = mount.path / "outer/inner"
    inner.mkdir(parents=True)
    limit(mount, "outer", "--bytes", "100M", "--inodes", "50")
    limit(mount, "outer/inner", "--bytes", "10M")
    (inner / "file").write_bytes(bytes(4 * MIB))
    assert df(inner, "-B1") == (10 * MIB, 6 * MIB)
    assert df(inner / "file", "-B1") == (10 * MIB, 6 * MIB)
    assert df(mount.path / "outer", "-B1") == (100 * MIB, 96 * MIB)
    assert df(inner, "-i") == (50, 47)
    disk = os.statvfs(mount.store)
    assert df(mount.path, "-B1")[0] == disk.f_blocks * disk.f_frsize
    os.symlink("outer/inner", mount.path / "link")
    assert df(mount.path / "link", "-B1") == (10 * MIB, 6 * MIB)
    os.unlink(mount.path / "link")
    fd = os.open(inner, os.O_RDONLY)
    assert os.fstatvfs(fd).f_bavail == 6 * MIB // os.fstatvfs(fd).f_frsize
    os.close(fd)
    with (inner / "open").open("wb", buffering=0) as file:  # counts before it is closed
        file.write(bytes(2 * MIB))
        assert df(inner, "-B1") == (10 * MIB, 4 * MIB)
    mount.ctl("quota", "remove", "outer/inner")
    assert df(inner, "-B1") == (100 * MIB, 94 * MIB)
    limit(mount, ".", "--bytes", "50M")
    assert df(inner, "-B1") == (50 * MIB, 44 * MIB)


def test_a_quota_holds_for_other_users_who_cannot_change_it(
    everybodys: Mount, monkeypatch: pytest.MonkeyPatch
) -> None:
    """EDQUOT and df for them too; quota set and remove are for root and the store's owner."""
    mount = everybodys
    top = mount.path / "theirs"
    top.mkdir()
    os.chmod(top, 0o777)
    limit(mount, "theirs", "--bytes", "1M")

    def fill() -> None:
        with Path("file").open("wb", buffering=0) as file:
            assert file.write(bytes(MIB)) == MIB
            with refused(errno.EDQUOT):
                file.write(b"x")
        assert os.statvfs(".").f_bavail == 0
        with refused(errno.EPERM), Path(".nexus/control").open("w") as control:
            control.write("quota set . --bytes 1G")
        with refused(errno.EPERM), Path(".nexus/control").open("w") as control:
            control.write("quota remove .")

    with monkeypatch.context() as patch:
        patch.chdir(top)
        assert run_as(NOBODY, NOBODY, fill) == 0
    assert used(mount, "theirs") == (MIB, 2)


def test_another_process_on_the_store_sets_limits_that_hold_at_once(mount: Mount) -> None:
    """--store beside the mount; after a crash the counters are right as well."""
    (mount.path / "a").mkdir()
    (mount.path / "a/file").write_bytes(bytes(1000))
    mount.ctl("--store", str(mount.store), "quota", "set", "a", "--bytes", "1500")
    with (mount.path / "a/other").open("wb", buffering=0) as file:
        assert file.write(bytes(1000)) == 500
    assert used(mount, "a") == (1500, 3)
    mount.expected_log = ["which died"]
    (mount.path / "a/file").unlink()
    fd = os.open(mount.path / "a/other", os.O_WRONLY)
    os.write(fd, bytes(1200))
    os.fsync(fd)
    mount.kill()
    with refused(errno.ENOTCONN):
        os.close(fd)
    mount.mount()
    assert used(mount, "a") == du(mount.path / "a") == (1200, 2)
