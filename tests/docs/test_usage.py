"""docs/USAGE.md names everything there is to use, and nothing else."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import click
import msgspec
import pytest

from nexus_engine.config import StoreConfig
from nexus_engine.history import moments
from nexus_engine.history.undo import existence, names, rights
from nexus_engine.history.workspaces import names as workspace_names
from nexus_engine.history.workspaces import units as workspace_units
from nexus_engine.meta.check_log_queries import REFERENCES
from nexus_engine.meta.check_queries import INTERVALS
from nexus_engine.records import KINDS
from nexusfuse.ctl import exit_codes
from nexusfuse.ctl.main import cli
from nexusfuse.virtual.numbers import NAMES
from tests.docs.markdown import DOCS, ELLIPSIS, ROOT, code, rows, section

USAGE = DOCS / "USAGE.md"
COMMON = {"--store", "--json", "--help", "--version"}


def commands(group: click.Group = cli, above: str = "") -> Iterator[tuple[str, click.Command]]:
    """Yield (words, command) of every command that does something."""
    for name, command in group.commands.items():
        words = f"{above} {name}".strip()
        if isinstance(command, click.Group):
            yield from commands(command, words)
        elif not command.hidden:
            yield words, command


COMMANDS = dict(commands())


def flags(command: click.Command) -> set[str]:
    return {
        flag
        for parameter in command.params
        if isinstance(parameter, click.Option) and not parameter.hidden
        for flag in (*parameter.opts, *parameter.secondary_opts)
    }


def documented_flags(text: str) -> set[str]:
    cells = [row[0] for row in rows(text)]
    return {flag for cell in cells for part in code(cell) for flag in re.findall(r"^-\S+", part)}


@pytest.mark.parametrize("words", COMMANDS)
def test_every_command_is_documented_with_exactly_its_options(words: str) -> None:
    text = section(USAGE, words).text
    assert f"`nexus-ctl {words}" in text
    assert documented_flags(text) - {"--store"} == flags(COMMANDS[words]) - COMMON
    assert documented_flags(text) <= flags(COMMANDS[words])


def test_options_of_every_command_are_documented_once() -> None:
    everywhere = documented_flags(section(USAGE, "Commands").text)
    assert everywhere >= COMMON
    for words, command in COMMANDS.items():
        common = words not in ("mount", "umount", "restart", "completion")
        assert ("--store" in flags(command)) == (common or words == "mount"), words


def test_no_command_is_documented_that_is_not_there() -> None:
    text = section(USAGE, "Commands").text
    assert set(re.findall(r"^### (.+)$", text, re.MULTILINE)) == COMMANDS.keys()


def test_commands_for_a_shell_alone_are_documented() -> None:
    text = section(USAGE, "The control file").text
    for words, command in COMMANDS.items():
        if getattr(command, "shell_only", False):
            assert f"`{words}`" in text, words


def test_every_name_in_nexus_is_documented() -> None:
    cells = [row[0] for row in rows(section(USAGE, "The `.nexus` directory").text)]
    assert {code(cell)[0].split("/")[0] for cell in cells} == {name.decode() for name in NAMES}


def test_every_setting_is_documented_with_its_default() -> None:
    documented = {
        code(row[0])[0]: row[1] for row in rows(section(USAGE, "Settings: store.yaml").text)
    }
    fields = {field.name: str(field.default) for field in msgspec.structs.fields(StoreConfig)}
    assert documented == fields


def test_every_exit_code_is_documented() -> None:
    documented = {code(row[1])[0]: int(row[0]) for row in rows(section(USAGE, "Exit codes").text)}
    defined = {
        name: value
        for name, value in vars(exit_codes).items()
        if name.isupper() and isinstance(value, int)
    }
    assert documented == defined


def test_every_kind_of_operation_is_documented() -> None:
    kinds = section(USAGE, "log").text.partition("Kinds:")[2]
    assert set(code(kinds)) == set(KINDS)


def test_every_reason_of_a_conflict_is_documented() -> None:
    documented = {row[0] for row in rows(section(USAGE, "Conflicts").text)}
    reasons = {
        getattr(module, name)
        for module, names in (
            (names, ("LATER", "NOT_EMPTY", "NO_PARENT", "TWO_NAMES", "LOOP")),
            (existence, ("GONE", "VANISHES", "SURVIVES")),
            (rights, ("REFUSED",)),
        )
        for name in names
    }
    assert documented == reasons


NOW_NS = 1_795_000_000_000_000_000


def examples_of_moments() -> list[str]:
    cells = [row[0] for row in rows(section(USAGE, "Moments").text)]
    return [example for cell in cells for example in code(cell)]


@pytest.mark.parametrize("text", examples_of_moments())
def test_every_example_of_a_moment_is_one(text: str) -> None:
    assert moments.is_reserved(text)
    if "op-" not in text:
        moments.parse_time(text, NOW_NS)


def test_every_problem_that_fsck_reports_is_documented() -> None:
    documented = {
        problem
        for row in rows(section(USAGE, "What fsck reports").text)
        for problem in code(row[0])
    }
    assert documented == set(problem_codes())


def problem_codes() -> Iterator[str]:
    tables = {
        "{interval.table}": [interval.table for interval in INTERVALS],
        "{table}-orphan": ["expired-orphan", "pack_seen-orphan"],
        "{table}-reference": [f"{table}-reference" for table, _, _ in REFERENCES],
    }
    for path in (ROOT / "nexus_engine" / "check").glob("*.py"):
        pattern = r"\b(?:Problem)\(\s*f?\"([^\"]+)\""
        for text in re.findall(pattern, path.read_text()):
            for variable, values in tables.items():
                if variable in text:
                    yield from (text.replace(variable, value) for value in values)
                    break
            else:
                yield text


@cache
def messages() -> list[str]:
    """Return every text in the code, with … where a value is put in."""
    found = []
    for package in ("nexus_engine", "nexusfuse"):
        for path in (ROOT / package).rglob("*.py"):
            tree = ast.parse(path.read_text())
            for node in ast.walk(tree):
                if isinstance(node, ast.JoinedStr):
                    found.append("".join(map(_part, node.values)))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.append(node.value)
    return found


def _part(node: ast.expr) -> str:
    return str(node.value) if isinstance(node, ast.Constant) else ELLIPSIS


def quoted_lines() -> list[str]:
    cells = [row[0] for row in rows(section(USAGE, "Troubleshooting").text)]
    return [line for cell in cells for line in code(cell)]


@pytest.mark.parametrize("line", quoted_lines())
def test_every_line_in_troubleshooting_is_printed_somewhere(line: str) -> None:
    parts = [part.strip() for part in line.replace("/dev/fuse", ELLIPSIS).split(ELLIPSIS)]
    pattern = re.compile(".*".join(re.escape(part) for part in parts), re.DOTALL)
    assert any(pattern.search(message) for message in messages()), line


def test_the_unit_is_where_the_guide_says() -> None:
    text = section(USAGE, "As a service").text
    unit = Path(ROOT / "systemd/nexusfs@.service").read_text()
    for variable in ("NEXUS_STORE", "NEXUS_MOUNTPOINT"):
        assert variable in USAGE.read_text()
        assert variable in unit
    assert "/opt/nexus" in text
    assert "/opt/nexus/.venv/bin/nexus-ctl" in unit


def test_every_reason_of_a_conflict_of_a_workspace_is_documented() -> None:
    documented = {code(row[0])[0] for row in rows(section(USAGE, "Workspaces").text)}
    reasons = {
        value
        for module in (workspace_names, workspace_units)
        for name, value in vars(module).items()
        if name.isupper() and isinstance(value, str)
    }
    assert documented == reasons
