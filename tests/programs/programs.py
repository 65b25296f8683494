"""Start programs, and fail with what they said."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Mount

TIMEOUT_S = 100
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def needs(program: str | Path, package: str) -> pytest.MarkDecorator:
    """Skip a test whose program is not there."""
    return pytest.mark.skipif(
        shutil.which(program) is None, reason=f"{program} is missing: apt-get install {package}"
    )


def identity(user: str | None) -> dict[str, Any]:
    """Return what has subprocess start a program as another user."""
    if user is None:
        return {}
    return {"user": user, "group": pwd.getpwnam(user).pw_gid, "extra_groups": []}


def run(
    *command: str | Path,
    cwd: Path,
    env: Mapping[str, str] | None = None,
    user: str | None = None,
    timeout_s: float = TIMEOUT_S,
) -> str:
    """Run a program that has to succeed; return what it printed.

    The locale is C, and neither an agent nor the user's own settings are inherited.
    """
    done: subprocess.CompletedProcess[str] = subprocess.run(
        command,
        cwd=cwd,
        env=_environment(cwd, env or {}),
        **identity(user),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="surrogateescape",
        timeout=timeout_s,
        check=False,
    )
    if done.returncode != 0:
        pytest.fail(f"{command} exited {done.returncode}:\n{done.stdout}\n{done.stderr}")
    return done.stdout


def sh(script: str, cwd: Path, *, user: str | None = None, timeout_s: float = TIMEOUT_S) -> str:
    """Run a shell script whose every command has to succeed; return what it printed."""
    command = ["bash", "-euo", "pipefail", "-c", script]
    return run(*command, cwd=cwd, user=user, timeout_s=timeout_s)


def start_python(script: str, *arguments: str | Path, cwd: Path) -> subprocess.Popen[str]:
    """Start a Python script in a process of its own, with pipes to both ends of it."""
    return subprocess.Popen(
        [sys.executable, "-c", script, *arguments],
        cwd=cwd,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def join(processes: Sequence[subprocess.Popen[str]]) -> list[str]:
    """Wait for processes that have to succeed; return what each printed. None outlives this."""
    try:
        printed = [process.communicate(timeout=TIMEOUT_S)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0] * len(processes), printed
    return printed


def latest(mount: Mount) -> str:
    """Return the present as the name of a moment; what is open is in the log then."""
    return f"op-{mount.json('log', '--limit', '1')[0]['seq']}"


def _environment(home: Path, more: Mapping[str, str]) -> dict[str, str]:
    kept = {key: os.environ[key] for key in ("PATH", "PYTHONPATH") if key in os.environ}
    return {**kept, "HOME": str(home), "LC_ALL": "C.UTF-8", "TZ": "UTC", **more}
