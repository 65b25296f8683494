"""``nexus-ctl`` on a store without a mount: what it prints, and how it ends."""

from __future__ import annotations

import json
import os
import sqlite3
from pathlib import Path as FilePath

import pytest
import trio
from click.testing import CliRunner, Result

from nexus_engine.engine import Engine
from nexus_engine.store import Store
from nexus_engine.types import ROOT_INO, Actor, Name
from nexusfuse.ctl.main import cli

AGENT = Actor(os.geteuid(), os.getegid(), 100, 1, "python", 7, "alice")
UGLY = b"b\xff\x1b[31m\n"


async def fill(path: FilePath) -> None:
    engine = Engine.start(path)
    docs = await engine.make(ROOT_INO, Name(b"docs"), 0o040755, AGENT)
    for name, content in ((b"a", b"one\n"), (UGLY, b"x")):
        handle, _ = await engine.create(docs.ino, Name(name), 0o644, AGENT)
        await engine.write(handle, 0, content)
        await engine.release(handle)
    await engine.unlink(docs.ino, Name(b"a"), AGENT)
    await engine.close()


@pytest.fixture
def store(tmp_path: FilePath) -> FilePath:
    """A store of seven operations: /, docs, docs/a, an ugly name; docs/a removed."""
    Store.create(tmp_path / "store", AGENT).close()
    trio.run(fill, tmp_path / "store")
    return tmp_path / "store"


def ctl(*arguments: str | FilePath) -> Result:
    return CliRunner().invoke(cli, [str(word) for word in arguments])


def fails(result: Result, code: int) -> str:
    """Check that a command failed as everything does: nothing printed but one line on stderr."""
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    assert result.stderr.startswith("nexus-ctl: ")
    assert result.stderr.count("\n") == 1
    return result.stderr


def test_log_is_a_table_with_everything_escaped_that_a_terminal_acts_on(store: FilePath) -> None:
    result = ctl("--store", store, "log", "--limit", "2")
    assert result.exit_code == 0
    header, newest, second, more = result.stdout.splitlines()
    assert header.split() == ["OP", "TIME", "WHO", "KIND", "PATH"]
    assert newest.split()[0] == "op-7"
    assert newest.split()[-3:] == ["alice", "unlink", "/docs/a"]
    assert second.endswith(r"/docs/b\xff\x1b[31m\n")
    assert more == "There are more: --before op-6"


def test_lists_in_json_are_json_lines(store: FilePath) -> None:
    result = ctl("log", "--store", store, "--json")
    operations = [json.loads(line) for line in result.stdout.splitlines()]
    assert [operation["seq"] for operation in operations] == [7, 6, 5, 4, 3, 2, 1]
    assert os.fsencode(operations[1]["path"]) == b"docs/" + UGLY


def test_everything_else_in_json_is_one_object(store: FilePath) -> None:
    result = ctl("--json", "status", "--store", store)
    assert json.loads(result.stdout)["operations"] == 7


def test_options_stand_before_or_after_the_command(store: FilePath) -> None:
    before, after = (
        ctl("--store", store, "--json", "stats"),
        ctl("stats", "--json", "--store", store),
    )
    assert before.stdout == after.stdout


def test_paths_are_relative_to_the_root_of_a_store(store: FilePath) -> None:
    outputs = {
        ctl("--store", store, "log", path).stdout for path in ("docs/a", "/docs/a", "./docs//a")
    }
    assert len(outputs) == 1
    assert "write" in outputs.pop()


def test_cat_writes_the_bytes_of_the_moment(store: FilePath) -> None:
    result = ctl("--store", store, "cat", "docs/a@op-4")
    assert (result.exit_code, result.stdout_bytes) == (0, b"one\n")


@pytest.mark.parametrize(
    ("what", "code", "hint"),
    [
        ("docs/a", 2, "PATH@MOMENT"),
        ("docs/a@never", 2, "never"),
        ("docs/a@now", 1, "docs/a"),
        ("docs@now", 1, "directory"),
        ("docs/a@op-99", 2, "op-99"),
    ],
)
def test_cat_of_what_is_not_there(store: FilePath, what: str, code: int, hint: str) -> None:
    assert hint in fails(ctl("--store", store, "cat", what), code)


def test_restore_says_what_it_did_and_how_to_take_it_back(store: FilePath) -> None:
    result = ctl("--store", store, "restore", "docs/a", "before-op-7")
    assert result.exit_code == 0
    assert "/docs/a" in result.stdout
    assert "op-8" in result.stdout.splitlines()[-1]
    assert ctl("--store", store, "cat", "docs/a@now").stdout == "one\n"


def test_snapshots(store: FilePath) -> None:
    assert ctl("--store", store, "snapshot", "create", "lunch").exit_code == 0
    assert "lunch" in ctl("--store", store, "snapshot", "list").stdout
    assert "lunch" in fails(ctl("--store", store, "snapshot", "create", "lunch"), 1)
    assert ctl("--store", store, "snapshot", "delete", "lunch").exit_code == 0
    assert ctl("--store", store, "snapshot", "list").stdout == "There are no snapshots.\n"
    fails(ctl("--store", store, "snapshot", "create", "2h"), 2)


def test_tags(store: FilePath) -> None:
    assert ctl("--store", store, "tag", "set", "docs", "colour=blue").exit_code == 0
    assert ctl("--store", store, "tag", "list", "docs").stdout == "colour=blue\n"
    assert ctl("--store", store, "tag", "remove", "docs", "colour").exit_code == 0
    fails(ctl("--store", store, "tag", "remove", "docs", "colour"), 1)


