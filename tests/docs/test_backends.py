"""docs/BACKENDS.md names every scheme and every option of a URL."""

from __future__ import annotations

import re

from nexus_engine.backends.urls import _OPENERS
from tests.docs.markdown import DOCS, ROOT, code, rows, section

BACKENDS = DOCS / "BACKENDS.md"


def test_every_scheme_and_every_option_is_documented() -> None:
    documented: dict[str, set[str]] = {}
    explained: set[str] = set()
    for row in rows(section(BACKENDS, "URLs").text):
        name = code(row[0])[0]
        scheme, is_url, _ = name.partition("://")
        if is_url:
            documented[scheme] = set(code(row[2]))
        else:
            explained.add(name)
    assert documented.keys() == _OPENERS.keys()
    for scheme, opener in _OPENERS.items():
        source = (ROOT / f"{opener.partition(':')[0].replace('.', '/')}.py").read_text()
        taken = re.findall(r'url\.(?:(?:text|flag)\("(\w+)"\)|(endpoint)\(\))', source)
        assert documented[scheme] == {"".join(names) for names in taken}
    assert explained == set.union(*documented.values()) | {"deadline_s"}
