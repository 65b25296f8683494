"""Make a golden store: one of everything, by the version of the format that is current.

    PYTHONHASHSEED=0 python -m tests.golden.make

writes ``tests/golden/vN`` for a new N. What is there already is never made again: that it can still
be read is what it is for. Clock, ids and the order of sets are fixed, so that a second run
makes the same.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import lzma
import os
import secrets
import stat
import struct
import sys
import tarfile
import tempfile
import uuid
from io import BytesIO
from pathlib import Path as FilePath
from typing import Any

import trio

from nexus_engine.backup.dump import dump
from nexus_engine.commands import ignore_progress
from nexus_engine.history import snapshots
from nexus_engine.history.restore import restore
from nexus_engine.history.select import Selector
from nexus_engine.meta import schema
from nexus_engine.oplog.verify import verify_log
from nexus_engine.types import Path, Seq
from tests.unit.undoing import redo, undo
from tests.unit.worlds import ALICE, BOB, SECOND, World

HERE = FilePath(__file__).parent
UGLY = b"\xff not UTF-8 \xc3\x28"
MIB = 1 << 20
_SHOWN = 100
KILLED = b"written, closed by nobody, and kept all the same\n"

_USER_OBJ, _USER, _GROUP_OBJ, _MASK, _OTHER = 1, 2, 4, 16, 32


def acl(*entries: tuple[int, int, int]) -> bytes:
    """Return an ACL in the kernel's form, of (tag, permissions, id)."""
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


def _acl_for(uid: int) -> bytes:
    none = 0xFFFFFFFF
    return acl(
        (_USER_OBJ, 6, none), (_USER, 4, uid), (_GROUP_OBJ, 4, none), (_MASK, 4, none),
        (_OTHER, 0, none),
    )  # fmt: skip


def quiet(world: World) -> None:
    """Stop the clock, and number the packs: how often the engine looks must not matter."""
    world.clock.step_ns = 0
    ids = itertools.count(0x600D)
    world.store.chunks._packs._new_id = lambda: uuid.UUID(int=next(ids))


def as_alice(world: World) -> None:
    world.clock.now_ns += SECOND
    world.actor = ALICE


def as_bob(world: World) -> None:
    world.clock.now_ns += SECOND
    world.actor = BOB


async def build(path: FilePath) -> World:
    """Make the store and leave it open."""
    world = World(path)
    quiet(world)
    for step in (_plant, _specials, _fill, _disturb, _take_back):
        await step(world)
    return world


async def _plant(world: World) -> None:
    as_alice(world)
    await world.mkdir("docs")
    await world.mkdir("docs/deep", 0o2775)
    await world.write("docs/todo.md", b"buy milk\n")
    await world.write("docs/deep/leaf", b"needle\n" * 40)
    await world.link("docs/todo.md", "docs/deep/hard")
    await world.symlink("soft", b"docs/todo.md")
    await world.symlink(b"dangling " + UGLY, UGLY)
    as_bob(world)
    await world.write(UGLY, b"name is not UTF-8\n")
    await world.write("empty", b"")
    await world.setxattr("docs/todo.md", b"user.mood", b"fine\0\xff")
    await world.setxattr("docs", b"user.nexus.tag.colour", b"blue")
    await world.setattr("empty", mode=0o4711)
    as_alice(world)
    await world.setxattr("docs/deep/leaf", b"system.posix_acl_access", _acl_for(BOB.uid))
    await world.setxattr("docs/deep", b"system.posix_acl_default", _acl_for(BOB.uid))
    await world.setattr("docs/deep/leaf", mtime_ns=-5_000_000_001, atime_ns=1)
    await world.setattr("empty", uid=1001, gid=100)
    snapshots.create(world.store, "planted", ALICE)


async def _specials(world: World) -> None:
    as_bob(world)
    for name, kind, rdev in (
        ("fifo", stat.S_IFIFO, 0),
        ("socket", stat.S_IFSOCK, 0),
        ("character", stat.S_IFCHR, os.makedev(1, 3)),
        ("block", stat.S_IFBLK, os.makedev(7, 300)),
    ):
        await world.engine.make(*world.place(name), kind | 0o640, world.actor, rdev=rdev)


async def _fill(world: World) -> None:
    as_alice(world)
    await world.write("sparse", b"")
    await world.patch("sparse", 5 * MIB, b"island")
    await world.setattr("sparse", size=9 * MIB)
    await world.write("big", b"".join(b"line %d\n" % i for i in range(200_000)))
    as_bob(world)
    await world.patch("big", MIB - 3, b"across the border of two chunks")
    as_alice(world)
    await world.setattr("big", size=2 * MIB + 17)
    await world.patch("big", 2 * MIB + 17, b"appended")
    await world.write("same as leaf", b"needle\n" * 40)


