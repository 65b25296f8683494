"""The control file's commands: parsed by the same click commands as a shell's."""

from __future__ import annotations

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexus_engine import errors
from nexus_engine.commands import Request
from nexus_engine.commands.arguments import parse_arguments
from nexus_engine.commands.verbs import VERBS
from nexusfuse.ctl.grammar import parse
from nexusfuse.ctl.main import cli


@pytest.mark.parametrize(
    ("line", "verb", "args"),
    [
        ("undo", "undo", {"last": 1}),
        ("nexus-ctl undo\n", "undo", {"last": 1}),
        ("undo --agent alice", "undo", {"agent": "alice"}),
        ("undo op-3 5", "undo", {"operations": [3, 5]}),
        ("undo --last 2 sub", "undo", {"last": 2, "path": "docs/sub"}),
        ("undo /sub --force --dry-run", "undo", {"path": "sub", "force": True, "dry_run": True}),
        ("undo ./5 --yes", "undo", {"path": "docs/5"}),
        ("undo --since 2h --until op-9", "undo", {"since": "2h", "until": "op-9"}),
        ("redo", "redo", {"last": 1}),
        ("redo 7", "redo", {"operations": [7]}),
        ("log", "log", {"limit": 50}),
        ("log .. --kind write", "log", {"path": "", "kind": "write", "limit": 50}),
        ("log --before op-9", "log", {"before": 9, "limit": 50}),
        ("diff yesterday", "diff", {"since": "yesterday", "path": "docs"}),
        ("diff 2h 1h", "diff", {"since": "2h", "until": "1h", "path": "docs"}),
        ("diff 2h ./a", "diff", {"since": "2h", "path": "docs/a"}),
        ("history", "history", {"path": "docs", "limit": 50}),
        ("versions 'a b'", "versions", {"path": "docs/a b"}),
        ("restore a 2h --to ../b", "restore", {"path": "docs/a", "moment": "2h", "to": "b"}),
        ("restore . 2h --exact", "restore", {"path": "docs", "moment": "2h", "exact": True}),
        ("snapshot create before-lunch", "snapshot-create", {"name": "before-lunch"}),
        ("snapshot list", "snapshot-list", {}),
        ("snapshot delete x", "snapshot-delete", {"name": "x"}),
        ("tag set a k=v", "tag-set", {"path": "docs/a", "key": "k", "value": "v"}),
        ("tag set a k v", "tag-set", {"path": "docs/a", "key": "k", "value": "v"}),
        ("tag list a", "tag-list", {"path": "docs/a"}),
        ("tag remove a k", "tag-remove", {"path": "docs/a", "key": "k"}),
        ("status", "status", {}),
        ("stats --json", "stats", {}),
        ("verify-log", "verify-log", {}),
        ("fsck --deep", "fsck", {"deep": True}),
    ],
)  # fmt: skip
def test_a_control_line_is_a_request(line: str, verb: str, args: dict[str, object]) -> None:
    request, _ = parse(line, b"docs")
    assert request == Request(verb, args)
    parse_arguments(request, VERBS[verb].arguments)


@pytest.mark.parametrize(
    ("line", "hint"),
    [
        ("", "write a command: log"),
        ("snapshot", "create"),
        ("frobnicate", "frobnicate"),
        ("undo --sinse 2h", "--since"),
        ("undo --last none", "none"),
        ("undo --last 0", "0"),
        ("undo a b", "one path"),
        ("undo /", "--last"),
        ("log 'a", "quotation"),
        ("log --limit 1000000000", "1000000000"),
        ("log --follow", "shell"),
        ("cat a@2h", "shell"),
        ("cat a", "PATH@MOMENT"),
        ("mount /tmp/x", "shell"),
        ("umount /tmp/x", "shell"),
        ("completion bash", "shell"),
        ("--version", "shell"),
        ("log --help", "--help"),
        ("--store /etc log", "--store"),
        ("log --store /etc", "--store"),
        ("log 'a\0b'", "NUL"),
    ],
)
def test_what_is_no_request_is_refused_with_a_hint(
    line: str, hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(errors.InvalidCommand) as refused:
        parse(line, b"docs")
    assert hint in str(refused.value)
    assert "\n" not in str(refused.value)
    assert capsys.readouterr() == ("", "")


WORDS = [
    *cli.commands, "create", "list", "delete", "set", "remove", "--json", "--store", "--help",
    "--version", "--last", "--since", "--", "-", "op-1", "99999999999999999999", "'", "\0",
    "\udcff", "--yes", "--follow", "-1", "..", "/", "@",
]  # fmt: skip


@given(
    st.one_of(
        st.text(st.characters(codec=None), max_size=60),
        st.lists(st.one_of(st.sampled_from(WORDS), st.text(max_size=5))).map(" ".join),
    )
)
def test_any_text_is_a_request_or_an_invalid_command(line: str) -> None:
    try:
        request, _ = parse(line, b"some/where")
    except errors.InvalidCommand:
        pass
    else:
        assert request.verb in VERBS
        path = request.args.get("path", "")
        assert ".." not in path.split("/")
        assert not path.startswith("/")


def test_names_that_are_not_text_survive() -> None:
    request, _ = parse("versions b\udcff", "caf\xe9".encode("latin-1"))
    assert request.args == {"path": "caf\udce9/b\udcff"}


def test_every_command_is_in_the_grammar_or_for_the_shell_alone() -> None:
    """No second grammar: what the command line offers, the control file takes or refuses."""
    for name, command in cli.commands.items():
        if getattr(command, "shell_only", False):
            continue
        names = [name]
        if isinstance(command, click.Group):
            names = [f"{name}-{below}" for below in command.commands]
        assert set(names) <= VERBS.keys()
