"""The disk has a quota for whoever runs the daemon: no space, and not a disk that fails."""

from __future__ import annotations

import ctypes
import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import apsw
import pytest

from nexus_engine import errors
from nexus_engine.check.fsck import Problem, check
from nexus_engine.engine import Engine
from nexus_engine.meta.connection import Connection
from nexus_engine.store import Store
from nexus_engine.types import ROOT_INO, Actor, Name

ALICE = Actor(uid=0, gid=0, pid=1, command="a")
CALLS = ("pwrite", "pwrite64", "write")


@contextmanager
def over_quota() -> Iterator[None]:
    """Have the system refuse whatever SQLite writes, as write(2) does for EDQUOT."""

    @ctypes.CFUNCTYPE(ctypes.c_ssize_t, ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t,
                      ctypes.c_int64, use_errno=True)  # fmt: skip
    def refuse(fd: int, data: int, size: int, offset: int) -> int:
        ctypes.set_errno(errno.EDQUOT)
        return -1

    vfs = apsw.VFS("over-quota", "unix")
    pointer = ctypes.cast(refuse, ctypes.c_void_p).value
    assert pointer is not None
    real = {call: found for call in CALLS if (found := vfs.xGetSystemCall(call)) is not None}
    for call in real:
        assert vfs.xSetSystemCall(call, pointer)
    try:
        yield
    finally:
        for call, found in real.items():
            assert vfs.xSetSystemCall(call, found)
        vfs.unregister()


def test_a_quota_of_the_disk_is_no_space(tmp_path: Path) -> None:
    """As for packs; what was there is, and with room again it works."""
    connection = Connection(str(tmp_path / "meta.db"), create=True)
    connection.run("CREATE TABLE t (x)")
    with over_quota(), pytest.raises(errors.NoSpace, match="disk quota"):
        connection.run("INSERT INTO t VALUES (zeroblob(100000))")
    assert connection.one("SELECT count(*) FROM t") == (0,)
    connection.run("INSERT INTO t VALUES (zeroblob(100000))")
    assert connection.one("SELECT count(*) FROM t") == (1,)
    connection.close()


async def test_an_operation_beyond_the_quota_did_not_happen(tmp_path: Path) -> None:
    path = tmp_path / "store"
    Store.create(path, ALICE).close()
    engine = Engine.start(path)
    await engine.make(ROOT_INO, Name(b"before"), 0o040755, ALICE)
    head = engine.reader.head()
    with over_quota(), pytest.raises(errors.NoSpace):
        await engine.make(ROOT_INO, Name(b"refused"), 0o040755, ALICE)
    assert engine.reader.head() == head
    await engine.make(ROOT_INO, Name(b"after"), 0o040755, ALICE)
    names = [entry.name for entry in await engine.list_children(ROOT_INO, 0, 10)]
    assert sorted(names) == [b"after", b"before"]
    await engine.close()
    assert check_store(path) == []


def check_store(path: Path) -> list[Problem]:
    store = Store.open(path)
    problems = check(store)
    store.close()
    return problems
