"""When sessions start. Closed: as soon as a place is free. Open (the others): at times that do not wait for answers.

Only an open pattern shows what a queue does to users: a closed one asks less whenever the server is slow.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from onecopy.core.errors import UsageError

Pattern = Literal["closed", "poisson", "constant", "burst"]


@dataclass(frozen=True, slots=True)
class Arrivals:
    """rate: sessions a second, for the open patterns. burst: sessions that start together. seed: of the gaps."""

    pattern: Pattern = "closed"
    rate: float | None = None
    burst: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        if self.pattern != "closed" and (self.rate is None or self.rate <= 0):
            raise UsageError(f"{self.pattern} arrivals need a rate", hint="add --rate 4 (sessions a second)")
        if self.pattern == "closed" and self.rate is not None:
            raise UsageError("a rate makes no sense with closed arrivals", hint="add --arrivals poisson")
        if self.burst < 1:
            raise UsageError(f"a burst holds at least one session, got {self.burst}")

    def times(self) -> Iterator[float] | None:
        """Seconds after the start, one a session, without end; None for closed."""
        if self.pattern == "closed" or self.rate is None:
            return None
        return _open(self.pattern, self.rate, self.burst, random.Random(self.seed))  # noqa: S311


def _open(pattern: Pattern, rate: float, burst: int, draw: random.Random) -> Iterator[float]:
    now = 0.0
    while True:
        if pattern == "burst":
            for _ in range(burst):
                yield now
            now += burst / rate
            continue
        yield now
        now += draw.expovariate(rate) if pattern == "poisson" else 1 / rate
