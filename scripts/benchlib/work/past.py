"""What only Nexus does: reading the past, and taking changes back."""

from __future__ import annotations

import os

from benchlib.work.base import VerificationFailed, expect_names, read_file, write_file
from benchlib.work.small_files import SmallFiles


class Past(SmallFiles):
    nexus_only = True

    def _command(self, line: str) -> None:
        write_file(f"{self.directory}/.nexus/control", line.encode() + b"\n", 0)


class ReadPast(Past):
    name = "read-past"
    does = "open, read 4 KiB, close below .nexus/history; every file was overwritten since"

    def prepare(self) -> None:
        super().prepare()
        self.snapshot = self.directory / ".nexus" / "snapshots" / self.directory.name
        self.snapshot.mkdir()
        for path, payload in zip(self.paths, self._payloads("second"), strict=True):
            write_file(path, payload, os.O_TRUNC)
        past = f"{self.directory}/.nexus/history/{self.directory.name}"
        self.past = [f"{past}/{os.path.basename(path)}" for path in self.paths]

    def run(self) -> None:
        self.read = [read_file(path) for path in self.past]

    def verify(self) -> None:
        self.snapshot.rmdir()
        if self.read != self.payloads:
            raise VerificationFailed(f"{self.directory}: the past has other bytes")


class UndoOne(Past):
    name = "undo"
    does = "undo of the last operation in a directory, through the control file"

    @property
    def operations(self) -> int:
        return self.scale.undos

    def prepare(self) -> None:
        super().prepare()
        self.changed = self.paths[: self.scale.undos]
        for path in self.changed:
            write_file(path, b"changed", os.O_TRUNC)

    def run(self) -> None:
        for _ in self.changed:
            self._command("undo --last 1")


class UndoDeletes(Past):
    name = "undo-deletes"
    does = "one undo of many deletes, through the control file; one file is one operation"
    unit = "files/s"

    @property
    def operations(self) -> int:
        return self.scale.deletes

    def prepare(self) -> None:
        base = str(self.directory)
        self.paths = [f"{base}/file-{number:06d}" for number in range(self.scale.deletes)]
        self.payloads = self._payloads("first")
        self._write_files()
        for path in self.paths:
            os.unlink(path)
        expect_names(self.directory, set())

    def run(self) -> None:
        self._command(f"undo --last {self.scale.deletes}")
