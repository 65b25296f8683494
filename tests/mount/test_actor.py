"""Who did it: the process, its command and session, and the agent it works for."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest

from tests.conftest import Mount
from tests.mount.linux import NOBODY, run_as


@pytest.fixture(autouse=True)
def no_agent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever runs the tests may be an agent himself; /proc still shows what he started with."""
    monkeypatch.delenv("NEXUS_AGENT", raising=False)


def actor_of(mount: Mount, path: str) -> dict[str, Any]:
    """Return who last changed what is at a path."""
    return dict(mount.json("log", "--limit", "1", path)[0]["actor"])


def run(mount: Mount, *command: str, **environment: str) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(command, cwd=mount.path, env={**os.environ, **environment})
    assert process.wait(60) == 0
    return process


def test_a_record_names_user_process_command_and_session(mount: Mount) -> None:
    """The kernel says who asks; /proc says what that process is."""
    process = subprocess.Popen(
        ["mkdir", "made"], cwd=mount.path, start_new_session=True, env=os.environ
    )
    assert process.wait(60) == 0
    actor = actor_of(mount, "made")
    assert actor["pid"] == actor["session"] == process.pid
    assert actor["command"] == "mkdir"
    assert (actor["uid"], actor["gid"]) == (os.geteuid(), os.getegid())
    assert actor["start_ticks"] > 0
    assert [op["path"] for op in mount.json("log", "--pid", f"{process.pid}")] == ["made"]
    assert [op["path"] for op in mount.json("log", "--session", f"{process.pid}")] == ["made"]


def test_the_agent_is_in_the_environment_of_the_process(mount: Mount) -> None:
    """NEXUS_AGENT"""
    run(mount, "touch", "hers", NEXUS_AGENT="alice")
    run(mount, "touch", "his", NEXUS_AGENT="bob ünï")
    assert actor_of(mount, "hers")["agent"] == "alice"
    assert actor_of(mount, "his")["agent"] == "bob ünï"
    assert {op["path"] for op in mount.json("log", "--agent", "alice")} == {"hers"}


def test_a_child_without_the_variable_works_for_its_nearest_ancestor(mount: Mount) -> None:
    """Also one that cleared its environment, and through several generations."""
    script = (
        "env -i touch cleared; env -u NEXUS_AGENT sh -c 'sh -c \"touch deep; true\"; true'; true"
    )
    run(mount, "sh", "-c", script, NEXUS_AGENT="alice")
    assert actor_of(mount, "cleared")["agent"] == "alice"
    assert actor_of(mount, "deep")["agent"] == "alice"


def test_the_nearest_of_several_agents_counts(mount: Mount) -> None:
    """An agent that starts another one is not held responsible for it."""
    script = (
        "touch outer; NEXUS_AGENT=bob sh -c 'touch inner; env -u NEXUS_AGENT touch below; true'"
    )
    run(mount, "sh", "-c", script, NEXUS_AGENT="alice")
    assert actor_of(mount, "outer")["agent"] == "alice"
    assert actor_of(mount, "inner")["agent"] == "bob"
    assert actor_of(mount, "below")["agent"] == "bob"


def test_an_exec_under_the_same_pid_changes_the_agent(mount: Mount) -> None:
    """The shell opens the redirection before it executes: two images, one pid and start time."""
    script = """
    exec sh -c 'touch before; echo $$ > pid-one
        NEXUS_AGENT=alice exec sh -c "touch after; echo \\$\\$ > pid-two"'
    """
    run(mount, "sh", "-c", script)
    one, two = ((mount.path / f"pid-{name}").read_text() for name in ("one", "two"))
    assert one == two
    assert actor_of(mount, "before")["agent"] == ""
    assert actor_of(mount, "after")["agent"] == "alice"
    assert actor_of(mount, "pid-two")["agent"] == "alice"
    assert actor_of(mount, "pid-one")["agent"] == ""


def test_a_redirection_belongs_to_the_program_that_was_executed(mount: Mount) -> None:
    """``NEXUS_AGENT=alice program > file``: the shell's child makes the file, alice fills it."""
    run(
        mount,
        "bash",
        "-c",
        "NEXUS_AGENT=alice bash -c 'echo text; touch inside; true' > file; true",
    )
    assert actor_of(mount, "inside")["agent"] == "alice"
    records = mount.json("log", "file")
    assert [record["kind"] for record in records] == ["write", "create"]
    assert records[0]["actor"]["pid"] == records[1]["actor"]["pid"]


def test_processes_are_told_apart_when_one_follows_the_other(mount: Mount) -> None:
    """What the daemon remembers of a process ends with it."""
    script = """
    for i in $(seq 40); do NEXUS_AGENT=agent-$i mkdir d$i; done
    for i in $(seq 40); do (NEXUS_AGENT=late-$i; export NEXUS_AGENT; exec mkdir e$i); done
    """
    run(mount, "bash", "-c", script)
    records = mount.json("log", "--kind", "mkdir", "--limit", "80")
    agents = {record["path"]: record["actor"]["agent"] for record in records}
    expected = {f"d{i}": f"agent-{i}" for i in range(1, 41)}
    assert agents == expected | {f"e{i}": f"late-{i}" for i in range(1, 41)}
    assert {record["actor"]["command"] for record in records} == {"mkdir"}


def test_threads_report_their_process(mount: Mount) -> None:
    """The kernel gives the thread's id; people know processes."""
    script = """
import os, threading
def work(number):
    os.mkdir(f"by-thread-{number}")
    with open(f"file-{number}", "w") as file:
        file.write("x")
threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
"""
    process = run(mount, sys.executable, "-c", script, NEXUS_AGENT="threaded")
    records = mount.json("log", "--agent", "threaded")
    assert len(records) == 12
    assert {record["actor"]["pid"] for record in records} == {process.pid}
    assert len({record["actor"]["start_ticks"] for record in records}) == 1


def test_writes_belong_to_who_opened_the_file(mount: Mount) -> None:
    """A descriptor that is passed on keeps its origin, as permissions do."""
    script = "exec 3>file; NEXUS_AGENT=bob sh -c 'echo from bob >&3; touch by-bob; true'; true"
    run(mount, "sh", "-c", script, NEXUS_AGENT="alice")
    assert actor_of(mount, "file")["agent"] == "alice"
    assert actor_of(mount, "by-bob")["agent"] == "bob"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be somebody else")
def test_other_users_are_recorded_with_their_ids(
    mount: Mount, monkeypatch: pytest.MonkeyPatch
) -> None:
    """fuse(4): the request carries uid and gid."""
    mount.umount()
    mount.mount("--allow-other")
    (mount.path / "open").mkdir()
    os.chmod(mount.path / "open", 0o777)
    with monkeypatch.context() as patch:
        patch.chdir(mount.path)
        assert run_as(NOBODY, NOBODY, lambda: os.mkdir("open/theirs")) == 0
    actor = actor_of(mount, "open/theirs")
    assert (actor["uid"], actor["gid"]) == (NOBODY, NOBODY)


def test_commands_of_nexus_ctl_bear_the_name_of_who_ran_them(mount: Mount) -> None:
    """Through the mount and on the store alike."""
    mount.ctl("snapshot", "create", "one", agent="alice")
    mount.ctl("--store", str(mount.store), "snapshot", "create", "two", agent="bob")
    records = mount.json("log", "--kind", "snapshot")
    assert [record["actor"]["agent"] for record in records] == ["bob", "alice"]
