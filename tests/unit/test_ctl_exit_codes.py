"""The one table from engine errors to exit codes."""

from __future__ import annotations

import pytest

from nexus_engine import errors
from nexusfuse.ctl import exit_codes
from nexusfuse.ctl.exit_codes import EXIT_CODE, code_of_error


def leaves(error: type[errors.EngineError]) -> list[type[errors.EngineError]]:
    """Return every error below one that has none below itself."""
    children = error.__subclasses__()
    return [leaf for child in children for leaf in leaves(child)] if children else [error]


@pytest.mark.parametrize("leaf", leaves(errors.EngineError), ids=lambda leaf: leaf.__name__)
def test_every_expected_failure_has_an_exit_code(leaf: type[errors.EngineError]) -> None:
    assert EXIT_CODE[leaf] in range(1, 10)


def test_the_table_holds_nothing_else() -> None:
    assert EXIT_CODE.keys() == set(leaves(errors.EngineError))


def test_every_code_is_documented() -> None:
    documented = [
        line.split()[0] for line in (exit_codes.__doc__ or "").splitlines() if line[:1].isdigit()
    ]
    assert documented == [str(code) for code in range(10)]


def test_a_check_that_could_not_run_ends_as_fsck_8_says() -> None:
    assert code_of_error(errors.StoreNotFound("…"), "fsck") == 8
    assert code_of_error(errors.StoreNotFound("…"), "log") == 6
    assert code_of_error(errors.CorruptMetadata("…"), "fsck") == 4
