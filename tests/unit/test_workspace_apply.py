"""What a workspace changed, and carrying it over into the base."""

from __future__ import annotations

import pytest

from nexus_engine import errors
from nexus_engine.commands import Request, execute, ignore_progress
from nexus_engine.history.select import Selector
from nexus_engine.history.workspaces.merging import merge_lines
from nexus_engine.oplog.reader import get_entry
from tests.unit.undoing import ROOT, redo, undo
from tests.unit.working import apparent, apply, discard, make, status
from tests.unit.worlds import ALICE, BOB, World

MTIMES = False


def same(world: World) -> bool:
    """Tell whether base and workspace are the same now, times apart."""
    return apparent(world, "w", times=MTIMES) == apparent(world, "docs", times=MTIMES)


async def test_nothing_changed_is_nothing_to_apply(world: World) -> None:
    made = make(world, "w", "docs")
    assert apparent(world, "w")
    head = world.head
    assert status(world, made) == []
    assert apply(world, made).seq is None
    assert world.head == head


@pytest.mark.parametrize("again", [b"c", b"another"])
async def test_what_is_moved_away_and_made_anew_is_both(world: World, again: bytes) -> None:
    """As ``mv old older; mkdir old`` does, and the same with a file."""
    await world.write("docs/b", b"c")
    made = make(world, "w", "docs")
    old, file = world.inode("docs/old").ino, world.inode("docs/b").ino
    await world.rename("w/old", "w/older")
    await world.mkdir("w/old")
    await world.rename("w/b", "w/c")
    await world.write("w/b", again)
    assert not any(path.startswith(b"!") for _, path in status(world, made))
    done = apply(world, made)
    assert same(world)
    assert (world.inode("docs/older").ino, world.inode("docs/c").ino) == (old, file)
    assert status(world, made) == []
    assert done.seq is not None
    undo(world, Selector(ops=(done.seq,)))
    assert world.inode("docs/old").ino == old
    assert world.problems() == []


async def test_all_kinds_of_changes_are_carried_over_in_one_operation(world: World) -> None:
    await world.write("docs/moving", b"moves")
    await world.write("docs/doomed", b"goes")
    made = make(world, "w", "docs")
    before, moving = apparent(world, "docs"), world.inode("docs/moving").ino
    await world.write("w/b", b"changed")
    await world.write("w/new", b"new")
    await world.mkdir("w/dir")
    await world.write("w/dir/inside", b"inside")
    await world.symlink("w/dir/link", b"inside")
    await world.unlink("w/doomed")
    await world.rename("w/moving", "w/dir/moved")
    await world.chmod("w/old/c", 0o600)
    await world.setxattr("w/b", b"user.x", b"y")
    assert status(world, made) == [
        ("removed", b"doomed"),
        ("modified", b"b"),
        ("xattr", b"b"),
        ("added", b"dir"),
        ("added", b"dir/inside"),
        ("added", b"dir/link"),
        ("renamed", b"dir/moved"),
        ("added", b"new"),
        ("mode", b"old/c"),
    ]
    head = world.head
    done = apply(world, made)
    assert done.seq == world.head == head + 1
    assert get_entry(world.database, world.head).record.kind == "apply"
    assert world.read("docs/dir/inside") == b"inside"
    assert world.inode("docs/dir/moved").ino == moving
    assert same(world)
    assert status(world, made) == []
    assert world.problems() == []
    undo(world, Selector(ops=(done.seq,)))
    assert apparent(world, "docs") == before
    assert len(status(world, made)) == 9
    redo(world)
    assert same(world)
    assert status(world, made) == []


async def test_an_applied_file_stays_itself_also_when_it_was_replaced(world: World) -> None:
    """Editors write a new file and rename it over the old one."""
    made = make(world, "w", "docs")
    ino = world.inode("docs/b").ino
    await world.write("w/b.tmp", b"saved")
    await world.rename("w/b.tmp", "w/b")
    assert status(world, made) == [("modified", b"b")]
    apply(world, made)
    assert world.inode("docs/b").ino == ino
    assert world.read("docs/b") == b"saved"
    assert status(world, made) == []
    await world.rename("w/b", "w/c")
    assert status(world, made) == [("renamed", b"c")]
    apply(world, made)
    assert world.inode("docs/c").ino == ino


