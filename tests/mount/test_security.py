"""Another user on a mount that lets others in: history shows nothing that is closed to them."""

from __future__ import annotations

import errno
import itertools
import json
import os
import random
import resource
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from nexus_engine import errors
from nexus_engine.commands import Request, ignore_progress
from nexus_engine.engine import Engine
from nexus_engine.fs import content, staging
from nexus_engine.fs.files import Handle
from nexus_engine.store import Store
from nexus_engine.types import ROOT_INO, Actor, Name
from nexusfuse.ctl import control
from nexusfuse.virtual.limits import COMMANDS_MAX, OPEN_MAX
from tests.conftest import Mount
from tests.mount.conftest import serving
from tests.mount.linux import NOBODY, run_as

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be somebody else")

MALLORY = 4666
SECRET = "the-secret-plan"


@pytest.fixture(scope="module")
def open_mount(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mount]:
    """Yield a mount that lets other users in, with a secret in it."""
    with serving(tmp_path_factory.mktemp("open")) as mounted:
        mounted.umount()
        mounted.mount("--allow-other")
        mounted.sh(
            f"mkdir -m 755 public; mkdir -m 700 private; echo {SECRET} > private/{SECRET}"
            f"; ln -s {SECRET} private/link; echo {SECRET} > public/closed; chmod 600 public/closed"
            "; echo once > public/moved; echo open > public/open"
            f"; setfattr -n user.note -v {SECRET} public/moved; ln -s {SECRET} public/moved-link"
            "; mv public/moved public/moved-link private"
            f"; mv private/{SECRET} private/{SECRET}-2"
        )
        yield mounted


@pytest.fixture
def inside(open_mount: Mount, monkeypatch: pytest.MonkeyPatch) -> Iterator[Mount]:
    """Be in the mount: its path need not be open to everyone."""
    with monkeypatch.context() as patch:
        patch.chdir(open_mount.path)
        yield open_mount


def as_mallory(action: Callable[[], Any]) -> Any:
    """Return what an action gives Mallory, or the errno or error that it ends with."""
    reading, writing = os.pipe()

    def report() -> None:
        try:
            found = action()
        except errors.EngineError as error:
            found = type(error).__name__
        os.write(writing, json.dumps(found).encode()[:60000])

    code = run_as(MALLORY, MALLORY, report)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        text = pipe.read()
    return -code if code else json.loads(text)


def reading(path: str) -> str:
    return Path(path).read_text()


def ask(verb: str, **args: object) -> Callable[[], Any]:
    return lambda: control.ask(b".", Request(verb, args), ignore_progress)


@pytest.mark.parametrize(
    "action",
    [
        ask("log"),
        ask("log", path="private"),
        ask("history"),
        ask("history", path="private"),
        ask("history", path="public"),
        ask("history", path="public/closed"),
        ask("versions", path="private/" + SECRET),
        ask("diff", since="op-1"),
        ask("restore", path="private", moment="op-5", to="public/mine"),
        ask("fsck"),
        ask("tag-list", path="public/closed"),
        ask("purge", path="public/open"),
        ask("prune"),
        ask("gc"),
    ],
)  # fmt: skip
def test_commands_tell_nothing_of_what_is_closed(inside: Mount, action: Callable[[], Any]) -> None:
    """Who may not list a directory or read a file is refused."""
    assert as_mallory(action) in ("PermissionDenied", "OperationNotPermitted")


@pytest.mark.parametrize(
    "action",
    [
        ask("undo", last=3, dry_run=True),
        ask("undo", since="op-1", dry_run=True, force=True),
        ask("undo", since="op-1"),
        ask("versions", path="public/closed"),
        ask("versions", path="public/moved"),
        ask("snapshot-list"),
        ask("status"),
        ask("stats"),
        ask("verify-log"),
    ],
)  # fmt: skip
def test_replies_name_nothing_that_is_closed(inside: Mount, action: Callable[[], Any]) -> None:
    reply = json.dumps(as_mallory(action))
    assert SECRET not in reply
    assert "private/" not in reply
    # The digest of a content that can be guessed confirms the guess.
    assert '"sha256": "' not in reply
    assert inside.sh(f"cat private/{SECRET}-2") == SECRET + "\n"


