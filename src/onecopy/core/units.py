"""Bytes and seconds, as people write and read them."""

from __future__ import annotations

import re

from onecopy.core.errors import UsageError

KiB, MiB, GiB = 1 << 10, 1 << 20, 1 << 30
_UNITS = {
    "": 1,
    "b": 1,
    "k": 10**3,
    "m": 10**6,
    "g": 10**9,
    "t": 10**12,
    "ki": KiB,
    "mi": MiB,
    "gi": GiB,
    "ti": 1 << 40,
}


def parse_bytes(text: str | int) -> int:
    """`512MiB`, `1.5G`, `1024` → bytes. Kubernetes quantities (`16Gi`) are understood too."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?i?)b?\s*", str(text), re.IGNORECASE)
    if match is None or match[2].lower() not in _UNITS:
        raise UsageError(f"not a size: {text!r}", hint="write it as 512MiB, 16Gi, 1.5GB or plain bytes")
    return int(float(match[1]) * _UNITS[match[2].lower()])


def format_bytes(count: float) -> str:
    """Decimal units, as disks and clouds bill: 269060552 → `269.1 MB`."""
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if abs(value) < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.2f} TB"


def format_seconds(seconds: float) -> str:
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02d} min"
