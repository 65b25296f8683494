"""Medians, ratios, the table and the JSON: what was measured, said plainly."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import median
from typing import Any

MANY_SYSTEMS = 4


@dataclass(frozen=True, slots=True)
class Sample:
    """One workload on one system in one round."""

    seconds: float
    operations: int
    requests: dict[str, int] | None
    """By opcode; None for a system without requests, or where they could not be counted."""
    cpu_us: float | None
    """Of the daemon; None for a system without one, as are the next two."""
    written: float | None = None
    """Bytes that the daemon wrote for each byte of content; None where none was written."""
    peak_bytes: int | None = None
    """Most memory that the daemon had while it worked."""

    @property
    def rate(self) -> float:
        return self.operations / self.seconds

    @property
    def requests_per_operation(self) -> float | None:
        return None if self.requests is None else sum(self.requests.values()) / self.operations

    @property
    def cpu_us_per_operation(self) -> float | None:
        return None if self.cpu_us is None else self.cpu_us / self.operations


@dataclass(frozen=True, slots=True)
class Failure:
    """A workload that a system did not do, or did wrongly."""

    reason: str


Outcome = Sample | Failure


@dataclass(frozen=True, slots=True)
class SystemInfo:
    label: str
    about: str
    requests_counted_by: str | None


@dataclass(frozen=True, slots=True)
class WorkloadInfo:
    name: str
    unit: str
    does: str


class Results:
    """Outcomes by workload, system and round."""

    def __init__(self, systems: Sequence[SystemInfo], workloads: Sequence[WorkloadInfo]) -> None:
        self.systems, self.workloads = systems, workloads
        self._outcomes: dict[tuple[str, str], dict[int, Outcome]] = {}

    def add(self, workload: str, system: str, number: int, outcome: Outcome) -> None:
        self._outcomes.setdefault((workload, system), {})[number] = outcome

    def samples(self, workload: str, system: str) -> dict[int, Sample]:
        outcomes = self._outcomes.get((workload, system), {})
        return {n: outcome for n, outcome in outcomes.items() if isinstance(outcome, Sample)}

    def failures(self) -> list[str]:
        """Return one line for each distinct failure."""
        lines: dict[str, None] = {}
        for (workload, system), outcomes in self._outcomes.items():
            for outcome in outcomes.values():
                if isinstance(outcome, Failure):
                    lines[f"{workload} on {system}: {outcome.reason}"] = None
        return list(lines)

    def rate(self, workload: str, system: str) -> float | None:
        return _median(sample.rate for sample in self.samples(workload, system).values())

    def requests(self, workload: str, system: str) -> float | None:
        samples = self.samples(workload, system).values()
        return _median(sample.requests_per_operation for sample in samples)

    def cpu_us(self, workload: str, system: str) -> float | None:
        samples = self.samples(workload, system).values()
        return _median(sample.cpu_us_per_operation for sample in samples)

    def written(self, workload: str, system: str) -> float | None:
        return _median(sample.written for sample in self.samples(workload, system).values())

    def peak_mib(self, workload: str, system: str) -> float | None:
        samples = self.samples(workload, system).values()
        peak = _median(sample.peak_bytes for sample in samples)
        return None if peak is None else peak / (1 << 20)

    def requests_by_opcode(self, workload: str, system: str) -> dict[str, float]:
        """Return medians per operation, most frequent first."""
        counted = [
            sample
            for sample in self.samples(workload, system).values()
            if sample.requests is not None
        ]
        opcodes = {opcode for sample in counted for opcode in sample.requests or {}}
        shares = {
            opcode: median((s.requests or {}).get(opcode, 0) / s.operations for s in counted)
            for opcode in opcodes
        }
        return dict(sorted(shares.items(), key=lambda item: (-item[1], item[0])))

    def ratio(self, workload: str, system: str, other: str) -> float | None:
        """Return how many times as fast ``system`` is as ``other``.

        The median of the ratios of each round, in which both took their turn: what slows
        the machine for a while slows both.
        """
        ours, theirs = self.samples(workload, system), self.samples(workload, other)
        return _median(ours[n].rate / theirs[n].rate for n in ours.keys() & theirs.keys())

    def pairs(self) -> list[tuple[str, str]]:
        """Return the pairs to compare: each with each, or the first with each of many."""
        labels = [system.label for system in self.systems]
        if len(labels) < MANY_SYSTEMS:
            return list(combinations(labels, 2))
        return [(labels[0], other) for other in labels[1:]]


def speed_table(results: Results) -> str:
    """Return rates and ratios as aligned plain text."""
    labels = [system.label for system in results.systems]
    pairs = results.pairs()
    header = ["", "", *labels, *(f"{a}/{b}" for a, b in pairs)]
    groups = [("", 2), ("rate", len(labels)), ("times as fast", len(pairs))]
    body = [
        [
            workload.name,
            workload.unit,
            *(number(results.rate(workload.name, label)) for label in labels),
            *(ratio(results.ratio(workload.name, a, b)) for a, b in pairs),
        ]
        for workload in results.workloads
    ]
    return align(groups, [header, *body])


def cost_table(results: Results) -> str:
    """Return what the daemons needed as aligned plain text; nothing where none was measured."""
    figures = {
        "requests/op": results.requests,
        "daemon CPU µs/op": results.cpu_us,
        "bytes written per byte": results.written,
        "peak memory MiB": results.peak_mib,
    }
    names = [workload.name for workload in results.workloads]
    groups, header = [("", 2)], ["", ""]
    body = [[workload.name, ""] for workload in results.workloads]
    for title, figure in figures.items():
        known = [
            system.label
            for system in results.systems
            if any(figure(name, system.label) is not None for name in names)
        ]
        groups.append((title, len(known)))
        header += known
        for name, row in zip(names, body, strict=True):
            row += [number(figure(name, label)) for label in known]
    return align(groups, [header, *body]) if len(header) > 2 else ""


def opcode_table(results: Results) -> str:
    """Return, for each FUSE system, what each operation consists of."""
    lines = []
    for system in results.systems:
        if not system.requests_counted_by:
            continue
        lines.append(f"requests/op on {system.label}")
        for workload in results.workloads:
            shares = results.requests_by_opcode(workload.name, system.label)
            parts = [f"{opcode} {number(n)}" for opcode, n in shares.items() if n >= 0.005]
            if results.samples(workload.name, system.label):
                lines.append(f"  {workload.name:<14} {', '.join(parts) or 'none'}")
        lines.append("")
    return "\n".join(lines)


def legend(results: Results, environment: dict[str, Any], notes: Sequence[str]) -> str:
    """Return what the figures mean, and where they stop meaning anything."""
    rounds = environment["rounds"]
    how = [
        "one round" if rounds == 1 else f"{rounds} rounds, the systems in turns; medians",
        "times as fast: the median of each round's own ratio",
        *_counting_legend(results),
        "figures of different runs, machines or disks do not compare",
    ]
    where = (
        f"Linux {environment['kernel']}, CPUs {environment['cpus']}, "
        f"Python {environment['python']}, {environment['filesystem']} "
        f"at {environment['directory']}"
    )
    sections = {
        "where": [where],
        "systems": [f"{system.label:<14} {system.about}" for system in results.systems],
        "work": [f"{workload.name:<14} {workload.does}" for workload in results.workloads],
        "how": how,
        "notes": notes,
    }
    lines = []
    for title, content in sections.items():
        if content:
            lines += [title, *(f"  {line}" for line in content)]
    return "\n".join(lines)


def as_json(results: Results, environment: dict[str, Any], notes: Sequence[str]) -> dict[str, Any]:
    """Return everything, each round included, for json.dump."""
    labels = [system.label for system in results.systems]
    return {
        "format": 1,
        "environment": environment,
        "systems": {
            system.label: {
                "about": system.about,
                "requests_counted_by": system.requests_counted_by,
            }
            for system in results.systems
        },
        "workloads": {
            workload.name: {
                "does": workload.does,
                "unit": workload.unit,
                "systems": {
                    label: _system_json(results, workload.name, label, labels) for label in labels
                },
            }
            for workload in results.workloads
        },
        "failures": results.failures(),
        "notes": list(notes),
    }


def number(value: float | None) -> str:
    """Return a figure with as many digits as mean something."""
    if value is None:
        return "-"
    if value >= 99.95:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 9.995 else f"{value:.2f}"


def ratio(value: float | None) -> str:
    if value is None:
        return "-"
    digits = max(0, 2 - math.floor(math.log10(value))) if value > 0 else 2
    return f"{value:,.{min(digits, 3)}f}x"


def _system_json(results: Results, workload: str, label: str, labels: list[str]) -> dict[str, Any]:
    return {
        "rate": results.rate(workload, label),
        "ratio": {o: results.ratio(workload, label, o) for o in labels if o != label},
        "requests_per_operation": results.requests(workload, label),
        "requests_by_opcode_per_operation": results.requests_by_opcode(workload, label),
        "cpu_us_per_operation": results.cpu_us(workload, label),
        "bytes_written_per_byte": results.written(workload, label),
        "peak_memory_mib": results.peak_mib(workload, label),
        "rounds": [
            {
                "round": n,
                "seconds": sample.seconds,
                "operations": sample.operations,
                "requests": sample.requests,
                "cpu_us": sample.cpu_us,
                "bytes_written_per_byte": sample.written,
                "peak_memory_bytes": sample.peak_bytes,
            }
            for n, sample in sorted(results.samples(workload, label).items())
        ],
    }


def _counting_legend(results: Results) -> list[str]:
    counted = {system.label: system.requests_counted_by for system in results.systems}
    lines = [f"requests of {label}: {how}" for label, how in counted.items() if how]
    if any(how and "tracepoint" in how for how in counted.values()):
        lines.append("the tracepoint sees every request but FORGET, which nobody waits for")
    if lines:
        lines.append("daemon CPU: user and system, until the daemon is idle again (at most 5 s)")
        lines.append(
            "bytes written: pages that the daemon made dirty, journals and caches included"
        )
        lines.append("peak memory: resident, mapped files included, all processes of the daemon")
    return lines


def _median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return median(known) if known else None


def align(groups: list[tuple[str, int]], rows: list[list[str]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    starts, column = [], 0
    for title, count in groups:
        # A group's title must fit over its columns.
        missing = len(title) - (sum(widths[column : column + count]) + 2 * (count - 1))
        if count and missing > 0:
            widths[column] += missing
        starts.append(column)
        column += count
    top = ""
    for (title, count), start in zip(groups, starts, strict=True):
        if count:
            position = sum(widths[:start]) + 2 * start
            end = sum(widths[: start + count]) + 2 * (start + count - 1)
            top = top.ljust(position) + title.rjust(end - position)
    lines = [top.rstrip()]
    for row in rows:
        cells = [
            cell.ljust(width) if column < 2 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
