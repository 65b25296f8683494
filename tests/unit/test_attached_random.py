"""Anything done on both sides of an attachment, in any order: they agree, and nothing is lost."""

from __future__ import annotations

import random
import shutil
from collections.abc import AsyncIterator
from hashlib import sha256
from pathlib import Path as FilePath

import pytest

from nexus_engine import errors
from nexus_engine.types import Digest
from tests.unit.test_attached import Attached
from tests.unit.undoing import ROOT
from tests.unit.worlds import World

NAMES = ("a", "b", "c", "d", "d/a", "d/b", "d/e", "d/e/a")
STEPS = 120


@pytest.fixture
async def attached(tmp_path: FilePath) -> AsyncIterator[Attached]:
    source = tmp_path / "source"
    source.mkdir()
    made = Attached(World(tmp_path / "store"), source)
    for name in ("a", "b", "d/a", "d/b"):
        made.put(name, f"first {name}".encode())
    made.add(options={"interval": "0"})
    yield made
    assert made.world.problems(deep=True) == []
    await made.world.close()


class Chaos:
    """Random changes, each of a content of its own."""

    def __init__(self, attached: Attached, rng: random.Random) -> None:
        self.attached = attached
        self.world = attached.world
        self.rng = rng
        self.count = 0
        self.theirs: set[bytes] = set()

    def content(self) -> bytes:
        self.count += 1
        return b"content %d" % self.count

    def name(self) -> str:
        return self.rng.choice(NAMES)

    def there(self) -> None:
        """Others do something; what cannot be done is not."""
        path = self.attached.source / self.name()
        try:
            if self.rng.random() < 0.7:
                path.parent.mkdir(parents=True, exist_ok=True)
                content = self.content()
                path.write_bytes(content)
                self.theirs.add(content)
            elif path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
        except OSError:
            pass

    async def here(self) -> None:
        """We do something; what cannot be done is not."""
        engine, place = self.world.engine, self.world.place
        name, other = f"data/{self.name()}", f"data/{self.name()}"
        doing = self.rng.choice(
            ("write", "write", "append", "remove", "rename", "exchange", "link", "mkdir", "undo")
        )
        try:
            match doing:
                case "write" | "append" if (
                    self.world.exists(name) and self.world.inode(name).is_dir
                ):
                    pass  # which the kernel would refuse
                case "write":
                    await self.world.write(name, self.content())
                case "append":
                    content = self.world.read(name)
                    await self.world.patch(name, len(content), self.content())
                case "remove" if self.world.inode(name).is_dir:
                    await engine.rmdir(*place(name), ROOT)
                case "remove":
                    await engine.unlink(*place(name), ROOT)
                case "rename":
                    await engine.rename(*place(name), *place(other), 0, ROOT)
                case "exchange":
                    await engine.rename(*place(name), *place(other), 2, ROOT)
                case "link":
                    await engine.link(self.world.inode(name).ino, *place(other), ROOT)
                case "mkdir":
                    await self.world.mkdir(name)
                case "undo":
                    self.attached.ask("undo", last=1, force=True)
        except (AssertionError, errors.EngineError):
            pass

    def exchange(self) -> None:
        """Exchange changes; what of theirs we overwrote or removed there must be here."""
        before = self.theirs & set(self.attached.there().values())
        self.attached.refresh()
        gone = before - set(self.attached.there().values())
        kept = {content for content in gone if self.has(content)}
        assert gone == kept

    def files(self) -> list[str]:
        """Return the paths of all files in the attachment."""
        view = self.world.store.reader
        found: list[str] = []
        pending = [""]
        while pending:
            path = pending.pop()
            for entry in view.list_children(
                self.world.inode(f"data/{path}".rstrip("/")).ino, 0, 99
            ):
                below = f"{path}/{entry.name.decode()}".removeprefix("/")
                (pending if entry.inode.is_dir else found).append(below)
        return found

    def read(self, path: str) -> bytes:
        return self.world.read(f"data/{path}")

    def has(self, content: bytes) -> bool:
        digest = Digest(sha256(content).digest())
        store = self.world.store
        return store.locate(digest) is not None or store.reader.find_chunk(digest) is not None


@pytest.mark.parametrize("round_", range(8))
async def test_both_sides_agree_whatever_is_done_on_them(
    attached: Attached, seed: int, round_: int
) -> None:
    chaos = Chaos(attached, random.Random(seed + round_))
    for _ in range(STEPS):
        chance = chaos.rng.random()
        if chance < 0.15:
            chaos.exchange()
        elif chance < 0.5:
            chaos.there()
        else:
            await chaos.here()
    for _ in range(3):
        chaos.exchange()
    # What others overwrote before anybody here read it, and an undo wants back, is not to be had.
    info = attached.info()
    odd = {each["path"]: each["key"] for each in info["odd_keys"]}
    stuck = {odd.get(each["path"], each["path"]) for each in info["unpushed"]}
    keys = {path: odd.get(path, path) for path in chaos.files()}
    here = {key: chaos.read(path) for path, key in keys.items() if key not in stuck}
    there = attached.there()
    assert here == {key: there[key] for key in there if key in here or key not in stuck}
    again = attached.refresh()
    assert not any(again[name] for name in ("added", "changed", "removed", "conflicts", "pushed"))
