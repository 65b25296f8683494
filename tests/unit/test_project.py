"""The project's own files: scripts, locks, version."""

from __future__ import annotations

import os
import re
import subprocess
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
SCRIPTS = [".ci/run", "scripts/check", "scripts/setup", "scripts/start", "scripts/test"]
LOCKS = sorted((ROOT / "requirements").glob("*.lock"))


def normalised(requirement: str) -> str:
    """Return the name that a requirement starts with, in the spelling that locks use."""
    match = re.match(r"[\w.-]+", requirement)
    assert match, requirement
    return re.sub(r"[-_.]+", "-", match.group()).lower()


def locked(path: Path) -> dict[str, str]:
    """Return the exact version of each package in a lock; empty where none is pinned."""
    return dict(re.findall(r"^([\w.-]+)==(\S+)", path.read_text(), re.MULTILINE))


@pytest.mark.parametrize("script", SCRIPTS)
def test_script_is_executable_and_parses(script: str) -> None:
    assert os.access(ROOT / script, os.X_OK)
    subprocess.run(["bash", "-n", ROOT / script], check=True)


@pytest.mark.parametrize("arguments", [["--store"], ["--no-such-option"], ["one", "two"]])
def test_start_refuses_wrong_arguments_before_it_changes_anything(arguments: list[str]) -> None:
    result = subprocess.run(
        [ROOT / "scripts/start", *arguments], capture_output=True, text=True, check=False
    )
    assert result.returncode == 2
    assert "usage: scripts/start" in result.stderr
    assert result.stdout == ""


def test_runtime_lock_pins_every_dependency() -> None:
    names = {normalised(requirement) for requirement in PROJECT["dependencies"]}
    assert names <= locked(ROOT / "requirements/runtime.lock").keys()


def test_dev_lock_pins_every_tool_and_agrees_with_the_runtime_lock() -> None:
    dev = locked(ROOT / "requirements/dev.lock")
    names = {normalised(requirement) for requirement in PROJECT["optional-dependencies"]["dev"]}
    assert names <= dev.keys()
    assert locked(ROOT / "requirements/runtime.lock").items() <= dev.items()


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.name)
def test_lock_has_a_hash_for_every_package_and_names_no_index(lock: Path) -> None:
    packages = re.split(r"^(?=[a-zA-Z])", lock.read_text(), flags=re.MULTILINE)[1:]
    assert packages
    assert [package for package in packages if "--hash=sha256:" not in package] == []
    assert "://" not in lock.read_text()


def test_installed_packages_are_the_locked_ones() -> None:
    """A test run says something about the versions that users get."""
    lock = locked(ROOT / "requirements/runtime.lock")
    names = [normalised(requirement) for requirement in PROJECT["dependencies"]]
    assert {name: version(name) for name in names} == {name: lock[name] for name in names}


def test_installed_project_has_the_declared_version() -> None:
    assert version(PROJECT["name"]) == PROJECT["version"]
