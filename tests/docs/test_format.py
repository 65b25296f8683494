"""docs/FORMAT.md says what the code writes."""

from __future__ import annotations

import re
import subprocess
import sys

from nexus_engine.cas import pack
from nexus_engine.fs.files import Intent
from nexus_engine.meta import schema
from nexus_engine.types import Actor
from nexusfuse.virtual.numbers import NodeKind
from tests.conftest import TIMEOUT_S, Mount
from tests.crash.campaign.failpoints import FAILPOINTS
from tests.docs.markdown import DOCS, code, fences, rows, section

FORMAT = DOCS / "FORMAT.md"


def test_the_layout_of_packs_is_that_of_the_code() -> None:
    """Offsets and sizes as in the tables of cas/pack.py, which its own tests hold to the bytes."""
    in_code = re.findall(r"^(\d+) +(\d+|…) +\w", pack.__doc__ or "", re.MULTILINE)
    documented = [(row[0], row[1]) for row in rows(section(FORMAT, "Packs").text)]
    assert documented == in_code


def test_the_fields_of_an_intent_are_those_of_the_code() -> None:
    table = rows(section(FORMAT, "Intents").text)
    assert [code(row[1])[0] for row in table] == list(Intent.__struct_fields__)
    assert [int(row[0]) for row in table] == list(range(len(table)))
    actor = next(row[2] for row in table if "actor" in row[1])
    assert re.findall(r"\w+", actor.partition(":")[2]) == list(Actor._fields)


def test_every_table_of_the_schema_is_documented() -> None:
    script = "".join(schema.MIGRATIONS)
    tables = set(re.findall(r"CREATE TABLE (\w+)", script))
    text = section(FORMAT, "Metadata").text
    assert {name for row in rows(text) for name in code(row[0])} == tables
    for view in re.findall(r"CREATE VIEW (\w+)", script):
        assert f"`{view}`" in text


def test_every_crash_window_names_what_tries_it() -> None:
    table = rows(section(FORMAT, "Crash windows").text)
    assert all(row[4] for row in table)
    failpoints = {name for row in table for name in code(row[4]) if "/" not in name}
    assert failpoints == set(FAILPOINTS)


def test_the_numbers_of_virtual_nodes_are_documented() -> None:
    text = section(FORMAT, "Numbers of virtual inodes").text
    for kind in NodeKind:
        name = ".nexus" if kind is NodeKind.NEXUS else kind.name.lower()
        assert re.search(rf"{kind.value} `?{re.escape(name)}`?", text), name


def test_the_chain_can_be_verified_with_what_is_documented(mount: Mount) -> None:
    """The program in FORMAT.md comes to the same hash as verify-log."""
    mount.sh("echo one > a; mv a b; mkdir d; ln b d/c; rm b", agent="alice")
    mount.ctl("undo", "--last", "2")
    mount.ctl("snapshot", "create", "ü")
    (program,) = fences(FORMAT.read_text(), "python", marker="<!-- run: chain -->")
    done = subprocess.run(
        [sys.executable, "-c", program, mount.store],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == mount.json("verify-log")[0]["head_hash"]
