"""Listings that stay right while entries come and go."""

from __future__ import annotations

import os
import random
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from tests.conftest import Mount
from tests.mount.linux import DirectoryStream, kind

MANY = 5000


@pytest.fixture(scope="module")
def crowd(shared_mount: Mount) -> Path:
    """Return a directory of ``MANY`` empty files, for tests that do not change it."""
    directory = shared_mount.path / "crowd"
    directory.mkdir()
    for number in range(MANY):
        os.close(os.open(directory / f"{number:05d}", os.O_CREAT | os.O_WRONLY))
    return directory


def test_a_listing_has_every_name_once_with_its_type_and_number(place: Path) -> None:
    """readdir(3): d_ino and d_type agree with stat; the dots are there."""
    (place / "file").touch()
    (place / "directory").mkdir()
    os.symlink("x", place / "link")
    os.mkfifo(place / "fifo")
    with os.scandir(place) as entries:
        found = {entry.name: entry for entry in entries}
    assert sorted(found) == ["directory", "fifo", "file", "link"]
    for name, entry in found.items():
        assert entry.inode() == os.lstat(place / name).st_ino
    assert found["link"].is_symlink()
    assert found["directory"].is_dir(follow_symlinks=False)
    assert found["file"].is_file(follow_symlinks=False)
    stream = DirectoryStream(place)
    names = stream.rest()
    stream.close()
    assert (names.count(b"."), names.count(b"..")) == (1, 1)
    assert len(names) == 6


def test_an_empty_directory_has_the_dots(place: Path) -> None:
    """readdir(3)"""
    stream = DirectoryStream(place)
    assert sorted(stream.rest()) == [b".", b".."]
    stream.close()


def test_a_large_directory_lists_completely(crowd: Path) -> None:
    """readdir(3): over many requests."""
    assert sorted(os.listdir(crowd)) == [f"{number:05d}" for number in range(MANY)]
    assert sum(1 for _ in os.scandir(crowd)) == MANY


def test_telldir_and_seekdir_continue_where_they_were(crowd: Path) -> None:
    """telldir(3), seekdir(3), rewinddir(3): a position names the same place later."""
    stream = DirectoryStream(crowd)
    rng, positions, names = random.Random(1), [], []
    while True:
        positions.append(stream.tell())
        name = stream.read()
        if name is None:
            break
        names.append(name)
    for index in rng.sample(range(len(names)), 50):
        stream.seek(positions[index])
        assert [stream.read() for _ in range(3)] == (names + [None] * 3)[index : index + 3]
    stream.rewind()
    assert stream.rest() == names
    stream.close()


def test_a_listing_stays_right_while_entries_come_and_go(place: Path) -> None:
    """readdir(3), POSIX: what is there all the while is listed exactly once; nothing twice."""
    staying = {f"stays-{number:05d}" for number in range(0, MANY, 5)}
    leaving = [f"leaves-{number:05d}" for number in range(MANY) if number % 5]
    names = [*staying, *leaving]
    rng = random.Random(7)
    rng.shuffle(names)
    for name in names:
        os.close(os.open(place / name, os.O_CREAT | os.O_WRONLY))
    rng.shuffle(leaving)
    seen: Counter[str] = Counter()
    stream = DirectoryStream(place)
    for number in range(10 * MANY):
        entry = stream.read()
        if entry is None:
            break
        seen[os.fsdecode(entry)] += 1
        if leaving:
            os.unlink(place / leaving.pop())
            if number % 2:
                os.close(os.open(place / f"new-{number}", os.O_CREAT | os.O_WRONLY))
    stream.close()
    assert staying <= seen.keys()
    assert [name for name, count in seen.items() if count > 1] == []
    assert staying <= set(os.listdir(place))


def test_deleting_while_listing_empties_a_directory(place: Path) -> None:
    """What rm -rf and many programs do: unlink each name that readdir gives."""
    for number in range(1000):
        (place / f"{number}").touch()
    with os.scandir(place) as entries:
        for entry in entries:
            os.unlink(entry.path)
    assert os.listdir(place) == []


def test_renames_within_a_directory_do_not_hide_others(place: Path) -> None:
    """readdir(3): a renamed entry may be seen under either name, the others exactly once."""
    for number in range(1000):
        (place / f"{number}").touch()
    seen: Counter[str] = Counter()
    with os.scandir(place) as entries:
        for position, entry in enumerate(entries):
            seen[entry.name] += 1
            if position < 100:
                os.rename(place / f"{position * 10}", place / f"renamed-{position}")
    for number in range(1000):
        if number % 10:
            assert seen[f"{number}"] == 1


def test_rm_rf_of_a_deep_tree(place: Path) -> None:
    """rm(1), find(1), du(1)."""
    script = """
    for a in 1 2 3 4 5; do for b in 1 2 3 4 5; do
        mkdir -p $a/$b/c/d/e; touch $a/$b/c/d/e/file $a/$b/c/other; done; done
    test "$(find . -type f | wc -l)" = 50
    test "$(find . -type d | wc -l)" = 106
    du -s . >/dev/null
    rm -rf 1 2 3 4 5
    """
    subprocess.run(["bash", "-euc", script], cwd=place, check=True, timeout=60)
    assert os.listdir(place) == []
    assert place.stat().st_nlink == 2


def test_a_path_may_be_as_long_as_path_max(place: Path) -> None:
    """path_resolution(7): PATH_MAX limits one call, not the depth of the tree."""
    fd = os.open(place, os.O_RDONLY)
    for _ in range(30):
        os.mkdir("d" * 200, dir_fd=fd)
        below = os.open("d" * 200, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(os.open("deep", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
    assert os.listdir(fd) == ["deep"]
    os.close(fd)
    subprocess.run(["rm", "-rf", place / ("d" * 200)], check=True, timeout=60)
    assert os.listdir(place) == []


def test_dotdot_of_a_moved_directory_is_its_new_parent(place: Path) -> None:
    """rename(2)"""
    (place / "a/moved").mkdir(parents=True)
    (place / "b").mkdir()
    fd = os.open(place / "a/moved", os.O_RDONLY)
    os.rename(place / "a/moved", place / "b/moved")
    assert os.stat("..", dir_fd=fd).st_ino == (place / "b").stat().st_ino
    os.close(fd)
    assert kind(place / "b/moved") == kind(place)
