"""fsck: silent on a sound store, and each invariant speaks up when it is broken."""

from __future__ import annotations

import os
from pathlib import Path as FilePath

import pytest

from nexus_engine.check import problems
from nexus_engine.check.fsck import check
from nexus_engine.history.restore import restore
from nexus_engine.types import Path
from tests.unit.worlds import ALICE, BOB, World


@pytest.fixture
def world(breakable: World) -> World:
    return breakable


def codes(world: World, *, deep: bool = False) -> set[str]:
    return {problem.code for problem in check(world.store, deep=deep)}


@pytest.mark.parametrize("deep", [False, True])
async def test_a_sound_store_has_no_problems(world: World, deep: bool) -> None:
    steps: list[str] = []
    assert check(world.store, deep=deep, progress=steps.append) == []
    assert len(steps) == len(set(steps)) > 20


async def test_what_a_living_process_has_is_no_problem(world: World) -> None:
    """Files open without a name, sessions not yet in the log, packs that are not sealed."""
    handle = await world.engine.open(world.inode("dir/file").ino, os.O_RDWR, ALICE)
    await world.engine.write(handle, 0, b"not committed")
    await world.engine.flush(handle)
    await world.unlink("dir/file")
    await world.unlink("dir/link")
    assert world.database.unlinked_inodes() != []
    assert check(world.store, deep=True) == []
    await world.engine.release(handle)
    assert check(world.store, deep=True) == []


async def test_restored_trees_are_sound(world: World) -> None:
    then = world.head
    await world.remove("dir")
    restore(world.store, Path(b"dir"), then, BOB)
    restore(world.store, Path(b"dir"), then, BOB, to=Path(b"copy"))
    assert check(world.store, deep=True) == []


