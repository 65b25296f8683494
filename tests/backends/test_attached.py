"""Buckets and folders attached at a path of a real mount, for every kind of server.

Source: docs/USAGE.md, "Attached buckets and folders".
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from nexus_engine.backends.bucket import Bucket
from tests.backends.attaching import files, info, keys, objects, refresh, serving
from tests.backends.conftest import REACHABLE
from tests.conftest import Mount

BIG = bytes(range(256)) * 12_289  # three chunks and a bit
EROFS = "Read-only file system"
AT_ONE = pytest.mark.parametrize(
    "place",
    [
        pytest.param(place, id=place.name, marks=[pytest.mark.slow] * (place.name != "directory"))
        for place in REACHABLE
    ],
    indirect=True,
)
"""What says little about a server is tried at all of them only where there is time."""


@pytest.fixture
def mount(url: str, tmp_path: Path) -> Iterator[Mount]:
    """Yield a fresh mount, whose daemon finds the server as ``url`` says."""
    with serving(tmp_path) as mounted:
        yield mounted


@pytest.fixture
def source(bucket: Bucket) -> Bucket:
    """Return the bucket with something in it."""
    bucket.put("readme", b"read me\n")
    bucket.put("reports/2026/november.csv", b"a,b\n1,2\n")
    bucket.put("reports/ünï cödé", "ü\n".encode())
    bucket.put("reports/big", BIG)
    bucket.put("reports/empty", b"")
    return bucket


def test_objects_are_files_and_what_is_done_to_them_goes_back(
    mount: Mount, url: str, source: Bucket
) -> None:
    assert "5 objects" in mount.ctl("mounts", "add", "data", url)
    data = mount.path / "data"
    assert files(data) == objects(source)
    listing = mount.sh("cd data; find . | sort; stat -c %s reports/big")
    assert "./reports/ünï cödé\n" in listing
    assert f"{len(BIG)}\n" in listing
    mount.sh(
        """
        cd data
        cp reports/big copy
        echo 3,4 >> reports/2026/november.csv
        printf XYZ | dd of=reports/big bs=1 seek=1048575 conv=notrunc status=none
        truncate -s 4 readme
        mkdir -p new/deep
        echo made > new/deep/file
        mv reports/ünï\\ cödé new/ü
        rm reports/empty
        ln -s readme link
        """
    )
    refresh(mount)
    expected = {name: content for name, content in files(data).items() if name != "link"}
    assert objects(source) == expected
    assert expected["reports/big"][1048575:1048578] == b"XYZ"
    assert expected["new/ü"] == "ü\n".encode()
    mount.sh("mv data/new data/renamed; rm -r data/reports")
    refresh(mount)
    assert keys(source) == ["copy", "readme", "renamed/deep/file", "renamed/ü"]
    assert info(mount)["waiting"] == 0
    mount.remount()
    assert files(data) == objects(source) | {"link": b"read"}


@AT_ONE
def test_the_past_of_what_was_attached_is_kept_and_an_undo_goes_back(
    mount: Mount, url: str, source: Bucket
) -> None:
    mount.ctl("mounts", "add", "data", url)
    mount.ctl("snapshot", "create", "before")
    mount.sh("cd data; echo changed > readme; rm reports/big; mv reports/2026 elsewhere", agent="a")
    refresh(mount)
    assert source.read("readme", 0, 100) == b"changed\n"
    assert "reports/big" not in keys(source)
    before = mount.path / ".nexus/history/before/data"
    assert (before / "readme").read_bytes() == b"read me\n"
    assert (before / "reports/big").read_bytes() == BIG
    assert "/data/readme" in mount.ctl("log", "--agent", "a")
    mount.ctl("undo", "--agent", "a")
    refresh(mount)
    assert objects(source) == files(mount.path / "data")
    assert objects(source)["reports/big"] == BIG
    assert objects(source)["readme"] == b"read me\n"


@AT_ONE
def test_what_others_do_is_found_and_in_the_log(mount: Mount, url: str, source: Bucket) -> None:
    mount.ctl("mounts", "add", "data", url)
    assert (mount.path / "data/readme").read_bytes() == b"read me\n"
    source.put("readme", b"written by others\n")
    source.put("reports/new/one", b"new\n")
    source.delete("reports/2026/november.csv")
    done = refresh(mount)
    assert (done["added"], done["changed"], done["removed"]) == (1, 1, 1)
    assert files(mount.path / "data") == objects(source)
    assert not (mount.path / "data/reports/2026").exists()
    log = mount.json("log", "--agent", "external", "--path", "data")
    kinds = {(each["kind"], each["path"]) for each in log}
    assert {
        ("write", "data/readme"),
        ("create", "data/reports/new/one"),
        ("unlink", "data/reports/2026/november.csv"),
    } <= kinds
    versions = mount.sh("cat data/.nexus/versions/readme/*")
    assert "read me\n" in versions
    again = refresh(mount)
    assert not any(again[name] for name in ("added", "changed", "removed", "conflicts", "pushed"))


def test_a_change_here_and_there_is_a_conflict_that_loses_neither(
    mount: Mount, url: str, source: Bucket
) -> None:
    mount.ctl("mounts", "add", "data", url)
    data = mount.path / "data"
    mount.sh(
        "cd data; cat readme reports/2026/*; echo ours > readme; rm reports/empty; echo n > new"
    )
    mount.sh("cd data; echo more >> reports/2026/november.csv")
    source.put("readme", b"theirs\n")
    source.put("reports/empty", b"not empty any more\n")
    source.put("new", b"also new\n")
    source.delete("reports/2026/november.csv")
    refresh(mount)
    names = sorted(os.listdir(data))
    (aside,) = [name for name in names if name.startswith("readme.conflict-")]
    (other,) = [name for name in names if name.startswith("new.conflict-")]
    assert re.fullmatch(r"readme\.conflict-\d{8}T\d{6}Z", aside)
    found = files(data)
    assert (found["readme"], found[aside]) == (b"theirs\n", b"ours\n")
    assert (found["new"], found[other]) == (b"also new\n", b"n\n")
    assert found["reports/empty"] == b"not empty any more\n"
    assert found["reports/2026/november.csv"] == b"a,b\n1,2\nmore\n"
    assert objects(source) == found
    conflicts = info(mount)["conflicts"]
    assert isinstance(conflicts, list)
    assert {(each["path"], each["path2"]) for each in conflicts} >= {
        ("data/readme", f"data/{aside}"),
        ("data/new", f"data/{other}"),
    }
    # Ours after all.
    seq = next(each["seq"] for each in conflicts if each["path"] == "data/readme")
    mount.ctl("undo", f"op-{seq}")
    refresh(mount)
    assert objects(source)["readme"] == b"ours\n"
    assert aside not in keys(source)
    assert objects(source) == files(data)
    mount.expected_log.append("were changed here and there")


@AT_ONE
def test_what_is_attached_read_only_stays_as_it_is(mount: Mount, url: str, source: Bucket) -> None:
    before = objects(source)
    mount.ctl("mounts", "add", "data", url, "--read-only")
    for attempt in (
        "echo x >> data/readme", "echo x > data/new", "mkdir data/d", "rm data/readme",
        "mv data/readme data/r", "mv data/readme r", "ln data/readme r", "chmod 600 data/readme",
        "truncate -s 1 data/readme", "touch r; mv r data/r",
        "setfattr -n user.x -v y data/readme", "ln -s x data/link",
    ):  # fmt: skip
        done = subprocess.run(
            ["bash", "-c", attempt], cwd=mount.path, capture_output=True, text=True, check=False
        )
        assert EROFS in done.stderr, attempt
    assert files(mount.path / "data") == before
    source.put("readme", b"written by others\n")
    refresh(mount)
    assert (mount.path / "data/readme").read_bytes() == b"written by others\n"
    mount.ctl("mounts", "remove", "data")
    assert not (mount.path / "data").exists()
    assert objects(source) == before | {"readme": b"written by others\n"}
