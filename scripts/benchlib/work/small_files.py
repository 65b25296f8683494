"""Work on many files of 4 KiB, each different from every other."""

from __future__ import annotations

import os
from pathlib import Path

from benchlib import content
from benchlib.work.base import (
    SMALL_FILE_BYTES,
    VerificationFailed,
    Workload,
    expect_names,
    read_file,
    write_file,
)

PROCESSES = 4


class SmallFiles(Workload):
    """Work that changes ``scale.files`` files of its own."""

    @property
    def operations(self) -> int:
        return self.scale.files

    def prepare(self) -> None:
        self._name_files(self.directory)
        self._write_files()

    def verify(self) -> None:
        self._verify_files(self.paths, self.payloads)

    def _name_files(self, directory: Path) -> None:
        self.paths = [f"{directory}/file-{number:06d}" for number in range(self.scale.files)]
        self.payloads = self._payloads("first")

    def _write_files(self) -> None:
        for path, payload in zip(self.paths, self.payloads, strict=True):
            write_file(path, payload, os.O_CREAT | os.O_EXCL)

    def _payloads(self, version: str) -> list[bytes]:
        body = content.text("small", SMALL_FILE_BYTES)
        heads = (f"{path} {version}\n".encode() for path in self.paths)
        return [(head + body)[:SMALL_FILE_BYTES] for head in heads]

    def _verify_files(self, paths: list[str], payloads: list[bytes]) -> None:
        expect_names(self.directory, {os.path.basename(path) for path in paths})
        for path, payload in zip(paths, payloads, strict=True):
            if Path(path).read_bytes() != payload:
                raise VerificationFailed(f"{path}: not the bytes that were written")


class SharedFiles(SmallFiles):
    """Work that only looks at files: one set of them serves the whole run."""

    def prepare(self) -> None:
        directory = self.shared / "files"
        self._name_files(directory)
        if not directory.exists():
            directory.mkdir(parents=True)
            self._write_files()


class Create(SmallFiles):
    name = "create"
    does = "create a file, write 4 KiB, close"

    @property
    def payload_bytes(self) -> int:
        return self.scale.files * SMALL_FILE_BYTES

    def prepare(self) -> None:
        self._name_files(self.directory)

    def run(self) -> None:
        self._write_files()


class CreateTogether(Create):
    name = "create-4"
    does = "the same by four processes at once, each in a directory of its own"

    @property
    def operations(self) -> int:
        return self.scale.files // PROCESSES * PROCESSES

    def prepare(self) -> None:
        self._name_files(self.directory)
        share = self.scale.files // PROCESSES
        self.started, self.go = os.pipe()
        self.children = []
        for number in range(PROCESSES):
            directory = self.directory / str(number)
            directory.mkdir()
            mine = range(number * share, (number + 1) * share)
            work = [(f"{directory}/file-{i:06d}", self.payloads[i]) for i in mine]
            self.children.append(self._fork(work))
        os.close(self.started)

    def run(self) -> None:
        os.close(self.go)
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in self.children]
        if any(codes):
            raise VerificationFailed(f"{self.directory}: the processes ended with {codes}")

    def verify(self) -> None:
        for number in range(self.operations):
            directory = self.directory / str(number // (self.operations // PROCESSES))
            if (directory / f"file-{number:06d}").read_bytes() != self.payloads[number]:
                raise VerificationFailed(f"{directory}: not the bytes that were written")

    def _fork(self, work: list[tuple[str, bytes]]) -> int:
        child = os.fork()
        if child:
            return child
        code = 1
        try:
            os.close(self.go)
            os.read(self.started, 1)  # Nothing comes: its end is the signal for all of them.
            for path, payload in work:
                write_file(path, payload, os.O_CREAT | os.O_EXCL)
            code = 0
        finally:
            os._exit(code)


class Stat(SharedFiles):
    name = "stat"
    does = "stat of files seen before"

    @property
    def operations(self) -> int:
        return self.scale.files * self.scale.warm_passes

    def prepare(self) -> None:
        super().prepare()
        self._stat_all()

    def run(self) -> None:
        for _ in range(self.scale.warm_passes):
            self._stat_all()

    def verify(self) -> None:
        if {found.st_size for found in self.seen} != {SMALL_FILE_BYTES}:
            raise VerificationFailed(f"{self.shared}: stat gave a wrong size")

    def _stat_all(self) -> None:
        self.seen = [os.stat(path) for path in self.paths]


class StatCold(Stat):
    name = "stat-cold"
    does = "stat after the kernel dropped entries and inodes"
    drops_caches = 2

    @property
    def operations(self) -> int:
        return self.scale.files

    def run(self) -> None:
        self._stat_all()


class OpenRead(SharedFiles):
    name = "open-read"
    does = "open, read 4 KiB, close; content read before"

    def prepare(self) -> None:
        super().prepare()
        self.run()

    def run(self) -> None:
        self.read = [read_file(path) for path in self.paths]

    def verify(self) -> None:
        if self.read != self.payloads:
            raise VerificationFailed(f"{self.shared}: read other bytes than were written")


class OpenReadCold(OpenRead):
    name = "open-read-cold"
    does = "the same after the kernel dropped everything it caches"
    drops_caches = 3


class Overwrite(SmallFiles):
    name = "overwrite"
    does = "open with O_TRUNC, write 4 KiB, close (ext4 then starts writing to the disk)"

    @property
    def payload_bytes(self) -> int:
        return self.scale.files * SMALL_FILE_BYTES

    def prepare(self) -> None:
        super().prepare()
        self.payloads = self._payloads("second")

    def run(self) -> None:
        for path, payload in zip(self.paths, self.payloads, strict=True):
            write_file(path, payload, os.O_TRUNC)


class Rename(SmallFiles):
    name = "rename"
    does = "rename to a new name in the same directory"

    def prepare(self) -> None:
        super().prepare()
        self.renamed = [path.replace("/file-", "/renamed-") for path in self.paths]

    def run(self) -> None:
        for old, new in zip(self.paths, self.renamed, strict=True):
            os.rename(old, new)

    def verify(self) -> None:
        self._verify_files(self.renamed, self.payloads)


class Unlink(SmallFiles):
    name = "unlink"
    does = "unlink a 4 KiB file"

    def run(self) -> None:
        for path in self.paths:
            os.unlink(path)

    def verify(self) -> None:
        expect_names(self.directory, set())
