"""A run as one SVG: every request over time, the distribution of its times, and the replicas' shares.

Written by hand, because a plotting library would weigh more than the rest of the tool. Light and dark by the viewer's
own setting; failures have their own shape, not only their own colour.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

from onecopy.loadtest.report import Report, percentile

WIDTH, PANEL, LEFT, GAP = 860, 220, 70, 60
PLOT = WIDTH - LEFT - 30

STYLE = """
svg { font: 13px system-ui, sans-serif; --ink: #1b1f24; --soft: #d0d7de; --a: #0969da; --b: #bf3989; --bad: #cf222e; }
@media (prefers-color-scheme: dark) {
  svg { --ink: #e6edf3; --soft: #3d444d; --a: #58a6ff; --b: #f778ba; --bad: #ff7b72; background: #0d1117; } }
text { fill: var(--ink); } .axis { stroke: var(--soft); } .title { font-weight: 600; }
.e2e { fill: var(--a); } .ttft { fill: var(--b); } .bad { stroke: var(--bad); stroke-width: 2; }
path { fill: none; stroke-width: 2; } path.e2e { stroke: var(--a); fill: none; } path.ttft { stroke: var(--b); fill: none; }
"""


def write(report: Report, path: Path) -> None:
    path.write_text(svg(report), encoding="utf-8")


def svg(report: Report) -> str:
    rows = max(len(report.replicas), 1)
    height = 60 + 2 * (PANEL + GAP) + 30 + rows * 26 + 20
    summary = (
        f"{report.requests} requests, {report.failed} failed, {report.requests_per_second:.2f} requests/s, "
        f"{report.output_tokens_per_second:.0f} tokens/s"
    )
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" aria-labelledby="t d">',
        f"<title id='t'>Load test of {escape(report.model)}</title><desc id='d'>{escape(summary)}</desc>",
        f"<style>{STYLE}</style>",
        f"<text class='title' x='{LEFT}' y='24'>{escape(report.model)}: {escape(summary)}</text>",
        _timeline(report, 60),
        _distribution(report, 60 + PANEL + GAP),
        _shares(report, 60 + 2 * (PANEL + GAP)),
        "</svg>",
    ]
    return "\n".join(part for part in parts if part) + "\n"


def _timeline(report: Report, top: int) -> str:
    span = max(report.seconds, 1e-6)
    tall = max((s["seconds"] for s in report.samples), default=1.0) or 1.0
    parts = [
        _axes(top, f"{span:.1f} s after the start", f"{tall:.2f} s", "each request: whole (blue), first token (pink)")
    ]
    for sample in report.samples:
        x, y = LEFT + PLOT * sample["at"] / span, _y(top, sample["seconds"] / tall)
        if sample["error"] is not None:
            parts.append(f"<path class='bad' d='M{x - 4:.1f} {y - 4:.1f}l8 8m0 -8l-8 8'/>")
            continue
        parts.append(f"<circle class='e2e' cx='{x:.1f}' cy='{y:.1f}' r='3'/>")
        if sample["ttft"] is not None:
            parts.append(f"<circle class='ttft' cx='{x:.1f}' cy='{_y(top, sample['ttft'] / tall):.1f}' r='2'/>")
    return "\n".join(parts)


def _distribution(report: Report, top: int) -> str:
    good = [sample for sample in report.samples if sample["error"] is None]
    whole = sorted(sample["seconds"] for sample in good)
    first = sorted(sample["ttft"] for sample in good if sample["ttft"] is not None)
    if not whole:
        return _axes(top, "", "", "no request was answered")
    widest = whole[-1] or 1.0
    parts = [_axes(top, f"{widest:.2f} s", "100 %", "part of the requests that took no longer")]
    parts += [_curve("e2e", whole, widest, top), _curve("ttft", first, widest, top)]
    return "\n".join(parts)


def _curve(name: str, ordered: Sequence[float], widest: float, top: int) -> str:
    if not ordered:
        return ""
    points = (f"{LEFT + PLOT * percentile(ordered, p) / widest:.1f} {_y(top, p / 100):.1f}" for p in range(0, 101))
    return f"<path class='{name}' d='M{'L'.join(points)}'/>"


def _shares(report: Report, top: int) -> str:
    if not report.replicas:
        return ""
    parts = [f"<text class='title' x='{LEFT}' y='{top}'>served by each replica, by its own counters</text>"]
    for i, row in enumerate(report.replicas):
        y = top + 14 + i * 26
        share = row["share"] or 0.0
        label = "unknown" if row["served"] is None else f"{row['served']} ({share:.1%})"
        parts.append(
            f"<rect class='e2e' x='{LEFT + 90}' y='{y}' width='{share * (PLOT - 200):.1f}' height='18' rx='3'/>"
        )
        parts.append(f"<text x='{LEFT}' y='{y + 14}'>{escape(str(row['name']))}</text>")
        parts.append(f"<text x='{LEFT + 98 + share * (PLOT - 200):.1f}' y='{y + 14}'>{escape(label)}</text>")
    return "\n".join(parts)


def _axes(top: int, right: str, high: str, title: str) -> str:
    bottom = top + PANEL
    return (
        f"<text class='title' x='{LEFT}' y='{top - 8}'>{escape(title)}</text>"
        f"<path class='axis' d='M{LEFT} {top}V{bottom}H{LEFT + PLOT}'/>"
        f"<text x='{LEFT - 8}' y='{top + 10}' text-anchor='end'>{escape(high)}</text>"
        f"<text x='{LEFT - 8}' y='{bottom}' text-anchor='end'>0</text>"
        f"<text x='{LEFT + PLOT}' y='{bottom + 18}' text-anchor='end'>{escape(right)}</text>"
    )


def _y(top: int, part: float) -> float:
    return top + PANEL * (1 - part)
