"""Links lead somewhere, and nothing is named that the documents should not name."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.docs.markdown import DOCS, ROOT, anchor, documents, links, sections


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("document", documents(), ids=relative)
def test_links_resolve(document: Path) -> None:
    for link in links(document.read_text()):
        if link.startswith(("https://", "http://")):
            continue
        where, _, fragment = link.partition("#")
        target = (document.parent / where).resolve() if where else document
        assert target.exists(), link
        assert target.is_relative_to(ROOT), link
        if fragment and target.suffix == ".md":
            assert fragment in {anchor(found.title) for found in sections(target)}, link


def test_every_document_can_be_reached_from_the_readme() -> None:
    reached, pending = set(), [ROOT / "README.md"]
    while pending:
        document = pending.pop()
        if document in reached:
            continue
        reached.add(document)
        for link in links(document.read_text()):
            if "://" in link:
                continue
            target = (document.parent / link.partition("#")[0]).resolve()
            if target.is_dir():
                pending += target.glob("*.md")
            elif target.suffix == ".md":
                pending.append(target)
    assert set(documents()) <= reached


def test_decisions_are_numbered_and_have_their_parts() -> None:
    decisions = sorted((DOCS / "decisions").glob("[0-9]*.md"))
    assert [path.name[:4] for path in decisions] == [
        f"{number:04d}" for number in range(1, len(decisions) + 1)
    ]
    for path in decisions:
        titles = [found.title for found in sections(path)]
        assert titles[0].startswith(f"{path.name[:4]}: "), path.name
        assert titles[1:] == ["Context", "Decision", "Rejected", "When to look again"], path.name
