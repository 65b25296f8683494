"""The main job: a real source tree, git, two agents, undo, redo, a remount."""

from __future__ import annotations

import hashlib
import os
import sysconfig
import tarfile
from collections.abc import Callable
from pathlib import Path

from tests.conftest import Mount

FILES_MIN = 1500
GIT = "git -c safe.directory=* -c user.name=Test -c user.email=test@example.org -c gc.auto=0"


def make_source(path: Path, files_min: int = FILES_MIN) -> None:
    """Write a tar of Python's own library: real source that every machine has."""
    library = Path(sysconfig.get_paths()["stdlib"])
    skipped = {"__pycache__", "site-packages", "dist-packages", "config-3"}
    count = 0

    def keep(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
        nonlocal count
        parts = member.name.split("/")
        if any(part in skipped or part.startswith("config-") for part in parts):
            return None
        if member.size > 1 << 20 or not (member.isfile() or member.isdir()):
            return None
        if member.isfile() and count >= files_min + 100:
            return None
        count += member.isfile()
        return member

    with tarfile.open(path, "w") as tar:
        tar.add(library, "source", filter=keep)
    assert count >= files_min


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


def do_the_main_job(
    mount: Mount, source: Path, remount: Callable[[], None], files_min: int = FILES_MIN
) -> None:
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
    assert len(before) - len(after) > files_min // 4
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

    remount()
    assert fingerprint(top) == restored
    assert fingerprint(past) == before
    mount.sh(f"cd source && {GIT} fsck --no-progress")
    assert mount.check() == []


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
