"""git: whole repositories, their past, and undoing a commit."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.conftest import Mount
from tests.programs.programs import latest, needs, run

pytestmark = needs("git", "git")

FILES = 200
SETTINGS = {
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_CONFIG_SYSTEM": "/dev/null",
    "GIT_AUTHOR_NAME": "Test",
    "GIT_AUTHOR_EMAIL": "test@example.org",
    "GIT_COMMITTER_NAME": "Test",
    "GIT_COMMITTER_EMAIL": "test@example.org",
    "GIT_EDITOR": "true",
    "GIT_OPTIONAL_LOCKS": "0",  # looking is not writing
}


def git(repository: Path, *arguments: str | Path) -> str:
    return run("git", *arguments, cwd=repository, env=SETTINGS)


def commit(repository: Path, message: str) -> str:
    """Commit all there is; return the commit's name."""
    git(repository, "add", "-A")
    git(repository, "commit", "-qm", message)
    return git(repository, "rev-parse", "HEAD").strip()


def require_sound(repository: Path) -> None:
    """git-fsck(1) finds nothing, git-status(1) nothing to commit."""
    assert git(repository, "fsck", "--full", "--strict", "--no-progress", "--no-dangling") == ""
    assert git(repository, "status", "--porcelain") == ""


@pytest.fixture(scope="module")
def original(shared_mount: Mount) -> Path:
    """Return a repository with one commit: hundreds of files, a program, a symlink."""
    repository = shared_mount.path / "original"
    git(shared_mount.path, "init", "-q", "-b", "main", repository)
    for number in range(FILES):
        path = repository / f"directory {number % 10}/file-{number}.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"line\n{number}\n" * (number + 1))
    (repository / "run.sh").write_text("#!/bin/sh\n")
    (repository / "run.sh").chmod(0o755)
    (repository / "link").symlink_to("run.sh")
    commit(repository, "all")
    return repository


@pytest.fixture
def clone(original: Path, place: Path) -> Path:
    """Return a clone of it that a test may change."""
    git(place, "clone", "-q", original, "clone")
    return place / "clone"


def test_git_finds_an_ordinary_disk(original: Path) -> None:
    """git-config(1): modes, symlinks and case are tried out by git init and found to work."""
    settings = git(original, "config", "--list", "--local").splitlines()
    assert "core.filemode=true" in settings
    assert not [line for line in settings if line.startswith(("core.symlinks", "core.ignorecase"))]


def test_a_commit_is_clean_after_a_remount(original: Path, shared_mount: Mount) -> None:
    """git-diff-files(1): what git noted of each file by stat still holds, down to the inode."""
    require_sound(original)
    shared_mount.remount()
    assert git(original, "diff-files", "--name-only") == ""
    require_sound(original)
    assert len(git(original, "ls-files").splitlines()) == FILES + 2


@pytest.mark.parametrize(
    "how",
    [
        "--local",
        "--no-hardlinks",
        pytest.param("--shared", marks=pytest.mark.slow),
        pytest.param("--bare", marks=pytest.mark.slow),
    ],
)
def test_clones_are_whole(original: Path, place: Path, how: str) -> None:
    """git-clone(1): --local links the objects, --no-hardlinks copies them."""
    git(place, "clone", "-q", how, original, "clone")
    clone = place / "clone"
    assert git(clone, "rev-parse", "HEAD") == git(original, "rev-parse", "HEAD")
    git(clone, "fsck", "--full", "--strict")
    objects = [path for path in clone.glob(".git/objects/??/*") if path.is_file()]
    assert {path.stat().st_nlink for path in objects} == {
        "--local": {2},
        "--no-hardlinks": {1},
        "--shared": set(),
        "--bare": set(),
    }[how]
    if how != "--bare":
        require_sound(clone)
        run("diff", "-r", "--exclude=.git", original, clone, cwd=place)


def test_a_rebase_stops_at_a_conflict_and_goes_on(clone: Path) -> None:
    """git-rebase(1): the one commit that conflicts is resolved, the others are applied."""
    file = clone / "directory 1/file-1.txt"
    git(clone, "switch", "-qc", "topic")
    for step in range(3):
        (clone / f"new-{step}").write_text(f"{step}\n")
        if step == 1:
            file.write_text("topic\n")
        commit(clone, f"topic {step}")
    git(clone, "switch", "-q", "main")
    assert not (clone / "new-0").exists()
    file.write_text("main\n")
    base = commit(clone, "main")
    git(clone, "switch", "-q", "topic")
    with pytest.raises(pytest.fail.Exception, match="CONFLICT"):
        git(clone, "rebase", "main")
    assert "<<<<<<<" in file.read_text()
    file.write_text("both\n")
    git(clone, "add", file)
    git(clone, "rebase", "--continue")
    assert git(clone, "rev-parse", "HEAD~3").strip() == base
    assert file.read_text() == "both\n"
    require_sound(clone)