@pytest.mark.parametrize("moment", ["op-9", "op-12", "now", "before-op-14"])
def test_the_past_is_closed_where_the_present_is(inside: Mount, moment: str) -> None:
    """Files, links, listings and attributes; also of what was moved to where it is closed."""
    past = f".nexus/history/{moment}"
    for action in (
        lambda: os.listdir(f"{past}/private"),
        lambda: Path(f"{past}/private/{SECRET}").read_text(),
        lambda: os.readlink(f"{past}/private/link"),
        lambda: os.stat(f"{past}/private/{SECRET}").st_size,
        lambda: Path(f"{past}/public/closed").read_text(),
    ):
        assert as_mallory(action) in (-errno.EACCES, -errno.ENOENT)


def test_what_was_moved_to_a_closed_directory_is_closed_in_the_past_too(inside: Mount) -> None:
    moved = next(
        r["seq"] for r in inside.json("log", "--kind", "rename") if r["path"] == "public/moved"
    )
    past = f".nexus/history/before-op-{moved}/public"
    assert Path(past, "moved").read_text() == "once\n"
    assert as_mallory(lambda: Path(past, "open").read_text()) == "open\n"
    for action in (
        lambda: Path(past, "moved").read_text(),
        lambda: os.getxattr(f"{past}/moved", "user.note").decode(),
        lambda: os.listxattr(f"{past}/moved"),
    ):
        assert as_mallory(action) == -errno.EACCES
    number = inside.json("versions", "public/moved")[0]["seq"]
    version = f"public/.nexus/versions/moved/{number}"
    assert as_mallory(lambda: Path(version).read_text()) == -errno.EACCES


@pytest.mark.parametrize("name", ["log", "events"])
def test_the_log_below_a_directory_is_for_the_owner_of_the_store(inside: Mount, name: str) -> None:
    for directory in (".", "public"):
        path = f"{directory}/.nexus/{name}"
        assert as_mallory(partial(reading, path)) == -errno.EACCES


def test_nobody_undoes_what_they_could_not_have_done(inside: Mount) -> None:
    """A user undoes what he may change, and nothing else."""
    before = inside.sh("ls -lR public private")
    as_mallory(ask("undo", since="op-1", force=True))
    assert inside.sh("ls -lR public private") == before


def test_no_control_character_of_a_name_reaches_a_terminal(inside: Mount) -> None:
    """Whatever shows names escapes what a terminal acts on: C0, DEL, C1, and invalid UTF-8."""
    hostile = [
        b"esc-\x1b[31m\x07",
        b"line\nfeed",
        b"del-\x7f",
        "c1-\x9b31m".encode(),
        b"bytes-\xff\x9b",
    ]
    for name in hostile:
        os.close(os.open(os.fsencode(inside.path) + b"/" + name, os.O_CREAT | os.O_WRONLY))
    shown = [
        inside.sh("cat .nexus/log"),
        inside.ctl("log"),
        inside.ctl("--json", "log"),
        inside.ctl("diff", "op-1"),
        inside.ctl("undo", "--last", "5", "--dry-run"),
        inside.sh("echo log > .nexus/control; cat .nexus/control"),
        inside.sh(
            "echo 'restore \"x\x1b[31m\" op-1' > .nexus/control; cat .nexus/control", check=False
        ),
        inside.sh("cat .nexus/status"),
        inside.log.read_text(),
    ]
    for text in shown:
        assert [c for c in text if not c.isprintable() and c != "\n"] == []
    assert "esc-" in shown[0]
    for name in hostile:
        os.unlink(os.fsencode(inside.path) + b"/" + name)


