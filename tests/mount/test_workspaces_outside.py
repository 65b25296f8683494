"""Workspaces over directories that are not in the mount.

Source: docs/USAGE.md, "Workspaces"; docs/decisions/0029-workspaces-over-what-is-outside.md.
"""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path

import pytest

from tests.backends.attaching import files
from tests.conftest import CTL, TIMEOUT_S, Mount
from tests.mount.waiting import wait_until

NEXUS = shlex.join(CTL)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    directory = tmp_path / "my project"
    (directory / "src").mkdir(parents=True)
    (directory / "readme").write_text("one\n" + "same\n" * 5 + "two\n")
    (directory / "src/main.c").write_text("int main(){}\n")
    (directory / "src/old.c").write_text("old\n")
    return directory


def there(project: Path) -> dict[str, bytes]:
    return {path: content for path, content in files(project).items() if ".nexus" not in path}


def test_a_workspace_over_a_directory_outside_is_applied_to_it_and_the_apply_undone(
    mount: Mount, project: Path
) -> None:
    status = ["git", "-C", str(project), "status", "--short"]
    subprocess.run([*status[:3], "init", "-q"], check=True)
    before = there(project)
    made = mount.ctl("workspace", "create", "fix", "--over", str(project))
    assert "it begins as file:///" in made
    assert files(mount.path / "workspaces/fix") == before
    mount.sh(
        """
        cd workspaces/fix
        echo three >> readme; mv src/old.c src/new.c; mkdir docs; echo d > docs/d; rm src/main.c
        """,
        agent="alice",
    )
    assert there(project) == before
    assert sorted(mount.ctl("workspace", "status", "fix").splitlines()) == [
        "added      docs", "added      docs/d", "modified   readme", "removed    src/main.c",
        "renamed    src/old.c → src/new.c",
    ]  # fmt: skip
    assert "It is at file:///" in mount.ctl("workspace", "apply", "fix")
    after = there(project)
    assert after == files(mount.path / "workspaces/fix")
    assert after["src/new.c"] == b"old\n"
    assert ".nexus" not in subprocess.run(status, capture_output=True, text=True, check=True).stdout

    mount.ctl("undo")
    wait_until(lambda: there(project) == before, "the undo is outside")
    mount.ctl("redo")
    wait_until(lambda: there(project) == after, "so is the redo")


def test_what_was_changed_outside_meanwhile_is_a_conflict(mount: Mount, project: Path) -> None:
    mount.ctl("workspace", "create", "fix", "--over", str(project))
    mount.sh("cd workspaces/fix; echo ours >> readme; echo ours > src/main.c; echo new > new")
    (project / "readme").write_text("zero\n" + (project / "readme").read_text())
    (project / "src/main.c").write_text("theirs\n")
    done = mount.ctl("workspace", "apply", "fix", check=False)
    assert "conflict   modified   readme: changed in the base as well" in done
    assert (project / "new").read_text() == "new\n"
    assert (project / "src/main.c").read_text() == "theirs\n"

    # What main.c was nobody had read here, and it is gone: then it can neither be shown nor merged.
    assert "gone at the source" in mount.ctl("workspace", "diff", "fix")
    mount.ctl("workspace", "apply", "--merge", "fix", check=False)
    text = (project / "readme").read_text()
    assert text.startswith("zero\n")
    assert text.endswith("two\nours\n")
    assert (project / "src/main.c").read_text() == "theirs\n"
    assert sorted(there(project)) == ["new", "readme", "src/main.c", "src/old.c"]


def test_a_part_is_applied_and_the_rest_later(mount: Mount, project: Path) -> None:
    mount.ctl("workspace", "create", "fix", "--over", f"file://{project}/src")
    mount.sh("cd workspaces/fix; echo a >> main.c; echo b >> old.c")
    mount.ctl("workspace", "apply", "fix", "main.c")
    assert (project / "src/main.c").read_text().endswith("a\n")
    assert (project / "src/old.c").read_text() == "old\n"
    mount.ctl("workspace", "apply", "fix")
    assert (project / "src/old.c").read_text() == "old\nb\n"


def test_what_was_attached_for_it_goes_with_the_last_one_unless_an_undo_needs_it(
    mount: Mount, project: Path
) -> None:
    mount.ctl("workspace", "create", "one", "--over", str(project))
    mount.ctl("workspace", "create", "two", "--over", str(project / "src"))
    assert sorted(os.listdir(mount.path / "workspaces")) == ["my project.base", "one", "two"]
    assert len(mount.json("mounts", "list")) == 1
    mount.ctl("workspace", "discard", "one")
    assert (mount.path / "workspaces/my project.base/readme").exists()
    assert "attached no more" in mount.ctl("workspace", "discard", "two")
    assert os.listdir(mount.path / "workspaces") == []
    assert "Nothing is attached" in mount.ctl("mounts", "list")

    mount.ctl("undo")
    mount.sh("echo more >> workspaces/two/main.c")
    mount.ctl("workspace", "apply", "two")
    assert (project / "src/main.c").read_text().endswith("more\n")
    (applied,) = mount.json("log", "--kind", "apply")
    mount.ctl("workspace", "discard", "two")
    mount.ctl("undo", f"op-{applied['seq']}")
    wait_until(lambda: "more" not in (project / "src/main.c").read_text(), "the undo is outside")
    assert len(there(project)) == 3