BROKEN = [
    # (what is done to the rows, the code that must be among the problems, what it must name)
    ("DELETE FROM inode WHERE ino = 4", "dentry-dangling", "/dir/file"),
    (
        "INSERT INTO xattr (ino, name, value, from_seq) VALUES"
        " (4, CAST('system.posix_acl_access' AS BLOB), x'00', 5)",
        "acl", "/dir/file",
    ),
    (
        "INSERT INTO xattr (ino, name, value, from_seq) VALUES"
        " (4, CAST('system.posix_acl_access' AS BLOB), x'02000000"
        "01000700ffffffff04000700ffffffff20000700ffffffff', 5)",
        "acl-mode", "/dir/file",
    ),
    ("UPDATE dentry SET kind = 16384 WHERE ino = 4", "dentry-kind", "/dir/file"),
    ("UPDATE dentry SET parent = 4 WHERE name = x'66696c65'", "dentry-homeless", "/dir/link/file"),
    ("UPDATE dentry SET parent = 99 WHERE name = x'66696c65'", "dentry-homeless", "file"),
    ("UPDATE dentry SET hash = hash + 1 WHERE ino = 5", "dentry-name", "/sym"),
    ("UPDATE dentry SET name = x'2e2e' WHERE ino = 5", "dentry-name", "/.."),
    ("UPDATE dentry_past SET name = x'612f62'", "dentry-name", "a/b"),
    ("UPDATE inode SET nlink = 3 WHERE ino = 4", "file-links", "/dir/file"),
    ("UPDATE inode SET nlink = 0 WHERE ino = 5", "file-links", "/sym"),
    ("DELETE FROM dentry WHERE ino = 5", "file-links", "/sym"),
    ("UPDATE inode SET nlink = 5 WHERE ino = 1", "directory-links", "/ (inode 1)"),
    ("DELETE FROM dentry WHERE ino = 3", "directory-names", "/dir/sub"),
    ("INSERT INTO dentry SELECT 1, hash, name, ino, kind, from_seq FROM dentry WHERE ino = 3",
     "directory-names", "/sub (inode 3)"),
    ("UPDATE dentry SET parent = 7 WHERE ino = 2", "directory-unreachable", "dir"),
    ("UPDATE inode SET mode = mode & 511 WHERE ino = 4", "inode-fields", "/dir/file"),
    ("UPDATE inode SET target = NULL WHERE ino = 5", "inode-fields", "/sym"),
    ("UPDATE inode SET size = 3 WHERE ino = 5", "inode-fields", "/sym"),
    ("UPDATE inode_past SET size = -1 WHERE ino = 6", "inode-fields", "/gone"),
    ("DELETE FROM inode WHERE ino = 1", "root-missing", "/"),
    *(
        (f"UPDATE {table}_past SET {change}", f"{table}-interval", name)
        for table, name in (("inode", "/dir/file"), ("dentry", "/gone"), ("extent", "/dir/file"),
                            ("xattr", "/dir/file"))
        for change in ("from_seq = to_seq", "to_seq = to_seq + 1000", "from_seq = 0")
    ),
    *(
        (f"UPDATE {table} SET from_seq = 1000", f"{table}-unlogged", name)
        for table, name in (("inode", "/sym"), ("dentry", "/sym"), ("extent", "/dir/file"),
                            ("xattr", "/dir/file"))
    ),
    ("UPDATE inode SET from_seq = 4 WHERE ino = 4", "inode-overlap", "/dir/file"),
    ("UPDATE inode_past SET from_seq = 1 WHERE ino = 4", "inode-overlap", "/dir/file"),
    ("UPDATE extent SET from_seq = 1", "extent-overlap", "/dir/file"),
    ("UPDATE xattr SET from_seq = 1", "xattr-overlap", "/dir/file"),
    ("INSERT INTO dentry_past SELECT parent, hash, name, ino, kind, 1, from_seq + 1 FROM dentry"
     " WHERE ino = 4 LIMIT 1", "dentry-overlap", "/dir/"),
    ("DELETE FROM inode_past WHERE ino = 6", "dentry-past-dangling", "/gone"),
    ("DELETE FROM inode_past WHERE ino = 4 AND to_seq ="
     " (SELECT max(to_seq) FROM inode_past WHERE ino = 4)", "inode-gap", "/dir/file"),
    ("UPDATE inode SET from_seq = from_seq + 1 WHERE ino = 5", "inode-gap", "/sym"),
    ("DELETE FROM child_change WHERE parent = 2", "child-change", "/dir/"),
    ("INSERT INTO child_change VALUES (2, 1000, NULL)", "child_change-reference", "child_change 2"),
    ("UPDATE oplog SET kind = 'mkdir' WHERE seq = 5", "log-chain", "op-5"),
    ("UPDATE oplog SET details = '{}' WHERE seq = 6", "log-chain", "op-6"),
    ("UPDATE actor SET agent = 'bob'", "log-chain", "op-1"),
    ("DELETE FROM oplog WHERE seq = 9", "log-chain", "op-9"),
    ("DELETE FROM oplog WHERE seq IN (8, 9)", "log-gap", "op-8 to op-9"),
    ("UPDATE oplog SET actor = 77 WHERE seq = 9", "log-actor", "op-9"),
    ("UPDATE oplog SET details = '{\"size' WHERE seq = 5", "log-details", "op-5"),
    ("UPDATE oplog SET details = CAST(x'7b22f222' AS TEXT) WHERE seq = 5", "log-details", "op-5"),
    ("UPDATE actor SET command = CAST(x'f2' AS TEXT)", "unreadable", "chain of the log"),
    ("DELETE FROM oplog WHERE seq > 15", "dentry-unlogged", "/dir/sub/empty"),
    ("UPDATE snapshot SET seq = 1000", "snapshot-reference", "snapshot kept"),
    ("INSERT INTO reversal VALUES (1000, 2)", "reversal-reference", "reversal 1000"),
    ("INSERT INTO touched VALUES (1000, 4, 0, x'')", "touched-reference", "touched 4"),
    ("INSERT INTO kept VALUES (1000, 0, 0)", "kept-reference", "kept 1000"),
    ("INSERT INTO expired VALUES (4, 1000)", "expired-reference", "expired 4"),
    ("INSERT INTO expired VALUES (99999, 1)", "expired-orphan", "expired 99999"),
    ("INSERT INTO pack_seen VALUES (1, 'nobody')", "pack_seen-orphan", "pack_seen 1"),
    ("INSERT INTO store VALUES ('pruned_to', 17)", "snapshot-kept", "snapshot kept"),
    ("UPDATE extent SET length = 0 WHERE ino = 4", "extent-fields", "/dir/file"),
    ("UPDATE extent SET chunk_offset = -1 WHERE ino = 4", "extent-fields", "/dir/file"),
    ("UPDATE extent_past SET digest = x'00'", "extent-fields", "/dir/file"),
    ("UPDATE extent SET ino = 2 WHERE ino = 4", "extent-fields", "/dir "),
    ("UPDATE extent SET ino = 99 WHERE ino = 4", "extent-fields", "inode 99"),
    ("INSERT INTO extent SELECT ino, start + 1, 5, digest, 0, from_seq FROM extent WHERE ino = 4",
     "extent-range-overlap", "/dir/file"),
    ("INSERT INTO extent_past SELECT ino, start + 1, 5, digest, 0, from_seq, to_seq"
     " FROM extent_past WHERE ino = 4", "extent-past-range-overlap", "/dir/file"),
    ("UPDATE inode SET size = 3999 WHERE ino = 4", "extent-size", "/dir/file"),
    ("UPDATE inode SET size = 4001 WHERE ino = 4", "content-size", "/dir/file"),
    ("UPDATE inode_past SET size = 5 WHERE ino = 6", "content-size", "/gone"),
    ("UPDATE extent SET chunk_offset = 1 WHERE ino = 4", "extent-chunk", "/dir/file"),
    ("UPDATE extent SET chunk_offset = 1, length = 3999 WHERE ino = 4",
     "content-changed", "/dir/file"),
    ("UPDATE extent SET digest = (SELECT digest FROM extent_past WHERE ino = 4 LIMIT 1)"
     " WHERE ino = 4", "content-changed", "/dir/file"),
    ("DELETE FROM extent WHERE ino = 4", "content-changed", "/dir/file"),
    ("UPDATE extent SET length = 5 WHERE ino = 4", "content-changed", "/dir/file"),
    ("DELETE FROM extent WHERE ino = 6", "content-changed", "/gone"),
    ("DELETE FROM chunk WHERE digest IN (SELECT digest FROM extent)", "content-lost", "/dir/file"),
    ("DELETE FROM chunk WHERE digest IN (SELECT digest FROM extent_past)",
     "content-lost-past", "/dir/file"),
    ("DELETE FROM chunk", "content-lost-past", "/gone"),
    ("UPDATE inode SET content_seq = 1000 WHERE ino = 4", "content-unlogged", "/dir/file"),
    ("UPDATE inode_past SET content_seq = 1000 WHERE ino = 6", "content-unlogged", "/gone"),
    ("INSERT INTO content_hash VALUES (4, 1, zeroblob(32))", "content-hash", "/dir/file"),
    ("UPDATE xattr SET ino = 99", "xattr-orphan", "user.a"),
    ("UPDATE chunk SET pack = 99", "chunk-record", "pack None"),
    ("UPDATE chunk SET pack = 99", "content-lost", "/dir/file"),
    ("UPDATE chunk SET offset = offset + 1", "chunk-record", "pack"),
    ("UPDATE chunk SET offset = 0", "chunk-record", "pack"),
    ("UPDATE chunk SET codec = 77", "chunk-record", "pack"),
    ("UPDATE chunk SET length = length + 1", "chunk-record", "pack"),
    ("UPDATE chunk SET stored_length = stored_length + 1", "content-lost", "/dir/file"),
    ("UPDATE chunk SET stored_length = 100000000", "chunk-record", "pack"),
    ("UPDATE chunk SET stored_length = 1000000", "pack-short", "pack"),
    ("UPDATE pack SET name = '00112233445566778899aabbccddeeff'", "pack-missing",
     "00112233445566778899aabbccddeeff"),
    ("DELETE FROM pack", "pack-unknown", "pack"),
    ("UPDATE store SET value = 3 WHERE key = 'next_ino'", "store", "store"),
    ("DELETE FROM store WHERE key = 'tenant_id'", "store", "store"),
    ("INSERT INTO store VALUES ('pruned_to', 1000)", "store", "store"),
    ("DROP VIEW operations", "schema", "view operations"),
    ("DROP INDEX oplog_path", "schema", "index oplog_path"),
    ("DROP TABLE content_hash", "view", "view file_metadata"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("sql", "code", "name"), BROKEN, ids=[f"{sql[:70]} {code}" for sql, code, _ in BROKEN]
)
async def test_a_broken_row_is_found(world: World, sql: str, code: str, name: str) -> None:
    assert world.edit(sql) > 0 or sql.startswith("DROP")
    found = check(world.store)
    assert code in {problem.code for problem in found}, found
    assert any(name in problem.where for problem in found if problem.code == code), found
    for problem in found:
        assert problem.where
        assert problem.message


def pack_file(world: World) -> FilePath:
    return max((world.path / "packs").glob("*.pack"), key=lambda path: path.stat().st_size)


async def test_a_missing_pack_is_found(world: World) -> None:
    world.store.chunks.close()
    pack_file(world).unlink()
    assert codes(world) == {"pack-missing", "content-lost", "content-lost-past"}


async def test_a_pack_that_was_cut_is_found(world: World) -> None:
    path = pack_file(world)
    os.truncate(path, path.stat().st_size - 10)
    assert "pack-short" in codes(world)


async def test_a_destroyed_pack_header_is_found(world: World) -> None:
    with pack_file(world).open("r+b") as file:
        file.write(b"garbage!")
    assert codes(world) == {"pack-header"}


async def test_a_flipped_bit_in_a_chunk_is_found_by_a_deep_check(world: World) -> None:
    (offset, length) = world.database.connection.one(
        "SELECT offset, stored_length FROM chunk ORDER BY offset LIMIT 1"
    ) or (0, 0)
    with pack_file(world).open("r+b") as file:
        file.seek(offset + length - 1)
        byte = file.read(1)[0]
        file.seek(offset + length - 1)
        file.write(bytes([byte ^ 1]))
    assert codes(world) == set()
    assert "chunk-content" in codes(world, deep=True)
    assert codes(world, deep=True) & {"content-lost", "content-lost-past"}


async def test_a_pack_that_nobody_registered_is_found(world: World) -> None:
    copy = pack_file(world).with_name("f" * 32 + ".pack")
    copy.write_bytes(pack_file(world).read_bytes())
    assert codes(world) == {"pack-unknown"}
    # Begun, nothing in it yet: a process that is about to register it, or died there.
    os.truncate(copy, 32)
    assert codes(world) == set()


async def test_damage_below_the_rows_is_found(world: World) -> None:
    """An index without one of its entries, as after a failing disk."""
    connection = world.database.connection
    connection.run("PRAGMA writable_schema = 1")
    connection.run(
        "UPDATE sqlite_schema SET sql = 'CREATE INDEX dentry_ino ON dentry (kind, from_seq)'"
        " WHERE name = 'dentry_ino'"
    )
    connection.run("PRAGMA writable_schema = 0")
    connection.run("PRAGMA schema_version = 777")
    found = check(world.store, deep=True)
    assert "database" in {problem.code for problem in found}


async def test_much_of_the_same_is_cut_short(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(problems, "PROBLEMS_MAX", 3)
    world.edit("UPDATE dentry SET hash = hash + 1")
    found = [p for p in check(world.store) if p.code == "dentry-name"]
    assert len(found) == 4
    assert "more than 3" in found[-1].message


async def test_a_check_leaves_no_lock_behind(world: World) -> None:
    world.edit("DELETE FROM dentry WHERE ino = 5")
    check(world.store)
    await world.mkdir("after")
    assert not world.database.connection.in_transaction
