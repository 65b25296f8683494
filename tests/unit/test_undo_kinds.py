"""Every kind of operation, undone, redone and undone again."""

from __future__ import annotations

import pytest

from nexus_engine.fs.namespace import RENAME_EXCHANGE
from nexus_engine.history.select import Selector
from nexus_engine.types import Seq
from tests.unit.undoing import (
    redo,
    undo,
    undo_since,
)
from tests.unit.worlds import ALICE, World


async def _create(world: World) -> None:
    await world.write("docs/new", b"x" * 100)


async def _mkdir(world: World) -> None:
    await world.mkdir("docs/new")


async def _symlink(world: World) -> None:
    await world.symlink("docs/new", b"target")


async def _mknod(world: World) -> None:
    await world.engine.make(*world.place("docs/fifo"), 0o010644, ALICE)


async def _link(world: World) -> None:
    await world.link("docs/b", "docs/old/b2")


async def _unlink(world: World) -> None:
    await world.unlink("docs/b")


async def _unlink_one_of_two_names(world: World) -> None:
    await world.unlink("docs/a")


async def _unlink_both_names(world: World) -> None:
    await world.unlink("docs/old/a2")
    await world.unlink("docs/a")


async def _unlink_symlink(world: World) -> None:
    await world.unlink("docs/s")


async def _rmdir(world: World) -> None:
    await world.mkdir("docs/new")
    await world.rmdir("docs/new")


async def _rename(world: World) -> None:
    await world.rename("docs/b", "docs/old/b")


async def _rename_directory(world: World) -> None:
    await world.rename("docs/old", "older")


async def _rename_twice(world: World) -> None:
    await world.rename("docs/old", "docs/older")
    await world.rename("docs/older", "oldest")


async def _replace(world: World) -> None:
    await world.rename("docs/b", "docs/a")


async def _replace_directory(world: World) -> None:
    await world.mkdir("docs/new")
    await world.mkdir("docs/empty")
    await world.rename("docs/new", "docs/empty")


async def _save_like_an_editor(world: World) -> None:
    await world.write("docs/.b.tmp", b"second b")
    await world.chmod("docs/.b.tmp", 0o600)
    await world.rename("docs/.b.tmp", "docs/b")


async def _exchange(world: World) -> None:
    await world.rename("docs/old", "docs/b", RENAME_EXCHANGE)


async def _swap_by_renames(world: World) -> None:
    await world.rename("docs/a", "docs/t")
    await world.rename("docs/b", "docs/a")
    await world.rename("docs/t", "docs/b")


async def _write(world: World) -> None:
    await world.write("docs/a", b"second a, longer")


async def _patch(world: World) -> None:
    await world.patch("docs/a", 2, b"XX")


async def _append_far(world: World) -> None:
    await world.patch("docs/a", 1_000_000, b"far")


async def _truncate(world: World) -> None:
    await world.setattr("docs/a", size=3)


async def _grow(world: World) -> None:
    await world.setattr("docs/a", size=3_000_000)


async def _empty(world: World) -> None:
    await world.write("docs/a", b"")


async def _chmod(world: World) -> None:
    await world.chmod("docs/a", 0o600)


async def _chown(world: World) -> None:
    await world.setattr("docs", uid=7, gid=8)


async def _utimes(world: World) -> None:
    await world.setattr("docs/a", mtime_ns=5, atime_ns=6)


async def _utimes_of_directory(world: World) -> None:
    await world.setattr("docs/old", mtime_ns=5)


async def _setxattr(world: World) -> None:
    await world.setxattr("docs/a", b"user.color", b"blue")
    await world.setxattr("docs/a", b"user.shape", b"round")


async def _removexattr(world: World) -> None:
    await world.engine.removexattr(world.inode("docs/a").ino, b"user.color", ALICE)


async def _remove_tree(world: World) -> None:
    await world.remove("docs")


async def _edit_then_remove(world: World) -> None:
    await world.write("docs/b", b"second b")
    await world.chmod("docs/b", 0o400)
    await world.remove("docs")


async def _make_and_remove(world: World) -> None:
    await world.write("docs/new", b"gone soon")
    await world.unlink("docs/new")


async def _remove_and_make_again(world: World) -> None:
    await world.remove("docs/old")
    await world.mkdir("docs/old")
    await world.write("docs/old/c", b"another c")


async def _everything(world: World) -> None:
    await _save_like_an_editor(world)
    await _rename_directory(world)
    await world.write("older/d", b"d")
    await world.link("older/d", "docs/d")
    await world.remove("docs")
    await world.mkdir("docs")


KINDS = [
    _create, _mkdir, _symlink, _mknod, _link, _unlink, _unlink_one_of_two_names,
    _unlink_both_names, _unlink_symlink, _rmdir, _rename, _rename_directory, _rename_twice,
    _replace, _replace_directory, _save_like_an_editor, _exchange, _swap_by_renames, _write,
    _patch, _append_far, _truncate, _grow, _empty, _chmod, _chown, _utimes,
    _utimes_of_directory, _setxattr, _removexattr, _remove_tree, _edit_then_remove,
    _make_and_remove, _remove_and_make_again, _everything,
]  # fmt: skip


@pytest.mark.parametrize("change", KINDS, ids=lambda change: change.__name__.strip("_"))
async def test_undo_brings_back_the_tree_and_redo_takes_it_away(
    world: World, change: object
) -> None:
    """Names, types, modes, owners, sizes, mtimes, bytes, links and xattrs, however often."""
    start, before = world.head, world.tree()
    await change(world)  # type: ignore[operator]
    changed, after = world.head, world.tree()

    result = undo_since(world, start)
    assert world.tree() == before
    assert result.plan.conflicts == []
    for _ in range(2):
        redo(world)
        assert world.tree() == after
        assert world.problems(deep=True) == []
        undo_since(world, start)
        assert world.tree() == before
        assert world.problems(deep=True) == []

    assert world.tree(at=start) == before
    assert world.tree(at=changed) == after
    assert world.tree(at=result.seq) == before


@pytest.mark.parametrize("change", KINDS, ids=lambda change: change.__name__.strip("_"))
async def test_undoing_one_by_one_walks_back(world: World, change: object) -> None:
    start = world.head
    await change(world)  # type: ignore[operator]
    moments = list(range(start, world.head))
    trees = {seq: world.tree(at=Seq(seq)) for seq in moments}
    for seq in reversed(moments):
        undo(world, Selector(last=1))
        assert world.tree() == trees[seq]
    for _ in moments:
        redo(world)
    assert world.tree() == world.tree(at=Seq(moments[-1] + 1))
