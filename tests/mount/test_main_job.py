"""The main job: a real source tree, git, two agents, undo, redo, a remount."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sysconfig
import tarfile
from pathlib import Path

import pytest

from tests.conftest import Mount

FILES_MIN = 1500
GIT = "git -c safe.directory=* -c user.name=Test -c user.email=test@example.org -c gc.auto=0"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a tar of Python's own library: real source that every machine has."""
    library = Path(sysconfig.get_paths()["stdlib"])
    path = tmp_path_factory.mktemp("source") / "source.tar"
    skipped = {"__pycache__", "site-packages", "dist-packages", "config-3"}
    count = 0

    def keep(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
        nonlocal count
        parts = member.name.split("/")
        if any(part in skipped or part.startswith("config-") for part in parts):
            return None
        if member.size > 1 << 20 or not (member.isfile() or member.isdir()):
            return None
        if member.isfile() and count >= FILES_MIN + 100:
            return None
        count += member.isfile()
        return member

    with tarfile.open(path, "w") as tar:
        tar.add(library, "source", filter=keep)
    assert count >= FILES_MIN
    return path


def fingerprint(top: Path) -> dict[str, str]:
    """Return one line for each entry: type, mode, size, mtime, bytes."""
    lines = {}
    for directory, directories, files in os.walk(top):
        for name in [*directories, *files]:
            path = os.path.join(directory, name)
            status = os.lstat(path)
            digest = ""
            if name in files and not os.path.islink(path):
                with open(path, "rb") as file:
                    digest = hashlib.file_digest(file, "sha256").hexdigest()
            mtime = status.st_mtime_ns if name in files else 0
            lines[os.path.relpath(path, top)] = f"{status.st_mode:o} {mtime} {digest}"
    return lines


def differing(first: dict[str, str], second: dict[str, str]) -> set[str]:
    return {path for path in first.keys() | second.keys() if first.get(path) != second.get(path)}


ALICE_BEGINS = """
modules=(*.py)
for file in "${modules[@]:0:10}"; do echo '# edited by alice' >> $file; done
"""
BOB = """
modules=(*.py)
for file in "${modules[@]: -3}"; do sed -i '1i # edited by bob' $file; done
echo 'bob was here' > BOB.txt
"""
ALICE_DELETES = """
directories=(*/); modules=(*.py)
for ((i = 0; i < ${#directories[@]}; i += 2)); do rm -rf "${directories[i]}"; done
rm -f "${modules[@]:10:50}"
find */ -type f | sort | awk 'NR % 3' | xargs -d '\\n' rm -f
"""


@pytest.mark.timeout(300)
def test_the_main_job(mount: Mount, source: Path) -> None:
    """Undoing what one agent did gives back the tree, except for exactly what another did."""
    top = mount.path / "source"
    mount.sh(f"tar xf {source}")
    mount.sh(f"cd source && {GIT} init -q && {GIT} add -A && {GIT} commit -qm all")
    mount.sh("cd source && python3 -m compileall -q json email || true")
    before, seq = fingerprint(top), mount.json("log", "--limit", "1")[0]["seq"]

    mount.sh("cd source;" + ALICE_BEGINS, agent="alice")
    mount.sh("cd source;" + BOB, agent="bob")
    mount.sh("cd source;" + ALICE_DELETES, agent="alice")
    after = fingerprint(top)
    assert len(before) - len(after) > FILES_MIN // 4
    bobs = {path for path in differing(before, after) if "bob" in _text(top / path)}
    assert len(bobs) == 4

    past = top / f".nexus/history/op-{seq}"
    assert fingerprint(past) == before
    shown = mount.sh(f"diff -rq {past} source || true")
    assert "Only in" in shown
    assert "BOB.txt" in shown
    by_alice = mount.json("log", "--agent", "alice", "--limit", "100000")
    assert {record["actor"]["agent"] for record in by_alice} == {"alice"}

    planned = mount.json("undo", "--agent", "alice", "--dry-run")[0]
    assert planned["dry_run"]
    assert planned["operations"] == len(by_alice)
    assert fingerprint(top) == after, "a dry run changes nothing"

    undone = mount.json("undo", "--agent", "alice")[0]
    assert undone["conflicts"] == []
    assert undone["change_count"] == planned["change_count"]
    restored = fingerprint(top)
    assert differing(before, restored) == bobs
    changed = mount.sh(f"cd source && {GIT} --no-optional-locks status --short")
    assert len([line for line in changed.splitlines() if "__pycache__" not in line]) == 4

    mount.json("redo")
    assert differing(after, fingerprint(top)) == set()
    mount.json("undo", "--agent", "alice")
    assert fingerprint(top) == restored

    mount.remount()
    assert fingerprint(top) == restored
    assert fingerprint(past) == before
    mount.sh(f"cd source && {GIT} fsck --no-progress")
    assert mount.check() == []


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def test_undo_brings_back_a_removed_tree_with_all_that_it_was(mount: Mount) -> None:
    """rm -rf, then undo: names, bytes, modes, owners, times, attributes, hard links."""
    mount.sh("""
    mkdir -p tree/a/b; echo one > tree/a/one; ln tree/a/one tree/a/b/hard; ln -s one tree/a/soft
    mkfifo tree/fifo; chmod 4751 tree/a/one; setfattr -n user.k -v v tree/a/one || true
    touch -d 1999-12-31T23:59:59.123456789 tree/a/one; touch -d 2001-01-01 tree/a
    head -c 3000000 /dev/urandom > tree/big
    """)
    listing = "find tree -printf '%p %i %M %U %G %s %n %l %T@\\n' | sort; sha256sum tree/big"
    listing += "; getfattr -d tree/a/one || true"
    before = mount.sh(listing)
    mount.sh("rm -rf tree", agent="careless")
    assert os.listdir(mount.path) == []
    mount.ctl("undo", "--agent", "careless")
    assert mount.sh(listing) == before
    mount.ctl("redo")
    assert os.listdir(mount.path) == []
    mount.ctl("undo", "--agent", "careless")
    assert mount.sh(listing) == before


def test_undo_leaves_alone_what_somebody_else_changed_since(mount: Mount) -> None:
    """A conflict is reported, and exits 3; the rest is undone; --force overrides."""
    mount.sh("echo 1 > shared; echo 1 > own")
    mount.sh("echo 2 > shared; echo 2 > own", agent="alice")
    mount.sh("echo 3 > shared", agent="bob")
    command = ["nexus-ctl", "--json", "undo", "--agent", "alice"]
    reply = mount.ctl(*command[1:], check=False)
    assert '"conflicts": []' not in reply
    assert mount.sh("cat shared own") == "3\n1\n"
    mount.ctl("undo", "--agent", "alice", "--force", check=False)
    assert mount.sh("cat own") == "1\n"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_undo_of_a_removed_tree_of_10000_files(mount: Mount) -> None:
    """As large as real mistakes are."""
    script = """
    for d in $(seq 100); do mkdir -p t/$d; for f in $(seq 100); do echo $d $f > t/$d/$f; done; done
    """
    subprocess.run(["bash", "-c", script], cwd=mount.path, check=True, timeout=300)
    before = fingerprint(mount.path)
    subprocess.run(["rm", "-rf", "t"], cwd=mount.path, check=True, timeout=300,
                   env={**os.environ, "NEXUS_AGENT": "careless"})  # fmt: skip
    mount.ctl("undo", "--agent", "careless")
    assert fingerprint(mount.path) == before
