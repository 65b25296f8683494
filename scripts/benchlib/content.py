"""Deterministic content: text that looks like source, and bytes never seen before."""

from __future__ import annotations

import io
import random
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

BLOCK_BYTES = 1 << 20
FIXED_MTIME_S = 1_700_000_000

_WORDS = (
    "buffer", "index", "value", "parent", "child", "node", "entry", "cursor", "offset",
    "length", "limit", "result", "error", "handle", "request", "reply", "config", "option",
    "path", "name", "size", "count", "total", "first", "last", "next", "state", "read", "write",
    "open", "close", "flush", "sync", "commit", "lookup", "create", "remove", "rename",
    "encode", "decode",
)  # fmt: skip
_PATTERNS = (
    "    {a} = self._{b}.{c}({a}, {b}_{n})",
    "    if {a} is None or {b}.{c} > {n}:",
    "        raise {A}Error({a!r}, {b}={c})",
    "def {a}_{b}({c}: int, {a}: bytes) -> {B}:",
    '    """Return the {a} of the {b}, or its {c} when there is none."""',
    "        return {a}[{b} : {b} + {n}]",
    "    for {a} in sorted({b}.{c}_{a}()):",
    "    # The {a} comes before the {b}: otherwise {c} {n} would be lost.",
    "",
)


@dataclass(frozen=True, slots=True)
class TreeFile:
    """One file of the generated tree; ``path`` is relative, with forward slashes."""

    path: str
    content: bytes
    mode: int


def text(seed: str, size_bytes: int) -> bytes:
    """Return source-like text; the same seed and size give the same bytes."""
    rng = random.Random(seed)
    pool = [_line(rng) for _ in range(400)]
    lines = [f"# {seed}\n"]
    length = len(lines[0])
    while length < size_bytes:
        line = rng.choice(pool)
        lines.append(line)
        length += len(line)
    return "".join(lines).encode()[:size_bytes]


def fresh_blocks(seed: str, total_bytes: int) -> list[bytes]:
    """Return blocks of incompressible bytes that repeat nowhere, in or between seeds."""
    rng = random.Random(seed)
    return [rng.randbytes(BLOCK_BYTES) for _ in range(total_bytes // BLOCK_BYTES)]


def source_tree(file_count: int) -> Iterator[TreeFile]:
    """Yield a tree like that of a source distribution: many small files, a few large."""
    rng = random.Random("tree")
    for number in range(file_count):
        package = f"package_{number // 60:02d}"
        module = f"module_{number // 12 % 5}"
        name, mode = (f"tool_{number}.sh", 0o755) if number % 50 == 49 else _module_name(number)
        size_bytes = min(200_000, int(rng.lognormvariate(8.3, 1.2)))
        path = f"source/{package}/{module}/{name}"
        yield TreeFile(path, text(path, size_bytes), mode)


def write_tar(path: Path, files: list[TreeFile]) -> None:
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        seen: set[str] = set()
        for file in files:
            for parent in reversed(Path(file.path).parents):
                if parent.name and str(parent) not in seen:
                    seen.add(str(parent))
                    archive.addfile(_tar_entry(str(parent), tarfile.DIRTYPE, 0o755))
            entry = _tar_entry(file.path, tarfile.REGTYPE, file.mode)
            entry.size = len(file.content)
            archive.addfile(entry, io.BytesIO(file.content))


def _tar_entry(path: str, kind: bytes, mode: int) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(path)
    entry.type, entry.mode, entry.mtime = kind, mode, FIXED_MTIME_S
    return entry


def _module_name(number: int) -> tuple[str, int]:
    return f"part_{number}.{('py', 'c', 'h', 'rst')[number % 4]}", 0o644


def _line(rng: random.Random) -> str:
    a, b, c = rng.sample(_WORDS, 3)
    pattern = rng.choice(_PATTERNS)
    values = {"a": a, "b": b, "c": c, "A": a.title(), "B": b.title(), "n": rng.randrange(4096)}
    return pattern.format(**values) + "\n"
