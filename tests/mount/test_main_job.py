"""The main job, and undo beyond it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.conftest import Mount
from tests.mount.main_job import do_the_main_job, fingerprint, make_source


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("source") / "source.tar"
    make_source(path)
    return path


@pytest.mark.timeout(300)
def test_the_main_job(mount: Mount, source: Path) -> None:
    """Undoing what one agent did gives back the tree, except for exactly what another did."""
    do_the_main_job(mount, source, mount.remount)


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
