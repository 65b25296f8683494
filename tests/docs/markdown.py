"""Just enough of Markdown to hold the documents to what they say."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
README = ROOT / "README.md"
ELLIPSIS = "…"

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_HEADING = re.compile(r"^(#+) (.+)$", re.MULTILINE)
_RULER = re.compile(r"\|[ :|-]+$")
_LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")


class Section(NamedTuple):
    level: int
    title: str
    text: str
    """Up to the next heading of any level."""


def documents() -> list[Path]:
    """Return every document that people read."""
    return sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md")])


def without_fences(text: str) -> str:
    return _FENCE.sub("", text)


def fences(text: str, language: str, *, marker: str = "") -> list[str]:
    """Return the fenced blocks of a language; with a marker, those right below it."""
    return [
        block[2]
        for block in _FENCE.finditer(text)
        if block[1] == language and text[: block.start()].rstrip().endswith(marker)
    ]


def sections(path: Path) -> list[Section]:
    text = without_fences(path.read_text())
    found = list(_HEADING.finditer(text))
    ends = [heading.start() for heading in found[1:]] + [len(text)]
    return [
        Section(len(heading[1]), heading[2].strip(), text[heading.end() : end])
        for heading, end in zip(found, ends, strict=True)
    ]


def section(path: Path, title: str) -> Section:
    """Return the section with a title, with everything below it.

    Raises:
        LookupError: There is none.
    """
    everything = sections(path)
    for index, found in enumerate(everything):
        if found.title == title:
            text = found.text
            for below in everything[index + 1 :]:
                if below.level <= found.level:
                    break
                text += f"{'#' * below.level} {below.title}\n{below.text}"
            return found._replace(text=text)
    raise LookupError(f"{path.name} has no section {title!r}")


def rows(text: str) -> list[list[str]]:
    """Return the cells of every table row, headings and rulers left out."""
    lines = text.splitlines()
    found = []
    for line, follows in zip(lines, [*lines[1:], ""], strict=True):
        if line.startswith("|") and not (_RULER.match(line) or _RULER.match(follows)):
            cells = re.split(r"(?<!\\)\|", line.strip().strip("|"))
            found.append([cell.strip().replace("\\|", "|") for cell in cells])
    return found


def code(text: str) -> list[str]:
    """Return what stands in backquotes."""
    return re.findall(r"`([^`\n]+)`", text)


def links(text: str) -> Iterator[str]:
    yield from _LINK.findall(without_fences(text))


def anchor(title: str) -> str:
    """Return what a heading is called in a link, as GitHub makes it."""
    plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title)
    return re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