async def test_a_chosen_path_brings_what_it_needs_and_nothing_else(world: World) -> None:
    made = make(world, "w", "docs")
    await world.write("w/b", b"changed")
    await world.mkdir("w/dir")
    await world.mkdir("w/dir/deep")
    await world.write("w/dir/deep/x", b"x")
    await world.write("w/dir/y", b"y")
    apply(world, made, "dir/deep/x")
    assert world.read("docs/dir/deep/x") == b"x"
    assert not world.exists("docs/dir/y")
    assert world.read("docs/b") == b"first b"
    assert status(world, made) == [("modified", b"b"), ("added", b"dir/y")]
    apply(world, made)
    assert same(world)


async def test_changes_of_both_sides_are_a_conflict_that_is_left_alone(world: World) -> None:
    await world.write("docs/doomed", b"goes")
    await world.write("docs/doomed2", b"goes")
    made = make(world, "w", "docs")
    await world.write("w/b", b"by the agent")
    await world.write("docs/b", b"by somebody")
    await world.unlink("w/doomed")
    await world.write("docs/doomed", b"still wanted")
    await world.write("w/doomed2", b"still wanted")
    await world.unlink("docs/doomed2")
    await world.write("w/new", b"one")
    await world.write("docs/new", b"another")
    await world.write("w/old/c", b"fine")
    assert status(world, made) == [
        ("removed", b"!doomed"),
        ("modified", b"!b"),
        ("modified", b"!doomed2"),
        ("added", b"!new"),
        ("modified", b"old/c"),
    ]
    apply(world, made)
    assert world.read("docs/b") == b"by somebody"
    assert world.read("docs/doomed") == b"still wanted"
    assert world.read("docs/new") == b"another"
    assert world.read("docs/old/c") == b"fine"
    assert not world.exists("docs/doomed2")


async def test_different_parts_of_one_file_are_no_conflict(world: World) -> None:
    made = make(world, "w", "docs")
    await world.write("w/b", b"by the agent")
    await world.chmod("docs/b", 0o600)
    assert status(world, made) == [("modified", b"b")]
    apply(world, made)
    assert world.read("docs/b") == b"by the agent"
    assert world.inode("docs/b").mode & 0o777 == 0o600


async def test_the_same_change_on_both_sides_is_none(world: World) -> None:
    made = make(world, "w", "docs")
    for side in ("w", "docs"):
        await world.write(f"{side}/b", b"the same")
        await world.mkdir(f"{side}/dir")
        await world.write(f"{side}/dir/x", b"x")
        await world.unlink(f"{side}/s")
    await world.write("w/dir/y", b"y")
    assert status(world, made) == [("added", b"dir/y")]
    apply(world, made)
    assert same(world)


async def test_a_directory_goes_when_all_in_it_is_as_it_was(world: World) -> None:
    made = make(world, "w", "docs")
    await world.remove("w/old")
    assert status(world, made) == [
        ("removed", b"old"),
        ("removed", b"old/a2"),
        ("removed", b"old/c"),
    ]
    await world.write("docs/old/new", b"somebody's")
    assert status(world, made) == [("removed", b"!old")]
    apply(world, made)
    assert world.exists("docs/old/c")
    await world.unlink("docs/old/new")
    apply(world, made)
    assert not world.exists("docs/old")
    assert same(world)


async def test_what_moved_out_of_a_removed_directory_moves(world: World) -> None:
    made = make(world, "w", "docs")
    ino = world.inode("docs/old/c").ino
    await world.rename("w/old/c", "w/c")
    await world.remove("w/old")
    apply(world, made)
    assert world.inode("docs/c").ino == ino
    assert same(world)


