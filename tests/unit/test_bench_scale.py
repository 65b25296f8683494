"""The generator of large stores, on a small one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from benchlib import scale
from benchlib.generator import Size, make_store
from nexus_engine.check.fsck import check
from nexus_engine.oplog.verify import verify_log
from nexus_engine.store import Store


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a store of 300 files and 3,000 records."""
    path = tmp_path_factory.mktemp("generated") / "store"
    make_store(path, Size(files=300, records=3000), lambda records: None)
    return path


@pytest.fixture
def store(generated: Path) -> Iterator[Store]:
    opened = Store.open(generated)
    yield opened
    opened.close()


def test_generated_store_is_sound_and_has_what_was_asked_for(store: Store) -> None:
    assert check(store, deep=True) == []
    assert verify_log(store.database).holds
    assert store.reader.head() >= 3000
    (files,) = store.database.connection.one("SELECT count(*) FROM dentry WHERE kind = 32768") or ()
    assert files == 300


@pytest.mark.parametrize("name", scale.MEASURES)
def test_everything_that_is_measured_can_be_done(generated: Path, name: str) -> None:
    grown = scale.Grown(generated)
    try:
        grown.chmod(grown.sample(20))  # something to undo
        assert scale.MEASURES[name](grown, grown.sample(20)) > 0
    finally:
        grown.close()
