"""``kill -9`` of the daemon at any instant and at every named point: no promise is broken."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.crash.campaign.failpoints import FAILPOINTS
from tests.crash.campaign.kills import Campaign

SLOW_ROUNDS = 60
"""Of each kind and run of the long tests; another seed, other rounds."""
FEW = ("small", "held")
COMMANDS = (
    "making", "undo", "snapshot", "workspace", "backup", "gc", "moving",
    "pushing", "importing", "fetching",
)  # fmt: skip
"""Failpoints of these are not for a mount that is written to: test_kill_commands.py, and
test_kill_attached.py."""
SENDING = [name for name in FAILPOINTS if name.startswith("sending")]
NAMED = [name for name in FAILPOINTS if name.split("-")[0] not in (*COMMANDS, "sending")]
AMID_WRITERS = [name for name in NAMED if not FAILPOINTS[name].at_start]
WHILE_MOUNTING = [name for name in NAMED if FAILPOINTS[name].at_start]


@pytest.fixture
def campaign(tmp_path: Path, seed: int) -> Iterator[Campaign]:
    running = Campaign(tmp_path, seed)
    try:
        yield running
    finally:
        print(running.figures)  # noqa: T201 - shown with -s or when it fails
        running.close()


@pytest.fixture
def bucket_campaign(tmp_path: Path, seed: int) -> Iterator[Campaign]:
    """Yield a campaign over stores whose packs live in a bucket."""

    def new_place() -> str:
        return Path(tempfile.mkdtemp(prefix="bucket-", dir=tmp_path)).as_uri()

    running = Campaign(tmp_path, seed, new_place)
    try:
        yield running
    finally:
        print(running.figures)  # noqa: T201 - shown with -s or when it fails
        running.close()


def test_a_kill_at_any_instant_breaks_no_promise(campaign: Campaign) -> None:
    campaign.run([()] * 3)
    assert campaign.figures.in_flight.total() >= 3  # killed while programs waited for a reply
    assert campaign.figures.promises > 100


def test_a_kill_at_each_named_point_breaks_no_promise(campaign: Campaign) -> None:
    """Each window of the table in docs/FORMAT.md; `run` requires that the point was reached."""
    campaign.run([*([name] for name in AMID_WRITERS), WHILE_MOUNTING], FEW)
    assert set(campaign.figures.hits) == set(NAMED)


def test_a_kill_at_each_point_of_an_upload_breaks_no_promise(bucket_campaign: Campaign) -> None:
    bucket_campaign.run([[name] for name in SENDING], FEW)
    assert set(bucket_campaign.figures.hits) == set(SENDING)


@pytest.mark.slow
@pytest.mark.timeout(880)
def test_kills_with_packs_in_a_bucket_many_times(bucket_campaign: Campaign, seed: int) -> None:
    rng = random.Random(seed)
    points = [*SENDING, *(point for point in AMID_WRITERS if not point.startswith("unlinked"))]
    amid = [rng.choice([[], [rng.choice(points)]]) for _ in range(SLOW_ROUNDS)]
    bucket_campaign.run(amid)
    assert bucket_campaign.figures.hits.total() == sum(map(len, amid))


@pytest.mark.slow
@pytest.mark.timeout(880)
def test_kills_at_random_instants_many_times(campaign: Campaign) -> None:
    campaign.run([()] * SLOW_ROUNDS)
    assert campaign.figures.in_flight.total() >= SLOW_ROUNDS
    assert campaign.figures.emptied >= SLOW_ROUNDS // 8


@pytest.mark.slow
@pytest.mark.timeout(880)
def test_kills_at_named_points_many_times(campaign: Campaign, seed: int) -> None:
    rng = random.Random(seed)
    amid = [rng.choice([[], [rng.choice(AMID_WRITERS)]]) for _ in range(SLOW_ROUNDS)]
    campaign.run([[*point, *rng.sample(WHILE_MOUNTING, 1)] for point in amid])
    assert campaign.figures.hits.total() == SLOW_ROUNDS + sum(map(len, amid))