async def test_a_directory_made_anew_is_the_old_one_with_other_entries(world: World) -> None:
    made = make(world, "w", "docs")
    directory, ino = world.inode("docs/old").ino, world.inode("docs/old/c").ino
    await world.remove("w/old")
    await world.mkdir("w/old")
    await world.write("w/old/c", b"again")
    assert status(world, made) == [("removed", b"old/a2"), ("modified", b"old/c")]
    apply(world, made)
    assert (world.inode("docs/old").ino, world.inode("docs/old/c").ino) == (directory, ino)
    assert same(world)


async def test_files_and_directories_take_each_others_places(world: World) -> None:
    made = make(world, "w", "docs")
    await world.remove("w/old")
    await world.write("w/old", b"now a file")
    await world.unlink("w/b")
    await world.mkdir("w/b")
    await world.write("w/b/x", b"x")
    apply(world, made)
    assert same(world)
    assert status(world, made) == []


async def test_two_files_swap_their_names(world: World) -> None:
    made = make(world, "w", "docs")
    inos = [world.inode(f"docs/{name}").ino for name in ("b", "s")]
    await world.rename("w/b", "w/s", 2)
    apply(world, made)
    assert [world.inode(f"docs/{name}").ino for name in ("s", "b")] == inos
    assert same(world)


async def test_a_moved_directory_brings_what_is_in_it(world: World) -> None:
    made = make(world, "w", "docs")
    ino = world.inode("docs/old").ino
    await world.rename("w/old", "w/older")
    await world.write("w/older/c", b"changed")
    await world.write("docs/old/added", b"by somebody")
    apply(world, made)
    assert world.inode("docs/older").ino == ino
    assert world.read("docs/older/c") == b"changed"
    assert world.read("docs/older/added") == b"by somebody"


async def test_a_directory_that_both_moved_is_a_conflict(world: World) -> None:
    made = make(world, "w", "docs")
    await world.rename("w/old", "w/older")
    await world.rename("docs/old", "docs/ancient")
    await world.write("w/older/c", b"changed")
    assert status(world, made) == [("added", b"!older"), ("modified", b"older/c")]
    apply(world, made)
    assert world.read("docs/ancient/c") == b"changed"
    assert not world.exists("docs/older")


async def test_what_is_new_in_a_directory_that_cannot_come_cannot_either(world: World) -> None:
    made = make(world, "w", "docs")
    await world.mkdir("w/dir")
    await world.write("w/dir/x", b"x")
    await world.write("docs/dir", b"a file")
    assert status(world, made) == [("added", b"!dir"), ("added", b"!dir/x")]
    assert apply(world, made).seq is None


async def test_a_workspace_goes_on_after_an_apply(world: World) -> None:
    made = make(world, "w", "docs")
    await world.write("w/new", b"one")
    await world.write("w/b", b"one")
    apply(world, made)
    await world.write("w/new", b"two")
    await world.write("w/b", b"first b")
    assert status(world, made) == [("modified", b"b"), ("modified", b"new")]
    apply(world, made)
    assert world.read("docs/b") == b"first b"
    await world.unlink("w/new")
    assert status(world, made) == [("removed", b"new")]
    apply(world, made)
    assert not world.exists("docs/new")
    assert status(world, made) == []


async def test_what_others_do_to_what_was_applied_is_theirs(world: World) -> None:
    made = make(world, "w", "docs")
    await world.write("w/new", b"one")
    apply(world, made)
    await world.write("docs/new", b"somebody's")
    assert status(world, made) == []
    await world.write("w/new", b"two")
    assert status(world, made) == [("modified", b"!new")]


async def test_of_two_workspaces_the_second_meets_what_the_first_applied(world: World) -> None:
    first, second = make(world, "v", "docs"), make(world, "w", "docs")
    await world.write("v/b", b"by v")
    await world.write("w/b", b"by w")
    await world.write("w/c", b"by w")
    apply(world, first)
    assert status(world, second) == [("modified", b"!b"), ("added", b"c")]
    apply(world, second)
    assert world.read("docs/b") == b"by v"
    assert world.read("docs/c") == b"by w"


