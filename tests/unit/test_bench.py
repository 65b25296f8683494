"""The benchmark's arithmetic, and one small run of the real thing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from benchlib import batches, chart, content, counting, handlers, report
from benchlib.report import Failure, Results, Sample, SystemInfo, WorkloadInfo

ROOT = Path(__file__).resolve().parents[2]


def sample(rate: float, requests: int | None = None, cpu_us: float | None = None) -> Sample:
    """Return 100 operations at this rate."""
    counts = None if requests is None else {"write": requests}
    return Sample(seconds=100 / rate, operations=100, requests=counts, cpu_us=cpu_us)


@pytest.fixture
def results() -> Results:
    return Results(
        [SystemInfo("nexus", "ours", "tracepoint"), SystemInfo("ext4", "disk", None)],
        [WorkloadInfo("create", "ops/s", "create files")],
    )


def test_rate_is_the_median_of_the_rounds(results: Results) -> None:
    for number, rate in enumerate((10.0, 1000.0, 30.0)):
        results.add("create", "nexus", number, sample(rate))
    assert results.rate("create", "nexus") == pytest.approx(30)


def test_ratio_is_the_median_of_each_rounds_own_ratio(results: Results) -> None:
    """A machine that slows down for a round slows both systems: the ratio stays."""
    for number, (ours, theirs) in enumerate([(10.0, 20.0), (100.0, 200.0), (30.0, 10.0)]):
        results.add("create", "nexus", number, sample(ours))
        results.add("create", "ext4", number, sample(theirs))
    assert results.ratio("create", "nexus", "ext4") == pytest.approx(0.5)
    assert results.ratio("create", "ext4", "nexus") == pytest.approx(2)


def test_ratio_ignores_rounds_that_one_of_the_two_failed(results: Results) -> None:
    results.add("create", "nexus", 0, sample(50))
    results.add("create", "ext4", 0, Failure("broken"))
    assert results.ratio("create", "nexus", "ext4") is None
    results.add("create", "nexus", 1, sample(50))
    results.add("create", "ext4", 1, sample(100))
    assert results.ratio("create", "nexus", "ext4") == pytest.approx(0.5)
    assert results.failures() == ["create on ext4: broken"]


def test_requests_and_cpu_are_per_operation(results: Results) -> None:
    results.add("create", "nexus", 0, sample(50, requests=600, cpu_us=25_000))
    results.add("create", "ext4", 0, sample(50))
    assert results.requests("create", "nexus") == 6
    assert results.cpu_us("create", "nexus") == 250
    assert results.requests_by_opcode("create", "nexus") == {"write": 6}
    assert results.requests("create", "ext4") is None


def test_table_aligns_and_marks_what_is_unknown(results: Results) -> None:
    results.add("create", "nexus", 0, sample(2000, requests=600, cpu_us=25_000))
    results.add("create", "ext4", 0, sample(10_000))
    speed = report.speed_table(results).splitlines()
    assert speed[-1].split() == ["create", "ops/s", "2,000", "10,000", "0.200x"]
    assert len({len(line) for line in speed}) == 1
    costs = report.cost_table(results).splitlines()
    assert costs[-1].split() == ["create", "6.00", "250"]
    empty = Results(results.systems, results.workloads)
    assert report.speed_table(empty).splitlines()[-1].split() == ["create", "ops/s", *"---"]
    assert report.cost_table(empty) == ""


def test_chart_has_a_dot_for_each_ratio(results: Results) -> None:
    results.add("create", "nexus", 0, sample(50))
    results.add("create", "ext4", 0, sample(100))
    picture = ElementTree.fromstring(chart.svg(results))
    titles = [title.text for title in picture.iter("{http://www.w3.org/2000/svg}title")]
    assert titles == ["ext4", "create: 0.500x ext4"]


def test_json_holds_every_round(results: Results) -> None:
    results.add("create", "nexus", 0, sample(50, requests=600))
    results.add("create", "nexus", 1, sample(100, requests=600))
    document = json.loads(json.dumps(report.as_json(results, {"rounds": 2}, ["a note"])))
    nexus = document["workloads"]["create"]["systems"]["nexus"]
    assert nexus["rate"] == pytest.approx(75)
    assert [entry["round"] for entry in nexus["rounds"]] == [0, 1]
    assert nexus["ratio"] == {"ext4": None}


@pytest.mark.parametrize(
    ("value", "shown"),
    [(None, "-"), (0.0, "0.00"), (0.125, "0.12"), (12.34, "12.3"), (12345.6, "12,346")],
)
def test_figures_have_as_many_digits_as_mean_something(value: float | None, shown: str) -> None:
    assert report.number(value) == shown


def test_many_systems_are_compared_with_the_first_only() -> None:
    systems = [SystemInfo(label, "", None) for label in "abcd"]
    assert Results(systems, []).pairs() == [("a", "b"), ("a", "c"), ("a", "d")]
    assert Results(systems[:3], []).pairs() == [("a", "b"), ("a", "c"), ("b", "c")]


def test_trace_is_counted_by_opcode() -> None:
    """The line's format is events/fuse/fuse_request_send/format of Linux 6.18."""
    line = "tar-7 [001] ..... 1.5: fuse_request_send: connection 39 req 8 opcode {} len 40"
    trace = "\n".join(
        ["# tracer: nop", *map(line.format, ["1 (FUSE_LOOKUP)", "16 (FUSE_WRITE)"]), ""]
    )
    assert counting.parse_trace(trace * 2) == {"lookup": 2, "write": 2}


