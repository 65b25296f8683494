"""Mounts of stores whose packs live in a bucket."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

from tests.conftest import CTL, TIMEOUT_S, Mount


class BucketMount(Mount):
    """A mount of a store with packs in a bucket, a directory beside it unless told otherwise."""

    def __init__(self, directory: Path, url: str = "", **settings: Any) -> None:
        self.bucket = directory / "bucket"
        self.bucket.mkdir(exist_ok=True)
        store = directory / "store"
        subprocess.run(
            [*CTL, "init", "--store", store, "--packs", url or f"file://{self.bucket}"],
            check=True,
            timeout=TIMEOUT_S,
        )
        self.configure(store, **settings)
        super().__init__(directory)

    @staticmethod
    def configure(store: Path, **settings: Any) -> None:
        text = "".join(f"{name}: {value}\n" for name, value in settings.items())
        (store / "store.yaml").write_text(text)

    def sent(self) -> dict[str, int]:
        """Return the packs in the bucket."""
        return _packs(self.bucket / "packs")

    def unsent(self) -> dict[str, int]:
        """Return the packs that are on this disk alone."""
        return _packs(self.store / "packs")

    def forget_cache(self) -> None:
        """Unmount, drop the cache, mount again."""
        self.umount()
        shutil.rmtree(self.store / "cache")
        self.mount()

    def figure(self, name: str) -> int:
        """Return a number of ``.nexus/status``."""
        lines = (self.path / ".nexus/status").read_text().splitlines()
        return int(dict(line.split(" ", 1) for line in lines)[name])


def _packs(directory: Path) -> dict[str, int]:
    found = {path.name: path.stat().st_size for path in directory.glob("*.pack")}
    return {name: size for name, size in found.items() if size > 32}
