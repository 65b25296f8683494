"""Every expected failure has its errno."""

from __future__ import annotations

import errno
from collections import Counter
from typing import Any

import pyfuse3
import pytest

from nexus_engine import errors
from nexusfuse.errno_map import ERRNO, fuse_request


def leaves(kind: type[errors.EngineError] = errors.EngineError) -> list[type[errors.EngineError]]:
    below = kind.__subclasses__()
    return [leaf for child in below for leaf in leaves(child)] if below else [kind]


@pytest.mark.parametrize("leaf", leaves(), ids=lambda leaf: leaf.__name__)
def test_every_leaf_has_an_errno(leaf: type[errors.EngineError]) -> None:
    assert ERRNO[leaf] in errno.errorcode


def test_the_table_names_leaves_only() -> None:
    assert set(ERRNO) == set(leaves())


class Handlers:
    def __init__(self) -> None:
        self.requests: Counter[str] = Counter()
        self.under_way = 0
        self.damage: errors.CorruptMetadata | None = None

    async def find_damage(
        self, request: str, arguments: dict[str, Any]
    ) -> errors.CorruptMetadata | None:
        assert (request, arguments) == ("bug", {"ino": 7, "data": b"a secret"})
        return self.damage

    @fuse_request
    async def expected(self) -> None:
        raise errors.DirectoryNotEmpty("full")

    @fuse_request
    async def bug(self, ino: int, data: bytes) -> None:
        raise ZeroDivisionError(data)


async def test_an_expected_failure_becomes_its_errno() -> None:
    handlers = Handlers()
    with pytest.raises(pyfuse3.FUSEError) as caught:
        await handlers.expected()
    assert caught.value.errno == errno.ENOTEMPTY
    assert handlers.requests == {"expected": 1}
    assert handlers.under_way == 0


async def test_a_bug_becomes_eio_and_one_traceback(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(pyfuse3.FUSEError) as caught:
        await Handlers().bug(7, b"a secret")
    assert caught.value.errno == errno.EIO
    (record,) = caplog.records
    assert record.exc_info is not None
    assert "(7, '…')" in record.getMessage()
    assert "secret" not in record.getMessage()


async def test_damage_becomes_eio_and_one_line(caplog: pytest.LogCaptureFixture) -> None:
    handlers = Handlers()
    handlers.damage = errors.CorruptMetadata("/file (inode 7): garbage")
    with pytest.raises(pyfuse3.FUSEError) as caught:
        await handlers.bug(7, b"a secret")
    assert caught.value.errno == errno.EIO
    (record,) = caplog.records
    assert record.exc_info is None
    assert "/file (inode 7): garbage" in record.getMessage()
