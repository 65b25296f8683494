"""Workspaces on a real mount, with real programs."""

from __future__ import annotations

import os
import pty
import shlex
import subprocess
from pathlib import Path

from tests.conftest import CTL, TIMEOUT_S, Mount

NEXUS = shlex.join(CTL)


def fill(mount: Mount) -> None:
    mount.sh(
        """
        mkdir -p base/lib/deep
        echo readme > base/readme
        echo one > base/lib/one
        echo two > base/lib/two
        echo deep > base/lib/deep/file
        ln -s lib/one base/link
        chmod 700 base/lib/deep
        head -c 3000000 /dev/urandom > base/big
        """
    )


def same(first: Path, second: Path) -> None:
    """Require that two trees are the same but for times of links and inode numbers."""
    done = subprocess.run(
        ["diff", "-r", "--no-dereference", first, second],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.stdout + done.stderr == ""
    listings = [
        subprocess.run(
            ["find", ".", "-printf", "%P %y %m %U %G %s %l\n"],
            cwd=path,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=True,
        ).stdout.splitlines()
        for path in (first, second)
    ]
    sizes = [sorted(line for line in listing if " d " not in line) for listing in listings]
    assert sizes[0] == sizes[1]


def test_a_workspace_is_a_directory_like_the_base(mount: Mount) -> None:
    fill(mount)
    assert "/workspaces/w" in mount.ctl("workspace", "create", "w", "--over", "base")
    same(mount.path / "base", mount.path / "workspaces/w")
    mount.sh("echo changed > workspaces/w/lib/one; rm -r workspaces/w/lib/deep", agent="alice")
    assert (mount.path / "base/lib/one").read_text() == "one\n"
    assert (mount.path / "base/lib/deep/file").read_text() == "deep\n"
    mount.sh("echo later > base/readme")
    assert (mount.path / "workspaces/w/readme").read_text() == "readme\n"
    mount.remount()
    assert (mount.path / "workspaces/w/lib/one").read_text() == "changed\n"
    assert sorted(os.listdir(mount.path / "workspaces/w/lib")) == ["one", "two"]


def test_git_works_in_two_workspaces_over_one_repository(mount: Mount) -> None:
    mount.sh(
        """
        git init -q repo; cd repo
        git config user.email a@b; git config user.name a
        for i in $(seq 20); do echo $i > file$i; done
        git add .; git commit -qm first
        """
    )
    for name in ("v", "w"):
        mount.ctl("workspace", "create", name, "--over", "repo", "--at", name)
        mount.sh(
            f"""
            cd {name}
            test -z "$(git status --porcelain)"
            echo {name} > file1; git rm -q file2; git commit -qam {name}; git gc -q
            git fsck --strict
            """,
            agent=name,
        )
    assert mount.sh("git -C v log --format=%s").split() == ["v", "first"]
    assert mount.sh("git -C w log --format=%s").split() == ["w", "first"]
    assert mount.sh("git -C repo log --format=%s; git -C repo status --porcelain") == "first\n"


def test_removing_and_discarding_one_and_having_it_back(mount: Mount) -> None:
    fill(mount)
    mount.ctl("workspace", "create", "w", "--over", "base")
    mount.sh("rm -rf workspaces/w/lib; echo mine > workspaces/w/new", agent="alice")
    seen = mount.sh("find workspaces/w | sort")
    mount.ctl("workspace", "discard", "w")
    assert os.listdir(mount.path / "workspaces") == []
    assert mount.ctl("workspace", "list") == "There are no workspaces.\n"
    mount.ctl("undo", "--last", "1")
    assert mount.sh("find workspaces/w | sort") == seen
    mount.sh("cmp base/big workspaces/w/big; rm -rf workspaces/w")
    assert len(mount.sh("find base").splitlines()) == 9


def test_the_control_file_knows_workspaces(mount: Mount) -> None:
    fill(mount)
    mount.sh("echo 'workspace create w --over base --at w' > .nexus/control")
    assert sorted(os.listdir(mount.path / "w")) == ["big", "lib", "link", "readme"]
    mount.sh("echo 'workspace discard w' > .nexus/control")
    assert not (mount.path / "w").exists()


def test_a_moment_before_anybody_looked_shows_all_of_it(mount: Mount) -> None:
    fill(mount)
    mount.ctl("workspace", "create", "w", "--over", "base", "--at", "w")
    mount.ctl("snapshot", "create", "then")
    mount.sh("rm -rf base")
    same(mount.path / ".nexus/history/then/base", mount.path / ".nexus/history/then/w")
    same(mount.path / ".nexus/history/then/base", mount.path / "w")


def test_reviewed_applied_in_part_with_a_conflict_and_undone(mount: Mount) -> None:
    fill(mount)
    mount.ctl("workspace", "create", "w", "--over", "base")
    before = mount.sh("cd base && find . -type f -exec sha256sum {} + | sort -k2")
    mount.sh(
        """
        cd workspaces/w
        echo 'one, better' > lib/one
        sed -i s/two/zwei/ lib/two
        mkdir src; mv readme src/README; echo new > src/new
        rm -r lib/deep
        """,
        agent="alice",
    )
    mount.sh("echo 'one, by hand' > base/lib/one")
    assert mount.ctl("workspace", "status", "w").splitlines() == [
        "removed    lib/deep",
        "removed    lib/deep/file",
        "modified   lib/two",
        "renamed    readme → src/README",
        "added      src",
        "added      src/new",
        "conflict   modified   lib/one: changed in the base as well",
    ]
    shown = mount.ctl("workspace", "diff", "w")
    assert shown.startswith("removed    lib/deep\nremoved    lib/deep/file\n--- base/lib/deep/file")
    assert "-two\n+zwei\n" in shown
    assert "-one\n+one, better\n" in shown
    inode = (mount.path / "base/readme").stat().st_ino
    mount.ctl("workspace", "apply", "w", "lib/two", "src/README")
    assert (mount.path / "base/lib/two").read_text() == "zwei\n"
    assert (mount.path / "base/src/README").stat().st_ino == inode
    assert not (mount.path / "base/src/new").exists()
    assert (mount.path / "base/lib/deep/file").exists()
    done = mount.ctl("workspace", "apply", "w", check=False)
    assert "1 in conflict" in done
    assert (mount.path / "base/lib/one").read_text() == "one, by hand\n"
    assert not (mount.path / "base/lib/deep").exists()
    assert mount.ctl("workspace", "status", "w").startswith("conflict")
    mount.ctl("undo", "--last", "2")
    mount.sh("echo one > base/lib/one")
    assert mount.sh("cd base && find . -type f -exec sha256sum {} + | sort -k2") == before
    assert len(mount.ctl("workspace", "status", "w").splitlines()) == 7


def test_two_workspaces_over_one_base(mount: Mount) -> None:
    fill(mount)
    for name in ("v", "w"):
        mount.ctl("workspace", "create", name, "--over", "base")
        mount.sh(f"echo {name} > workspaces/{name}/lib/one; echo {name} > workspaces/{name}/{name}")
    mount.ctl("workspace", "apply", "v")
    assert "conflict" in mount.ctl("workspace", "apply", "w", check=False)
    assert mount.sh("cat base/lib/one base/v base/w") == "v\nv\nw\n"
    mount.sh("echo v > workspaces/w/lib/one")
    assert "Nothing is different" in mount.ctl("workspace", "status", "w")


def test_a_command_is_tried_and_what_it_did_applied_discarded_or_kept(mount: Mount) -> None:
    fill(mount)
    done = mount.sh(f"cd base; {NEXUS} try --apply -- sh -c 'pwd; rm readme; echo new > new'")
    assert "/workspaces/try-" in done
    assert "removed    readme\nadded      new\n" in done
    assert sorted(os.listdir(mount.path / "base")) == ["big", "lib", "link", "new"]
    assert os.listdir(mount.path / "workspaces") == []
    operation = mount.json("log", "--kind", "write", "--limit", "1")[0]
    assert operation["actor"]["agent"].startswith("try-")

    mount.sh(f"{NEXUS} try --discard --over base -- rm -rf lib")
    assert (mount.path / "base/lib/one").exists()
    failed = mount.sh(f"cd base; {NEXUS} try --apply -- sh -c 'rm new; exit 3' || echo code $?")
    assert "code 3" in failed
    assert (mount.path / "base/new").exists()
    (kept,) = os.listdir(mount.path / "workspaces")
    mount.ctl("workspace", "apply", kept)
    assert not (mount.path / "base/new").exists()
    mount.sh(f"cd base; {NEXUS} try -- true")
    assert os.listdir(mount.path / "workspaces") == [kept]


def test_what_was_tried_on_a_terminal_is_asked_about(mount: Mount) -> None:
    fill(mount)
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [*CTL, "try", "--over", "base", "--", "rm", "readme"],
        cwd=mount.path,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    ) as trial:
        os.close(theirs)
        os.write(ours, b"diff\napply\n")  # waits in the terminal until it is asked for
        talk = b""
        try:
            while block := os.read(ours, 4096):
                talk += block
        except OSError:
            pass  # EIO: the other end of the terminal is closed
        assert trial.wait(TIMEOUT_S) == 0
    os.close(ours)
    assert b"-readme" in talk
    assert not (mount.path / "base/readme").exists()
