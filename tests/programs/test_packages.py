"""Package managers: pip and npm install, list and remove what they installed."""

from __future__ import annotations

import base64
import hashlib
import json
import sys
import zipfile
from pathlib import Path

import pytest

from tests.conftest import Mount
from tests.mount.trees import look
from tests.programs.programs import latest, needs, run, sh

MODULES = 40
PACKAGES, NESTED = 50, 4


def build_wheel(directory: Path) -> Path:
    """Write a package of some modules and a command as a wheel; PEP 427."""
    about = "trial-1.0.dist-info"
    files = {f"trial/module{number}.py": f"VALUE = {number}\n" for number in range(MODULES)}
    files |= {
        "trial/__init__.py": "def main():\n    print('it runs')\n",
        f"{about}/METADATA": "Metadata-Version: 2.1\nName: trial\nVersion: 1.0\n",
        f"{about}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{about}/entry_points.txt": "[console_scripts]\ntrial = trial:main\n",
    }
    record = "".join(f"{name},sha256={_digest(text)},{len(text)}\n" for name, text in files.items())
    path = directory / "trial-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        for name, text in {**files, f"{about}/RECORD": f"{record}{about}/RECORD,,\n"}.items():
            wheel.writestr(name, text)
    return path


def _digest(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


def test_a_virtual_environment_gets_a_package_and_loses_it(
    place: Path, shared_mount: Mount
) -> None:
    """python -m venv, pip install from a wheel on the mount, compileall, pip uninstall."""
    wheel = build_wheel(place)
    run(sys.executable, "-m", "venv", "--without-pip", place / "venv", cwd=place)
    python = place / "venv/bin/python"
    pip: list[str | Path] = [sys.executable, "-m", "pip", "--python", python, "-q", "--no-input"]
    before = look(place / "venv")
    run(*pip, "install", "--no-index", "--no-cache-dir", wheel, cwd=place)
    assert run(place / "venv/bin/trial", cwd=place) == "it runs\n"
    run(*pip, "check", cwd=place)
    shared_mount.remount()
    package = next((place / "venv").glob("lib/python*/site-packages/trial"))
    assert len(list(package.glob("__pycache__/*.pyc"))) == MODULES + 1
    run(python, "-m", "compileall", "-q", "-f", "-j", "2", package, cwd=place)
    value = "import trial.module7 as m; print(m.VALUE, m.__cached__)"
    assert run(python, "-B", "-c", value, cwd=place).startswith(f"7 {package}/__pycache__/")
    run(*pip, "uninstall", "-y", "trial", cwd=place)
    assert look(place / "venv").keys() == before.keys()


def build_npm_packages(directory: Path) -> list[str]:
    """Write packages as tarballs, some with others bundled; return the tarballs' names."""
    for number in range(PACKAGES):
        package = directory / f"package{number}"
        _write_package(package, f"trial-{number}", f"module.exports = {number};")
        bundled = [f"nested-{each}" for each in range(NESTED if number % 5 == 0 else 0)]
        for name in bundled:
            _write_package(package / "node_modules" / name, name, "module.exports = 'nested';")
        manifest = json.loads((package / "package.json").read_text())
        manifest |= {"bundleDependencies": bundled, "dependencies": dict.fromkeys(bundled, "1.0.0")}
        (package / "package.json").write_text(json.dumps(manifest))
    packed = run(
        "npm", "pack", "--silent", *(f"./package{n}" for n in range(PACKAGES)), cwd=directory
    )
    return packed.split()


def _write_package(package: Path, name: str, script: str) -> None:
    (package / "lib").mkdir(parents=True)
    command = {name: "./run.js"}
    manifest = {"name": name, "version": "1.0.0", "main": "lib/index.js", "bin": command}
    (package / "package.json").write_text(json.dumps(manifest))
    (package / "lib/index.js").write_text(script)
    (package / "run.js").write_text(f"#!/usr/bin/env node\nconsole.log('{name} runs')\n")


@pytest.mark.slow
@pytest.mark.timeout(600)
@needs("npm", "npm")
def test_npm_installs_packages_and_the_past_has_them(place: Path, shared_mount: Mount) -> None:
    """npm-install(1), npm-ci(1), npm-uninstall(1), from tarballs, without a network."""
    tarballs = build_npm_packages(place)
    assert len(tarballs) == PACKAGES
    project = place / "project"
    project.mkdir()
    (project / "package.json").write_text('{"name": "project", "version": "1.0.0"}')
    quiet = ["--offline", "--no-audit", "--no-fund", "--silent"]
    quiet += ["--cache", str(place / "cache")]
    run("npm", "install", *quiet, *(f"../{name}" for name in tarballs), cwd=project)
    assert len(list(project.glob("node_modules/trial-*"))) == PACKAGES
    assert (project / f"node_modules/trial-5/node_modules/nested-{NESTED - 1}").is_dir()
    assert run("node_modules/.bin/trial-7", cwd=project) == "trial-7 runs\n"
    assert run("node", "-p", "require('trial-9')", cwd=project) == "9\n"
    installed, moment = look(project), latest(shared_mount)
    run("npm", "ci", *quiet, cwd=project)
    assert {name: seen.content for name, seen in look(project).items()} == {
        name: seen.content for name, seen in installed.items()
    }
    run("npm", "uninstall", *quiet, "trial-5", cwd=project)
    assert not (project / "node_modules/trial-5").exists()
    sh("rm -rf node_modules", project)
    assert look(project / ".nexus/history" / moment) == installed
