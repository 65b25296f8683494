"""The README's tour is what happens."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.conftest import TIMEOUT_S, Mount
from tests.docs.markdown import ELLIPSIS, README, ROOT, fences

PROMPT = "$ "


class Step(NamedTuple):
    command: str
    shown: list[str]
    """Lines that its output holds, in this order; … stands for anything."""


def steps(block: str) -> list[Step]:
    found: list[Step] = []
    for line in block.splitlines():
        if line.startswith(PROMPT):
            found.append(Step(line.removeprefix(PROMPT), []))
        else:
            found[-1].shown.append(line)
    return found


TOUR = [
    step for block in fences(README.read_text(), "console", marker="<!-- tour -->")
    for step in steps(block)
]  # fmt: skip


def as_pattern(line: str) -> re.Pattern[str]:
    """Return what a shown line matches: … is any text, a run of blanks is any such run."""
    parts = (r"\s+".join(map(re.escape, part.split())) for part in line.split(ELLIPSIS))
    return re.compile(r"\s*" + r".*?".join(rf"\s*{part}\s*" for part in parts) + r"$")


def missing(shown: list[str], output: str) -> list[str]:
    """Return the shown lines that the output does not have in their order."""
    lines = iter(output.splitlines())
    return [line for line in shown if not any(as_pattern(line).match(printed) for printed in lines)]


def shell(mount: Mount, command: str, directory: Path) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k != "NEXUS_AGENT"}
    environment["PATH"] = f"{directory}:{environment['PATH']}"
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command],
        cwd=mount.path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """Return a directory with a ``nexus-ctl`` that runs this code."""
    directory = tmp_path / "bin"
    directory.mkdir()
    script = directory / "nexus-ctl"
    python = shlex.quote(sys.executable)
    script.write_text(f'#!/bin/sh\nexec {python} -m nexusfuse.ctl.main "$@"\n')
    script.chmod(0o755)
    return directory


def test_the_tour_of_the_readme_does_what_it_shows(mount: Mount, programs: Path) -> None:
    """README.md: each command exits 0 and prints what is shown below it."""
    assert len(TOUR) >= 8
    for step in TOUR:
        done = shell(mount, step.command, programs)
        assert done.returncode == 0, f"{step.command}\n{done.stdout}"
        assert missing(step.shown, done.stdout) == [], f"{step.command}\n{done.stdout}"


def test_commands_named_in_the_readme_exist() -> None:
    for name in set(re.findall(r"\bscripts/(\w+)", README.read_text())):
        assert os.access(ROOT / "scripts" / name, os.X_OK), name


def test_a_shown_line_must_be_there_and_in_order() -> None:
    """The comparison itself: a tour that shows something else would be found out."""
    output = "OP   WHO\nop-2  alice   write\nop-1  bob\n"
    assert missing(["OP … WHO", "op-… alice … write"], output) == []
    assert missing(["op-… bob", "op-… alice … write"], output) == ["op-… alice … write"]
    assert missing(["op-… alice … unlink"], output) == ["op-… alice … unlink"]
    assert missing(["alice"], output) == ["alice"]
