"""Each promise in docs/SEMANTICS.md has its test, where the document says it is."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from tests.docs.markdown import DOCS, ROOT, rows

SEMANTICS = DOCS / "SEMANTICS.md"
TESTS = ROOT / "tests"
NAMED = re.findall(r"\[(test_\w+)\]\(([^)]+)\)", SEMANTICS.read_text())


@cache
def names_in(path: Path) -> set[str]:
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    return {
        node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, functions)
    }


@pytest.mark.parametrize(("name", "link"), NAMED, ids=[name for name, _ in NAMED])
def test_the_named_test_exists(name: str, link: str) -> None:
    path = (SEMANTICS.parent / link).resolve()
    if not path.exists() or name not in names_in(path):
        elsewhere = [file for file in TESTS.rglob("test_*.py") if name in names_in(file)]
        pytest.fail(f"not in {link}; found in {elsewhere}")


def test_every_promise_names_a_test() -> None:
    for row in rows(SEMANTICS.read_text()):
        assert re.search(r"\[test_\w+\]", row[-1]), row[0]
