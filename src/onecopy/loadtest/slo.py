"""Service level objectives: limits on one request. Goodput counts the requests that keep all of them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields

from onecopy.core.errors import UsageError
from onecopy.loadtest.client import Sample


@dataclass(frozen=True, slots=True)
class Slo:
    """Seconds; None is no limit. itl: the mean gap of one request, so that one hiccup does not condemn it."""

    ttft: float | None = None
    itl: float | None = None
    tpot: float | None = None
    e2e: float | None = None

    def __bool__(self) -> bool:
        return any(getattr(self, field.name) is not None for field in fields(self))

    def kept(self, sample: Sample) -> bool:
        if not sample.ok:
            return False
        gap = sum(sample.gaps) / len(sample.gaps) if sample.gaps else None
        measured = {"ttft": sample.ttft, "itl": gap, "tpot": sample.tpot, "e2e": sample.late + sample.e2e}
        for name, value in measured.items():
            limit = getattr(self, name)
            if limit is not None and value is not None and value > limit:
                return False
        return True


def parse_slo(texts: Sequence[str]) -> Slo:
    """`ttft=500ms`, `e2e=3s`, … Raises UsageError."""
    found: dict[str, float] = {}
    known = [field.name for field in fields(Slo)]
    for text in texts:
        match = re.fullmatch(r"\s*(\w+)\s*[=:]\s*(\d+(?:\.\d+)?)\s*(ms|s)\s*", text)
        if match is None or match[1] not in known:
            raise UsageError(f"not an objective: {text!r}", hint=f"write it as ttft=500ms; names: {', '.join(known)}")
        found[match[1]] = float(match[2]) * (0.001 if match[3] == "ms" else 1.0)
    return Slo(**found)
