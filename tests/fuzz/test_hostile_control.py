"""Whatever is written to a mount's control file, in whatever pieces, is a command or refused."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from nexus_engine.commands import Request
from nexusfuse.ctl import control
from tests.conftest import Mount
from tests.mount.conftest import serving

BRIEF = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
REFUSED = {errno.EINVAL, errno.EBUSY, errno.E2BIG, errno.ENOENT}
NAMING = control.encode_request(Request("snapshot-create", {"name": "split"}))


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mount]:
    with serving(tmp_path_factory.mktemp("control")) as mounted:
        (mounted.path / "file").write_text("kept")
        yield mounted
        assert (mounted.path / "file").read_text() == "kept"


@contextmanager
def opened(mount: Mount, flags: int) -> Iterator[int]:
    fd = os.open(mount.path / ".nexus/control", flags)
    try:
        yield fd
    finally:
        os.close(fd)


def put(fd: int, data: bytes) -> int:
    """Write; return 0, or the errno of a refusal."""
    try:
        os.write(fd, data)
    except OSError as error:
        if error.errno not in REFUSED:
            raise
        return error.errno
    return 0


def answer(fd: int) -> bytes:
    """Read until the end of a reply."""
    parts = []
    while part := os.read(fd, 65536):
        parts.append(part)
    return b"".join(parts)


def snapshots(mount: Mount) -> list[str]:
    return os.listdir(mount.path / ".nexus/snapshots")


@pytest.mark.parametrize("flags", [os.O_WRONLY, os.O_RDWR])
def test_a_request_that_comes_in_two_pieces_is_none(served: Mount, flags: int) -> None:
    """One write is one request: wherever it is split, nothing is done, and each piece answered."""
    for at in range(1, len(NAMING) - 1):
        with opened(served, flags) as fd:
            for piece in (NAMING[:at], NAMING[at:]):
                if flags == os.O_WRONLY:
                    assert put(fd, piece) == errno.EINVAL
                elif put(fd, piece) == 0:
                    assert b"error" in answer(fd)
    assert snapshots(served) == []


@BRIEF
@given(data=st.binary(min_size=1, max_size=300), flags=st.sampled_from([os.O_WRONLY, os.O_RDWR]))
@example(data=b"\0", flags=os.O_WRONLY)
@example(data=b"log \0", flags=os.O_WRONLY)
@example(data=b'log --path "', flags=os.O_WRONLY)
@example(data=b"restore \xff\xfe now", flags=os.O_WRONLY)
@example(data=b'{"verb":"log","args":{"path":"\\u0000\\ud800"}}', flags=os.O_RDWR)
@example(data=b'{"verb":' * 10_000, flags=os.O_RDWR)
@example(data=b"x" * control.LINE_MAX, flags=os.O_WRONLY)
@example(data=b"x" * (control.LINE_MAX + 1), flags=os.O_WRONLY)
@example(data=b" " * (8 << 20), flags=os.O_WRONLY)
@example(data=b"[" * (8 << 20), flags=os.O_RDWR)
def test_any_bytes_are_a_command_or_refused(served: Mount, data: bytes, flags: int) -> None:
    with opened(served, flags) as fd:
        if put(fd, data) == 0 and flags == os.O_RDWR:
            answer(fd)
    with opened(served, os.O_RDWR) as fd:
        assert put(fd, control.encode_request(Request("status", {}))) == 0
        assert b'"reply"' in answer(fd)


def test_requests_through_two_descriptors_at_once_do_not_mix(served: Mount) -> None:
    names = [("first", "second")[number % 2] + str(number // 2) for number in range(20)]
    with opened(served, os.O_RDWR) as one, opened(served, os.O_RDWR) as other:
        for number in range(0, 20, 2):
            for fd, name in ((one, names[number]), (other, names[number + 1])):
                request = Request("snapshot-create", {"name": name})
                assert put(fd, control.encode_request(request)) == 0
            assert names[number + 1].encode() in answer(other)
            assert names[number].encode() in answer(one)
    assert sorted(snapshots(served)) == sorted(names)
    for name in names:
        (served.path / ".nexus/snapshots" / name).rmdir()


def test_one_descriptor_that_many_write_to_runs_one_command_at_a_time(served: Mount) -> None:
    """The others are told that it is busy; what is read is whole lines of replies."""
    line = control.encode_request(Request("verify-log", {}))
    with opened(served, os.O_RDWR) as fd, ThreadPoolExecutor(8) as pool:
        codes = list(pool.map(lambda _: put(fd, line), range(40)))
        assert set(codes) <= {0, errno.EBUSY}
        assert 0 in codes
        assert json.loads(answer(fd).splitlines()[-1])["reply"]


def test_a_directory_that_goes_takes_its_control_file_with_it(served: Mount) -> None:
    """What is open of it answers, and says that it is gone."""
    place = Path(served.path, "passing")
    place.mkdir()
    fd = os.open(place / ".nexus/control", os.O_RDWR)
    place.rmdir()
    try:
        assert put(fd, control.encode_request(Request("log", {"path": "passing"}))) == 0
        assert json.loads(answer(fd).splitlines()[-1])
        assert put(fd, b"log") in {0, *REFUSED}
        answer(fd)
    finally:
        os.close(fd)