def test_a_stash_takes_changes_away_and_back(clone: Path) -> None:
    """git-stash(1): content, the executable bit, a deleted and an untracked file."""
    file = clone / "directory 2/file-2.txt"
    file.write_text("changed\n")
    (clone / "run.sh").chmod(0o644)
    (clone / "link").unlink()
    (clone / "untracked").write_text("new\n")
    before = git(clone, "status", "--porcelain")
    assert len(before.splitlines()) == 4
    git(clone, "stash", "-u")
    require_sound(clone)
    assert os.access(clone / "run.sh", os.X_OK)
    assert (clone / "link").is_symlink()
    git(clone, "stash", "pop")
    assert git(clone, "status", "--porcelain") == before


def test_worktrees_share_one_repository(clone: Path) -> None:
    """git-worktree(1): added, committed in, moved, removed."""
    git(clone, "worktree", "add", "-qb", "side", "../side")
    side = clone.parent / "side"
    (side / "only here").write_text("x\n")
    head = commit(side, "in the worktree")
    assert git(clone, "rev-parse", "side").strip() == head
    git(clone, "worktree", "move", side, "../moved")
    require_sound(clone.parent / "moved")
    git(clone, "worktree", "remove", "../moved")
    assert not (clone.parent / "moved").exists()
    require_sound(clone)


def test_a_push_runs_the_hook_of_a_bare_repository(clone: Path, original: Path) -> None:
    """git-push(1), githooks(5)."""
    git(clone.parent, "clone", "-q", "--bare", original, "bare.git")
    hook = clone.parent / "bare.git/hooks/post-receive"
    hook.write_text('#!/bin/sh\ncat > "$GIT_DIR/received"\n')
    hook.chmod(0o755)
    (clone / "pushed").write_text("x\n")
    head = commit(clone, "to be pushed")
    git(clone, "push", "-q", "../bare.git", "main")
    assert head in (clone.parent / "bare.git/received").read_text()
    assert git(clone.parent / "bare.git", "fsck", "--full") == ""


def test_gc_packs_all_and_the_past_keeps_what_it_removed(clone: Path, shared_mount: Mount) -> None:
    """git-gc(1): loose objects go; the repository at a moment before has them and is whole."""
    for number in range(3):
        (clone / "file").write_text(f"{number}\n")
        commit(clone, f"commit {number}")
    git(clone, "reset", "-q", "--hard", "HEAD~1")
    before, abandoned = latest(shared_mount), git(clone, "rev-parse", "ORIG_HEAD").strip()
    git(clone, "reflog", "expire", "--expire=now", "--all")
    (clone / ".git/ORIG_HEAD").unlink()
    git(clone, "gc", "-q", "--prune=now")
    require_sound(clone)
    assert git(clone, "count-objects").startswith("0 objects")
    with pytest.raises(pytest.fail.Exception):
        git(clone, "cat-file", "-e", abandoned)
    past = clone.parent / f".nexus/history/{before}/clone"
    assert git(past, "fsck", "--full", "--strict", "--no-progress", "--no-dangling") == ""
    assert git(past, "show", f"{abandoned}:file") == "2\n"
    # Its index is not refreshed there: a moment's inode numbers are its own.
    assert git(past, "diff", "--stat", "HEAD") == ""


def test_undo_of_an_agent_that_committed_gives_the_earlier_head(
    clone: Path, shared_mount: Mount
) -> None:
    """The commit, the index and the files of one agent go and come back together."""
    head = git(clone, "rev-parse", "HEAD")
    agent = {**SETTINGS, "NEXUS_AGENT": "committer"}
    script = "echo more >> run.sh; git mv link renamed; git add -A; git commit -qm agent; git gc -q"
    run("bash", "-euc", script, cwd=clone, env=agent)
    committed = git(clone, "rev-parse", "HEAD")
    assert committed != head
    shared_mount.ctl("undo", "--agent", "committer")
    assert git(clone, "rev-parse", "HEAD") == head
    assert (clone / "run.sh").read_text() == "#!/bin/sh\n"
    require_sound(clone)
    shared_mount.ctl("redo")
    assert git(clone, "rev-parse", "HEAD") == committed
    require_sound(clone)
