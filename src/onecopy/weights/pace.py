"""How many connections a fetch uses, and when it holds back.

It begins with as many as the link wants at S3's 0.4 Gbps a connection (awscrt's figure), 8 where the link is not known,
and then measures: once a second it tries half as many more, keeps them if the rate grew by a tenth, and otherwise goes
back and stays there. A store that limits requests halves them and makes all wait, by its Retry-After where it gives one.
"""

from __future__ import annotations

import os
import random
from pathlib import Path

LEAST, MOST = 8, 64
"""On loopback more than 8 only cost; 64 hold 64 MiB of pieces and fill 25 Gbps at S3's rate a connection."""
GBPS_A_CONNECTION = 0.4
_STEP = 1.0
_WORTH = 1.1
_LONGEST_HOLD = 20.0


class Pace:
    """Not thread-safe: its owner's lock guards it. Times are monotonic seconds."""

    def __init__(self, parts: int, now: float) -> None:
        gbps = link_gbps()
        wanted = -(-gbps // GBPS_A_CONNECTION) if gbps else LEAST
        at_first = max(LEAST, min(int(wanted), 4 * (os.cpu_count() or 1)))
        self.workers = max(1, min(parts, MOST, at_first))
        self._most = min(parts, MOST)
        self._settled = False
        self._rate: float | None = None
        self._since, self._bytes, self._before = now, 0, self.workers
        self._hold_until, self._limits = 0.0, 0

    def measure(self, bytes_read: int, now: float) -> None:
        """Told often; decides once a second."""
        seconds = now - self._since
        if seconds < _STEP:
            return
        rate = (bytes_read - self._bytes) / seconds
        self._since, self._bytes = now, bytes_read
        if self._settled or not rate:
            return
        if self._rate is not None and rate < self._rate * _WORTH:
            self.workers, self._settled = self._before, True
            return
        self._rate, self._before = rate, self.workers
        self.workers = min(self._most, self.workers + max(1, self.workers // 2))

    def limited(self, retry_after: float | None, now: float) -> None:
        """The store said 429 or 503. Answers that were on their way together count once."""
        if now < self._hold_until:
            return
        self._limits += 1
        wait = retry_after if retry_after is not None else random.uniform(0.5, 1) * 0.2 * 2**self._limits  # noqa: S311
        self._hold_until = now + min(_LONGEST_HOLD, wait)
        self.workers, self._settled, self._rate = max(1, self.workers // 2), False, None

    def went_well(self) -> None:
        self._limits = max(0, self._limits - 1)

    def hold(self, now: float) -> float:
        """Seconds that nobody may begin a request for."""
        return max(0.0, self._hold_until - now)


def link_gbps() -> float | None:
    """Speed of the interface that the default route uses, where the kernel knows it: virtual ones often do not."""
    try:
        for line in Path("/proc/net/route").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[1] == "00000000":
                speed = int(Path(f"/sys/class/net/{fields[0]}/speed").read_text())
                return speed / 1000 if speed > 0 else None
    except (OSError, ValueError, IndexError):
        pass
    return None