async def _disturb(world: World) -> None:
    as_bob(world)
    await world.write("docs/todo.md", b"buy milk\ncall Alice\n")
    await world.mkdir("doomed")
    await world.write("doomed/file", b"soon gone\n")
    as_alice(world)
    await world.remove("doomed")
    await world.rename("docs/deep", "deep")
    await world.rename("empty", "docs/replaced")
    await world.write("over", b"replaces what was there\n")
    await world.rename("over", "docs/replaced")
    await world.rename("soft", UGLY, flags=2)  # exchanged
    as_bob(world)
    await world.unlink("deep/hard")
    await world.setxattr("docs/todo.md", b"user.mood", b"better")
    await world.engine.removexattr(world.inode("docs").ino, b"user.nexus.tag.colour", BOB)
    await world.chmod("docs", 0o700)
    snapshots.create(world.store, "übrig", BOB)


async def _take_back(world: World) -> None:
    as_alice(world)
    before = world.head
    await world.write("mistake", b"oops\n")
    await world.write("docs/todo.md", b"oops\n")
    undo(world, Selector(agent="alice", since_seq=before))
    world.clock.now_ns += SECOND
    redo(world)
    world.clock.now_ns += SECOND
    undo(world, Selector(last=1, path=Path(b"docs/todo.md")))
    planted = world.database.reader.find_snapshot("planted")
    assert planted is not None
    restore(world.store, Path(b"docs"), planted, BOB, to=Path(b"docs as planted"))
    snapshots.drop(world.store, "planted", ALICE)


async def kill(world: World) -> None:
    """Write what only an intent remembers, and leave as a process does that is killed."""
    as_bob(world)
    handle, _ = await world.engine.create(*world.place("unfinished"), 0o600, world.actor)
    await world.engine.write(handle, 0, KILLED)
    await world.engine.flush(handle)
    world.store.database.sync()
    world.store.abandon()
    # As any process that is gone: nobody has this one's number.
    owner = f"1-{0:016x}"
    world.edit("UPDATE pack SET owner = ? WHERE owner IS NOT NULL", owner)
    for path in world.store.peers.iterdir():
        path.rename(path.with_name(f"{owner}.lock"))


Shown = dict[str, list[Any]]


def trees(world: World) -> list[Shown]:
    """Return what programs saw after each operation, from the first on."""
    return [shown(world, Seq(seq)) for seq in range(1, world.head + 1)]


def shown(world: World, at: Seq | None = None) -> Shown:
    """Return a tree as JSON has it: names and values as text, of long contents the hash."""
    return {
        _text(path): [*row[:6], _content_text(row[6]), _attributes(row[7])]
        for path, row in world.tree(at=at).items()
    }


def _content_text(content: bytes | None) -> str | None:
    if content is None or len(content) <= _SHOWN:
        return None if content is None else _text(content)
    return hashlib.sha256(content).hexdigest()


def _text(value: bytes) -> str:
    return value.decode("latin-1")


def _attributes(xattrs: tuple[tuple[bytes, bytes], ...]) -> dict[str, str]:
    return {_text(name): _text(value) for name, value in xattrs}


def packed(directory: FilePath) -> bytes:
    """Return a directory as a tar archive, the same for the same content."""
    buffer = BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for path in sorted(directory.rglob("*")):
            entry = archive.gettarinfo(path, path.relative_to(directory).as_posix())
            entry.mtime = entry.uid = entry.gid = 0
            entry.uname = entry.gname = ""
            if entry.isreg():
                with path.open("rb") as file:
                    archive.addfile(entry, file)
            else:
                archive.addfile(entry)
    return buffer.getvalue()


async def _make(target: FilePath, scratch: FilePath) -> None:
    world = await build(scratch / "store")
    facts = {
        "head": world.head,
        "head_hash": verify_log(world.database).head_hash.hex(),
        "trees": trees(world),
    }
    await world.close()
    lines: list[bytes] = []
    dump(scratch / "store", lines.append, ignore_progress)
    killed = await build(scratch / "killed")
    await kill(killed)
    target.mkdir()
    _write(target / "store.tar.xz", packed(scratch / "store"))
    _write(target / "killed.tar.xz", packed(scratch / "killed"))
    _write(target / "dump.jsonl.xz", b"".join(lines))
    _write(target / "facts.json.xz", json.dumps(facts).encode())


def _write(path: FilePath, content: bytes) -> None:
    path.write_bytes(lzma.compress(content, preset=9 | lzma.PRESET_EXTREME))


def main() -> None:
    target = HERE / f"v{schema.VERSION}"
    if target.exists():
        sys.exit(f"{target} is there already: it stays as it is")
    if sys.flags.hash_randomization:
        sys.exit("set PYTHONHASHSEED=0")
    # What owners are called leaves traces in the pages of the database.
    os.getpid = lambda: 1
    secrets.token_hex = lambda nbytes=None: "0" * 16
    with tempfile.TemporaryDirectory() as scratch:
        trio.run(_make, target, FilePath(scratch))


if __name__ == "__main__":
    main()
