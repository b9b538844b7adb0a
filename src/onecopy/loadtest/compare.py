"""Two runs side by side: what changed, by how much, and whether the difference is more than chance.

For latencies of whole requests the 95 % interval of the difference of medians is drawn from the samples (bootstrap,
seeded): an interval that holds zero is called noise. Rates have one value a run, so they carry no verdict.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from onecopy.loadtest.report import METRICS, Report, percentile

DRAWS = 1000
LEAST_SAMPLES = 8
"""Fewer answered requests than this say nothing about chance."""


@dataclass(frozen=True, slots=True)
class Change:
    """Of one figure from run a to run b. interval: of the difference of medians, in the figure's unit."""

    figure: str
    a: float
    b: float
    percent: float | None
    interval: tuple[float, float] | None = None
    verdict: str = ""


@dataclass(frozen=True, slots=True)
class Comparison:
    changes: tuple[Change, ...]
    warnings: tuple[str, ...]
    """Why the two should not be compared, when they should not."""


def compare(a: Report, b: Report) -> Comparison:
    changes = [
        _plain(name, getattr(a, name), getattr(b, name))
        for name in ("requests_per_second", "output_tokens_per_second", "failed", "goodput", "fairness")
        if getattr(a, name) is not None and getattr(b, name) is not None
    ]
    for name in METRICS:
        if name not in a.latency or name not in b.latency:
            continue
        for point in ("p50", "p99"):
            old, new = getattr(a.latency[name], point), getattr(b.latency[name], point)
            interval = _interval(_values(a, name), _values(b, name)) if point == "p50" else None
            changes.append(_plain(f"{name} {point}", old, new, interval))
    return Comparison(tuple(changes), tuple(_differences(a, b)))


def text(comparison: Comparison) -> str:
    head = ("figure", "a", "b", "change", "")
    rows = [head, *(_row(change) for change in comparison.changes)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows)


def _row(change: Change) -> tuple[str, ...]:
    percent = "" if change.percent is None else f"{change.percent:+.1f} %"
    return change.figure, f"{change.a:.4g}", f"{change.b:.4g}", percent, change.verdict


def _plain(name: str, a: float, b: float, interval: tuple[float, float] | None = None) -> Change:
    verdict = ""
    if interval is not None:
        verdict = "noise" if interval[0] <= 0 <= interval[1] else ("slower" if interval[0] > 0 else "faster")
    return Change(name, a, b, (b / a - 1) * 100 if a else None, interval, verdict)


def _values(report: Report, name: str) -> list[float]:
    """Per request, where the saved samples have it."""
    field = {"ttft": "ttft", "e2e": "seconds"}.get(name)
    if field is None:
        return []
    return [sample[field] for sample in report.samples if sample["error"] is None and sample.get(field) is not None]


def _interval(a: Sequence[float], b: Sequence[float]) -> tuple[float, float] | None:
    if min(len(a), len(b)) < LEAST_SAMPLES:
        return None
    draw = random.Random(0)  # noqa: S311
    differences = sorted(_median(draw.choices(b, k=len(b))) - _median(draw.choices(a, k=len(a))) for _ in range(DRAWS))
    return percentile(differences, 2.5), percentile(differences, 97.5)


def _median(values: Sequence[float]) -> float:
    return percentile(sorted(values), 50)


def _differences(a: Report, b: Report) -> list[str]:
    found: list[str] = []
    for label, left, right in (
        ("model", a.model, b.model),
        ("requests", a.requests, b.requests),
        ("concurrency", a.concurrency, b.concurrency),
        *((f"workload {key}", value, b.workload.get(key)) for key, value in _same(a.workload)),
        *((f"arrivals {key}", value, b.arrivals.get(key)) for key, value in _same(a.arrivals)),
    ):
        if left != right:
            found.append(f"{label} differs: {left} and {right}")
    return found


def _same(table: dict[str, Any]) -> list[tuple[str, Any]]:
    return [(key, value) for key, value in table.items() if key != "seed"]
