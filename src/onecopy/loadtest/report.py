"""A run's figures: percentiles, throughput, goodput, shares; as JSON (the format that `compare` reads) and as text."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from onecopy.core.errors import UsageError
from onecopy.loadtest.arrivals import Arrivals
from onecopy.loadtest.client import Sample
from onecopy.loadtest.counters import Share, fairness
from onecopy.loadtest.slo import Slo
from onecopy.loadtest.workload import Workload

PERCENTILES = (50, 90, 95, 99)
METRICS: dict[str, str] = {
    "ttft": "time to first token",
    "itl": "between tokens",
    "tpot": "per token after the first",
    "e2e": "whole request",
}


class _Stored(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Latency(_Stored):
    """Seconds."""

    count: int
    mean: float
    p50: float
    p90: float
    p95: float
    p99: float
    max: float


class Report(_Stored):
    """Times in seconds, rates per second. `samples`: one entry a request, with its status and times."""

    format: Literal[1] = 1
    endpoint: str
    model: str
    started: datetime
    seconds: float
    workload: dict[str, Any]
    arrivals: dict[str, Any]
    concurrency: int | None
    warmup: int
    requests: int
    ok: int
    failed: int
    statuses: dict[str, int]
    """HTTP status (0: none came) → requests."""
    errors: dict[str, int]
    input_tokens: int
    output_tokens: int
    requests_per_second: float
    output_tokens_per_second: float
    total_tokens_per_second: float
    latency: dict[str, Latency]
    late_max: float
    """Longest that the generator itself was behind its times: above some milliseconds, its machine is too slow."""
    slo: dict[str, float | None]
    goodput: float | None
    """Requests a second that kept every objective; None without one."""
    goodput_share: float | None
    replicas: list[dict[str, Any]]
    fairness: float | None
    """Jain's index of what the replicas served by their own counters: 1 is even."""
    samples: list[dict[str, Any]]


def build(
    *,
    samples: Sequence[Sample],
    seconds: float,
    started: datetime,
    endpoint: str,
    model: str,
    workload: Workload,
    arrivals: Arrivals,
    concurrency: int | None,
    warmup: int,
    slo: Slo,
    shares: Sequence[Share],
) -> Report:
    good = [sample for sample in samples if sample.ok]
    span = max(seconds, 1e-9)
    read, written = sum(s.input_tokens or 0 for s in good), sum(s.output_tokens or 0 for s in good)
    measured = {
        "ttft": [s.ttft for s in good if s.ttft is not None],
        "itl": [gap for s in good for gap in s.gaps],
        "tpot": [s.tpot for s in good if s.tpot is not None],
        "e2e": [s.late + s.e2e for s in good],
    }
    kept = sum(slo.kept(sample) for sample in samples)
    return Report(
        endpoint=endpoint,
        model=model,
        started=started,
        seconds=seconds,
        workload=asdict(workload),
        arrivals=asdict(arrivals),
        concurrency=concurrency,
        warmup=warmup,
        requests=len(samples),
        ok=len(good),
        failed=len(samples) - len(good),
        statuses={str(k): v for k, v in sorted(Counter(s.status for s in samples).items())},
        errors=dict(Counter(s.error for s in samples if s.error).most_common()),
        input_tokens=read,
        output_tokens=written,
        requests_per_second=len(good) / span,
        output_tokens_per_second=written / span,
        total_tokens_per_second=(read + written) / span,
        latency={name: latency(values) for name, values in measured.items() if values},
        late_max=max((s.late for s in samples), default=0.0),
        slo=asdict(slo),
        goodput=kept / span if slo else None,
        goodput_share=kept / len(samples) if slo and samples else None,
        replicas=[asdict(share) for share in shares],
        fairness=fairness(shares) if shares else None,
        samples=[_sample(sample) for sample in samples],
    )


def latency(values: Sequence[float]) -> Latency:
    ordered = sorted(values)
    return Latency(
        count=len(ordered),
        mean=sum(ordered) / len(ordered),
        max=ordered[-1],
        **{f"p{p}": percentile(ordered, p) for p in PERCENTILES},
    )


def percentile(ordered: Sequence[float], percent: float) -> float:
    """Linear between the two nearest of sorted values, as numpy's default."""
    place = (len(ordered) - 1) * percent / 100
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def read_report(text: str, *, where: str) -> Report:
    """Raises UsageError for a file that is not a saved report."""
    try:
        return Report.model_validate_json(text)
    except ValidationError as error:
        raise UsageError(
            f"{where} is not a report of this version: {error.errors()[0]['msg']}",
            hint="`onecopy loadtest --save FILE` writes one",
        ) from error


def _sample(sample: Sample) -> dict[str, Any]:
    row: dict[str, Any] = {
        "id": sample.id,
        "session": sample.session,
        "round": sample.round,
        "at": round(sample.at, 6),
        "status": sample.status,
        "seconds": round(sample.e2e, 6),
        "ttft": None if sample.ttft is None else round(sample.ttft, 6),
        "input_tokens": sample.input_tokens,
        "output_tokens": sample.output_tokens,
        "late": round(sample.late, 6),
        "error": sample.error,
    }
    return row
