"""A report as text for people."""

from __future__ import annotations

from collections.abc import Sequence

from onecopy.core.units import format_seconds
from onecopy.loadtest.client import Sample
from onecopy.loadtest.report import METRICS, Report


def line(sample: Sample) -> str:
    """One request, as it ends."""
    what = sample.error or f"{sample.output_tokens} tokens, first after {_time(sample.ttft)}"
    return f"#{sample.id:<5} {sample.status or '---'}  {_time(sample.e2e):>8}  {what}"


def text(report: Report) -> str:
    lines = [
        f"{report.requests} requests to {report.model} at {report.endpoint} in {format_seconds(report.seconds)}: "
        f"{report.ok} answered, {report.failed} failed",
        f"{report.requests_per_second:.2f} requests/s, {report.output_tokens_per_second:.1f} tokens/s written, "
        f"{report.total_tokens_per_second:.1f} tokens/s in all",
    ]
    rows = [
        (label, *(_time(value) for value in (found.mean, found.p50, found.p90, found.p95, found.p99, found.max)))
        for name, label in METRICS.items()
        if (found := report.latency.get(name))
    ]
    if rows:
        lines += ["", *_columns(("latency", "mean", "p50", "p90", "p95", "p99", "max"), rows)]
    if report.goodput is not None and report.goodput_share is not None:
        limits = ", ".join(f"{name} ≤ {_time(limit)}" for name, limit in report.slo.items() if limit is not None)
        lines += ["", f"goodput {report.goodput:.2f} requests/s, {report.goodput_share:.1%} of all ({limits})"]
    if report.replicas:
        lines += [
            "",
            *_columns(("replica", "served", "share", "tokens", ""), [_replica(row) for row in report.replicas]),
        ]
        if report.fairness is not None:
            lines.append(f"fairness {report.fairness:.3f} (1 is even), by the replicas' own counters")
    for error, count in report.errors.items():
        lines += ["", f"{count} × {error}"]
    if report.late_max > 0.05:
        lines += ["", f"the generator was up to {_time(report.late_max)} behind its times"]
    return "\n".join(lines)


def _replica(row: dict[str, object]) -> tuple[str, ...]:
    share, remark = row["share"], row["error"] or ("restarted during the run" if row["restarted"] else "")
    return (
        str(row["name"]),
        "?" if row["served"] is None else str(row["served"]),
        f"{share:.1%}" if isinstance(share, float) else "?",
        "?" if row["generation_tokens"] is None else str(row["generation_tokens"]),
        str(remark),
    )


def _columns(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    return [
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in (head, *rows)
    ]


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.2f} s"
