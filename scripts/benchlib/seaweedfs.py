"""SeaweedFS on loopback, for benchmarks and tests: all that it leaves is in its own directory."""

from __future__ import annotations

import re
import socket
import sys
from collections.abc import Iterable
from pathlib import Path


def weed_command(directory: Path, port: int, **options: object) -> list[str]:
    """Return what serves S3 at a port, conditional requests included; run it in the directory.

    Args:
        options: More of them, with ``_`` for ``.``; they win.

    Source: ``weed server -h``, ``weed -h``.
    """
    ports = iter(free_ports(7))
    given: dict[str, object] = {
        "ip": "127.0.0.1", "ip.bind": "127.0.0.1", "dir": directory,
        "master.port": next(ports), "master.port.grpc": next(ports), "master.telemetry": "false",
        "volume.port": next(ports), "volume.port.grpc": next(ports),
        "filer": "true", "filer.port": next(ports), "filer.port.grpc": next(ports),
        "s3": "true", "s3.port": port, "s3.port.grpc": next(ports),
        "s3.port.iceberg": 0, "s3.port.lance": 0,
        # Relative: the path of a socket has room for 107 bytes, and that of a test may be longer.
        "filer.localSocket": "filer.sock", "s3.localSocket": "s3.sock",
    } | {name.replace("_", "."): value for name, value in options.items()}  # fmt: skip
    program = Path(sys.executable).with_name("weed")
    said = [f"-{name}={value}" for name, value in given.items()]
    return [str(program), "-logtostderr=true", "server", *said]


def remove_sockets(command: Iterable[str]) -> None:
    """Remove what a server that was killed left in /tmp: no option has it elsewhere."""
    for option in command:
        if grpc := re.fullmatch(r"-(\w+)\.port\.grpc=(\d+)", option):
            Path(f"/tmp/seaweedfs-{grpc[1]}-grpc-{grpc[2]}.sock").unlink(missing_ok=True)


def free_ports(count: int) -> list[int]:
    """Return ports that nobody listens on; held together, so that they differ."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()
