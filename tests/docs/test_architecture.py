"""docs/ARCHITECTURE.md shows the layers that the linter keeps, and every module."""

from __future__ import annotations

import tomllib

from tests.docs.markdown import DOCS, ROOT, code, fences, rows, section

ARCHITECTURE = DOCS / "ARCHITECTURE.md"
PACKAGES = ("nexus_engine", "nexusfuse")


def test_the_layers_are_those_of_the_contract() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    (layers,) = (c["layers"] for c in contracts["contracts"] if c["id"] == "layers")
    assert "\n".join(layers) + "\n" in fences(ARCHITECTURE.read_text(), "")


def test_every_module_is_in_the_table() -> None:
    documented: set[str] = set()
    for row in rows(section(ARCHITECTURE, "Modules").text):
        names = code(row[0])
        directory = names[0].rpartition("/")[0] if names[0].endswith(".py") else ""
        documented |= {name if "/" in name else f"{directory}/{name}" for name in names}
    for package in PACKAGES:
        for path in (ROOT / package).iterdir():
            name = path.relative_to(ROOT).as_posix() + ("/" if path.is_dir() else "")
            if not path.name.startswith(("_", "py.typed")):
                assert name in documented, name
    for name in documented:
        assert (ROOT / name).exists(), name