def test_undo_and_redo(store: FilePath) -> None:
    result = ctl("--store", store, "undo")
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("Undid 1 operation: ")
    assert "op-8" in result.stdout
    assert ctl("--store", store, "cat", "docs/a@now").stdout == "one\n"
    assert "undone" in ctl("--store", store, "log").stdout
    assert ctl("--store", store, "redo").stdout.startswith("Redid 1 ")
    fails(ctl("--store", store, "cat", "docs/a@now"), 1)


def test_a_dry_run_shows_every_path_and_does_nothing(store: FilePath) -> None:
    result = ctl("--store", store, "undo", "--last", "3", "--dry-run")
    assert result.exit_code == 0, result.output
    assert "/docs/a" in result.stdout
    assert result.stdout.splitlines()[-1].startswith("Would undo 3 operations: 2 paths")
    assert json.loads(ctl("--store", store, "--json", "status").stdout)["operations"] == 7


def test_conflicts_are_shown_with_who_and_when_and_have_an_exit_code(
    store: FilePath, monkeypatch: pytest.MonkeyPatch
) -> None:
    """docs is tagged by two agents; only what nobody touched since can be taken back."""
    for agent, tag in (("bob", "k=1"), ("bob", "other=1"), ("carol", "k=2")):
        monkeypatch.setenv("NEXUS_AGENT", agent)
        assert ctl("--store", store, "tag", "set", "docs", tag).exit_code == 0
    result = ctl("--store", store, "undo", "--agent", "bob")
    assert result.exit_code == 3, result.output
    conflict, summary = result.stdout.splitlines()
    assert conflict.startswith("conflict  /docs: ")
    assert "op-10 setxattr by carol, 20" in conflict
    assert summary.startswith("Undid 2 operations: ")
    assert "1 conflict left alone" in summary
    assert ctl("--store", store, "tag", "list", "docs").stdout == "k=2\n"
    assert "conflict" in fails(ctl("--store", store, "undo", "--agent", "bob"), 1)


def test_undo_asks_nobody_where_nobody_can_answer(store: FilePath) -> None:
    assert ctl("--store", store, "undo", "--last", "2").exit_code == 0


def test_the_log_is_proved(store: FilePath) -> None:
    result = ctl("--store", store, "verify-log")
    assert (result.exit_code, result.stdout) == (0, "The chain of 7 records is whole.\n")


def test_a_forged_log_is_found_out(store: FilePath) -> None:
    with sqlite3.connect(store / "meta.db") as database:
        database.execute("UPDATE oplog SET kind = 'rmdir' WHERE seq = 7")
    result = ctl("--store", store, "verify-log")
    assert result.exit_code == 4
    assert "op-7" in result.stdout
    assert "broken" in result.stdout


def test_fsck_of_a_sound_store_is_clean(store: FilePath) -> None:
    result = ctl("--store", store, "fsck", "--deep")
    assert (result.exit_code, result.stdout) == (0, "Clean.\n")


def test_fsck_reports_damage_with_the_code_of_fsck_8(store: FilePath) -> None:
    with sqlite3.connect(store / "meta.db") as database:
        database.execute("DELETE FROM inode WHERE ino = 2")
    result = ctl("--store", store, "fsck")
    assert result.exit_code == 4
    assert "found" in result.stdout.splitlines()[-1]
    assert json.loads(ctl("--store", store, "--json", "fsck").stdout)["problems"]


def test_bad_usage_is_one_line_that_says_where_help_is(store: FilePath) -> None:
    assert "nexus-ctl undo --help" in fails(ctl("--store", store, "undo", "--lsat", "3"), 2)
    assert "frobnicate" in fails(ctl("frobnicate"), 2)
    fails(ctl("--store", store, "undo", "op-99"), 2)
    fails(ctl("--store", store, "log", "--since", "some day"), 2)


def test_a_store_that_cannot_be_used_is_one_line(store: FilePath, tmp_path: FilePath) -> None:
    assert "nexus-ctl mount" in fails(ctl("--store", tmp_path / "none", "log"), 6)
    assert "no store" in fails(ctl("--store", tmp_path / "none", "fsck"), 8)
    with sqlite3.connect(store / "meta.db") as database:
        database.execute("PRAGMA user_version = 99")
    assert "upgrade" in fails(ctl("--store", store, "log"), 6)


def test_outside_of_every_mount_it_says_what_to_do(
    tmp_path: FilePath, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for command in ("log", "undo", "status", "fsck"):
        assert "--store" in fails(ctl(command), 1)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script(shell: str) -> None:
    result = ctl("completion", shell)
    assert result.exit_code == 0
    assert "_NEXUS_CTL_COMPLETE" in result.stdout


def test_completion_completes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMP_WORDS", "nexus-ctl undo --a")
    monkeypatch.setenv("COMP_CWORD", "2")
    monkeypatch.setenv("_NEXUS_CTL_COMPLETE", "bash_complete")
    assert "plain,--agent" in ctl().stdout


def test_help_goes_through_every_command() -> None:
    for name in cli.commands:
        assert ctl(name, "--help").exit_code == 0


def test_own_changes_bear_the_agent_of_the_environment(
    store: FilePath, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NEXUS_AGENT", "carol")
    assert ctl("--store", store, "tag", "set", "docs", "k=v").exit_code == 0
    last = json.loads(ctl("--store", store, "--json", "log", "--limit", "1").stdout)
    assert last["actor"] | {"agent": "carol", "command": "nexus-ctl"} == last["actor"]
