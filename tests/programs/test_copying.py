"""Copies to the mount and back are the same, down to the nanosecond and the hard link."""

from __future__ import annotations

import os
import shutil
import socket
from pathlib import Path

import pytest

from tests.conftest import Mount
from tests.mount.trees import Seen, look, plant
from tests.programs.programs import as_root, needs, run, sh

COPIES = {
    "cp": "mkdir {to}; cp -a {from}/. {to}",
    "tar": "mkdir {to}; tar cf - --xattrs --xattrs-include='*' --acls --sparse -C {from} . |"
    " tar xpf - --xattrs --xattrs-include='*' --acls -C {to}",
    "tar-archive": "tar czf {to}.tgz --format=posix --xattrs --acls --selinux -C {from} .;"
    " mkdir {to}; tar xpzf {to}.tgz --xattrs --xattrs-include='*' --acls -C {to}; rm {to}.tgz",
    "rsync": "rsync -aHAXS {from}/ {to}",
}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Return a tree on the disk with one of everything."""
    root = tmp_path / "tree"
    root.mkdir()
    plant(root)
    os.utime(root / "docs/todo.md", ns=(5, 1_600_000_000_123_456_789))
    for step in range(5):
        os.link(root / "docs/todo.md", root / f"docs/deep/link-{step}")
    if os.geteuid() == 0:
        os.mknod(root / "device", 0o20640, os.makedev(240, 7))
        os.chown(root / "docs/deep/big", 1234, 5678)
        os.lchown(root / "soft", 4321, 8765)
        os.setxattr(root / "docs", "trusted.mark", b"\0\xff")
    (root / "docs/program").write_text("#!/bin/sh\n")
    os.chmod(root / "docs/program", 0o6755)
    if shutil.which("setfacl"):
        sh(
            """
            setfacl -m u:1234:rw,g:55:r docs/todo.md
            setfacl -m u:99:x,d:u:1234:rwx,d:g:55:r docs/deep
            """,
            root,
        )
    # Times of long ago: rsync leaves links and devices alone whose time is right to the second.
    for number, path in enumerate(sorted(root.rglob("*"), reverse=True)):
        if path.lstat().st_mtime_ns > 1_700_000_000 * 10**9:
            time_ns = 1_400_000_000_123_456_789 + number * 10**9
            os.utime(path, ns=(time_ns, time_ns), follow_symlinks=False)
    os.utime(root, ns=(8, 1_500_000_000_999_999_999))
    return root


def require_equal(found: dict[bytes, Seen], expected: dict[bytes, Seen]) -> None:
    """Names, types, modes, owners, sizes, mtimes, bytes, xattrs, ACLs and hard links agree."""
    assert found.keys() == expected.keys()
    for name, seen in expected.items():
        assert found[name] == seen, name


@pytest.mark.parametrize(
    "program",
    [
        "cp",
        "tar",
        pytest.param("tar-archive", marks=pytest.mark.slow),
        pytest.param("rsync", marks=needs("rsync", "rsync")),
    ],
)
def test_a_tree_goes_there_and_back_unchanged(
    shared_mount: Mount, place: Path, tree: Path, program: str
) -> None:
    """cp(1) -a, tar(1), rsync(1) -aHAX: everything, also after a remount."""
    before, copy, back = look(tree), place / "copy", tree.parent / "back"
    sh(COPIES[program].format(**{"from": tree, "to": copy}), place)
    require_equal(look(copy), before)
    shared_mount.remount()
    require_equal(look(copy), before)
    sh(COPIES[program].format(**{"from": copy, "to": back}), place)
    require_equal(look(back), before)
    sh(COPIES[program].format(**{"from": copy, "to": place / "second"}), place)
    require_equal(look(place / "second"), before)


@needs("rsync", "rsync")
def test_a_second_rsync_finds_nothing_to_do(place: Path, tree: Path) -> None:
    """rsync(1) --itemize-changes prints nothing when all is the same; then only what changed."""
    again = ["rsync", "-aHAX", "--delete", "--itemize-changes", f"{tree}/", f"{place}/copy/"]
    assert run(*again, cwd=place) != ""
    assert run(*again, cwd=place) == ""
    assert run(*again, "--checksum", cwd=place) == ""
    backwards = ["rsync", "-aHAX", "--itemize-changes", f"{place}/copy/", f"{tree}/"]
    assert run(*backwards, cwd=place) == ""
    (tree / "docs/todo.md").write_text("changed")
    (tree / "dangling").unlink()
    os.utime(tree, ns=(9, 9))
    changed = run(*again, "--inplace", cwd=place).split("\n")
    assert "*deleting   dangling" in changed
    assert len([line for line in changed if line.startswith(">f")]) == 1, changed
    assert run(*again, cwd=place) == ""
    require_equal(look(place / "copy"), look(tree))


def test_mv_across_mounts_keeps_everything(place: Path, tree: Path) -> None:
    """mv(1) to another filesystem copies with all attributes, then removes."""
    before = look(tree)
    run("mv", tree, place / "tree", cwd=place)
    assert not tree.exists()
    require_equal(look(place / "tree"), before)
    run("mv", place / "tree", tree, cwd=place)
    assert os.listdir(place) == []
    require_equal(look(tree), before)


@as_root
def test_a_socket_is_copied_as_a_socket(place: Path) -> None:
    """cp(1) -a makes the node anew."""
    with socket.socket(socket.AF_UNIX) as listener:
        os.chdir(place)
        listener.bind("socket")
        os.chdir("/")
        run("cp", "-a", "socket", "copy", cwd=place)
    assert (place / "copy").is_socket()


def test_python_copies_and_archives_a_tree(place: Path, tree: Path) -> None:
    """shutil: copytree with symlinks, make_archive, unpack_archive, disk_usage, rmtree."""
    shutil.copytree(tree / "docs", place / "copy", symlinks=True)
    found, expected = look(place / "copy"), look(tree / "docs")
    assert found.keys() == expected.keys()
    for name, seen in expected.items():
        assert (found[name].content, found[name].mtime_ns) == (seen.content, seen.mtime_ns), name
    for format_ in ("tar", "gztar"):
        archive = shutil.make_archive(str(place / "archive"), format_, place / "copy")
        shutil.unpack_archive(archive, place / format_)
        assert {key: seen.content for key, seen in look(place / format_).items()} == {
            key: seen.content for key, seen in expected.items()
        }
    assert shutil.disk_usage(place).total > 0
    shutil.rmtree(place / "copy")
    assert not (place / "copy").exists()


def test_the_past_is_copied_as_it_was(shared_mount: Mount, place: Path, tree: Path) -> None:
    """cp(1) -a and tar(1) from .nexus/history bring back the tree that was removed."""
    before = look(tree)
    sh(COPIES["cp"].format(**{"from": tree, "to": place / "copy"}), place)
    (place / ".nexus/snapshots/copied").mkdir()
    run("rm", "-rf", "copy", cwd=place)
    past = place / ".nexus/history/copied/copy"
    for program in ("cp", "tar"):
        sh(COPIES[program].format(**{"from": past, "to": place / program}), place)
        require_equal(look(place / program), before)
