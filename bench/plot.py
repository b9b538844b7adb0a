"""A saved result of `load.py` as horizontal bars of seconds: `plot.py NAME` writes docs/NAME.svg."""

from __future__ import annotations

import json
import sys
from html import escape
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
LEFT, WIDTH, BAR = 190, 460, 24


def bars(rows: list[dict[str, Any]]) -> str:
    longest = max(row["seconds"] for row in rows)
    height = BAR * len(rows) + 30
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {LEFT + WIDTH + 130} {height}" '
        'font-family="sans-serif" font-size="13" role="img">',
        "<title>Seconds from store to memory, by loader</title>",
        f'<rect width="100%" height="{height}" fill="#ffffff"/>',
    ]
    for at, row in enumerate(sorted(rows, key=lambda row: (row["replicas"], row["seconds"]))):
        y, size = 15 + at * BAR, WIDTH * row["seconds"] / longest
        name = row["loader"] + (f" × {row['replicas']}" if row["replicas"] > 1 else "")
        color = "#1f6f4a" if row["loader"] == "onecopy" else "#9aa5b1"
        out.append(f'<text x="{LEFT - 8}" y="{y + 14}" text-anchor="end" fill="#1c1c1c">{escape(name)}</text>')
        out.append(f'<rect x="{LEFT}" y="{y + 2}" width="{size:.1f}" height="{BAR - 7}" fill="{color}"/>')
        label = f"{row['seconds']:.2f} s, {row['client_cpu_s_per_gb']:.2f} CPU-s/GB"
        out.append(f'<text x="{LEFT + size + 6:.1f}" y="{y + 14}" fill="#1c1c1c" font-size="11">{label}</text>')
    return "\n".join([*out, "</svg>", ""])


if __name__ == "__main__":
    name = sys.argv[1]
    saved = json.loads((ROOT / "bench/results" / f"{name}.json").read_text())
    (ROOT / "docs" / f"{name}.svg").write_text(bars(saved["rows"]))
