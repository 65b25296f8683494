"""The control file by echo and cat, and commands that go on."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess

import pytest

from tests.conftest import CTL, TIMEOUT_S, Mount
from tests.mount.linux import refused


def test_completion_scripts_are_printed(mount: Mount) -> None:
    """For each shell that click knows."""
    for shell in ("bash", "zsh", "fish"):
        assert "_NEXUS_CTL_COMPLETE" in mount.ctl("completion", shell)
    environment = {
        "_NEXUS_CTL_COMPLETE": "bash_complete",
        "COMP_WORDS": "nexus-ctl un",
        "COMP_CWORD": "1",
    }
    words = subprocess.check_output(
        CTL, env={**os.environ, **environment}, text=True, timeout=TIMEOUT_S
    )
    assert "undo" in {word.split(",")[-1] for word in words.split()}


def test_log_follow_prints_what_happens(mount: Mount) -> None:
    """Oldest first, and on until interrupted."""
    (mount.path / "first").touch()
    # What runs in the background of a script ignores the signal, and so would this.
    command = ["env", "--default-signal=INT", *CTL, "--json", "log", "--follow"]
    follower = subprocess.Popen(command, cwd=mount.path, stdout=subprocess.PIPE, text=True)
    try:
        assert follower.stdout is not None
        paths = [json.loads(follower.stdout.readline())["path"] for _ in range(2)]
        assert paths == ["", "first"]
        (mount.path / "second").mkdir()
        assert json.loads(follower.stdout.readline())["path"] == "second"
        follower.send_signal(signal.SIGINT)
        assert follower.wait(30) in (1, 130)
    finally:
        follower.kill()
        follower.wait(10)


def test_the_control_file_takes_commands_by_echo_and_answers_by_cat(mount: Mount) -> None:
    """echo COMMAND > .nexus/control; cat .nexus/control"""
    mount.sh("echo one > file; echo two > file")
    mount.sh("echo undo > .nexus/control")
    assert "Undid 1 operation" in mount.sh("cat .nexus/control")
    assert mount.sh("cat file") == "one\n"
    mount.sh("echo nexus-ctl snapshot create s > .nexus/control")
    assert mount.sh("cat .nexus/control") == mount.sh("cat .nexus/control")
    assert "s" in os.listdir(mount.path / ".nexus/snapshots")


@pytest.mark.parametrize(
    "command",
    ["nonsense", "undo --no-such-option", "restore", "log 'open", "mount /x", "undo --last x",
     "snapshot", "--store /tmp log", "{bad json", '{"verb":"log","args":{"limit":-1}}', "cat file"],
)  # fmt: skip
def test_a_bad_command_fails_the_write_and_cat_says_why(shared_mount: Mount, command: str) -> None:
    """write(2): EINVAL; the reply is one line; the mount lives on."""
    control = shared_mount.path / ".nexus/control"
    fd = os.open(control, os.O_WRONLY)
    with refused(errno.EINVAL):
        os.write(fd, command.encode() + b"\n")
    os.close(fd)
    reply = control.read_text()
    assert "error" in reply
    assert len(reply.splitlines()) == 1
    assert shared_mount.sh("echo status > .nexus/control; cat .nexus/control").count("store ") >= 1
