"""``kill -9`` while changes are exchanged with the source of an attachment: nothing is lost."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import TIMEOUT_S
from tests.crash.campaign.kills import unmount_dead
from tests.crash.test_kill_commands import Place, named


class Attached(Place):
    """A store of which one directory, ``data``, is another directory's."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.source = directory / "source"
        self.source.mkdir()
        for number in range(8):
            (self.source / f"old{number}").write_text(f"old {number}\n")
        (self.source / "large").write_bytes(os.urandom(2 << 20))

    def change(self, script: str) -> None:
        """Run a script in the mount, and unmount; the source is away meanwhile."""
        daemon = self.mount()
        away = self.source.rename(self.source.with_name("away"))
        subprocess.run(
            ["bash", "-euc", script], cwd=self.mountpoint / "data", check=True, timeout=TIMEOUT_S
        )
        self.umount(daemon)
        away.rename(self.source)

    def there(self) -> dict[str, bytes]:
        return _files(self.source)

    def here(self) -> dict[str, bytes]:
        daemon = self.mount()
        found = _files(self.mountpoint / "data")
        self.umount(daemon)
        return found


def _files(directory: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file() and ".nexus-bucket" not in path.parts
    }


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Attached]:
    made = Attached(tmp_path)
    yield made
    unmount_dead(made.mountpoint)
    made.require_sound()


def test_a_push_that_is_cut_short_anywhere_is_finished(place: Attached) -> None:
    place.umount(place.mount())
    place.ctl("mounts", "add", "/data", f"file://{place.source}", "-o", "interval=0")
    place.change(
        """
        for i in 1 2 3; do echo new $i > new$i; echo changed $i >> old$i; done
        rm old4 old5; mv old6 renamed; mv large huge; mkdir d; mv old7 d/e
        """
    )
    wanted = {
        **{f"new{i}": b"new %d\n" % i for i in (1, 2, 3)},
        **{f"old{i}": b"old %d\nchanged %d\n" % (i, i) for i in (1, 2, 3)},
        "old0": b"old 0\n", "renamed": b"old 6\n", "d/e": b"old 7\n",
        "huge": (place.source / "large").read_bytes(),
    }  # fmt: skip
    for failpoint in named("pushing"):
        place.die(failpoint, "mounts", "refresh", "/data")
    place.ctl("mounts", "refresh", "/data")
    assert place.there() == wanted
    assert place.here() == wanted
    assert "conflict" not in place.ctl("log")


def test_an_import_that_is_cut_short_goes_on(place: Attached) -> None:
    place.umount(place.mount())
    place.ctl("mounts", "add", "/data", f"file://{place.source}", "-o", "interval=0")
    for number in range(8):
        (place.source / f"old{number}").write_text(f"changed there {number}\n")
    for number in range(600):  # more than a batch
        (place.source / f"new{number}").write_text(f"{number}\n")
    for failpoint in named("importing"):
        place.die(failpoint, "mounts", "refresh", "/data")
    place.ctl("mounts", "refresh", "/data")
    assert place.here() == place.there()
    assert "conflict" not in place.ctl("log")


def test_what_is_fetched_when_the_process_dies_is_fetched_again(place: Attached) -> None:
    place.umount(place.mount())
    place.ctl("mounts", "add", "/data", f"file://{place.source}", "-o", "interval=0")
    for failpoint in named("fetching"):
        daemon = place.mount(failpoint)
        daemon.arm()
        with pytest.raises(OSError, match=r"connect|abort"):
            (place.mountpoint / "data/large").read_bytes()
        daemon.await_death()
    assert place.here() == place.there()