def test_status_lines_other_than_requests_are_skipped() -> None:
    status = "pid 17\nrequests_lookup 12\nrequests_WRITE 3\nrequests_odd many\nuptime_s 4\n"
    assert counting.parse_status(status) == {"lookup": 12, "write": 3}


def test_own_counts_leave_out_what_reading_them_costs() -> None:
    reads = 0
    work = 0

    def read() -> str:
        nonlocal reads
        reads += 1
        return f"requests_read {reads}\nrequests_write {work}\n"

    counter = counting.StatusCounter("its own", read)
    counter.start()
    work += 5
    assert counter.stop() == {"write": 5}


def test_cpu_of_a_process_started_meanwhile_counts_whole() -> None:
    assert counting.growth({1: 100, 2: 50}, {1: 130, 3: 7}) == 37


def test_content_is_the_same_each_time() -> None:
    first, second = list(content.source_tree(30)), list(content.source_tree(30))
    assert first == second
    assert len({file.path for file in first}) == 30
    assert content.fresh_blocks("a", 1 << 20) != content.fresh_blocks("b", 1 << 20)


@pytest.mark.skipif(not os.access("/dev/fuse", os.W_OK), reason="needs /dev/fuse")
def test_quick_run_measures_and_leaves_nothing_behind(tmp_path: Path) -> None:
    disk, figures = tmp_path / "disk", tmp_path / "figures.json"
    disk.mkdir()
    command = [sys.executable, str(ROOT / "scripts/bench"), "--quick", "--json", str(figures)]
    command += ["--systems", "memfs,ext4", "--only", "create,stat", "--directory", str(disk)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr

    workloads = json.loads(figures.read_text())["workloads"]
    assert list(workloads) == ["create", "stat"]
    memfs = workloads["create"]["systems"]["memfs"]
    assert memfs["rate"] > 0
    assert memfs["cpu_us_per_operation"] > 0
    assert memfs["requests_by_opcode_per_operation"]["create"] == 1
    assert workloads["stat"]["systems"]["memfs"]["requests_per_operation"] == 0
    assert "create" in done.stdout
    assert list(disk.iterdir()) == []
    assert str(disk) not in Path("/proc/self/mountinfo").read_text()


async def test_a_batch_is_measured_beside_single_writes(tmp_path: Path) -> None:
    costs = await batches.measure(tmp_path, count=3, rounds=1)
    assert len(costs) == 4
    assert all(cost > 0 for pair in costs.values() for way in pair for cost in way)
    assert all(what in batches.table(costs) for what in costs)


async def test_each_request_is_asked_of_handler_and_engine(tmp_path: Path) -> None:
    costs = await handlers.measure(tmp_path, count=3, rounds=1)
    assert {"lookup", "create", "read 4 KiB", "rename"} <= costs.keys()
    assert all(whole > 0 and inside > 0 for whole, inside in costs.values())
    assert all(name in handlers.table(costs) for name in costs)