def test_a_command_is_tried_on_a_directory_outside_from_there(mount: Mount, project: Path) -> None:
    def attempt(*arguments: str) -> str:
        command = [*CTL, "try", "--over", ".", "--at", str(mount.path / "try"), *arguments]
        return subprocess.run(
            command, cwd=project, capture_output=True, text=True, timeout=TIMEOUT_S, check=True
        ).stdout

    (project / "run").write_text("#!/bin/sh\ncp run readme.copy; rm readme\n")
    (project / "run").chmod(0o755)
    before = there(project)
    assert "removed    readme" in attempt("--discard", "--", "rm", "readme")
    assert there(project) == before
    assert "Nothing is attached" in mount.ctl("mounts", "list")
    attempt("--apply", "--", "./run")
    assert sorted(there(project)) == ["readme.copy", "run", "src/main.c", "src/old.c"]
    assert os.access(project / "readme.copy", os.X_OK)
    (applied,) = mount.json("log", "--kind", "apply")
    mount.ctl("undo", f"op-{applied['seq']}")
    wait_until(lambda: there(project) == before, "the undo is outside")


def test_a_workspace_over_what_is_attached_read_only_is_for_looking(
    mount: Mount, project: Path
) -> None:
    mount.ctl("mounts", "add", "ro", f"file://{project}", "--read-only")
    mount.ctl("workspace", "create", "look", "--over", "ro")
    mount.sh("echo changed > workspaces/look/readme")
    assert "modified   readme" in mount.ctl("workspace", "status", "look")
    for more in ([], ["--dry-run"]):
        refused = mount.sh(f"{NEXUS} workspace apply look {' '.join(more)} 2>&1", check=False)
        assert "/ro is attached read-only: nothing can be applied" in refused
    assert (project / "readme").read_text().startswith("one\n")
    # Told to by its place outside, it is attached once more, to be written to.
    mount.ctl("workspace", "create", "fix", "--over", str(project))
    mount.sh("echo changed > workspaces/fix/readme")
    mount.ctl("workspace", "apply", "fix")
    assert (project / "readme").read_text() == "changed\n"


def test_what_cannot_be_brought_outside_is_told_and_kept(mount: Mount, project: Path) -> None:
    mount.ctl("workspace", "create", "fix", "--over", str(project))
    mount.sh("echo changed > workspaces/fix/readme")
    away = project.rename(project.with_name("away"))
    before = mount.json("log", "--limit", "1")
    refused = mount.sh(f"{NEXUS} workspace apply fix 2>&1", check=False)
    assert "is its disk mounted" in refused or "No such file" in refused
    assert mount.json("log", "--limit", "1") == before
    away.rename(project)
    mount.sh("mkdir workspaces/fix/.nexus-bucket; echo no > workspaces/fix/.nexus-bucket/key")
    done = mount.sh(f"{NEXUS} workspace apply fix || echo code $?")
    assert "1 of it not at file:///" in done
    assert "code 3" in done
    assert (project / "readme").read_text() == "changed\n"
    assert "here only" in mount.ctl("mounts", "info", "workspaces/my project.base")
    mount.expected_log += ["is its disk mounted", "cannot use", "stays here", "is not at"]


def test_nothing_is_left_attached_for_a_workspace_that_cannot_be(
    mount: Mount, project: Path
) -> None:
    mount.sh("mkdir -p workspaces/fix")
    assert mount.ctl("workspace", "create", "fix", "--over", str(project), check=False) == ""
    assert mount.ctl("workspace", "create", "f", "--over", f"{project}/none", check=False) == ""
    assert "Nothing is attached" in mount.ctl("mounts", "list")
    assert os.listdir(mount.path / "workspaces") == ["fix"]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_hundred_thousand_files_outside_are_listed_and_not_copied(
    mount: Mount, tmp_path: Path
) -> None:
    project = tmp_path / "project"
    for number in range(100):
        (project / f"{number}").mkdir(parents=True)
        for name in range(1000):
            (project / f"{number}/{name}").write_bytes(b"%d " % name * 400)
    mount.ctl("workspace", "create", "fix", "--over", str(project))
    packed = sum(path.stat().st_size for path in (mount.store / "packs").iterdir())
    assert mount.json("mounts", "info", "workspaces/project.base")[0]["fetched_bytes"] == 0
    assert packed < 1 << 20
    mount.sh("echo changed > workspaces/fix/7/7")
    mount.ctl("workspace", "apply", "fix")
    assert (project / "7/7").read_text() == "changed\n"
