"""What programs do with a source tree."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from benchlib import content
from benchlib.work.base import VerificationFailed, Workload, expect_names, run_program

_GIT = ("git", "-c", "user.name=bench", "-c", "user.email=bench@localhost", "-c", "gc.auto=0")
_RARE = "part_7.rst"


class Tree(Workload):
    """Work on ``scale.tree_files`` files, many of them small; one file is one operation."""

    unit = "files/s"

    @property
    def operations(self) -> int:
        return self.scale.tree_files

    def _make_archive(self) -> None:
        self.files = list(content.source_tree(self.scale.tree_files))
        self.archive = self.scratch / f"tree-{self.scale.tree_files}.tar"
        if not self.archive.exists():
            content.write_tar(self.archive, self.files)
        self.archive.read_bytes()  # So that no turn pays for reading it from the disk.

    def _extract(self, directory: Path) -> None:
        run_program("tar", "-xpf", self.archive, "-C", directory)

    def _share(self) -> Path:
        """Return the tree that several rows read."""
        self._make_archive()
        directory = self.shared / "tree"
        if not directory.exists():
            directory.mkdir(parents=True)
            self._extract(directory)
        return directory / "source"

    def _verify_tree(self, directory: Path) -> None:
        found = {
            os.path.relpath(os.path.join(parent, name), directory)
            for parent, _, names in os.walk(directory)
            for name in names
        }
        if found != {file.path for file in self.files}:
            raise VerificationFailed(f"{directory}: the tree lacks files, or has others")
        for file in self.files:
            path = directory / file.path
            status = path.stat()
            if path.read_bytes() != file.content or stat.S_IMODE(status.st_mode) != file.mode:
                raise VerificationFailed(f"{path}: wrong content or mode")


class Untar(Tree):
    name = "untar"
    does = "tar -xf of a tree like that of a source distribution; one file is one operation"

    @property
    def payload_bytes(self) -> int:
        return sum(len(file.content) for file in self.files)

    def prepare(self) -> None:
        self._make_archive()

    def run(self) -> None:
        self._extract(self.directory)

    def verify(self) -> None:
        self._verify_tree(self.directory)
        for file in self.files:
            if int((self.directory / file.path).stat().st_mtime) != content.FIXED_MTIME_S:
                raise VerificationFailed(f"{self.directory / file.path}: wrong mtime")


class CopyTree(Untar):
    name = "cp-r"
    does = "cp -r of that tree within the filesystem"

    def prepare(self) -> None:
        self.source = self._share()

    def run(self) -> None:
        run_program("cp", "-r", self.source, self.directory)

    def verify(self) -> None:
        self._verify_tree(self.directory)


class FindTree(Tree):
    name = "find"
    does = "find with a test of size, which needs every inode; seen before"

    def prepare(self) -> None:
        self.source = self._share()
        self.run()

    def run(self) -> None:
        self.output = run_program("find", self.source, "-type", "f", "-size", "-1000k")

    def verify(self) -> None:
        if self.output.count(b"\n") != self.scale.tree_files:
            raise VerificationFailed(f"{self.source}: find did not find everything")


class FindTreeCold(FindTree):
    name = "find-cold"
    does = "the same after the kernel dropped entries and inodes"
    drops_caches = 2


class GrepTree(Tree):
    name = "grep-r"
    does = "grep -r for a word that one file has; read before"

    def prepare(self) -> None:
        self.source = self._share()
        self.run()

    def run(self) -> None:
        # Each file of the tree begins with its own path.
        self.output = run_program("grep", "-r", "-l", "-F", _RARE, self.source)

    def verify(self) -> None:
        if not self.output.strip().endswith(_RARE.encode()) or self.output.count(b"\n") != 1:
            raise VerificationFailed(f"{self.source}: grep found {self.output!r}")


class GrepTreeCold(GrepTree):
    name = "grep-r-cold"
    does = "the same after the kernel dropped everything it caches"
    drops_caches = 3


class GitCommit(Tree):
    name = "git-commit"
    does = "git add -A and git commit of that tree"

    def prepare(self) -> None:
        self._make_archive()
        self._extract(self.directory)
        self.repository = self.directory / "source"
        _git(self.repository, "init", "-q")

    def run(self) -> None:
        _git(self.repository, "add", "-A")
        _git(self.repository, "commit", "-q", "-m", "everything")

    def verify(self) -> None:
        if _git(self.repository, "ls-tree", "-r", "HEAD").count(b"\n") != self.scale.tree_files:
            raise VerificationFailed(f"{self.repository}: the commit lacks files")


class GitStatus(GitCommit):
    name = "git-status"
    does = "git status in that repository, run before"

    def prepare(self) -> None:
        super().prepare()
        super().run()
        self.run()

    def run(self) -> None:
        self.output = _git(self.repository, "status", "--porcelain")

    def verify(self) -> None:
        if self.output:
            raise VerificationFailed(f"{self.repository}: git sees changes: {self.output[:80]!r}")


class RemoveTree(Tree):
    name = "rm-rf"
    does = "rm -rf of that tree"

    def prepare(self) -> None:
        self._make_archive()
        self._extract(self.directory)

    def run(self) -> None:
        run_program("rm", "-rf", self.directory / "source")

    def verify(self) -> None:
        expect_names(self.directory, set())


def _git(repository: Path, *arguments: str) -> bytes:
    return run_program(*_GIT, "-C", repository, *arguments)
