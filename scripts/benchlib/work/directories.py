"""Work on directories."""

from __future__ import annotations

import os
import stat

from benchlib.work.base import VerificationFailed, Workload, expect_names, write_file


class Mkdir(Workload):
    name = "mkdir"
    does = "make a directory"

    @property
    def operations(self) -> int:
        return self.scale.files

    def prepare(self) -> None:
        base = str(self.directory)
        self.paths = [f"{base}/dir-{number:06d}" for number in range(self.scale.files)]

    def run(self) -> None:
        for path in self.paths:
            os.mkdir(path)

    def verify(self) -> None:
        expect_names(self.directory, {os.path.basename(path) for path in self.paths})
        if not all(stat.S_ISDIR(os.lstat(path).st_mode) for path in self.paths):
            raise VerificationFailed(f"{self.directory}: mkdir made something else")


class Rmdir(Mkdir):
    name = "rmdir"
    does = "remove an empty directory"

    def prepare(self) -> None:
        super().prepare()
        for path in self.paths:
            os.mkdir(path)

    def run(self) -> None:
        for path in self.paths:
            os.rmdir(path)

    def verify(self) -> None:
        expect_names(self.directory, set())


class ListDirectory(Workload):
    name = "list"
    does = "scandir and lstat of 1,000 entries; one listing is one operation"
    unit = "lists/s"

    @property
    def operations(self) -> int:
        return self.scale.listings

    def prepare(self) -> None:
        base = str(self.directory)
        self.paths = [f"{base}/file-{number:06d}" for number in range(self.scale.list_entries)]
        for path in self.paths:
            write_file(path, b"", os.O_CREAT | os.O_EXCL)
        self._list()

    def run(self) -> None:
        for _ in range(self.scale.listings):
            self._list()

    def verify(self) -> None:
        if self.listed != {os.path.basename(path): 0 for path in self.paths}:
            raise VerificationFailed(f"{self.directory}: a listing lacks entries, or has others")

    def _list(self) -> None:
        with os.scandir(self.directory) as entries:
            self.listed = {
                entry.name: entry.stat(follow_symlinks=False).st_size for entry in entries
            }


class ListDirectoryCold(ListDirectory):
    name = "list-cold"
    does = "the same, once, after the kernel dropped entries and inodes"
    drops_caches = 2

    @property
    def operations(self) -> int:
        return 1

    def run(self) -> None:
        self._list()