async def test_files_of_several_names_stay_so(world: World) -> None:
    made = make(world, "w", "docs")
    await world.write("w/a", b"both")
    await world.write("w/one", b"linked")
    await world.link("w/one", "w/two")
    apply(world, made)
    assert world.read("docs/old/a2") == b"both"
    assert world.inode("docs/one").ino == world.inode("docs/two").ino
    assert world.inode("docs/one").nlink == 2


async def test_nothing_is_applied_where_a_part_is_not_allowed(world: World) -> None:
    await world.chmod("docs/old", 0o755)
    made = make(world, "w", "docs")
    await world.write("w/b", b"changed")
    world.actor = BOB._replace(uid=0)
    await world.chmod("docs", 0o777)
    await world.write("w/new", b"new")
    world.actor = ALICE
    with pytest.raises(errors.PermissionDenied):
        apply(world, made, actor=BOB)
    assert not world.exists("docs/new")
    apply(world, made, "new", actor=BOB)
    assert world.inode("docs/new").uid == BOB.uid


async def test_a_base_that_is_gone_is_said(world: World) -> None:
    made = make(world, "w", "docs")
    await world.write("w/b", b"changed")
    await world.remove("docs")
    with pytest.raises(errors.NotFound):
        status(world, made)
    discard(world, made)


async def test_text_that_both_changed_is_merged_when_asked(world: World) -> None:
    lines = [b"%d" % number for number in range(20)]
    await world.write("docs/text", b"\n".join(lines))
    await world.write("docs/clash", b"\n".join(lines))
    made = make(world, "w", "docs")
    for side, number in (("w", 3), ("docs", 15)):
        changed = [b"by " + side.encode() if line == b"%d" % number else line for line in lines]
        await world.write(f"{side}/text", b"\n".join(changed))
        await world.write(f"{side}/clash", b"by " + side.encode())
    assert status(world, made) == [("modified", b"!clash"), ("modified", b"!text")]
    reply = execute(
        world.store,
        Request("workspace-apply", {"name": "w", "merge": True}),
        ROOT,
        ignore_progress,
    )
    assert [(c["change"], c["path"]) for c in reply["changes"]] == [("merged", "text")]
    merged = b"\n".join({b"3": b"by w", b"15": b"by docs"}.get(line, line) for line in lines)
    assert world.read("docs/text") == world.read("w/text") == merged
    assert world.read("docs/clash") == b"by docs"
    assert status(world, made) == [("modified", b"!clash")]
    undo(world, Selector(last=1))
    assert status(world, made) == [("modified", b"!clash"), ("modified", b"!text")]


@pytest.mark.parametrize(
    ("mine", "theirs", "merged"),
    [
        ("abc", "abc", "abc"),
        ("aXc", "abc", "aXc"),
        ("abc", "abX", "abX"),
        ("Xbc", "abY", "XbY"),
        ("aXc", "aXc", "aXc"),
        ("aXc", "aYc", None),
        ("ac", "aYc", None),
        ("ac", "abcd", "acd"),
        ("XYabc", "ab", "XYab"),
        ("", "abc", ""),
        ("", "abX", None),
        ("abcX", "abcY", None),
    ],
)
def test_lines_are_merged_where_they_do_not_meet(
    mine: str, theirs: str, merged: str | None
) -> None:
    texts = [[letter.encode() for letter in text] for text in ("abc", mine, theirs)]
    found = merge_lines(*texts)
    assert found == (None if merged is None else [letter.encode() for letter in merged])
    assert merge_lines(texts[0], texts[2], texts[1]) == found


async def test_a_directory_made_anew_is_known_after_a_part_of_it_was_applied(world: World) -> None:
    made = make(world, "w", "docs")
    await world.remove("w/old")
    await world.mkdir("w/old")
    await world.write("w/old/c", b"again")
    apply(world, made, "old/c")
    assert status(world, made) == [("removed", b"old/a2")]
    apply(world, made)
    assert same(world)