def test_the_files_of_a_store_are_private_whatever_the_umask(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Directories 0700, files 0600, and so are the sockets in them."""
    before = os.umask(0)
    try:
        with serving(tmp_path) as mounted:
            mounted.sh("echo content > file; sync; mkdir .nexus/snapshots/s")
            found = {path: path.lstat().st_mode & 0o777 for path in mounted.store.rglob("*")}
            assert mounted.store.stat().st_mode & 0o777 == 0o700
            assert len(found) > 5
            assert {
                p: oct(mode) for p, mode in found.items() if mode & 0o077 and not p.is_socket()
            } == {}
            with monkeypatch.context() as patch:
                patch.chdir(tmp_path)
                for path in found:
                    short = str(path.relative_to(tmp_path))
                    assert run_as(NOBODY, NOBODY, partial(os.stat, short)) == errno.EACCES
    finally:
        os.umask(before)


def test_a_user_with_many_commands_keeps_nobody_else_waiting(inside: Mount) -> None:
    """Commands of one user run a few at a time; files are read and written meanwhile."""
    held: list[int] = []
    line = control.encode_request(Request("verify-log", {}))
    try:
        for _ in range(10 * COMMANDS_MAX):
            fd = os.open(".nexus/control", os.O_RDWR)
            held.append(fd)
            os.write(fd, line)
        Path("public/busy").write_text("written meanwhile")
        assert Path("public/busy").read_text() == "written meanwhile"
        assert as_mallory(ask("status"))["operations"] > 10
        for fd in held:
            assert b'"reply"' in os.read(fd, 65536) + os.read(fd, 65536)
    finally:
        for fd in held:
            os.close(fd)
    os.unlink("public/busy")


def test_open_files_of_nexus_are_bounded_for_each_user(inside: Mount) -> None:
    """EMFILE and one line in the log; nobody else is kept from anything, and closing helps."""
    inside.expected_log.append("files in .nexus open, and may have no more")

    def open_too_many() -> list[int]:
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        held: list[int] = []
        names = itertools.cycle(("control", "status"))
        try:
            held.extend(os.open(f".nexus/{name}", os.O_RDONLY) for name in names)
        except OSError as error:
            refused = error.errno or 0
        count = len(held)
        os.close(held.pop())
        held.append(os.open(".nexus/control", os.O_RDONLY))
        with pytest.raises(OSError, match="Too many open files"):
            os.open(".nexus/control", os.O_RDONLY)
        return [count, refused]

    if resource.getrlimit(resource.RLIMIT_NOFILE)[1] < 2 * OPEN_MAX:
        pytest.skip("this process may not open so many files itself")
    assert as_mallory(open_too_many) == [OPEN_MAX, errno.EMFILE]
    assert inside.log.read_text().count(f"user {MALLORY} has {OPEN_MAX} files") == 1
    assert as_mallory(ask("status"))["operations"] > 10


def resident_bytes(mount: Mount) -> int:
    status = Path(f"/proc/{mount.status()['pid']}/status").read_text()
    return 1024 * int(status.partition("VmRSS:")[2].split()[0])


async def write_far_apart(engine: Engine, handle: Handle) -> None:
    for number in range(1000):
        await engine.write(handle, number << 20, b"far away")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_scattered_writes_to_a_removed_file_take_bounded_memory(mount: Mount) -> None:
    """There is no operation to put them into; what is read is what was written."""
    rng = random.Random(1)
    size = 64 << 20
    expected = bytearray(size)
    with (mount.path / "open").open("w+b", buffering=0) as file:
        (mount.path / "open").unlink()
        file.truncate(size)
        before = resident_bytes(mount)
        for _ in range(100_000):
            offset, piece = rng.randrange(size - 8), rng.randbytes(8)
            os.pwrite(file.fileno(), piece, offset)
            expected[offset : offset + 8] = piece
        assert resident_bytes(mount) - before < 256 << 20
        assert os.pread(file.fileno(), size, 0) == expected


async def test_pieces_of_a_removed_file_are_joined_and_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(content, "SESSION_EXTENTS_MAX", 16)
    monkeypatch.setattr(staging, "JOINED_PIECES", 64)
    monkeypatch.setattr(staging, "UNNAMED_PIECES_MAX", 200)
    actor = Actor(0, 0, 1, command="a")
    Store.create(tmp_path / "store", actor).close()
    engine = Engine.start(tmp_path / "store")
    handle, _ = await engine.create(ROOT_INO, Name(b"open"), 0o600, actor)
    await engine.write(handle, 0, b"." * 100_000)
    await engine.unlink(ROOT_INO, Name(b"open"), actor)
    expected = bytearray(b"." * 100_000)
    for offset in range(0, 100_000, 50):
        await engine.write(handle, offset, b"x%d" % (offset % 10))
        expected[offset : offset + 2] = b"x%d" % (offset % 10)
        session = handle.file.session
        assert session is not None
        assert len(session.staged) + session.dirty.count <= 64
    assert await engine.read(handle, 0, 200_000) == expected
    for number in range(150):
        await engine.write(handle, number << 20, b"far away")
    with pytest.raises(errors.NoSpace):
        await write_far_apart(engine, handle)
    assert await engine.read(handle, 149 << 20, 8) == b"far away"
    await engine.release(handle)
    await engine.close()
